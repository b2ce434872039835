"""What does not fit the API's models: Pydantic's complaints in the API's words. Pure."""

import re
from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tandem.errors import ApiError
from tandem.models.requests import LARGEST
from tandem.router import wording

_PROMPTS = {"input", "prompt"}
_LONGEST_PATH = 200
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


def refusal(exc: ValidationError) -> ApiError:
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
        return wording.missing(path)
    if kind == "extra_forbidden":
        return wording.unknown(path)
    if error["loc"][0] in _PROMPTS:
        return _prompt_refusal(str(error["loc"][0]), exc)
    if kind in {"greater_than_equal", "less_than_equal", "greater_than"}:
        return wording.out_of_range(path, value, kind, context)
    if kind in {"too_long", "too_short"}:
        return wording.wrong_length(path, kind, context)
    if kind == "string_too_short":
        return wording.empty_text(path)
    if kind == "string_pattern_mismatch":
        return ApiError(
            400,
            f"Invalid '{path}': string does not match pattern. Expected a string that matches the pattern "
            f"'{context['pattern']}'.",
            param=path,
            code="invalid_value",
        )
    if kind == "literal_error":
        return wording.wrong_value(path, value, str(context["expected"]).replace(" or ", " and "))
    if kind == "union_tag_not_found":
        return wording.missing(f"{path}.type")
    if kind == "union_tag_invalid":
        supported = re.sub(r"[()]", "", str(context["expected_tags"]))
        return wording.wrong_value(f"{path}.type", str(context["tag"]).strip("()"), supported)
    wanted = _WANTED.get(kind, "another type")
    return wording.wrong_type(path, wanted, value)


def _telling(exc: ValidationError) -> ErrorDetails:
    """The first complaint; of one about a value that may take several shapes, the one about the shape it has."""
    errors = exc.errors(include_url=False)
    about = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    return max(about, key=lambda error: (error["type"] not in _WANTED, len(error["loc"])))


def _prompt_refusal(name: str, exc: ValidationError) -> ApiError:
    """None of the four shapes fits: find the value that keeps it from being the one it looks like."""
    errors = exc.errors(include_url=False)
    # Each shape complains from its own root; the value itself stands in the complaint about a list that is none.
    value = next((error["input"] for error in errors if len(error["loc"]) == 2), None)
    prompts(name, value)
    return wording.wrong_type(name, "a string or an array", value)


def _path(loc: Sequence[int | str]) -> str:
    """``("messages", 0, "role")`` -> ``messages[0].role``; Pydantic's names of union members are left out."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in {"str", "int", "bool", "float", "list", "dict"}:
            path += f".{part}" if path else part
    return path[:_LONGEST_PATH]


def prompts(name: str, value: object) -> None:
    """Refuse what is no text, texts, token ids or lists of token ids, by the path of the value at fault."""
    if isinstance(value, str):
        _text(name, value)
        return
    if not isinstance(value, list):
        raise wording.wrong_type(name, "a string or an array", value)
    if not value:
        raise wording.wrong_length(name, "too_short", {"min_length": 1})
    first = value[0]
    for index, item in enumerate(value):
        path = f"{name}[{index}]"
        if isinstance(first, str):
            if not isinstance(item, str):
                raise wording.wrong_type(path, "a string", item)
            _text(path, item)
        elif isinstance(first, list):
            if not isinstance(item, list):
                raise wording.wrong_type(path, "an array of token integers", item)
            if not item:
                raise wording.wrong_length(path, "too_short", {"min_length": 1})
            _tokens(path, item)
    if not isinstance(first, str | list):
        _tokens(name, value)


def _text(path: str, text: str) -> None:
    if not text:
        raise ApiError(400, f"Invalid '{path}': input cannot be an empty string.", param=path, code=None)


def _tokens(path: str, tokens: Sequence[object]) -> None:
    for index, token in enumerate(tokens):
        if not isinstance(token, int) or isinstance(token, bool):
            raise wording.wrong_type(f"{path}[{index}]", "an integer", token)
        if token < 0:
            raise wording.out_of_range(f"{path}[{index}]", token, "greater_than_equal", {"ge": 0})
        if token > LARGEST:
            raise wording.out_of_range(f"{path}[{index}]", token, "less_than_equal", {"le": LARGEST})
