"""What the API demands of a request across its fields, and which engine it is for. Pure."""

from collections.abc import Sequence
from math import isfinite
from typing import TypeVar

from pydantic import ValidationError

from tandem.errors import ApiError
from tandem.fleet import Engine, Kind, Snapshot
from tandem.models.requests import (
    GUIDED,
    INTERNAL,
    MAX_INPUTS,
    MAX_PROMPTS,
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    EmbeddingRequest,
    NamedToolChoice,
)
from tandem.router import complaints, wording

R = TypeVar("R", EmbeddingRequest, CompletionRequest, ChatCompletionRequest)

_UNSUPPORTED = ("audio", "function_call", "functions", "moderation", "prediction", "web_search_options")
# What vLLM's beam search does not heed, and does not say so.
_NOT_WITH_BEAMS = (
    *("stop", "seed", "top_p", "top_k", "min_p", "min_tokens", "frequency_penalty", "presence_penalty"),
    *("repetition_penalty", "logit_bias", "bad_words", "allowed_token_ids", "stop_token_ids"),
    *("response_format", "structured_outputs", *GUIDED),
)
# Parameters that are looked into beyond their types: most requests have none of them.
_LOOKED_INTO = frozenset(
    {
        "stop",
        "logit_bias",
        "truncate_prompt_tokens",
        "use_beam_search",
        "response_format",
        "structured_outputs",
        *GUIDED,
    }
)


def parse(model: type[R], body: bytes, *, strict: bool = True, max_inputs: int = MAX_INPUTS) -> R:
    """The request in ``body``.

    Args:
        strict: refuse parameters that neither OpenAI nor vLLM's documentation names.
        max_inputs: how many texts an embedding request may have.

    Raises:
        ApiError: 400, with the path of the first value that is wrong.
    """
    try:
        request = model.model_validate_json(body, extra=None if strict else "allow")
    except ValidationError as exc:
        raise complaints.refusal(exc) from exc
    for name in request.model_extra or ():
        if name in INTERNAL:
            raise wording.unknown(name)
    if strict and not isinstance(request, EmbeddingRequest) and request.prompt_logprobs is not None:
        raise wording.unsupported("prompt_logprobs")  # their place in an answer is not the specification's
    if isinstance(request, EmbeddingRequest):
        _embedding(request, max_inputs)
    else:
        _generation(request)
    return request


def engine_for(snapshot: Snapshot, model: str, kind: Kind, path: str) -> Engine:
    """The engine that serves ``model``, if it can do what ``path`` asks; ready or not.

    Raises:
        ApiError: 404 unknown, 403 or 404 of the other kind.
    """
    engine = snapshot.find(model)
    if engine is None:
        raise wording.model_not_found(model)
    if engine.kind != kind:
        if kind == "embedding":
            raise ApiError(403, "You are not allowed to generate embeddings from this model", param="model")
        raise ApiError(
            404,
            f"This is an embedding model and not supported in the {path.lstrip('/')} endpoint. "
            "Did you mean to use v1/embeddings?",
            param="model",
        )
    return engine


def context(prompt_tokens: int, wanted: int, limit: int, *, param: str) -> None:
    """Refuse what does not fit into a model's context of ``limit`` tokens, prompt and answer together.

    Args:
        param: the parameter that holds the prompt.
    """
    if prompt_tokens + wanted > limit:
        raise wording.context_exceeded(limit, prompt_tokens, wanted, param=param)


def _embedding(request: EmbeddingRequest, max_inputs: int) -> None:
    given = request.input
    if given == "" or (isinstance(given, list) and "" in given):
        complaints.prompts("input", given)
    if isinstance(given, list) and not isinstance(given[0], int) and len(given) > max_inputs:
        raise ApiError(
            400,
            f"Invalid 'input': array length must be {max_inputs} or less, but got {len(given)}.",
            param="input",
            code="array_above_max_length",
        )


