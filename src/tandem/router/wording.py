"""The API's refusals of a request, word for word. Pure.

Wording and codes are those of the OpenAI API (https://platform.openai.com/docs/guides/error-codes), taken from its
public answers.
"""

from collections.abc import Mapping
from typing import Any

from tandem.errors import ApiError
from tandem.fleet import Engine, State

_TYPES: Mapping[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


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


def missing(path: str) -> ApiError:
    """400 for a parameter that must be there."""
    if path == "model":
        return ApiError(400, "you must provide a model parameter")
    if path == "input":
        return ApiError(400, "Please submit an `input`.", param="input")
    return ApiError(400, f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")


def unknown(path: str) -> ApiError:
    """400 for a parameter that there is none of."""
    return ApiError(400, f"Unknown parameter: '{path:.200}'.", param=path[:200], code="unknown_parameter")


def unsupported(name: str) -> ApiError:
    """400 for a parameter of the API that no engine here can do."""
    return ApiError(
        400,
        f"Unsupported parameter: '{name}' is not supported with this model.",
        param=name,
        code="unsupported_parameter",
    )


def empty_text(path: str) -> ApiError:
    """400 for a text that must hold something."""
    return _invalid(path, "empty string", "a string with minimum length 1", "an empty string", "empty_string")


def wrong_value(path: str, value: object, supported: str) -> ApiError:
    """400 for a value that is none of those it may be; ``supported`` lists them."""
    about = f" for '{path}'" if path == "encoding_format" else ""  # the embeddings route has its own wording
    return ApiError(
        400,
        f"Invalid value{about}: {value!r:.200}. Supported values are: {supported}.",
        param=path,
        code="invalid_value",
    )


def wrong_type(path: str, wanted: str, value: object) -> ApiError:
    """400 for a value of another type than ``wanted``, such as ``a string``."""
    got = _TYPES.get(type(value), "another type")
    return ApiError(
        400,
        f"Invalid type for '{path}': expected {wanted}, but got {got} instead.",
        param=path,
        code="invalid_type",
    )


def wrong_length(path: str, kind: str, context: Mapping[str, Any]) -> ApiError:
    """400 for an array outside its bounds; ``kind`` and ``context`` as Pydantic names them."""
    if kind == "too_short":
        least = f"an array with minimum length {context['min_length']}"
        return _invalid(path, "empty array", least, "an empty array", "empty_array")
    most = f"an array with maximum length {context['max_length']}"
    got = f"an array with length {context['actual_length']}"
    return _invalid(path, "array too long", most, got, "array_above_max_length")


def out_of_range(path: str, value: object, kind: str, context: Mapping[str, Any]) -> ApiError:
    """400 for a number outside its bounds; ``kind`` and ``context`` as Pydantic names them."""
    above = kind == "less_than_equal"
    bound = context["le"] if above else context.get("ge", context.get("gt"))
    number = "integer" if isinstance(value, int) and isinstance(bound, int) else "decimal"
    side, sign = ("above maximum", "<=") if above else ("below minimum", ">" if kind == "greater_than" else ">=")
    code = f"{number}_{'above_max' if above else 'below_min'}_value"
    return _invalid(path, f"{number} {side} value", f"a value {sign} {bound:g}", f"{value!s:.50}", code)


def logit_bias_key(key: str) -> ApiError:
    """400 for a key of ``logit_bias`` that is no token id."""
    return ApiError(
        400,
        f"Invalid key in 'logit_bias': {key:.100}. You should only be submitting non-negative integers.",
        param="logit_bias",
    )


def _invalid(path: str, fault: str, wanted: str, got: str, code: str) -> ApiError:
    """400 for a value of the right type outside its bounds: the API has one sentence for all of these."""
    return ApiError(400, f"Invalid '{path}': {fault}. Expected {wanted}, but got {got} instead.", param=path, code=code)
