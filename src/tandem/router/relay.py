"""Completions and chat: forwarded to an engine, streamed back, broken off when the caller goes away."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem.fleet import Engine
from tandem.models.requests import ChatCompletionRequest, CompletionRequest
from tandem.models.responses import ChatCompletion, ChatCompletionChunk, Completion
from tandem.router import answers, checks, translate
from tandem.router.answers import Form
from tandem.router.context import Contexts
from tandem.router.dispatch import Dispatch, Question
from tandem.router.exchange import Exchange
from tandem.router.translate import Asked
from tandem.router.upstream import Answer, UpstreamError
from tandem.settings import RouterSettings

R = TypeVar("R", CompletionRequest, ChatCompletionRequest)

_LARGEST_EVENT = 16 * 2**20


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

    def __init__(
        self, shape: Shape[R], dispatch: Dispatch, contexts: Contexts, settings: RouterSettings, form: Form
    ) -> None:
        self._shape: Shape[R] = shape
        self._dispatch = dispatch
        self._contexts = contexts
        self._settings = settings
        self._form = form

    async def __call__(self, exchange: Exchange) -> None:
        body = await exchange.json_body(self._settings)
        request = checks.parse(self._shape.request, body, strict=self._form.strict)
        size = len(body)
        del body  # it may wait long, and is as large as what is made of it
        engine = self._dispatch.engine_for(exchange, request.model, "generation")
        translated, asked = translate.generation(request, engine.model)

        async def fits(leased: Engine) -> None:
            await self._contexts.check(leased, request, size)

        question = Question(self._shape.path, translated, asked, streamed=bool(request.stream), check=fits)

        async def whole(answer: Answer) -> bytes:
            said, usage = self._form.whole(self._shape.answer, await answer.read(), asked)
            exchange.count(usage)
            return said

        async def streamed(answer: Answer) -> None:
            chunks = self._chunks(exchange, answer, asked)
            # An engine says 200 before it has looked at the request: only its first event tells.
            first = await anext(chunks)
            exchange.first_event()
            await exchange.stream(_after(first, chunks))

        if question.streamed:
            await exchange.while_connected(self._dispatch.ask(exchange, engine, question, streamed))
        else:
            asking = self._dispatch.ask(exchange, engine, question, whole)
            await exchange.answer(200, await exchange.while_connected(asking))

    async def _chunks(self, exchange: Exchange, answer: Answer, asked: Asked) -> AsyncIterator[bytes]:
        """The stream's events in the specification's keys, the last of them ``[DONE]``.

        Raises:
            ApiError: the engine sent an error.
            EngineFault: it is no stream, or it ended without ``[DONE]``.
        """
        done = False
        try:
            async for event in _events(answer, asked):
                if done:  # read to the end all the same, so that the connection can be kept
                    continue
                if event == b"[DONE]":
                    done = True
                    yield answers.DONE
                    continue
                chunk, usage = self._form.chunk(self._shape.chunk, event, asked)
                if usage is not None:
                    exchange.count(usage)
                if chunk:
                    yield chunk
        except UpstreamError:
            if not done:
                raise
        if not done:
            raise answers.unreachable(answered=True)


async def _events(answer: Answer, asked: Asked) -> AsyncIterator[bytes]:
    """The data of each server-sent event.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html; vLLM sends one ``data:`` line an event.
    """
    if not answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
        raise answers.error(await answer.read(), asked)
    rest = b""
    async for chunk in answer.chunks():
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if event.startswith(b"data:"):
                yield event[5:].strip()
        if len(rest) > _LARGEST_EVENT:
            raise answers.nonsense()


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in rest:
        yield event
