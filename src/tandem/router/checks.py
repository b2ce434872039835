"""What the API demands of a request, and the exact refusals. Pure.

Wording and codes are those of the OpenAI API (https://platform.openai.com/docs/guides/error-codes), taken from its
public answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tandem.errors import ApiError
from tandem.fleet import Engine, Kind, Snapshot, State
from tandem.models.requests import (
    MAX_INPUTS,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
)

R = TypeVar("R", EmbeddingRequest, CompletionRequest, ChatCompletionRequest)

# Seconds after which to ask again while an engine starts or restarts.
_RETRY_AFTER = 5
_PROMPTS = {"input", "prompt"}
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
    "list_type": "an array of values",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def content_type(value: str) -> None:
    """Refuse a body that says it is something else than JSON."""
    kind = value.partition(";")[0].strip().lower()
    if kind and kind != "application/json":
        raise ApiError(
            415,
            f"Unsupported content type: '{kind}'. This API method only accepts 'application/json' requests, but you "
            f"specified the header 'Content-Type: {kind}'. Please try again with a supported content type.",
        )


def parse(model: type[R], body: bytes) -> R:
    """The request in ``body``.

    Raises:
        ApiError: 400, with the path of the first value that is wrong.
    """
    try:
        request = model.model_validate_json(body)
    except ValidationError as exc:
        raise _refusal(exc) from exc
    if isinstance(request, EmbeddingRequest):
        _embedding(request)
    else:
        _generation(request)
    return request


def engine_for(snapshot: Snapshot, model: str, kind: Kind, path: str) -> Engine:
    """The engine that serves ``model``, if it can do what ``path`` asks and is ready to.

    Raises:
        ApiError: 404 unknown, 403 or 404 of the other kind, 503 not ready.
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
    if not engine.ready:
        raise not_ready(model, engine.state)
    return engine


def model_not_found(model: str, *, param: str | None = None) -> ApiError:
    """404 for a name that no engine answers to."""
    return ApiError(
        404,
        f"The model `{model[:200]}` does not exist or you do not have access to it.",
        param=param,
        code="model_not_found",
    )


def not_ready(model: str, state: State) -> ApiError:
    """503 for a model whose engine is not serving now."""
    again = "is not available" if state in {State.FAILED, State.STOPPED} else "is not ready yet"
    return ApiError(
        503,
        f"The model `{model}` {again} ({state}). Please try again later.",
        type="service_unavailable_error",
        code="model_not_ready",
        headers={"Retry-After": str(_RETRY_AFTER)},
    )


def _embedding(request: EmbeddingRequest) -> None:
    _prompts("input", request.input, empty_texts=False)
    texts = request.input if isinstance(request.input, list) and not isinstance(request.input[0], int) else []
    if len(texts) > MAX_INPUTS:
        raise ApiError(
            400,
            f"Invalid 'input': array length must be {MAX_INPUTS} or less, but got {len(texts)}.",
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
    if isinstance(request, CompletionRequest):
        if request.best_of is not None and request.best_of != (request.n or 1):
            _best_of(request.best_of, request.n or 1)
    elif request.top_logprobs is not None and not request.logprobs:
        raise ApiError(
            400,
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            param="top_logprobs",
        )


def _best_of(best_of: int, n: int) -> None:
    if best_of < n:
        raise ApiError(
            400,
            "You requested that the server return more choices than it will generate (HINT: you must set 'n' "
            f"(currently {n}) to be at most 'best_of' (currently {best_of}), or omit either parameter if you don't "
            "specifically want to use them.)",
            param="best_of",
        )
    raise ApiError(
        400,
        "Unsupported parameter: 'best_of' greater than 'n' is not supported with this model.",
        param="best_of",
        code="unsupported_parameter",
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
        return _missing(path)
    if kind == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")
    if error["loc"][0] in _PROMPTS:
        return _prompt_refusal(str(error["loc"][0]), exc)
    if kind in {"greater_than_equal", "less_than_equal", "greater_than"}:
        return _out_of_range(path, value, kind, context)
    if kind in {"too_long", "too_short"}:
        return _wrong_length(path, kind, context)
    if kind == "string_too_short":
        return ApiError(400, f"Invalid '{path}': empty string.", param=path, code="empty_string")
    if kind == "literal_error":
        supported = str(context["expected"]).replace(" or ", " and ")
        return ApiError(
            400,
            f"Invalid value: {value!r:.200}. Supported values are: {supported}.",
            param=path,
            code="invalid_value",
        )
    wanted = _WANTED.get(kind, "another type")
    return _wrong_type(path, wanted, value)


def _telling(exc: ValidationError) -> ErrorDetails:
    """The first complaint; of one about a value that may take several shapes, the one about the shape it has."""
    errors = exc.errors(include_url=False)
    about = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    return max(about, key=lambda error: error["type"] not in _WANTED)


def _missing(path: str) -> ApiError:
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


def _out_of_range(path: str, value: object, kind: str, context: Mapping[str, Any]) -> ApiError:
    above = kind == "less_than_equal"
    bound = context["le"] if above else context.get("ge", context.get("gt"))
    number = "integer" if isinstance(value, int) and isinstance(bound, int) else "decimal"
    side, sign = ("above maximum", "<=") if above else ("below minimum", ">" if kind == "greater_than" else ">=")
    return ApiError(
        400,
        f"Invalid '{path}': {number} {side} value. Expected a value {sign} {bound:g}, but got {value} instead.",
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
    _prompts(name, value, empty_texts=name == "prompt")
    return _wrong_type(name, "a string or an array", value)


def _prompts(name: str, value: object, *, empty_texts: bool) -> None:
    """Refuse what is no text, texts, token ids or lists of token ids, by the path of the value at fault."""
    if isinstance(value, str):
        _text(name, value, empty_texts)
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
            _text(path, item, empty_texts)
        elif isinstance(first, list):
            if not isinstance(item, list):
                raise _wrong_type(path, "an array of token integers", item)
            if not item:
                raise _wrong_length(path, "too_short", {"min_length": 1})
            _tokens(path, item)
    if not isinstance(first, str | list):
        _tokens(name, value)


def _text(path: str, text: str, empty_texts: bool) -> None:
    if not text and not empty_texts:
        raise ApiError(400, f"Invalid '{path}': input cannot be an empty string.", param=path, code=None)


def _tokens(path: str, tokens: Sequence[object]) -> None:
    for index, token in enumerate(tokens):
        if not isinstance(token, int) or isinstance(token, bool):
            raise _wrong_type(f"{path}[{index}]", "an integer", token)
        if token < 0:
            raise _out_of_range(f"{path}[{index}]", token, "greater_than_equal", {"ge": 0})


def _path(loc: Sequence[int | str]) -> str:
    """``("messages", 0, "role")`` -> ``messages[0].role``; Pydantic's names of union members are left out."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in {"str", "int", "bool", "float", "list", "dict"}:
            path += f".{part}" if path else part
    return path
