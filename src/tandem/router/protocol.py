"""uvicorn's connection, with what it lacks, and with a short way for the hot routes."""

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tandem.errors import ApiError
from tandem.router import answers
from tandem.router.caller import Caller
from tandem.router.exchange import Exchange

if TYPE_CHECKING:
    from tandem.router.app import Router

_MOST_HEADERS = 64 * 1024
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_LINGER = 0.25  # seconds in which a caller may still send a request on a kept connection when the server stops
_UNREAD = 60.0  # seconds in which a caller must have read something of what waits for it


class Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds on the size of a request's head and on the time that a request may take to come, and an
    end for callers who do not read. What is no HTTP at all is refused in the form of all other errors.

    A request for one of the hot routes goes straight to the router, with a :class:`Caller` in the place of uvicorn's
    cycle; all others go to the application.

    Args:
        router: answers the hot routes.
        patience: seconds in which a request must have come.
        most: bytes that the body of a hot request may have.
    """

    def __init__(self, *args: Any, router: "Router", patience: float, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._router = router
        self._patience = patience
        self._most = most
        self._head_size: int | None = None  # None: no head is being read
        self._incoming = False  # whether a request is being read
        self._silent_bytes = 0  # that came of a request and were no part of its body
        self._timer: asyncio.TimerHandle | None = None  # runs while something is due
        self._unread: asyncio.TimerHandle | None = None  # runs while too much waits to be read by the caller
        self._idle: asyncio.TimerHandle | None = None  # runs while the connection waits for its next request
        self._used = 0.0  # when the last answer was written
        self._leaving = False  # whether the server stops: the next answer is the last
        self._callers: list[Caller] = []  # of the requests that are not answered yet: more than one, if pipelined

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._patience, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        for timer in (self._unread, self._idle):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        for caller in self._callers:
            if not caller.response_complete:
                caller.leave()
        self._callers.clear()  # they know this connection: each other's, they would wait for the collector
        self.cycle = None  # type: ignore[assignment]

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._incoming = True
        self._head_size = 0
        self._silent_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_size is not None:  # else it is a trailer: of no use, and no header
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_size = None
        method = self.parser.get_method()
        path = self._router.hot.get(self.url) or self._path()
        if path is None or (method == b"OPTIONS" and self._router.cors is not None):
            self._to_application()
            return
        version = self.parser.get_http_version()
        caller = Caller(
            self.transport,
            self._router.outbox,
            self.on_response_complete,
            self._most,
            keep_alive=version != "1.0" and not self._leaving and self.parser.should_keep_alive(),
            chunked=version != "1.0",
            bodiless=method == b"HEAD",
            expects=self.expect_100_continue,
        )
        caller.paused = self.flow.write_paused
        before: Any = self.cycle
        self.cycle = caller  # type: ignore[assignment]
        if before is None or before.response_complete:
            self._callers.clear()
            self._start(caller, method, path, self.headers)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((caller, (method, path, self.headers)))  # type: ignore[arg-type]
        self._callers.append(caller)

    def _start(self, caller: Caller, method: bytes, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        exchange = Exchange(method.decode("ascii"), path, headers, self._router.timeout, caller)
        caller.task = self.loop.create_task(self._router.serve(exchange))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """The next of what was pipelined; or one that is not hot."""
        if isinstance(cycle, Caller):
            self._start(cycle, *app)
        else:
            super()._start_asgi_task(cycle, app)

    def _to_application(self) -> None:
        """As uvicorn does it, from the beginning: only now is it known that it is no hot request."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()
        if self._leaving:
            self.cycle.keep_alive = False

    def _path(self) -> str | None:
        """The hot path that is asked for in an unusual way: with a query, percent-encoded, or with a host."""
        path = unquote((httptools.parse_url(self.url).path or b"").decode("ascii", "replace"))
        return self._router.hot.get(path.encode())

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        if not isinstance(self.cycle, Caller):
            super().on_body(body)
        elif not self.cycle.response_complete:
            self.cycle.receive(body)

    def on_message_complete(self) -> None:
        self._incoming = False
        if isinstance(self.cycle, Caller):
            self.cycle.received()
        else:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if not self._incoming and (b"pgrade:" in data or b"PGRADE:" in data):
            # What asks for HTTP/2 (Java's client does) is to be answered in HTTP/1.1; the parser would drop its body.
            data = _UPGRADE.sub(b"\r\nx-upgrade:", data, count=1)
        self._silent_bytes += len(data)
        super().data_received(data)
        if self._head_size is not None:
            self._head_size += len(data)
            if self._head_size > _MOST_HEADERS:
                self._refuse(ApiError(431, f"The request's headers are larger than {_MOST_HEADERS} bytes."))
                return
        elif self._incoming and self._silent_bytes > _MOST_HEADERS + len(data):
            self.transport.abort()  # endless trailers, of whatever was refused by now
            return
        if not self._incoming:  # most requests come in one piece, and need no timer
            self._rest()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._patience, self._too_slow)

    def shutdown(self) -> None:
        """The server stops: what is answered by now is on its way before the connection is closed.

        One that is kept is closed a moment later: a request that is on its way just now is answered, and the answer
        says that it was the last.
        """
        self._router.outbox.flush()
        self._leaving = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LINGER, self._leave)
        else:
            super().shutdown()

    def _leave(self) -> None:
        if self._head_size is None:  # else the answer to what is coming ends it, or its time
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()
        self._flow(paused=True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        self._flow(paused=False)

    def _flow(self, *, paused: bool) -> None:
        for caller in self._callers:
            if not caller.response_complete:
                caller.flow(paused=paused)

    def on_response_complete(self) -> None:
        """As uvicorn's, but for a timer that is set once and looks again, instead of one a request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._used = time.monotonic()
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._look_idle)

    def _look_idle(self) -> None:
        """Close the connection if nothing has come for long."""
        self._idle = None
        if self._incoming or self.transport.is_closing() or not self.cycle.response_complete:
            return  # the next answer sets it again
        left = self._used + self.timeout_keep_alive - time.monotonic()
        if left > 0:
            self._idle = self.loop.call_later(left, self._look_idle)
        elif self.transport.get_write_buffer_size():  # of an answer from long ago
            self.transport.abort()
        else:
            self.transport.close()

    def _watch(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(_UNREAD, self._look, left)

    def _look(self, before: int) -> None:
        """Give up a caller who has read nothing since there were ``before`` bytes to read; nothing was added since."""
        if self.transport.get_write_buffer_size() < before:
            self._watch()
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg))

    def _too_slow(self) -> None:
        self._timer = None
        if self._head_size is not None:
            self._refuse(ApiError(408, "The request's headers did not arrive in time.", code="request_timeout"))
        elif self._incoming:
            if isinstance(self.cycle, Caller):
                self.cycle.dawdle()
        else:  # nothing was ever sent
            self.transport.close()

    def _refuse(self, refusal: ApiError) -> None:
        self._rest()
        self._router.outbox.flush()
        self._head_size = None
        if not self.transport.is_closing():
            body = answers.body(refusal)
            head = (
                f"HTTP/1.1 {refusal.status} Refused\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
