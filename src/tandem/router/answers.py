"""Engine bytes, or an engine's error -> OpenAI's. Pure.

Answers are decoded into the structs of :mod:`tandem.models.responses` and encoded again: what the specification does
not name is gone by then. Errors that are the router's own are at the end.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import msgspec
from msgspec import UNSET

from tandem.errors import ApiError, EngineFault
from tandem.models.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChoice,
    EmbeddingResponse,
    Usage,
)
from tandem.router.refusals import refusal
from tandem.router.translate import Asked
from tandem.router.upstream import UNREADABLE

Answered = EmbeddingResponse | Completion | ChatCompletion | ChatCompletionChunk

DONE = b"data: [DONE]\n\n"

# What vLLM answers to a request that it does not want: 501 is for values that it does not implement.
_REFUSED = frozenset({400, 413, 422, 501})

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


class Form:
    """How answers are written: with OpenAI's keys alone, or with whatever else the engine says.

    Args:
        strict: OpenAI's keys alone.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self._write: Callable[[object, bytes], bytes] = _strictly if strict else _with_extras

    def whole(self, kind: type[Answered], body: bytes, asked: Asked) -> tuple[bytes, Usage | None]:
        """An engine's whole answer, naming the model as the caller did; and what it counted.

        Raises:
            EngineFault: it is not what an engine should answer.
        """
        try:
            decoded = _decoders[kind].decode(body)
        except UNREADABLE as exc:
            raise nonsense() from exc
        decoded.model = asked.model
        if isinstance(decoded, EmbeddingResponse):
            if [item.index for item in decoded.data] != list(range(asked.inputs)):
                raise nonsense()
            tokens = decoded.usage
            return self._write(decoded, body), Usage(tokens.prompt_tokens, tokens.total_tokens)
        for choice in decoded.choices:
            _finish(choice)
        if isinstance(decoded, ChatCompletion):
            for choice in decoded.choices:
                choice.message.role = choice.message.role or "assistant"
                choice.message.tool_calls = choice.message.tool_calls or UNSET
                _without_empty_reasoning(choice.message)
        elif asked.best:
            decoded.choices = _best(decoded.choices, asked)
        if not decoded.choices:
            raise nonsense()
        self._hide(decoded, asked)
        usage = _counted(decoded)
        return self._write(decoded, body), usage

    def chunk(self, kind: type[Answered], event: bytes, asked: Asked) -> tuple[bytes, Usage | None]:
        """One event of an engine's stream, likewise, as an event; empty bytes for one that the caller is not to see.

        Raises:
            ApiError: the event is an error (the engine's fault, or a refusal), or not what an engine should send.
        """
        try:
            decoded = _decoders[kind].decode(event)
        except UNREADABLE:
            raise error(event, asked) from None
        decoded.model = asked.model
        for choice in decoded.choices:
            _finish(choice)
        usage = _counted(decoded)
        if isinstance(decoded, ChatCompletionChunk):
            for choice in decoded.choices:
                choice.delta.role = choice.delta.role or UNSET
                choice.delta.tool_calls = choice.delta.tool_calls or UNSET
                _without_empty_reasoning(choice.delta)
        self._hide(decoded, asked)
        if asked.usage:
            decoded.usage = usage
        elif not decoded.choices:
            return b"", usage
        else:
            decoded.usage = UNSET
        written = self._write(decoded, event) if asked.usage or self.strict else _with_extras(decoded, event, "usage")
        return b"data: " + written + b"\n\n", usage

    @staticmethod
    def _hide(decoded: Any, asked: Asked) -> None:
        """What the caller did not ask for and the engine had to be asked for."""
        if not isinstance(decoded, Completion):
            return
        if not asked.logprobs:
            for choice in decoded.choices:
                choice.logprobs = None
        if asked.nothing:
            if usage := decoded.usage:
                usage.completion_tokens, usage.total_tokens = 0, usage.prompt_tokens
            for choice in decoded.choices:
                choice.finish_reason = choice.finish_reason and "length"
                if not asked.echo:
                    choice.text, choice.logprobs = "", None


def _strictly(decoded: object, _: bytes) -> bytes:
    return _encode(decoded)


def _with_extras(decoded: object, body: bytes, hidden: str = "") -> bytes:
    """Both together; of the engine's, all but the key ``hidden``."""
    said = msgspec.json.decode(body)
    said.pop(hidden, None)
    return _encode(_merged(msgspec.json.decode(_encode(decoded)), said))


