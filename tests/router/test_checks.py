"""Bad requests are refused in OpenAI's words, by the path of the first value at fault."""

import json
from typing import Any

import pytest

from tandem.errors import ApiError
from tandem.fleet import Engine, Snapshot, State
from tandem.models.requests import INTERNAL, ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from tandem.router import checks

E, C, CHAT = EmbeddingRequest, CompletionRequest, ChatCompletionRequest
HI = [{"role": "user", "content": "hi"}]
CALLING = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("model", "body", "message", "param", "code"),
    [
        (E, {}, "you must provide a model parameter", None, None),
        (E, {"model": ""}, "Invalid 'model': empty string.", "model", "empty_string"),
        (E, {"model": 3, "input": "a"}, "Invalid type for 'model': expected a string, but got an integer instead.", "model", "invalid_type"),
        (E, {"model": "m"}, "Please submit an `input`.", "input", None),
        (E, {"model": "m", "input": None}, "Please submit an `input`.", "input", None),
        (E, {"model": "m", "input": ""}, "Invalid 'input': input cannot be an empty string.", "input", None),
        (E, {"model": "m", "input": ["a", "", "b"]}, "Invalid 'input[1]': input cannot be an empty string.", "input[1]", None),
        (E, {"model": "m", "input": []}, "Invalid 'input': empty array.", "input", "empty_array"),
        (E, {"model": "m", "input": [[1], []]}, "Invalid 'input[1]': empty array.", "input[1]", "empty_array"),
        (E, {"model": "m", "input": ["a", 1]}, "Invalid type for 'input[1]': expected a string, but got an integer instead.", "input[1]", "invalid_type"),
        (E, {"model": "m", "input": [1, "a"]}, "Invalid type for 'input[1]': expected an integer, but got a string instead.", "input[1]", "invalid_type"),
        (E, {"model": "m", "input": [[1], [2, 1.5]]}, "Invalid type for 'input[1][1]': expected an integer, but got a decimal number instead.", "input[1][1]", "invalid_type"),
        (E, {"model": "m", "input": [True]}, "Invalid type for 'input[0]': expected an integer, but got a boolean instead.", "input[0]", "invalid_type"),
        (E, {"model": "m", "input": [5, -1]}, "Invalid 'input[1]': integer below minimum value. Expected a value >= 0, but got -1 instead.", "input[1]", "integer_below_min_value"),
        (E, {"model": "m", "input": {"a": 1}}, "Invalid type for 'input': expected a string or an array, but got an object instead.", "input", "invalid_type"),
        (E, {"model": "m", "input": ["a"] * 2049}, "Invalid 'input': array length must be 2048 or less, but got 2049.", "input", "array_above_max_length"),
        (E, {"model": "m", "input": "a", "encoding_format": "hex"}, "Invalid value for 'encoding_format': 'hex'. Supported values are: 'float' and 'base64'.", "encoding_format", "invalid_value"),
        (E, {"model": "m", "input": "a", "dimensions": 0}, "Invalid 'dimensions': integer below minimum value. Expected a value >= 1, but got 0 instead.", "dimensions", "integer_below_min_value"),
        (E, {"model": "m", "input": "a", "foo": 1}, "Unknown parameter: 'foo'.", "foo", "unknown_parameter"),
        (E, {"model": "m", "input": "a", "priority": 1}, "Unknown parameter: 'priority'.", "priority", "unknown_parameter"),
        (C, {"model": "m"}, "Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter"),
        (C, {"model": "m", "prompt": ["a", 3]}, "Invalid type for 'prompt[1]': expected a string, but got an integer instead.", "prompt[1]", "invalid_type"),
        (C, {"model": "m", "prompt": "a", "n": 129}, "Invalid 'n': integer above maximum value. Expected a value <= 128, but got 129 instead.", "n", "integer_above_max_value"),
        (C, {"model": "m", "prompt": "a", "n": 0}, "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead.", "n", "integer_below_min_value"),
        (C, {"model": "m", "prompt": "a", "temperature": 2.1}, "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.1 instead.", "temperature", "decimal_above_max_value"),
        (C, {"model": "m", "prompt": "a", "max_tokens": -1}, "Invalid 'max_tokens': integer below minimum value. Expected a value >= 0, but got -1 instead.", "max_tokens", "integer_below_min_value"),
        (C, {"model": "m", "prompt": "a", "max_tokens": "9"}, "Invalid type for 'max_tokens': expected an integer, but got a string instead.", "max_tokens", "invalid_type"),
        (C, {"model": "m", "prompt": "a", "stop": list("abcde")}, "Invalid 'stop': array too long. Expected an array with maximum length 4, but got an array with length 5 instead.", "stop", "array_above_max_length"),
        (C, {"model": "m", "prompt": "a", "stream_options": {"include_usage": True}}, "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options", None),
        (C, {"model": "m", "prompt": "a", "stream": True, "stream_options": {"x": 1}}, "Unknown parameter: 'stream_options.x'.", "stream_options.x", "unknown_parameter"),
        (C, {"model": "m", "prompt": "a", "best_of": 2, "n": 3}, "You requested that the server return more choices", "best_of", None),
        (C, {"model": "m", "prompt": "a", "best_of": 3, "n": 2, "stream": True}, "You requested that the server stream results", "best_of", None),
        (C, {"model": "m", "prompt": "a", "best_of": 21}, "Invalid 'best_of': integer above maximum value.", "best_of", "integer_above_max_value"),
        (C, {"model": "m", "prompt": ""}, "Invalid 'prompt': input cannot be an empty string.", "prompt", None),
        (C, {"model": "m", "prompt": ["a", ""]}, "Invalid 'prompt[1]': input cannot be an empty string.", "prompt[1]", None),
        (C, {"model": "m", "prompt": [2**40]}, "Invalid 'prompt[0]': integer above maximum value.", "prompt[0]", "integer_above_max_value"),
        (C, {"model": "m", "prompt": ["a"] * 1025}, "Invalid 'prompt': array too long. Expected an array with maximum length 1024", "prompt", "array_above_max_length"),
        (C, {"model": "m", "prompt": "a", "suffix": "b"}, "Unrecognized request argument supplied: suffix", "suffix", None),
        (C, {"model": "m", "prompt": "a", "stop": ""}, "Invalid 'stop': empty string.", "stop", "empty_string"),
        (C, {"model": "m", "prompt": "a", "stop": ["x", ""]}, "Invalid 'stop[1]': empty string.", "stop[1]", "empty_string"),
        (C, {"model": "m", "prompt": "a", "stop": ["x", 1]}, "Invalid type for 'stop[1]': expected a string, but got an integer instead.", "stop[1]", "invalid_type"),
        (C, {"model": "m", "prompt": "a", "bad_words": [""]}, "Invalid 'bad_words[0]': empty string.", "bad_words[0]", "empty_string"),
        (C, {"model": "m", "prompt": "a", "seed": 2**63}, "Invalid 'seed': integer above maximum value.", "seed", "integer_above_max_value"),
        (C, {"model": "m", "prompt": "a", "top_k": 2**64}, "Invalid 'top_k': integer above maximum value.", "top_k", "integer_above_max_value"),
        (C, {"model": "m", "prompt": "a", "top_k": -2}, "Invalid 'top_k': integer below minimum value.", "top_k", "integer_below_min_value"),
        (C, {"model": "m", "prompt": "a", "top_p": 1.5}, "Invalid 'top_p': decimal above maximum value.", "top_p", "decimal_above_max_value"),
        (C, {"model": "m", "prompt": "a", "temperature": float("nan")}, "Invalid type for 'temperature': expected a finite number", "temperature", "invalid_type"),
        (C, {"model": "m", "prompt": "a", "repetition_penalty": float("inf")}, "Invalid type for 'repetition_penalty': expected a finite number", "repetition_penalty", "invalid_type"),
        (C, {"model": "m", "prompt": "a", "temperature": True}, "Invalid type for 'temperature': expected a decimal number, but got a boolean instead.", "temperature", "invalid_type"),
        (C, {"model": "m", "prompt": "a", "logprobs": 6}, "Invalid 'logprobs': integer above maximum value. Expected a value <= 5, but got 6 instead.", "logprobs", "integer_above_max_value"),
        (C, {"model": "m", "prompt": "a", "logit_bias": {"x": 1}}, "Invalid key in 'logit_bias': x. You should only be submitting non-negative integers.", "logit_bias", None),
        (C, {"model": "m", "prompt": "a", "logit_bias": {"5": 101}}, "Invalid 'logit_bias': decimal above maximum value.", "logit_bias", "decimal_above_max_value"),
        (C, {"model": "m", "prompt": "a", "truncate_prompt_tokens": 0}, "Invalid 'truncate_prompt_tokens': integer below minimum value.", "truncate_prompt_tokens", "integer_below_min_value"),
        (C, {"model": "m", "prompt": "a", "prompt_logprobs": 1}, "Unsupported parameter: 'prompt_logprobs'", "prompt_logprobs", "unsupported_parameter"),
        (C, {"model": "m", "prompt": "a", "use_beam_search": True, "seed": 1}, "Unsupported parameter: 'seed' is not supported with 'use_beam_search'.", "seed", "unsupported_parameter"),
        (C, {"model": "m", "prompt": "a", "use_beam_search": True, "stream": True}, "Unsupported parameter: 'stream'", "stream", "unsupported_parameter"),
        (C, {"model": "m", "prompt": "a", "guided_regex": "a", "guided_choice": ["a"]}, "Only one of 'guided_regex' and 'guided_choice' can be used at a time.", "guided_choice", None),
        (C, {"model": "m", "prompt": "a", "response_format": {"type": "xml"}}, "Invalid value: 'xml'. Supported values are: 'text', 'json_object', 'json_schema' and 'structural_tag'.", "response_format.type", "invalid_value"),
        (C, {"model": "m", "prompt": "a", "response_format": {"type": "json_schema"}}, "Missing required parameter: 'response_format.json_schema'.", "response_format.json_schema", "missing_required_parameter"),
        (C, {"model": "m", "prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"maximum": 2**64}}}}, "Invalid 'response_format.json_schema.schema': a number in it is too large.", "response_format.json_schema.schema", "invalid_value"),
        (C, {"model": "m", "prompt": "a", "stream": True, "stream_options": {"include_obfuscation": True}}, "Unsupported parameter: 'stream_options.include_obfuscation'", "stream_options.include_obfuscation", "unsupported_parameter"),
        (CHAT, {"model": "m"}, "Missing required parameter: 'messages'.", "messages", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": []}, "Invalid 'messages': empty array.", "messages", "empty_array"),
        (CHAT, {"model": "m", "messages": [{"role": "king"}]}, "Invalid value: 'king'. Supported values are: 'developer', 'system', 'user', 'assistant', 'tool' and 'function'.", "messages[0].role", "invalid_value"),
        (CHAT, {"model": "m", "messages": [*HI, {"content": "x"}]}, "Missing required parameter: 'messages[1].role'.", "messages[1].role", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": "hi"}, "Invalid type for 'messages': expected an array of values, but got a string instead.", "messages", "invalid_type"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": None}]}, "Invalid value for 'content': expected a string, got null.", "messages.[0].content", None),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": [{"type": "text"}]}]}, "Missing required parameter: 'messages[0].content[0].text'.", "messages[0].content[0].text", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "Invalid type for 'messages[0].content[0].text': expected a string, but got an integer instead.", "messages[0].content[0].text", "invalid_type"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": [{"type": "file"}]}]}, "Invalid value: 'file'. Supported values are: 'text', 'image_url', 'input_audio', 'refusal', 'audio_url', 'video_url'.", "messages[0].content[0].type", "invalid_value"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": [{"text": "x"}]}]}, "Missing required parameter: 'messages[0].content[0].type'.", "messages[0].content[0].type", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "Invalid type for 'messages[0].content[0].image_url': expected an object, but got a string instead.", "messages[0].content[0].image_url", "invalid_type"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": 5}]}, "Invalid type for 'messages[0].content': expected a string", "messages[0].content", "invalid_type"),
        (CHAT, {"model": "m", "messages": [*HI, {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}]}, "Missing required parameter: 'messages[1].tool_calls[0].function.arguments'.", "messages[1].tool_calls[0].function.arguments", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": [*HI, {"role": "tool", "content": "x"}]}, "Missing required parameter: 'messages[1].tool_call_id'.", "messages[1].tool_call_id", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": [*HI, {"role": "tool", "tool_call_id": "1", "content": "x"}]}, "Invalid parameter: messages with role 'tool' must be a response", "messages.[1].role", None),
        (CHAT, {"model": "m", "messages": [*HI, CALLING, *HI]}, "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: c1", "messages.[1].role", None),
        (CHAT, {"model": "m", "messages": [*HI, CALLING]}, "An assistant message with 'tool_calls' must be followed", "messages.[1].role", None),
        (CHAT, {"model": "m", "messages": HI, "parallel_tool_calls": True}, "Invalid value for 'parallel_tool_calls'", "parallel_tool_calls", None),
        (CHAT, {"model": "m", "messages": HI, "tools": [TOOL] * 129}, "Invalid 'tools': array too long. Expected an array with maximum length 128", "tools", "array_above_max_length"),
        (CHAT, {"model": "m", "messages": HI, "tools": []}, "Invalid 'tools': empty array.", "tools", "empty_array"),
        (CHAT, {"model": "m", "messages": HI, "tools": [{"type": "function"}]}, "Missing required parameter: 'tools[0].function'.", "tools[0].function", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": HI, "tools": [{"type": "custom", "custom": {}}]}, "Invalid value: 'custom'. Supported values are: 'function'.", "tools[0].type", "invalid_value"),
        (CHAT, {"model": "m", "messages": HI, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "Invalid 'tools[0].function.name': string does not match pattern.", "tools[0].function.name", "invalid_value"),
        (CHAT, {"model": "m", "messages": HI, "tools": [TOOL], "tool_choice": {"type": "function"}}, "Missing required parameter: 'tool_choice.function'.", "tool_choice.function", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": HI, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "Invalid value for 'tool_choice': no such function", "tool_choice", None),
        (CHAT, {"model": "m", "messages": HI, "tool_choice": "auto"}, "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.", "tool_choice", None),
        (CHAT, {"model": "m", "messages": HI, "max_tokens": 5, "max_completion_tokens": 5}, "Setting 'max_tokens' and 'max_completion_tokens'", "max_tokens", "invalid_parameter_combination"),
        (CHAT, {"model": "m", "messages": HI, "functions": []}, "Unsupported parameter: 'functions'", "functions", "unsupported_parameter"),
        (CHAT, {"model": "m", "messages": HI, "continue_final_message": True, "add_generation_prompt": True}, "The 'continue_final_message' parameter is only allowed", "continue_final_message", None),
        (CHAT, {"model": "m", "messages": HI, "top_logprobs": 2}, "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs", None),
    ],
)  # fmt: skip
def test_refusals(model: type[E | C | CHAT], body: dict[str, Any], message: str, param: str, code: str) -> None:
    """Status 400, OpenAI's sentence, the path, the code."""
    with pytest.raises(ApiError) as caught:
        checks.parse(model, json.dumps(body).encode())
    refusal = caught.value
    assert refusal.message.startswith(message)
    assert (refusal.status, refusal.type, refusal.param, refusal.code) == (400, "invalid_request_error", param, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff", b'{"model": "m", "input": "a"} x'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="could not parse the JSON body"):
        checks.parse(EmbeddingRequest, body)


@pytest.mark.parametrize("given", ["a", ["a", "b"], [1, 2], [[1], [2, 3]], ["a"] * 2048])
def test_the_four_input_shapes_pass(given: object) -> None:
    """As they are, in order."""
    request = checks.parse(EmbeddingRequest, json.dumps({"model": "alias", "input": given, "user": "u"}).encode())
    assert request.input == given


def test_messages_pass_whole() -> None:
    """Keys that differ by role and model family are left to the engine; nulls inside count as absent, too."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "x", "cache_control": {"a": 1}}]},
    ]
    request = checks.parse(ChatCompletionRequest, json.dumps({"model": "m", "messages": messages}).encode())
    assert [message.model_dump(exclude_unset=True) for message in request.messages] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call], "reasoning": "hm"},
        messages[2],
    ]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (CHAT, {"messages": [0] * 300_000}),
        (CHAT, {"messages": HI, "metadata": {str(n): n for n in range(300_000)}}),
        (CHAT, {"messages": HI, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"k" * 10**6: [0] * 20_000, "x": 2**70}}}]}),
        (CHAT, {"messages": HI, "documents": [{"a": 0}] * 300_000}),
        (C, {"prompt": "a", "stop_token_ids": ["x"] * 300_000}),
        (C, {"prompt": "a", "bad_words": [0] * 300_000}),
        (C, {"prompt": "a", "logit_bias": {str(n): "x" for n in range(300_000)}}),
        (C, {"prompt": "a"} | {f"k{n}": 0 for n in range(300_000)}),
        (C, {"prompt": "a", "n": 10**4000}),
        (E, {"input": [0.5] * 300_000}),
    ],
)  # fmt: skip
@pytest.mark.timeout(10)
def test_a_large_wrong_request_is_refused_shortly(model: type[E | C | CHAT], body: dict[str, Any]) -> None:
    """One complaint is enough, and it repeats no more than the beginning of what is wrong."""
    with pytest.raises(ApiError) as caught:
        checks.parse(model, json.dumps({"model": "m", **body}).encode())
    assert len(caught.value.message) < 1000
    assert len(caught.value.param or "") <= 200


def test_what_is_not_strict_passes_all_but_the_engine_s_levers() -> None:
    """`api.strict = false`: unknown parameters go on to vLLM; its levers for whoever runs it never do."""
    body = {"model": "m", "prompt": "a", "return_token_ids": True, "prompt_logprobs": 3}
    with pytest.raises(ApiError, match="return_token_ids"):
        checks.parse(CompletionRequest, json.dumps(body).encode())
    request = checks.parse(CompletionRequest, json.dumps(body).encode(), strict=False)
    assert request.model_extra == {"return_token_ids": True}
    for name in INTERNAL:
        with pytest.raises(ApiError, match=f"Unknown parameter: '{name}'"):
            checks.parse(CompletionRequest, json.dumps({**body, name: 1}).encode(), strict=False)


EMBEDDING = Engine(name="embedding", kind="embedding", model="emb", state=State.READY)
GENERATION = Engine(name="generation", kind="generation", model="gen", state=State.LOADING)
FLEET = Snapshot((EMBEDDING, GENERATION))


@pytest.mark.parametrize(
    ("model", "kind", "status", "code"),
    [
        ("nope", "embedding", 404, "model_not_found"),
        ("gen", "embedding", 403, None),
        ("embedding", "generation", 404, None),
    ],
)
def test_no_engine_for_a_request(model: str, kind: str, status: int, code: str | None) -> None:
    """Unknown, or of the other kind; no other model's name is told."""
    with pytest.raises(ApiError) as caught:
        checks.engine_for(FLEET, model, kind, "/v1/x")
    assert (caught.value.status, caught.value.code) == (status, code)
    assert {"emb", "gen", "embedding", "generation"}.isdisjoint(set(caught.value.message.split("`")[1:2]) - {model})


def test_an_engine_is_found_by_any_of_its_names() -> None:
    assert checks.engine_for(FLEET, "emb", "embedding", "/v1/embeddings") is EMBEDDING
    assert checks.engine_for(FLEET, "embedding", "embedding", "/v1/embeddings") is EMBEDDING
