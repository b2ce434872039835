"""Connections to engines: HTTP/1.1 over a small pool, on asyncio's own protocols and httptools' parser.

It does not care who started an engine; it knows base URLs. Forwarding is what the router is for, so this is its own
code and not a general client: one exchange at a time on a connection, no redirects, no cookies, nothing copied twice.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from tandem.errors import TandemError
from tandem.router.outbox import Outbox

# vLLM's server closes a connection that was idle for 5 s, by default.
_IDLE = 4.0
_MOST_IDLE = 256
# Bytes of an answer that may wait for a slow caller before the engine is told to wait too.
_BUFFER = 256 * 1024
_MOST_HEADERS = 64 * 1024
# 2,048 vectors of 8,192 dimensions as text are about half of it.
_LARGEST = 512 * 2**20
_LOOK = 0.05  # seconds between two looks at whether an engine has been silent for too long


class UpstreamError(TandemError):
    """The engine could not be reached, or broke off.

    Attributes:
        answered: whether anything of an answer had come.
    """

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


class UpstreamTimeout(UpstreamError):
    """The engine did not answer in time."""


class Nonsense(UpstreamError):
    """What came is no answer: not HTTP, or beyond every bound."""

    def __init__(self, message: str) -> None:
        super().__init__(message, answered=True)


class Reader(Protocol):
    """Takes a body as it comes."""

    def read(self, part: bytes) -> None:
        """A part of it."""

    def flush(self) -> None:
        """No more of it is there now."""


class Answer:
    """An engine's answer, of which status and headers are there and the body may still be coming."""

    def __init__(
        self, upstream: "Upstream", connection: "_Connection", status: int, headers: Mapping[bytes, bytes]
    ) -> None:
        self.status = status
        self.headers = headers
        self._upstream = upstream
        self._connection = connection

    @property
    def retry_after(self) -> float | None:
        """Seconds for which the engine asks to be left alone; None if it does not say in seconds."""
        given = self.headers.get(b"retry-after", b"")
        return float(given) if given.isdigit() and len(given) < 6 else None

    async def feed(self, reader: Reader) -> None:
        """Hand the body to ``reader`` as it comes, until its end.

        Raises:
            UpstreamError: it broke off before its end.
            Exception: what the reader raises.
        """
        await self._connection.feed(reader)

    def hold(self, paused: bool) -> None:
        """Have the engine wait, or go on: whoever reads what is made of its answer is slow."""
        self._connection.hold(paused=paused)

    async def read(self, limit: int | None = None) -> bytes:
        """The whole body, of at most ``limit`` bytes; by default as many as any answer has.

        Raises:
            UpstreamError: it broke off before its end, or there is more than any answer has.
        """
        limit = limit or _LARGEST
        parts = []
        size = 0
        while chunk := await self._connection.chunk():
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                raise Nonsense(f"the answer has more than {limit} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give the connection back if the answer is whole; else break it off, so that the engine stops working."""
        self._upstream.release(self._connection)


class Upstreams:
    """A pool for every engine, by its address."""

    def __init__(self, *, connect_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._outbox = Outbox()
        self._pools: dict[str, Upstream] = {}

    def to(self, url: str) -> "Upstream":
        """The pool of connections to ``url``."""
        if (pool := self._pools.get(url)) is None:
            pool = self._pools[url] = Upstream(url, connect_timeout=self._connect_timeout, outbox=self._outbox)
        return pool

    def close(self) -> None:
        """Close what is idle everywhere."""
        for pool in self._pools.values():
            pool.close()


class Upstream:
    """A pool of connections to one base URL, such as ``http://127.0.0.1:8100``.

    Args:
        outbox: through which it asks; its own by default.
    """

    def __init__(self, base_url: str, *, connect_timeout: float, outbox: Outbox | None = None) -> None:
        url = urlsplit(base_url)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise ValueError(f"{base_url!r} is no http:// or https:// address")
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._prefix = url.path.rstrip("/")
        self._netloc = url.netloc.rpartition("@")[2]
        self._connect_timeout = connect_timeout
        self._outbox = outbox or Outbox()
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._watching: asyncio.TimerHandle | None = None

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        first: float | None = None,
        between: float | None = None,
    ) -> Answer:
        """Send a request and wait for the head of its answer. Cancelling breaks it off.

        Args:
            first: seconds until the first byte of the answer's body; unbounded by default. vLLM sends the head of a
                stream before it has looked at the request, so the head says nothing.
            between: seconds from one part of the body to the next; unbounded by default.

        Raises:
            UpstreamError: nothing listens, or the connection broke before the answer's head was whole.
            UpstreamTimeout: no connection, or no answer, in time; reading the body may raise it, too.
        """
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\nhost: {self._netloc}\r\n"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        for name, value in headers.items() if headers else ():
            head += f"{name}: {value}\r\n"
        message = b"%b\r\n%b" % (head.encode("latin-1"), body)
        kept = True
        while True:
            connection = self._kept() if kept else None
            fresh = connection is None
            if connection is None:
                connection = await self._connect()
            self._busy.add(connection)
            if self._watching is None:
                self._watching = asyncio.get_running_loop().call_later(_LOOK, self._watch)
            try:
                status, answer_headers = await connection.exchange(self._outbox, message, first, between)
            except UpstreamError as exc:
                self._drop(connection)
                # A kept connection that the engine closed just now says nothing about the engine: ask on a fresh one.
                if fresh or exc.answered or isinstance(exc, UpstreamTimeout):
                    raise
                kept = False
                continue
            except BaseException:
                self._drop(connection)
                raise
            return Answer(self, connection, status, answer_headers)

    def break_off(self, reason: str) -> None:
        """The engine is gone: nobody waits any longer for what it was asked, and nothing kept is used again."""
        for connection in list(self._busy):
            connection.fail(reason)
        self.close()

    def _watch(self) -> None:
        """See that nobody waits for too long: one timer for all is cheaper than one for each request."""
        self._watching = None
        now = time.monotonic()
        for connection in list(self._busy):
            connection.look(now)
        if self._busy:
            self._watching = asyncio.get_running_loop().call_later(_LOOK, self._watch)

    def release(self, connection: "_Connection") -> None:
        """Keep ``connection`` for the next request if it is fit for one."""
        if connection.reusable and len(self._idle) < _MOST_IDLE:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
            self._busy.discard(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: "_Connection") -> None:
        self._busy.discard(connection)
        connection.abort()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().abort()

    def _kept(self) -> "_Connection | None":
        """A connection that was used before and is fit for use."""
        oldest = time.monotonic() - _IDLE
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may then run out of time
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, made = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError as exc:
            raise UpstreamTimeout(f"no connection to {self._netloc} within {self._connect_timeout:g} s") from exc
        except OSError as exc:
            raise UpstreamError(f"no connection to {self._netloc}: {exc.strerror or exc}") from exc
        return made


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._lost: UpstreamError | None = None
        self._begin()

    def _begin(self) -> None:
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._waiter: asyncio.Future[None] | None = None  # of whoever waits for the head, or for more of the body
        self._reader: Reader | None = None
        self._fault: Exception | None = None  # of the reader
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._complete = False
        self._paused = False
        self._keep_alive = False
        self._header_bytes = 0
        self._heard = 0.0
        self._between: float | None = None
        self._patience: float | None = None  # seconds in which the next part must come; none: for ever

    @property
    def reusable(self) -> bool:
        # Of an answer that nobody read to its end, something may still wait in the socket.
        return self._lost is None and self._complete and self._keep_alive and not self._chunks and not self._paused

    async def exchange(
        self, outbox: Outbox, message: bytes, first: float | None = None, between: float | None = None
    ) -> tuple[int, Mapping[bytes, bytes]]:
        """Send a request; status and headers of its answer."""
        if self._lost is not None or self._transport is None:
            raise UpstreamError(str(self._lost or "the connection is closed"))
        self._begin()
        self._parser = httptools.HttpResponseParser(self)
        self._patience, self._between = first, between
        self._heard = time.monotonic()
        outbox.put(self._transport, message)
        while not self._status:
            if self._lost is not None:
                raise self._lost
            await self._news()
        return self._status, self._headers

    async def chunk(self) -> bytes:
        """What has come of the body since the last call, waiting for it if need be; empty at its end."""
        while not self._chunks and not self._complete:
            self._check()
            await self._news()
        chunk = b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        self.hold(paused=False)
        return chunk

    async def feed(self, reader: Reader) -> None:
        """Hand the body to ``reader`` as it comes, and return at its end."""
        if self._chunks:
            parts, self._chunks, self._buffered = self._chunks, [], 0
            reader.read(b"".join(parts))
            reader.flush()
        self.hold(paused=False)
        self._reader = reader
        while not self._complete:
            self._check()
            await self._news()
        self._check()

    def hold(self, *, paused: bool) -> None:
        """Stop or go on reading what the engine sends."""
        if paused is not self._paused and self._transport is not None:
            self._paused = paused
            self._heard = time.monotonic()  # the engine is not to blame for the time that was held
            if self._transport.is_closing():
                return
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def look(self, now: float) -> None:
        """Give the exchange up if nothing has come for too long, and the caller is not the one who is slow."""
        limit = self._patience
        if limit is None or self._complete or self._lost is not None or self._paused or self._chunks:
            return
        if now - self._heard >= limit:
            self._fail(UpstreamTimeout(f"nothing came from the engine for {limit:g} s"))
            self.abort()

    def fail(self, reason: str) -> None:
        """End the exchange as if the engine had closed the connection."""
        self._fail(UpstreamError(reason))
        self.abort()

    def abort(self) -> None:
        self._lost = self._lost or UpstreamError("the connection is closed")
        self._reader = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.abort()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(Nonsense(f"the engine answered nonsense ({exc})"))
            self.abort()
        if self._reader is not None:
            self._hand(self._reader.flush)

    def eof_received(self) -> bool:
        # An answer without a length ends with the connection.
        if self._status and not self._complete and self._unframed():
            self._complete = True
            self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(UpstreamError(f"the engine closed the connection{f' ({exc})' if exc else ''}"))

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _MOST_HEADERS:
            self._fail(Nonsense(f"its headers have more than {_MOST_HEADERS} bytes"))
            self.abort()
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 - it is the caller
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._headers.clear()
            return
        self._status = status
        self._wake()

    def on_body(self, body: bytes) -> None:
        self._heard = time.monotonic()
        self._patience = self._between
        if self._reader is not None:
            self._hand(self._reader.read, body)
            return
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > _BUFFER:
            self.hold(paused=True)
        self._wake()

    def on_message_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 - it is the caller
        if self._status:
            self._keep_alive = self._parser.should_keep_alive()
            self._complete = True
            self._wake()

    def _hand(self, take: Callable[..., None], *part: bytes) -> None:
        """Give the reader what there is; what it raises is raised where it was given."""
        try:
            take(*part)
        except Exception as exc:
            self._fault = exc
            self._reader = None
            self._wake()

    def _unframed(self) -> bool:
        return b"content-length" not in self._headers and b"transfer-encoding" not in self._headers

    def _check(self) -> None:
        """Raise what keeps the body from coming."""
        if self._fault is not None:
            raise self._fault
        if self._lost is not None and not self._complete:
            self._lost.answered = True
            raise self._lost

    def _fail(self, reason: UpstreamError) -> None:
        self._lost = self._lost or reason
        self._wake()

    async def _news(self) -> None:
        """Wait until something has happened."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