def _generation(request: CompletionRequest | ChatCompletionRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise ApiError(
            400,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        raise wording.unsupported("stream_options.include_obfuscation")
    given = request.model_fields_set
    if not given.isdisjoint(_LOOKED_INTO):
        _sampling(request)
        _constraints(request)
    if isinstance(request, CompletionRequest):
        _completion(request)
    else:
        _chat(request)


def _sampling(request: CompletionRequest | ChatCompletionRequest) -> None:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    for index, stop in enumerate(stops):
        if not stop:
            raise wording.empty_text("stop" if isinstance(request.stop, str) else f"stop[{index}]")
    for key in request.logit_bias or ():
        if not (key.isascii() and key.isdecimal()):
            raise wording.logit_bias_key(key)
    if request.truncate_prompt_tokens == 0:
        raise wording.out_of_range("truncate_prompt_tokens", 0, "greater_than_equal", {"ge": 1})
    if request.use_beam_search:
        for name in _NOT_WITH_BEAMS:
            if getattr(request, name) not in (None, [], {}):
                raise ApiError(
                    400,
                    f"Unsupported parameter: '{name}' is not supported with 'use_beam_search'.",
                    param=name,
                    code="unsupported_parameter",
                )


def _constraints(request: CompletionRequest | ChatCompletionRequest) -> None:
    given = [name for name in (*GUIDED, "structured_outputs") if getattr(request, name) is not None]
    wanted = request.response_format
    if wanted is not None and wanted.type != "text":
        given.append("response_format")
        if wanted.type == "json_schema":
            if wanted.json_schema is None:
                raise wording.missing("response_format.json_schema")
            if wanted.json_schema.schema_ is None:
                raise wording.missing("response_format.json_schema.schema")
            _numbers("response_format.json_schema.schema", wanted.json_schema.schema_)
    if len(given) > 1:
        raise ApiError(400, f"Only one of '{given[0]}' and '{given[1]}' can be used at a time.", param=given[1])
    _numbers("structured_outputs", request.structured_outputs)
    _numbers("guided_json", request.guided_json)


def _numbers(name: str, schema: object) -> None:
    """Refuse numbers that no engine can take over: those beyond 64 bits, and those that are none."""
    rest = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
        elif (isinstance(value, int) and not -(2**63) <= value < 2**63) or (
            isinstance(value, float) and not isfinite(value)
        ):
            raise ApiError(400, f"Invalid '{name}': a number in it is too large.", param=name, code="invalid_value")


def _completion(request: CompletionRequest) -> None:
    prompts = request.prompt if isinstance(request.prompt, list) and not isinstance(request.prompt[0], int) else []
    if len(prompts) > MAX_PROMPTS:
        raise wording.wrong_length("prompt", "too_long", {"max_length": MAX_PROMPTS, "actual_length": len(prompts)})
    if request.prompt == "" or "" in prompts:
        complaints.prompts("prompt", request.prompt)
    if request.suffix:
        raise ApiError(400, "Unrecognized request argument supplied: suffix", param="suffix")
    if request.use_beam_search and request.stream:
        raise ApiError(
            400,
            "Unsupported parameter: 'stream' is not supported with 'use_beam_search'.",
            param="stream",
            code="unsupported_parameter",
        )
    n, best_of = request.n or 1, request.best_of
    if best_of is None or best_of == n:
        return
    if best_of < n:
        raise ApiError(
            400,
            "You requested that the server return more choices than it will generate (HINT: you must set 'n' "
            f"(currently {n}) to be at most 'best_of' (currently {best_of}), or omit either parameter if you don't "
            "specifically want to use them.)",
            param="best_of",
        )
    if request.stream:
        raise ApiError(
            400,
            "You requested that the server stream results, which is not possible with 'best_of' greater than 'n' "
            f"(currently {best_of} and {n}).",
            param="best_of",
        )


def _chat(request: ChatCompletionRequest) -> None:
    unsupported = [name for name in _UNSUPPORTED if getattr(request, name) is not None]
    if "audio" in (request.modalities or ()):
        unsupported.append("modalities")
    if unsupported:
        raise wording.unsupported(unsupported[0])
    for index, message in enumerate(request.messages):
        _message(index, message)
    _tool_messages(request.messages)
    _tools(request)
    if request.continue_final_message and request.add_generation_prompt:
        raise ApiError(
            400,
            "The 'continue_final_message' parameter is only allowed when 'add_generation_prompt' is false.",
            param="continue_final_message",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(
            400,
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            param="top_logprobs",
        )
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(
            400,
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            param="max_tokens",
            code="invalid_parameter_combination",
        )
    if request.max_tokens == 0:
        raise wording.out_of_range("max_tokens", 0, "greater_than_equal", {"ge": 1})


def _message(index: int, message: ChatMessage) -> None:
    if message.content is None and not (
        message.role in {"assistant", "function"} and (message.tool_calls or message.model_extra or message.name)
    ):
        raise ApiError(
            400,
            "Invalid value for 'content': expected a string, got null.",
            param=f"messages.[{index}].content",
        )
    if message.role == "tool" and message.tool_call_id is None:
        raise wording.missing(f"messages[{index}].tool_call_id")
    if isinstance(message.content, list):
        for number, part in enumerate(message.content):
            if part.type == "refusal" and message.role != "assistant":
                raise ApiError(
                    400,
                    "Invalid value: 'refusal'. Supported values are: 'text', 'image_url', 'input_audio'.",
                    param=f"messages[{index}].content[{number}].type",
                    code="invalid_value",
                )


def _tool_messages(messages: Sequence[ChatMessage]) -> None:
    """Each tool call has its answer, at once; and no answer is without its call."""
    due: list[str] = []
    asking = 0
    for index, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in due:
                raise ApiError(
                    400,
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
                    "'tool_calls'.",
                    param=f"messages.[{index}].role",
                )
            due.remove(message.tool_call_id)
            continue
        if due:
            break
        due, asking = [call.id for call in message.tool_calls or ()], index
    if due:
        raise ApiError(
            400,
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(due):.200}",
            param=f"messages.[{asking}].role",
        )


def _tools(request: ChatCompletionRequest) -> None:
    choice, tools = request.tool_choice, request.tools or []
    if request.parallel_tool_calls is not None and not tools:
        raise ApiError(
            400,
            "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are "
            "specified.",
            param="parallel_tool_calls",
        )
    for index, tool in enumerate(tools):
        _numbers(f"tools[{index}].function.parameters", tool.function.parameters)
    if choice in (None, "none"):
        return
    if not tools:
        raise ApiError(
            400,
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            param="tool_choice",
        )
    if isinstance(choice, NamedToolChoice) and choice.function.name not in {tool.function.name for tool in tools}:
        raise ApiError(
            400,
            "Invalid value for 'tool_choice': no such function was specified in the 'tools' parameter.",
            param="tool_choice",
        )
