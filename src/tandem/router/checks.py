"""What the API demands of a request, and the exact refusals. Pure.

Wording and codes are those of the OpenAI API (https://platform.openai.com/docs/guides/error-codes), taken from its
public answers.
"""

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tandem.errors import ApiError
from tandem.fleet import Engine, Kind, Snapshot, State
from tandem.models.requests import (
    GUIDED,
    INTERNAL,
    LARGEST,
    MAX_INPUTS,
    MAX_PROMPTS,
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    EmbeddingRequest,
    NamedToolChoice,
)

R = TypeVar("R", EmbeddingRequest, CompletionRequest, ChatCompletionRequest)

_PROMPTS = {"input", "prompt"}
_LONGEST_PATH = 200
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
_TYPES: Mapping[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    list: "an array",
    dict: "an object",
    type(None): "null",
}
_WANTED: Mapping[str, str] = {
    "string_type": "a string",
    "bool_type": "a boolean",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal number",
    "float_parsing": "a decimal number",
    "finite_number": "a finite number",
    "list_type": "an array of values",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


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
        raise _refusal(exc) from exc
    for name in request.model_extra or ():
        if name in INTERNAL:
            raise _unknown(name)
    if strict and not isinstance(request, EmbeddingRequest) and request.prompt_logprobs is not None:
        raise _unsupported("prompt_logprobs")  # their place in an answer is not the specification's
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
        raise model_not_found(model)
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


def model_not_found(model: str, *, param: str | None = None) -> ApiError:
    """404 for a name that no engine answers to."""
    return ApiError(
        404,
        f"The model `{model[:200]}` does not exist or you do not have access to it.",
        param=param,
        code="model_not_found",
    )


def not_ready(engine: Engine, headers: Mapping[str, str]) -> ApiError:
    """503 for a model whose engine is not serving now."""
    again = "is not available" if engine.state in {State.FAILED, State.STOPPED} else "is not ready yet"
    return ApiError(
        503,
        f"The model `{engine.model}` {again} ({engine.state}). Please try again later.",
        type="service_unavailable_error",
        code="model_not_ready",
        headers=headers,
    )


def context(prompt_tokens: int, wanted: int, limit: int, *, param: str) -> None:
    """Refuse what does not fit into a model's context of ``limit`` tokens, prompt and answer together.

    Args:
        param: the parameter that holds the prompt.
    """
    if prompt_tokens + wanted > limit:
        raise context_exceeded(limit, prompt_tokens, wanted, param=param)


def context_exceeded(
    limit: int | None, prompt_tokens: int | None, wanted: int, *, param: str, at_least: bool = False
) -> ApiError:
    """400 for what does not fit into a model's context.

    Args:
        limit: tokens of the context; None where the engine did not tell.
        prompt_tokens: None if only this is known: they are too many.
        at_least: whether there may be more of them.
    """
    about = "at least " if at_least else ""
    most = (
        f"This model's maximum context length is {limit} tokens" if limit else "The prompt is too long for this model"
    )
    code = "context_length_exceeded"
    if prompt_tokens is None:
        what, code = ("messages", code) if param == "messages" else ("prompt", code)
        said = f"{most}. However, your {what} alone resulted in more. Please reduce the length of the {what}."
    elif param == "messages" and not wanted:
        said = (
            f"{most}. However, your messages resulted in {about}{prompt_tokens} tokens. Please reduce the length of "
            "the messages."
        )
    elif param == "messages":
        said = (
            f"{most}. However, you requested {about}{prompt_tokens + wanted} tokens ({about}{prompt_tokens} in the "
            f"messages, {wanted} in the completion). Please reduce the length of the messages or completion."
        )
    else:
        said = (
            f"{most}, however you requested {about}{prompt_tokens + wanted} tokens ({about}{prompt_tokens} in your "
            f"prompt; {wanted} for the completion). Please reduce your prompt; or completion length."
        )
    return ApiError(400, said, param=param, code=None if param.startswith("input") else code)


def too_many_tokens(name: str, value: int, limit: int) -> ApiError:
    """400 for an answer that alone would be longer than a model's context of ``limit`` tokens."""
    return ApiError(
        400,
        f"{name} is too large: {value}. This model supports at most {limit} completion tokens, whereas you provided "
        f"{value}.",
        param=name,
        code="invalid_value",
    )


def _embedding(request: EmbeddingRequest, max_inputs: int) -> None:
    given = request.input
    if given == "" or (isinstance(given, list) and "" in given):
        _prompts("input", given)
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
        raise _unsupported("stream_options.include_obfuscation")
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
            raise _empty_text("stop" if isinstance(request.stop, str) else f"stop[{index}]")
    for key in request.logit_bias or ():
        if not (key.isascii() and key.isdecimal()):
            raise logit_bias_key(key)
    if request.truncate_prompt_tokens == 0:
        raise out_of_range("truncate_prompt_tokens", 0, "greater_than_equal", {"ge": 1})
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
                raise missing("response_format.json_schema")
            if wanted.json_schema.schema_ is None:
                raise missing("response_format.json_schema.schema")
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
        raise _wrong_length("prompt", "too_long", {"max_length": MAX_PROMPTS, "actual_length": len(prompts)})
    if request.prompt == "" or "" in prompts:
        _prompts("prompt", request.prompt)
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
        raise _unsupported(unsupported[0])
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
        raise out_of_range("max_tokens", 0, "greater_than_equal", {"ge": 1})


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
        raise missing(f"messages[{index}].tool_call_id")
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


def _refusal(exc: ValidationError) -> ApiError:
    """Pydantic's first complaint in OpenAI's words."""
    error = _telling(exc)
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    path = _path(error["loc"])
    if kind == "json_invalid" or not error["loc"]:
        return ApiError(
            400,
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)",
        )
    if kind == "missing":
        return missing(path)
    if kind == "extra_forbidden":
        return _unknown(path)
    if error["loc"][0] in _PROMPTS:
        return _prompt_refusal(str(error["loc"][0]), exc)
    if kind in {"greater_than_equal", "less_than_equal", "greater_than"}:
        return out_of_range(path, value, kind, context)
    if kind in {"too_long", "too_short"}:
        return _wrong_length(path, kind, context)
    if kind == "string_too_short":
        return _empty_text(path)
    if kind == "string_pattern_mismatch":
        return ApiError(
            400,
            f"Invalid '{path}': string does not match pattern. Expected a string that matches the pattern "
            f"'{context['pattern']}'.",
            param=path,
            code="invalid_value",
        )
    if kind == "literal_error":
        return _wrong_value(path, value, str(context["expected"]).replace(" or ", " and "))
    if kind == "union_tag_not_found":
        return missing(f"{path}.type")
    if kind == "union_tag_invalid":
        supported = re.sub(r"[()]", "", str(context["expected_tags"]))
        return _wrong_value(f"{path}.type", str(context["tag"]).strip("()"), supported)
    wanted = _WANTED.get(kind, "another type")
    return _wrong_type(path, wanted, value)


