"""Completions and chat: forwarded to an engine, streamed back, broken off when the caller goes away."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem.fleet import Engine, Fleet
from tandem.models.requests import ChatCompletionRequest, CompletionRequest
from tandem.models.responses import ChatCompletion, ChatCompletionChunk, Completion
from tandem.router import answers, checks
from tandem.router.ask import ask, read
from tandem.router.exchange import Exchange
from tandem.router.upstream import Answer, UpstreamError, Upstreams
from tandem.settings import RouterSettings

R = TypeVar("R", CompletionRequest, ChatCompletionRequest)


@dataclass(frozen=True)
class Shape(Generic[R]):
    """One of the two routes: what comes in, what goes out whole, what goes out in pieces."""

    path: str
    request: type[R]
    answer: type[Completion] | type[ChatCompletion]
    chunk: type[Completion] | type[ChatCompletionChunk]


COMPLETIONS = Shape("/v1/completions", CompletionRequest, Completion, Completion)
CHAT = Shape("/v1/chat/completions", ChatCompletionRequest, ChatCompletion, ChatCompletionChunk)


class Relay(Generic[R]):
    """The handler of one of the two routes."""

    def __init__(self, shape: Shape[R], fleet: Fleet, upstreams: Upstreams, settings: RouterSettings) -> None:
        self._shape: Shape[R] = shape
        self._fleet = fleet
        self._upstreams = upstreams
        self._settings = settings

    async def __call__(self, exchange: Exchange) -> None:
        checks.content_type(exchange.header(b"content-type"))
        request = checks.parse(self._shape.request, await exchange.body(self._settings.max_body_bytes))
        engine = checks.engine_for(self._fleet.now, request.model, "generation", self._shape.path)
        exchange.model = engine.model
        name, streaming = request.model, bool(request.stream)
        body = request.forwarded(engine.model)
        await exchange.while_connected(self._forward(exchange, engine, body, name, streaming=streaming))

    async def _forward(self, exchange: Exchange, engine: Engine, body: bytes, name: str, *, streaming: bool) -> None:
        async with ask(self._upstreams, engine, self._shape.path, body) as answer:
            if not streaming:
                whole = answers.answer(self._shape.answer, await read(answer), name)
                await exchange.answer(200, whole)
                return
            chunks = self._chunks(answer, name)
            # An engine says 200 before it has looked at the request: only its first event tells.
            first = await anext(chunks)
            await exchange.stream(_after(first, chunks))

    async def _chunks(self, answer: Answer, name: str) -> AsyncIterator[bytes]:
        """The stream's events in the specification's keys, the last of them ``[DONE]``.

        Raises:
            ApiError: the engine sent an error, or the stream ended without ``[DONE]``.
        """
        done = False
        async for event in _events(answer):
            if event == b"[DONE]":
                done = True
            elif not done:
                yield answers.chunk(self._shape.chunk, event, name)
        if not done:
            raise answers.unreachable(answered=True)
        yield answers.DONE


async def _events(answer: Answer) -> AsyncIterator[bytes]:
    """The data of each server-sent event.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html; vLLM sends one ``data:`` line an event.
    """
    rest = b""
    try:
        async for chunk in answer.chunks():
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                if event.startswith(b"data:"):
                    yield event[5:].strip()
    except UpstreamError as exc:
        raise answers.unreachable(answered=True) from exc


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in rest:
        yield event
