"""Engine bytes, or an engine's error -> OpenAI's. Pure.

Answers are decoded into the structs of :mod:`tandem.models.responses` and encoded again: what the specification does
not name is gone by then.
"""

import re
from typing import Any

import msgspec
from msgspec import UNSET

from tandem.errors import ApiError
from tandem.models.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from tandem.models.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    EmbeddingResponse,
)

Answered = type[EmbeddingResponse] | type[Completion] | type[ChatCompletion] | type[ChatCompletionChunk]

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode
_decoders: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (EmbeddingResponse, Completion, ChatCompletion, ChatCompletionChunk)
}


class _EngineError(msgspec.Struct):
    message: str = ""
    type: str = ""
    param: str | None = None
    code: int | str | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError


_decode_error = msgspec.json.Decoder(_EngineErrorBody).decode
# vLLM names the parameter at fault by its own function's, at the end of the message.
_INTERNAL = re.compile(r" ?\(parameter=\w+, value=.*\)$", re.DOTALL)
_FIELDS = {*EmbeddingRequest.model_fields, *CompletionRequest.model_fields, *ChatCompletionRequest.model_fields}
# An absolute path with at least two parts: nothing of the engine's disk is a caller's business.
_DISK_PATH = re.compile(r"(?<![\w/:.])/(?:[\w.@+-]+/)+[\w.@+-]+")


def answer(kind: Answered, body: bytes, model: str) -> bytes:
    """An engine's whole answer, in the specification's keys, naming the model as the caller did.

    Raises:
        ApiError: 502, it is not what an engine should answer.
    """
    try:
        decoded = _decoders[kind].decode(body)
    except msgspec.DecodeError as exc:
        raise nonsense() from exc
    decoded.model = model
    if isinstance(decoded, ChatCompletion):
        for choice in decoded.choices:
            choice.message.tool_calls = choice.message.tool_calls or UNSET
            choice.message.reasoning = choice.message.reasoning or UNSET
    return _encode(decoded)


def chunk(kind: Answered, event: bytes, model: str) -> bytes:
    """One event of an engine's stream, likewise, as an event.

    Raises:
        ApiError: the event is an error, or it is not what an engine should send.
    """
    try:
        decoded = _decoders[kind].decode(event)
    except msgspec.DecodeError:
        raise error(event) from None
    decoded.model = model
    if isinstance(decoded, ChatCompletionChunk):
        for choice in decoded.choices:
            choice.delta.tool_calls = choice.delta.tool_calls or UNSET
    return b"data: " + _encode(decoded) + b"\n\n"


def error(body: bytes, status: int | None = None) -> ApiError:
    """An engine's error as OpenAI would put it.

    Args:
        status: the HTTP status it came with; None in a stream, where the error object itself tells.
    """
    try:
        said = _decode_error(body).error
    except msgspec.DecodeError:
        if status is not None and 400 <= status < 500:
            return ApiError(status, "The engine refused the request.")
        return nonsense()
    if status is None:
        status = said.code if isinstance(said.code, int) else 500
    if 400 <= status < 500:
        message = _DISK_PATH.sub("[path]", _INTERNAL.sub("", said.message)) or "The engine refused the request."
        param = said.param if said.param in _FIELDS else None
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        code = "context_length_exceeded" if "maximum context length" in message else None
        return ApiError(status, message, type=kind, param=param, code=code)
    return ApiError(
        502, "The engine had an error while processing your request. Please try again.", type="server_error"
    )


def event(refusal: ApiError) -> bytes:
    """An error as the last event of a stream that has begun."""
    return b"data: " + _encode(refusal.body()) + b"\n\n"


def body(refusal: ApiError) -> bytes:
    """An error as an answer's body."""
    return _encode(refusal.body())


def nonsense() -> ApiError:
    """502 for an answer that no engine should give."""
    return ApiError(
        502,
        "The engine gave an answer that could not be understood.",
        type="server_error",
        code="bad_gateway",
    )


def unreachable(*, answered: bool) -> ApiError:
    """For an engine that was gone before it answered (503: ask again) or broke off (502)."""
    if answered:
        return ApiError(502, "The engine broke off its answer.", type="server_error", code="upstream_broke_off")
    return ApiError(
        503,
        "The engine that serves this model could not be reached. Please try again later.",
        type="service_unavailable_error",
        code="model_not_ready",
        headers={"Retry-After": "5"},
    )


def our_fault() -> ApiError:
    """500 for a bug of the router's own."""
    return ApiError(
        500,
        "The server had an error while processing your request. Sorry about that! Please tell the people who run it "
        "the request ID, which is in the header x-request-id.",
        type="server_error",
    )


def timed_out(seconds: float) -> ApiError:
    """504 for a request that took longer than it may."""
    return ApiError(504, f"The request took longer than {seconds:g} seconds.", type="server_error", code="timeout")
