"""One request and its answer, on ASGI's own terms: the body within its bounds, the answer, and the caller's leaving."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any, TypeVar

from tandem.errors import ApiError, TandemError
from tandem.models.responses import Usage
from tandem.settings import RouterSettings
from tandem.telemetry.events import Trace

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

T = TypeVar("T")

clock = time.monotonic
# The release of OpenAI's API whose shapes are served, as its own answers name it.
_VERSION = (b"openai-version", b"2020-10-01")
_LONGEST_ID = 128
_SHOWN = 2000  # bytes of a body that a log shows, where it does


class Disconnected(TandemError):
    """The caller went away; there is nobody to answer."""


class Caller:
    """The caller's end of a request's connection, of which the server knows: tells when it is gone, or too slow.

    One request's work is done in its own task, which is cancelled by such news: a task of its own that waits for them
    would cost more than the rest of a request's way through the router.
    """

    __slots__ = ("_task", "_transport", "gone", "slow")

    def __init__(self, transport: asyncio.Transport | None = None) -> None:
        self._transport = transport
        self.gone = False
        self.slow = False
        self._task: asyncio.Task[Any] | None = None

    def leave(self) -> None:
        """The connection is lost."""
        self.gone = True
        if self._task is not None:
            self._task.cancel()

    def dawdle(self) -> None:
        """The request's body has not come in time."""
        self.slow = True
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """Give the connection up, and what of an answer still waits in it."""
        if self._transport is not None:
            self._transport.abort()

    async def attend(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is cancelled the moment there is news.

        Raises:
            Disconnected: the caller is gone.
            TimeoutError: it is too slow.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        if self.gone:
            work.close()
            raise Disconnected
        self._task = task
        try:
            return await work
        except asyncio.CancelledError:
            if self.gone or self.slow:
                task.uncancel()
                raise (Disconnected if self.gone else TimeoutError) from None
            raise
        finally:
            self._task = None


class Exchange:
    """One request on its way through the router. Times are seconds on the monotonic clock.

    Attributes:
        id: the router's own id of the request, sent back as ``x-request-id``.
        began: when it came, in seconds since the epoch.
        started: when it came.
        deadline: when it must be answered.
        hurried: whether the caller set that, and not the router.
        caller: the name of the caller's key; empty without keys.
        status: the status that was sent; 0 while none was.
        complete: whether the answer has been sent to its end.
        broken: whether a stream ended with an error.
        model: the model that was asked for, once that is known to exist; for logs and metrics.
        engine: the engine that was asked last.
        queued: seconds spent waiting for engines.
        asked: when the engine was asked, the last time; 0 before.
        answered: when it had answered, or sent its first event; 0 before.
        retries: how often an engine was asked again.
        events, last_event: how many events were sent, and when the last was.
        body_bytes: the size of the request's body.
        inputs: how many texts an embedding request has.
        prompt_tokens, completion_tokens: as the engine counted.
        prompt: the beginning of the body, where the settings ask for that in the log.
        error: the code or type of the error that was sent.
        trace: its place in a trace, where the router traces.
        more_headers: further headers of the answer.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout: float) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.id = f"req_{random.getrandbits(128):032x}"
        self.began = time.time()
        self.started = clock()
        self.deadline = self.started + timeout
        self.hurried = False
        self.caller = ""
        self.status = 0
        self.complete = False
        self.broken = False
        self.model = ""
        self.engine = ""
        self.queued = 0.0
        self.asked = 0.0
        self.answered = 0.0
        self.retries = 0
        self.events = 0
        self.last_event = 0.0
        self.body_bytes = 0
        self.inputs = 0
        self.error = ""
        self.prompt = ""
        self.trace: Trace | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.more_headers: dict[str, str] = {}
        self.caller_end: Caller = scope.get("tandem.caller") or Caller()
        self._headers = dict(scope["headers"])
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str:
        """One request header, by its lower-case name; empty where it was not sent."""
        value: bytes | None = self._headers.get(name)
        return "" if value is None else value.decode("latin-1")

    @property
    def client_id(self) -> str:
        """The caller's own id of the request, of harmless characters and bounded; empty if none was sent."""
        return re.sub(r"[^\w.:/+=-]", "", self.header(b"x-request-id"))[:_LONGEST_ID]

    @property
    def trace_context(self) -> Mapping[str, str]:
        """The headers that engines get: the trace context, the caller's own where the router does not trace.

        Source: https://www.w3.org/TR/trace-context/
        """
        if self.trace is not None:
            return self.trace.headers
        parent = self.header(b"traceparent")
        if not re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", parent):
            return {}
        state = self.header(b"tracestate")
        fits = re.fullmatch(r"[\x20-\x7e]{1,512}", state)
        return {"traceparent": parent, **({"tracestate": state} if fits else {})}

    def hurry(self) -> None:
        """Heed the caller's own deadline, ``X-Request-Timeout`` in seconds.

        Raises:
            ApiError: 400, it is no positive number.
        """
        if given := self.header(b"x-request-timeout"):
            try:
                seconds = float(given)
            except ValueError:
                seconds = 0.0
            if not 0 < seconds < float("inf"):
                raise ApiError(400, "Invalid header 'X-Request-Timeout': expected a positive number of seconds.")
            if self.started + seconds < self.deadline:
                self.deadline = self.started + seconds
                self.hurried = True

    async def json_body(self, settings: RouterSettings) -> bytes:
        """The request's body, which must be JSON by its content type.

        Raises:
            ApiError: 413, it is too large; 408, it takes too long; 415, it is something else, or compressed.
            Disconnected: the caller went away before it was whole.
        """
        kind = self.header(b"content-type").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415,
                f"Unsupported content type: '{kind:.100}'. This API method only accepts 'application/json' requests, "
                f"but you specified the header 'Content-Type: {kind:.100}'. Please try again with a supported content "
                "type.",
            )
        limit, timeout = settings.max_body_bytes, settings.body_timeout
        if (coding := self.header(b"content-encoding").strip().lower()) not in {"", "identity"}:
            raise ApiError(415, f"Unsupported content encoding: '{coding:.40}'. Please send the body uncompressed.")
        length = self.header(b"content-length")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        try:
            body = await self.caller_end.attend(self._body(limit))
        except TimeoutError:
            raise ApiError(
                408,
                f"The request body did not arrive within {timeout:g} seconds.",
                code="request_timeout",
                headers={"Connection": "close"},
            ) from None
        self.body_bytes = len(body)
        if settings.log_prompts:
            self.prompt = body[:_SHOWN].decode(errors="replace")
        return body

    async def _body(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def first_event(self) -> None:
        """The engine's first event has come."""
        self.answered = clock()

    def count(self, usage: Usage | None) -> None:
        """Note what the engine counted; a whole answer has come, if it is one."""
        self.answered = self.answered or clock()
        if usage is not None:
            self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is cancelled the moment the caller goes away.

        Raises:
            Disconnected: the caller went away first.
        """
        return await self.caller_end.attend(work)

    async def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: bytes = b"application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a whole answer."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [(b"content-type", content_type), length], headers)
        await self._end(body)

    async def fail(self, status: int, body: bytes, event: bytes, headers: Mapping[str, str]) -> None:
        """Send an error: as the answer, or, once a stream has begun, as ``event``, its last; too late, nothing."""
        if not self.status:
            await self.answer(status, body, headers=headers)
        elif not self.complete:
            self.broken = True
            await self._end(event)

    async def relay(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's ``send`` for an application behind the router: adds the router's own headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._own_headers()]
        elif not message.get("more_body"):
            self.complete = True
        await self._send(message)

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        """Send server-sent events as they come."""
        await self._start(
            200, [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        )
        async for event in events:
            self.events += 1
            self.last_event = clock()
            await self._send({"type": "http.response.body", "body": event, "more_body": True})
        await self._end(b"")

    async def _end(self, body: bytes) -> None:
        self.complete = True
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, headers: Headers, more: Mapping[str, str] | None = None) -> None:
        self.status = status
        headers += self._own_headers()
        if more:
            headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in more.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def _own_headers(self) -> Headers:
        """What every answer carries: its id, OpenAI's own, and where the time went, in milliseconds.

        Source: https://www.w3.org/TR/server-timing/
        """
        now = clock()
        spent = (now - self.started) * 1000
        queue = self.queued * 1000
        engine = ((self.answered or now) - self.asked) * 1000 if self.asked else 0.0
        own = max(0.0, spent - queue - engine)
        timing = f"queue;dur={queue:.2f}, router;dur={own:.2f}, engine;dur={engine:.2f}"
        headers = [
            (b"x-request-id", self.id.encode()),
            (b"openai-processing-ms", str(round(spent)).encode()),
            _VERSION,
            (b"server-timing", timing.encode()),
        ]
        if self.more_headers:
            headers += [(name.encode(), value.encode("latin-1")) for name, value in self.more_headers.items()]
        return headers


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than this server's limit of {limit} bytes. Send fewer inputs at a time.",
        code="request_too_large",
        headers={"Connection": "close"},
    )