def _merged(ours: Any, theirs: Any) -> Any:
    """``ours``, and of ``theirs`` the keys that it lacks."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return {**theirs, **{key: _merged(value, theirs.get(key)) for key, value in ours.items()}}
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [_merged(one, other) for one, other in zip(ours, theirs, strict=True)]
    return ours


def _finish(choice: Any) -> None:
    """An engine that ends a request on its own account says so; to a caller that would look complete.

    Raises:
        EngineFault: it did.
    """
    if choice.finish_reason in {"abort", "error"}:
        raise unreachable(answered=True)
    if choice.finish_reason == "repetition":  # vLLM's own: as if it had come to an end
        choice.finish_reason = "stop"


def _counted(decoded: Any) -> Usage | None:
    """What the engine counted. What it leaves null, and the specification wants to have a value, is taken out."""
    decoded.system_fingerprint = decoded.system_fingerprint or UNSET
    usage: Usage | None = decoded.usage or None
    if usage is not None:
        for name in ("prompt_tokens_details", "completion_tokens_details"):
            details = getattr(usage, name) or UNSET
            setattr(usage, name, details)
            for part in details.__struct_fields__ if details else ():
                if getattr(details, part) is None:
                    setattr(details, part, UNSET)
    return usage


def _without_empty_reasoning(said: Any) -> None:
    said.reasoning = said.reasoning or UNSET
    said.reasoning_content = said.reasoning_content or UNSET


def _best(choices: Sequence[CompletionChoice], asked: Asked) -> list[CompletionChoice]:
    """Of each prompt's choices those with the highest mean log-probability a token, the best first."""
    assert asked.best  # noqa: S101 - the caller's condition
    n, of = asked.best
    best: list[CompletionChoice] = []
    for start in range(0, len(choices), of):
        end = asked.prompts[start // of] if asked.prompts else 0
        ranked = sorted(choices[start : start + of], key=lambda choice: _mean(choice, end), reverse=True)
        best += ranked[:n]
    for index, choice in enumerate(best):
        choice.index = index
    return best


def _mean(choice: CompletionChoice, end: int | str) -> float:
    """The mean log-probability of the tokens after the prompt's ``end``, a number of tokens or a text."""
    if choice.logprobs is None:
        raise nonsense()
    found = choice.logprobs
    skip = end if isinstance(end, int) else sum(offset < len(end) for offset in found.text_offset)
    made = [value for value in found.token_logprobs[skip:] if value is not None]
    return sum(made) / len(made) if made else float("-inf")


def error(body: bytes, asked: Asked, status: int | None = None, *, retry_after: float | None = None) -> ApiError:
    """An engine's error as OpenAI would put it.

    Args:
        status: the HTTP status it came with; None in a stream, where the error object itself tells.
        retry_after: seconds for which the engine asks to be left alone.
    """
    try:
        said = _decode_error(body).error
    except UNREADABLE:
        if status is None:
            return nonsense()
        said = _EngineError()
    if status is None:
        status = said.code if isinstance(said.code, int) else 500
    if status in _REFUSED:
        return refusal(said.message, asked)
    if status in {429, 503}:
        return busy(retry_after)
    if status < 500:  # a key, a path or a name that the engine does not take: not the caller's doing
        return nonsense()
    if "EngineCore" in said.message or "EngineDead" in said.type:
        return unreachable(answered=True, gone=True)
    return EngineFault(
        502,
        "The engine had an error while processing your request. Please try again.",
        code="engine_error",
        again=True,
    )


def event(refused: ApiError) -> bytes:
    """An error as the last event of a stream that has begun."""
    return b"data: " + _encode(refused.body()) + b"\n\n"


def body(refused: ApiError) -> bytes:
    """An error as an answer's body."""
    return _encode(refused.body())


def nonsense() -> EngineFault:
    """502 for an answer that no engine should give."""
    return EngineFault(502, "The engine gave an answer that could not be understood.", code="bad_gateway")


def unreachable(*, answered: bool, gone: bool = False) -> EngineFault:
    """For an engine that was gone before it answered (503: ask again) or broke off (502)."""
    if answered:
        return EngineFault(502, "The engine broke off its answer.", code="upstream_broke_off", again=True, gone=gone)
    return EngineFault(
        503,
        "The engine that serves this model could not be reached. Please try again later.",
        code="model_not_ready",
        headers={"Retry-After": "5"},
        again=True,
        gone=True,
    )


def busy(retry_after: float | None) -> EngineFault:
    """503 for an engine that has too much to do; it may have said for how many seconds."""
    return EngineFault(
        503,
        "The engine that serves this model is currently overloaded. Please try again later.",
        code="overloaded",
        again=True,
        pause=retry_after,
        headers={"Retry-After": str(max(1, ceil(retry_after or 5.0)))},
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
    return ApiError(504, f"The request took longer than {seconds:.3g} seconds.", type="server_error", code="timeout")


def silent(seconds: float) -> EngineFault:
    """504 for an engine from which nothing came."""
    return EngineFault(504, f"Nothing came from the engine for {seconds:.3g} seconds.", code="timeout")
