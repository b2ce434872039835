"""What is asked of engines, and their answers, over a small pool of connections.

It does not care who started an engine; it knows base URLs. Forwarding is what the router is for, so this is its own
code and not a general client: no redirects, no cookies, nothing copied twice.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from math import inf
from urllib.parse import urlsplit

import msgspec

from tandem.router.caller import Caller
from tandem.router.connection import Connection, Nonsense, Reader, UpstreamError, UpstreamTimeout
from tandem.router.fastpath import COMPILED, FastPath, Told
from tandem.router.outbox import Outbox
from tandem.router.splice import Frame

# What msgspec raises where a body is not the JSON that it should be: not UTF-8, and nested without end, included.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# vLLM's server closes a connection that was idle for 5 s, by default.
_IDLE = 4.0
_MOST_IDLE = 256
# 2,048 vectors of 8,192 dimensions as text are about half of it.
_LARGEST = 512 * 2**20
_LOOK = 0.05  # seconds between two looks at whether an engine has been silent for too long


class Answer:
    """An engine's answer, of which status and headers are there; the body, too, but for a stream's."""

    def __init__(
        self, upstream: "Upstream", connection: Connection, status: int, headers: Mapping[bytes, bytes]
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

    async def feed(self, reader: Reader, *, paused: bool = False) -> None:
        """Hand the body to ``reader`` as it comes, until its end; ``paused`` to begin with, as :meth:`hold` has it.

        Raises:
            UpstreamError: it broke off before its end.
            Exception: what the reader raises.
        """
        await self._connection.feed(reader, paused=paused)

    def lend(self, caller: Caller, frame: Frame, said: bytes, told: Told) -> bool:
        """Have what is fed be sent on to ``caller`` on the fast path, as :meth:`Connection.lend` has it."""
        path = self._upstream.fast_path
        return path is not None and self._connection.lend(path, caller, frame, said, told)

    def hold(self, paused: bool) -> None:
        """Have the engine wait, or go on: whoever reads what is made of its answer is slow."""
        self._connection.hold(paused=paused)

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: it broke off before its end, or there is more than any answer has.
        """
        parts = []
        size = 0
        while chunk := await self._connection.chunk():
            parts.append(chunk)
            size += len(chunk)
            if size > _LARGEST:
                raise Nonsense(f"the answer has more than {_LARGEST} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give the connection back if the answer is whole; else break it off, so that the engine stops working."""
        self._upstream.release(self._connection)


class Upstreams:
    """A pool for every engine, by its address.

    Args:
        fast: whether streams are sent on without Python where they can be; only where that is compiled.
    """

    def __init__(self, *, connect_timeout: float, fast: bool = COMPILED) -> None:
        self._connect_timeout = connect_timeout
        self._outbox = Outbox()
        self._fast_path = FastPath() if fast else None
        self._pools: dict[str, Upstream] = {}

    def to(self, url: str) -> "Upstream":
        """The pool of connections to ``url``."""
        if (pool := self._pools.get(url)) is None:
            pool = self._pools[url] = Upstream(
                url, connect_timeout=self._connect_timeout, outbox=self._outbox, fast_path=self._fast_path
            )
        return pool

    def close(self) -> None:
        """Close what is idle everywhere."""
        for pool in self._pools.values():
            pool.close()
        if self._fast_path is not None:
            self._fast_path.close()


class Upstream:
    """A pool of connections to one base URL, such as ``http://127.0.0.1:8100``.

    Args:
        outbox: through which it asks; its own by default.
        fast_path: what sends on streams without Python; by default nothing does.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout: float,
        outbox: Outbox | None = None,
        fast_path: FastPath | None = None,
    ) -> None:
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
        self.fast_path = fast_path
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._watching: asyncio.TimerHandle | None = None
        self._due = inf  # before that, nobody can have waited for too long

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        streamed: bool = False,
        most: int | None = None,
        first: float | None = None,
        between: float | None = None,
    ) -> Answer:
        """Send a request and wait for its answer. Cancelling breaks it off.

        Args:
            streamed: return with the answer's head; its body is read as it comes. Else with all of it: an engine sends
                the two apart, and who waits for both is to be woken once.
            most: bytes that an answer may have that is waited for, head and framing included; by default as many as any
                has.
            first: seconds until the first byte of the answer's body; unbounded by default. vLLM sends the head of a
                stream before it has looked at the request, so the head says nothing.
            between: seconds from one part of the body to the next; unbounded by default.

        Raises:
            UpstreamError: nothing listens, or the connection broke before that; or there is more of it.
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
            self._due = min(self._due, connection.prepare(None if streamed else most or _LARGEST, first, between))
            if self._watching is None:
                self._watching = asyncio.get_running_loop().call_later(_LOOK, self._watch)
            try:
                status, answer_headers = await connection.exchange(self._outbox, message)
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
        if (now := time.monotonic()) >= self._due:
            self._due = min([connection.look(now) for connection in list(self._busy)], default=inf)
        if self._busy:
            self._watching = asyncio.get_running_loop().call_later(_LOOK, self._watch)

    def release(self, connection: Connection) -> None:
        """Keep ``connection`` for the next request if it is fit for one."""
        if connection.reusable and len(self._idle) < _MOST_IDLE:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
            self._busy.discard(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._busy.discard(connection)
        connection.abort()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().abort()

    def _kept(self) -> "Connection | None":
        """A connection that was used before and is fit for use."""
        oldest = time.monotonic() - _IDLE
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may then run out of time
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, made = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError as exc:
            raise UpstreamTimeout(f"no connection to {self._netloc} within {self._connect_timeout:g} s") from exc
        except OSError as exc:
            raise UpstreamError(f"no connection to {self._netloc}: {exc.strerror or exc}") from exc
        return made
