"""One HTTP/1.1 connection that notes when each part of an answer came.

A load generator must cost less than what it measures, so this is asyncio's protocol and httptools' parser and nothing
more: one request at a time, no redirects, no cookies, no headers kept.
"""

import asyncio
import re
import ssl
import time
from dataclasses import dataclass, field
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

_CONNECT = 10.0  # seconds
_WRITTEN = re.compile(r"[!-~]+")  # what may stand in a request's first line and in a header
_IDLE = 4.0  # seconds; uvicorn closes a connection that was idle for 5, by default

# Every time in this package is this clock's: the time of uvloop's loops has a resolution of a millisecond.
now = time.perf_counter


class Failure(NamedTuple):
    """Why a request counts as an error: a kind to count by, and what was said this time."""

    kind: str
    example: str


class Address:
    """A base URL, taken apart once.

    Raises:
        ValueError: it is no http:// or https:// address, or holds what no base URL has: a query, a space …
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ValueError(f"{url!r} is no address: {exc}") from exc
        if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
            raise ValueError(f"{url!r} is no http:// or https:// address")
        if not _WRITTEN.fullmatch(url) or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is no base URL: it has a query, a space, or letters that must be encoded")
        self.host = parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.prefix = parts.path.rstrip("/") or "/v1"
        self.netloc = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{self.netloc}{self.prefix}"

    def message(self, method: str, path: str, body: bytes = b"", key: str | None = None) -> bytes:
        """A whole request, ready to be sent; ``path`` is what follows the base URL."""
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"host: {self.netloc}", "user-agent: tandem-bench"]
        if key:
            lines.append(f"authorization: Bearer {key}")
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass(slots=True)
class Answer:
    """What came, and when; times are those of :func:`now`, in seconds."""

    status: int = 0
    body: bytes = b""
    events: list[float] = field(default_factory=list)
    """When each ``data:`` line of a stream came, ``[DONE]`` left out."""
    done: bool = False
    """Whether a stream said ``[DONE]``."""
    ended: float = 0.0
    failure: Failure | None = None


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._open = True
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._keep_alive = False
        self._answer = Answer()
        self._parts: list[bytes] = []
        self._stream = False
        self._framed = False
        self._complete = False
        self._line = b""

    @property
    def reusable(self) -> bool:
        return self._open and self._keep_alive and self._waiter is None

    async def ask(self, message: bytes, timeout: float) -> Answer:
        """Send a request; its whole answer, or the failure that came instead.

        Args:
            timeout: seconds until the answer must have ended.
        """
        answer = self._answer = Answer()
        self._parts = []
        self._line = b""
        self._stream = self._framed = self._complete = self._keep_alive = False
        self._parser = httptools.HttpResponseParser(self)
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout, self._end, Failure("timeout", f"no whole answer within {timeout:g} s"))
        if self._transport is not None and self._open:
            self._transport.write(message)
        else:
            self._end(Failure("connection closed", "before anything was asked"))
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiter = None
        answer.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return answer

    def close(self) -> None:
        self._open = False
        if self._transport is not None:
            self._transport.abort()

    def _end(self, failure: Failure | None = None) -> None:
        if self._waiter is None or self._waiter.done():
            return
        self._answer.ended = now()
        self._answer.failure = failure
        self._waiter.set_result(None)
        if failure is not None:
            self.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._end(Failure("not HTTP", str(exc)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False
        if self._answer.status and not self._framed:
            self._end()  # an answer without a length ends with the connection
        when = "in the middle of an answer" if self._answer.status else "before any answer"
        self._end(Failure("connection closed", f"{when}{f' ({exc})' if exc else ''}"))

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            self.close()  # a second answer to one question

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type" and value.startswith(b"text/event-stream"):
            self._stream = True
        elif name in {b"content-length", b"transfer-encoding"}:
            self._framed = True

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 - it is the caller
        if not self._complete:
            self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._complete:
            return
        self._parts.append(body)
        if self._stream:
            self._events(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 - it is the caller
        if self._answer.status >= 200 and not self._complete:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()
            self._end()

    def _events(self, body: bytes) -> None:
        *lines, self._line = (self._line + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                if line[5:].strip() == b"[DONE]":
                    self._answer.done = True
                else:
                    self._answer.events.append(now())


class Connections:
    """Connections to one address: an idle one if there is one, else a new one, without a bound."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: list[Connection] = []

    async def ask(self, message: bytes, timeout: float) -> Answer:
        """Send a request on any connection; as :meth:`Connection.ask`, and failing to connect is a failure, too."""
        loop = asyncio.get_running_loop()
        connection = self._kept()
        if connection is None:
            try:
                async with asyncio.timeout(min(_CONNECT, timeout)):
                    _, connection = await loop.create_connection(
                        Connection, self.address.host, self.address.port, ssl=self.address.tls
                    )
            except TimeoutError:
                return Answer(ended=now(), failure=Failure("no connection", "it took too long"))
            except OSError as exc:
                said = exc.strerror or str(exc)
                return Answer(ended=now(), failure=Failure("no connection", said))
        answer = await connection.ask(message, timeout)
        if connection.reusable:
            connection.idle_since = answer.ended
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and now() - connection.idle_since < _IDLE:
                return connection
            connection.close()
        return None