def _telling(exc: ValidationError) -> ErrorDetails:
    """The first complaint; of one about a value that may take several shapes, the one about the shape it has."""
    errors = exc.errors(include_url=False)
    about = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    return max(about, key=lambda error: (error["type"] not in _WANTED, len(error["loc"])))


def _unsupported(name: str) -> ApiError:
    return ApiError(
        400,
        f"Unsupported parameter: '{name}' is not supported with this model.",
        param=name,
        code="unsupported_parameter",
    )


def _empty_text(path: str) -> ApiError:
    return ApiError(
        400,
        f"Invalid '{path}': empty string. Expected a string with minimum length 1, but got an empty string instead.",
        param=path,
        code="empty_string",
    )


def _wrong_value(path: str, value: object, supported: str) -> ApiError:
    about = f" for '{path}'" if path == "encoding_format" else ""  # the embeddings route has its own wording
    return ApiError(
        400,
        f"Invalid value{about}: {value!r:.200}. Supported values are: {supported}.",
        param=path,
        code="invalid_value",
    )


def logit_bias_key(key: str) -> ApiError:
    """400 for a key of ``logit_bias`` that is no token id."""
    return ApiError(
        400,
        f"Invalid key in 'logit_bias': {key:.100}. You should only be submitting non-negative integers.",
        param="logit_bias",
    )


def _unknown(path: str) -> ApiError:
    return ApiError(400, f"Unknown parameter: '{path:.200}'.", param=path[:200], code="unknown_parameter")


