"""One request and its answer: what is known of it, its body within its bounds, its answer's head."""

import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from tandem.errors import ApiError
from tandem.models.responses import Usage
from tandem.router.caller import Caller, TooLarge, header
from tandem.settings import RouterSettings
from tandem.telemetry.events import Trace

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

clock = time.monotonic
# The release of OpenAI's API whose shapes are served, as its own answers name it.
_VERSION = "2020-10-01"
_JSON = b"content-type: application/json\r\n"
_EVENTS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
_LONGEST_ID = 128
_SHOWN = 2000  # bytes of a body that a log shows, where it does


class Exchange:
    """One request on its way through the router. Times are seconds on the monotonic clock.

    Args:
        method: such as ``POST``.
        path: such as ``/v1/embeddings``.
        headers: their names in lower case.
        timeout: seconds until it must be answered.
        end: the caller's, of a hot request; others are answered by the application.

    Attributes:
        id: the router's own id of the request, sent back as ``x-request-id``.
        began: when it came, in seconds since the epoch.
        started: when it came.
        deadline: when it must be answered.
        hurried: whether the caller set that, and not the router.
        expired: whether it was not answered by then.
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

    __slots__ = (
        *("_headers", "answered", "asked", "began", "body_bytes", "broken", "caller", "complete", "completion_tokens"),
        *("deadline", "end", "engine", "error", "events", "expired", "hurried", "id", "inputs", "last_event"),
        *("method", "model", "more_headers", "path", "prompt", "prompt_tokens", "queued", "retries", "started"),
        *("status", "trace"),
    )

    def __init__(
        self,
        method: str,
        path: str,
        headers: Iterable[tuple[bytes, bytes]],
        timeout: float,
        end: Caller | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.id = f"req_{random.getrandbits(128):032x}"
        self.began = time.time()
        self.started = clock()
        self.deadline = self.started + timeout
        self.hurried = False
        self.expired = False
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
        self.end = end
        self._headers = dict(headers)

    def header(self, name: bytes) -> str:
        """One request header, by its lower-case name; empty where it was not sent."""
        value: bytes | None = self._headers.get(name)
        return "" if value is None else value.decode("latin-1")

    @property
    def client_id(self) -> str:
        """The caller's own id of the request, of harmless characters and bounded; empty if none was sent."""
        given = self.header(b"x-request-id")
        return re.sub(r"[^\w.:/+=-]", "", given)[:_LONGEST_ID] if given else ""

    @property
    def trace_context(self) -> Mapping[str, str]:
        """The headers that engines get: the trace context, the caller's own where the router does not trace.

        Source: https://www.w3.org/TR/trace-context/
        """
        if self.trace is not None:
            return self.trace.headers
        parent = self.header(b"traceparent")
        if not parent or not re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", parent):
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
        """
        given = self._headers.get(b"content-type", b"")
        if given != b"application/json":
            kind = given.decode("latin-1").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(
                    415,
                    f"Unsupported content type: '{kind:.100}'. This API method only accepts 'application/json' "
                    f"requests, but you specified the header 'Content-Type: {kind:.100}'. Please try again with a "
                    "supported content type.",
                )
        if (coding := self.header(b"content-encoding").strip().lower()) not in {"", "identity"}:
            raise ApiError(415, f"Unsupported content encoding: '{coding:.40}'. Please send the body uncompressed.")
        limit = settings.max_body_bytes
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        assert self.end is not None  # noqa: S101 - it is a hot request
        try:
            body = await self.end.body()
        except TooLarge:
            raise _too_large(limit) from None
        except TimeoutError:
            raise ApiError(
                408,
                f"The request body did not arrive within {settings.body_timeout:g} seconds.",
                code="request_timeout",
                headers={"Connection": "close"},
            ) from None
        self.body_bytes = len(body)
        if settings.log_prompts:
            self.prompt = body[:_SHOWN].decode(errors="replace")
        return body

    def count(self, usage: Usage | None) -> None:
        """Note what the engine counted; a whole answer has come, if it is one."""
        self.answered = self.answered or clock()
        if usage is not None:
            self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer, of JSON."""
        assert self.end is not None  # noqa: S101 - it is a hot request
        self.status = status
        self.complete = True
        head = _JSON + self._own_head()
        for name, value in (headers or {}).items():
            if name.lower() == "connection":
                self.end.keep_alive = self.end.keep_alive and value != "close"
            else:
                head += header(name, value)
        self.end.answer(status, head, body)

    def begin_stream(self, events: bytes, number: int) -> None:
        """Send the head of a stream of server-sent events, and the first ``number`` of them: they have come."""
        assert self.end is not None  # noqa: S101 - it is a hot request
        self.status = 200
        self.events = number
        self.answered = self.last_event = clock()
        self.end.begin(_EVENTS + self._own_head(), events)

    def send_events(self, events: bytes, number: int) -> None:
        """Send ``number`` more events."""
        assert self.end is not None  # noqa: S101 - it is a hot request
        self.events += number
        self.last_event = clock()
        self.end.write(events)

    def events_sent(self, number: int, last: float) -> None:
        """``number`` more events were sent on the fast path; the last of them came at ``last``."""
        self.events += number
        self.last_event = max(self.last_event, last)

    def end_stream(self) -> None:
        """The stream is whole."""
        assert self.end is not None  # noqa: S101 - it is a hot request
        self.complete = True
        self.end.end()

    def fail(self, status: int, body: bytes, event: bytes, headers: Mapping[str, str]) -> None:
        """Send an error: as the answer, or, once a stream has begun, as ``event``, its last; too late, nothing."""
        assert self.end is not None  # noqa: S101 - it is a hot request
        if not self.status:
            self.answer(status, body, headers)
        elif not self.complete:
            self.broken = self.complete = True
            if self.end.paused:  # a caller who has stopped reading is not waited for
                self.end.abort()
            else:
                self.end.end(event)

    def relayed(self, send: Send) -> Send:
        """``send`` for the application behind the router, with the router's own headers."""

        async def relay(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                own = [tuple(line.split(b": ", 1)) for line in self._own_head().split(b"\r\n")[:-1]]
                message["headers"] = [*message.get("headers", ()), *own]
            elif not message.get("more_body"):
                self.complete = True
            await send(message)

        return relay

    def _own_head(self) -> bytes:
        """What every answer carries: its id, OpenAI's own, and where the time went, in milliseconds.

        Source: https://www.w3.org/TR/server-timing/
        """
        now = clock()
        spent = (now - self.started) * 1000
        queue = self.queued * 1000
        engine = ((self.answered or now) - self.asked) * 1000 if self.asked else 0.0
        own = max(0.0, spent - queue - engine)
        head = (
            f"x-request-id: {self.id}\r\nopenai-processing-ms: {round(spent)}\r\nopenai-version: {_VERSION}\r\n"
            f"server-timing: queue;dur={queue:.2f}, router;dur={own:.2f}, engine;dur={engine:.2f}\r\n"
        ).encode()
        for name, value in self.more_headers.items():
            head += header(name, value)
        return head


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than this server's limit of {limit} bytes. Send fewer inputs at a time.",
        code="request_too_large",
        headers={"Connection": "close"},
    )
