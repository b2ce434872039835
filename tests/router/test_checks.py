"""Bad requests are refused in OpenAI's words, by the path of the first value at fault."""

import json
from typing import Any

import pytest

from tandem.errors import ApiError
from tandem.fleet import Engine, Snapshot, State
from tandem.models.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from tandem.router import checks

E, C, CHAT = EmbeddingRequest, CompletionRequest, ChatCompletionRequest
HI = [{"role": "user", "content": "hi"}]


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
        (E, {"model": "m", "input": "a", "encoding_format": "hex"}, "Invalid value: 'hex'. Supported values are: 'float' and 'base64'.", "encoding_format", "invalid_value"),
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
        (C, {"model": "m", "prompt": "a", "best_of": 3, "n": 2}, "Unsupported parameter: 'best_of'", "best_of", "unsupported_parameter"),
        (CHAT, {"model": "m"}, "Missing required parameter: 'messages'.", "messages", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": []}, "Invalid 'messages': empty array.", "messages", "empty_array"),
        (CHAT, {"model": "m", "messages": [{"role": "king"}]}, "Invalid value: 'king'. Supported values are: 'developer', 'system', 'user', 'assistant', 'tool' and 'function'.", "messages[0].role", "invalid_value"),
        (CHAT, {"model": "m", "messages": [*HI, {"content": "x"}]}, "Missing required parameter: 'messages[1].role'.", "messages[1].role", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": "hi"}, "Invalid type for 'messages': expected an array of values, but got a string instead.", "messages", "invalid_type"),
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
    """As they are, in order, and the body for the engine names the engine's model."""
    request = checks.parse(EmbeddingRequest, json.dumps({"model": "alias", "input": given, "user": "u"}).encode())
    assert json.loads(request.forwarded("org/m")) == {"model": "org/m", "input": given}


def test_nulls_count_as_absent_and_extensions_pass() -> None:
    """What the caller set is forwarded, and nothing else."""
    body = {"model": "m", "prompt": "a", "n": None, "stop": None, "top_k": 5, "ignore_eos": True, "metadata": None}
    request = checks.parse(CompletionRequest, json.dumps(body).encode())
    assert json.loads(request.forwarded("m")) == {"model": "m", "prompt": "a", "top_k": 5, "ignore_eos": True}


def test_messages_reach_the_engine_whole() -> None:
    """Keys that differ by role and model family are left to the engine; a null inside a message stays."""
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "x"}]},
    ]
    body = {"model": "m", "messages": messages, "tools": [{"type": "function"}], "store": True}
    request = checks.parse(ChatCompletionRequest, json.dumps(body).encode())
    assert json.loads(request.forwarded("m")) == {"model": "m", "messages": messages, "tools": body["tools"]}


@pytest.mark.parametrize("kind", ["", "application/json", "Application/JSON; charset=utf-8"])
def test_json_is_accepted(kind: str) -> None:
    checks.content_type(kind)


def test_other_content_types_are_refused() -> None:
    with pytest.raises(ApiError) as caught:
        checks.content_type("text/plain; charset=utf-8")
    assert caught.value.status == 415


EMBEDDING = Engine(name="embedding", kind="embedding", model="emb", state=State.READY)
GENERATION = Engine(name="generation", kind="generation", model="gen", state=State.LOADING)
FLEET = Snapshot((EMBEDDING, GENERATION))


@pytest.mark.parametrize(
    ("model", "kind", "status", "code"),
    [
        ("nope", "embedding", 404, "model_not_found"),
        ("gen", "embedding", 403, None),
        ("embedding", "generation", 404, None),
        ("generation", "generation", 503, "model_not_ready"),
    ],
)
def test_no_engine_for_a_request(model: str, kind: str, status: int, code: str | None) -> None:
    """Unknown, of the other kind, not ready; no other model's name is told."""
    with pytest.raises(ApiError) as caught:
        checks.engine_for(FLEET, model, kind, "/v1/x")
    assert (caught.value.status, caught.value.code) == (status, code)
    assert ("Retry-After" in caught.value.headers) == (status == 503)
    assert {"emb", "gen", "embedding", "generation"}.isdisjoint(set(caught.value.message.split("`")[1:2]) - {model})


def test_an_engine_is_found_by_any_of_its_names() -> None:
    assert checks.engine_for(FLEET, "emb", "embedding", "/v1/embeddings") is EMBEDDING
    assert checks.engine_for(FLEET, "embedding", "embedding", "/v1/embeddings") is EMBEDDING
