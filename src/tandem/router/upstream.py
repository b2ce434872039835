"""Connections to engines: HTTP/1.1 over a small pool, on asyncio's own protocols and httptools' parser.

It does not care who started an engine; it knows base URLs. Forwarding is what the router is for, so this is its own
code and not a general client: one exchange at a time on a connection, no redirects, no cookies, nothing copied twice.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from typing import cast
from urllib.parse import urlsplit

import httptools

from tandem.errors import TandemError

# vLLM's server closes a connection that was idle for 5 s, by default.
_IDLE = 4.0
_MOST_IDLE = 256
# Bytes of an answer that may wait for a slow caller before the engine is told to wait too.
_BUFFER = 256 * 1024


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


class Answer:
    """An engine's answer, of which status and headers are there and the body may still be coming."""

    def __init__(
        self, upstream: "Upstream", connection: "_Connection", status: int, headers: Mapping[bytes, bytes]
    ) -> None:
        self.status = status
        self.headers = headers
        self._upstream = upstream
        self._connection = connection

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            UpstreamError: it broke off before its end.
        """
        while chunk := await self._connection.chunk():
            yield chunk

    async def read(self) -> bytes:
        """The whole body; raises as :meth:`chunks` does."""
        return b"".join([chunk async for chunk in self.chunks()])

    def close(self) -> None:
        """Give the connection back if the answer is whole; else break it off, so that the engine stops working."""
        self._upstream.release(self._connection)


class Upstreams:
    """A pool for every engine, by its address."""

    def __init__(self, *, connect_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._pools: dict[str, Upstream] = {}

    def to(self, url: str) -> "Upstream":
        """The pool of connections to ``url``."""
        if (pool := self._pools.get(url)) is None:
            pool = self._pools[url] = Upstream(url, connect_timeout=self._connect_timeout)
        return pool

    def close(self) -> None:
        """Close what is idle everywhere."""
        for pool in self._pools.values():
            pool.close()


class Upstream:
    """A pool of connections to one base URL, such as ``http://127.0.0.1:8100``."""

    def __init__(self, base_url: str, *, connect_timeout: float) -> None:
        url = urlsplit(base_url)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise ValueError(f"{base_url!r} is no http:// or https:// address")
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._prefix = url.path.rstrip("/")
        self._netloc = url.netloc.rpartition("@")[2]
        self._connect_timeout = connect_timeout
        self._idle: list[_Connection] = []

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and wait for the head of its answer. Bound it in time from outside; cancelling breaks it off.

        Raises:
            UpstreamError: nothing listens, or the connection broke before the answer's head was whole.
        """
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"host: {self._netloc}"]
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        message = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        while True:
            connection, fresh = await self._connection()
            try:
                status, answer_headers = await connection.exchange(message)
            except UpstreamError as exc:
                # A kept connection that the engine closed just now says nothing about the engine: ask on a fresh one.
                if fresh or exc.answered:
                    raise
                continue
            except BaseException:
                connection.abort()
                raise
            return Answer(self, connection, status, answer_headers)

    def release(self, connection: "_Connection") -> None:
        """Keep ``connection`` for the next request if it is fit for one."""
        if connection.reusable and len(self._idle) < _MOST_IDLE:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.abort()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().abort()

    async def _connection(self) -> tuple["_Connection", bool]:
        oldest = time.monotonic() - _IDLE
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may then run out of time
            if connection.reusable and connection.idle_since > oldest:
                return connection, False
            connection.abort()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, made = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError as exc:
            raise UpstreamTimeout(f"no connection to {self._netloc} within {self._connect_timeout:g} s") from exc
        except OSError as exc:
            raise UpstreamError(f"no connection to {self._netloc}: {exc.strerror or exc}") from exc
        return made, True


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._lost: str | None = None
        self._begin()

    def _begin(self) -> None:
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._head: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._complete = False
        self._paused = False
        self._keep_alive = False

    @property
    def reusable(self) -> bool:
        # Of an answer that nobody read to its end, something may still wait in the socket.
        return self._lost is None and self._complete and self._keep_alive and not self._chunks and not self._paused

    async def exchange(self, message: bytes) -> tuple[int, Mapping[bytes, bytes]]:
        """Send a request; status and headers of its answer."""
        if self._lost is not None or self._transport is None:
            raise UpstreamError(self._lost or "the connection is closed")
        self._begin()
        self._parser = httptools.HttpResponseParser(self)
        self._head = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        await self._head
        return self._status, self._headers

    async def chunk(self) -> bytes:
        """What has come of the body since the last call, waiting for it if need be; empty at its end."""
        while not self._chunks and not self._complete:
            if self._lost is not None:
                raise UpstreamError(self._lost, answered=True)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    def abort(self) -> None:
        self._lost = self._lost or "the connection is closed"
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
            self._fail(f"the engine answered nonsense ({exc})")
            self.abort()

    def eof_received(self) -> bool:
        # An answer without a length ends with the connection.
        if self._status and not self._complete and self._unframed():
            self._complete = True
            self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the engine closed the connection ({exc})" if exc else "the engine closed the connection")

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 - it is the caller
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._headers.clear()
            return
        self._status = status
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > _BUFFER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 - it is the caller
        if self._status:
            self._keep_alive = self._parser.should_keep_alive()
            self._complete = True
            self._wake()

    def _unframed(self) -> bool:
        return b"content-length" not in self._headers and b"transfer-encoding" not in self._headers

    def _fail(self, reason: str) -> None:
        self._lost = self._lost or reason
        if self._head is not None and not self._head.done():
            self._head.set_exception(UpstreamError(self._lost))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
