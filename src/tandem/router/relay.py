"""Completions and chat: forwarded to an engine, streamed back, broken off when the caller goes away."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem.fleet import Engine
from tandem.models.requests import ChatCompletionRequest, CompletionRequest
from tandem.models.responses import ChatCompletion, ChatCompletionChunk, Completion
from tandem.router import answers, checks, translate
from tandem.router.answers import Form
from tandem.router.connection import UpstreamError
from tandem.router.context import Contexts
from tandem.router.dispatch import Dispatch, Question
from tandem.router.exchange import Exchange, clock
from tandem.router.splice import FIELD, Splicer
from tandem.router.translate import Asked
from tandem.router.upstream import Answer
from tandem.settings import RouterSettings

R = TypeVar("R", CompletionRequest, ChatCompletionRequest)

_LARGEST_EVENT = 16 * 2**20
_END = b"\n\n"  # of an event
_LONGEST_WAIT = 64  # events


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
        engine = self._dispatch.engine_for(exchange, request.model, "generation")
        translated, asked = translate.generation(request, body, engine.model)
        size = len(body)
        del body  # it may wait long, and is as large as what is made of it

        def fits(leased: Engine) -> Awaitable[None] | None:
            return self._contexts.check(leased, request, size)

        question = Question(self._shape.path, translated, asked, streamed=bool(request.stream), check=fits)

        async def whole(answer: Answer) -> bytes:
            said, usage = self._form.whole(self._shape.answer, await answer.read(), asked)
            exchange.count(usage)
            return said

        async def streamed(answer: Answer) -> None:
            await self._stream(exchange, answer, asked)

        if question.streamed:
            await self._dispatch.ask(exchange, engine, question, streamed)
        else:
            exchange.answer(200, await self._dispatch.ask(exchange, engine, question, whole))

    async def _stream(self, exchange: Exchange, answer: Answer, asked: Asked) -> None:
        """Send the stream's events as they come, in the specification's keys, the last of them ``[DONE]``.

        Raises:
            ApiError: the engine sent an error.
            EngineFault: it is no stream, or it ended without ``[DONE]``.
        """
        if not answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            raise answers.error(await answer.read(), asked)
        splicer = Splicer(lambda event: self._form.chunk(self._shape.chunk, event, asked))
        events = _Events(exchange, answer, splicer)
        assert exchange.end is not None  # noqa: S101 - it is a hot request
        exchange.end.on_flow = answer.hold
        try:
            await answer.feed(events.read, paused=exchange.end.paused)
        except UpstreamError:
            if not events.done:
                raise
        finally:
            exchange.end.on_flow = None
            events.flush()  # what came before it broke off
        if not events.done:
            raise answers.unreachable(answered=True)
        exchange.end_stream()


class _Events:
    """Reads an engine's stream and sends it on: everything that has come at once, at once.

    An engine says 200 before it has looked at the request: only its first event tells, so only then the stream begins.

    Args:
        splicer: writes an event for the caller.
    """

    def __init__(self, exchange: Exchange, answer: Answer, splicer: Splicer) -> None:
        self.done = False
        self._exchange = exchange
        self._answer = answer
        self._splicer = splicer
        self._rest = b""
        self._ready: list[bytes] = []
        self._wait = 1  # spliced events before the stream is lent
        self._due = 1  # of them, how many are still to come

    def read(self, part: bytes) -> None:
        """The data of each server-sent event.

        Source: https://html.spec.whatwg.org/multipage/server-sent-events.html; vLLM sends one ``data:`` line an event.
        """
        # Most parts are one event like those before.
        if not self._rest and not self.done and (said := self._splicer.splice(part)) and self._exchange.status:
            self._due -= 1
            if self._due or not self._lend(said):
                self._exchange.send_events(said, 1)
            return
        *events, self._rest = (self._rest + part if self._rest else part).split(_END)
        for event in events:
            if self.done:  # read to the end all the same, so that the connection can be kept
                break
            if not event.startswith(FIELD):
                continue
            if event[len(FIELD) :].strip() == b"[DONE]":
                self.done = True
                self._ready.append(answers.DONE)
                continue
            said, usage = self._splicer.chunk(event + _END)
            if usage is not None:
                self._exchange.count(usage)
            if said:
                self._ready.append(said)
        if len(self._rest) > _LARGEST_EVENT:
            raise answers.nonsense()
        self.flush()

    def _lend(self, said: bytes) -> bool:
        """Have ``said`` and what comes after it be sent on without this; whether that is.

        What cannot be, or is soon back, as a stream of two choices that take turns, is not tried again and again.
        """
        assert self._exchange.end is not None  # noqa: S101 - it is a hot request
        assert self._splicer.frame is not None  # noqa: S101 - something was spliced
        self._wait = self._due = min(2 * self._wait, _LONGEST_WAIT)
        if not self._answer.lend(self._exchange.end, self._splicer.frame, said, self._returned):
            return False
        self._exchange.events_sent(1, clock())
        return True

    def _returned(self, number: int, last: float) -> None:
        """``number`` events were sent on, and what comes next is read here."""
        self._exchange.events_sent(number, last)
        if number >= self._wait:
            self._wait = self._due = 1

    def flush(self) -> None:
        """Send what there is."""
        if not self._ready:
            return
        ready, self._ready = self._ready, []
        send = self._exchange.send_events if self._exchange.status else self._exchange.begin_stream
        send(ready[0] if len(ready) == 1 else b"".join(ready), len(ready))