def missing(path: str) -> ApiError:
    """400 for a parameter that must be there."""
    if path == "model":
        return ApiError(400, "you must provide a model parameter")
    if path == "input":
        return ApiError(400, "Please submit an `input`.", param="input")
    return ApiError(400, f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")


def _wrong_type(path: str, wanted: str, value: object) -> ApiError:
    got = _TYPES.get(type(value), "another type")
    return ApiError(
        400,
        f"Invalid type for '{path}': expected {wanted}, but got {got} instead.",
        param=path,
        code="invalid_type",
    )


def out_of_range(path: str, value: object, kind: str, context: Mapping[str, Any]) -> ApiError:
    """400 for a number outside its bounds; ``kind`` and ``context`` as Pydantic names them."""
    above = kind == "less_than_equal"
    bound = context["le"] if above else context.get("ge", context.get("gt"))
    number = "integer" if isinstance(value, int) and isinstance(bound, int) else "decimal"
    side, sign = ("above maximum", "<=") if above else ("below minimum", ">" if kind == "greater_than" else ">=")
    return ApiError(
        400,
        f"Invalid '{path}': {number} {side} value. Expected a value {sign} {bound:g}, but got {value!s:.50} instead.",
        param=path,
        code=f"{number}_{'above_max' if above else 'below_min'}_value",
    )


def _wrong_length(path: str, kind: str, context: Mapping[str, Any]) -> ApiError:
    if kind == "too_short":
        return ApiError(
            400,
            f"Invalid '{path}': empty array. Expected an array with minimum length {context['min_length']}, "
            "but got an empty array instead.",
            param=path,
            code="empty_array",
        )
    return ApiError(
        400,
        f"Invalid '{path}': array too long. Expected an array with maximum length {context['max_length']}, "
        f"but got an array with length {context['actual_length']} instead.",
        param=path,
        code="array_above_max_length",
    )


def _prompt_refusal(name: str, exc: ValidationError) -> ApiError:
    """None of the four shapes fits: find the value that keeps it from being the one it looks like."""
    errors = exc.errors(include_url=False)
    # Each shape complains from its own root; the value itself stands in the complaint about a list that is none.
    value = next((error["input"] for error in errors if len(error["loc"]) == 2), None)
    _prompts(name, value)
    return _wrong_type(name, "a string or an array", value)


def _prompts(name: str, value: object) -> None:
    """Refuse what is no text, texts, token ids or lists of token ids, by the path of the value at fault."""
    if isinstance(value, str):
        _text(name, value)
        return
    if not isinstance(value, list):
        raise _wrong_type(name, "a string or an array", value)
    if not value:
        raise _wrong_length(name, "too_short", {"min_length": 1})
    first = value[0]
    for index, item in enumerate(value):
        path = f"{name}[{index}]"
        if isinstance(first, str):
            if not isinstance(item, str):
                raise _wrong_type(path, "a string", item)
            _text(path, item)
        elif isinstance(first, list):
            if not isinstance(item, list):
                raise _wrong_type(path, "an array of token integers", item)
            if not item:
                raise _wrong_length(path, "too_short", {"min_length": 1})
            _tokens(path, item)
    if not isinstance(first, str | list):
        _tokens(name, value)


def _text(path: str, text: str) -> None:
    if not text:
        raise ApiError(400, f"Invalid '{path}': input cannot be an empty string.", param=path, code=None)


def _tokens(path: str, tokens: Sequence[object]) -> None:
    for index, token in enumerate(tokens):
        if not isinstance(token, int) or isinstance(token, bool):
            raise _wrong_type(f"{path}[{index}]", "an integer", token)
        if token < 0:
            raise out_of_range(f"{path}[{index}]", token, "greater_than_equal", {"ge": 0})
        if token > LARGEST:
            raise out_of_range(f"{path}[{index}]", token, "less_than_equal", {"le": LARGEST})


def _path(loc: Sequence[int | str]) -> str:
    """``("messages", 0, "role")`` -> ``messages[0].role``; Pydantic's names of union members are left out."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in {"str", "int", "bool", "float", "list", "dict"}:
            path += f".{part}" if path else part
    return path[:_LONGEST_PATH]
