"""One connection to an engine: HTTP/1.1 on asyncio's own protocols and httptools' parser, one exchange at a time."""

import asyncio
import copy
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import cast

import httptools

from tandem.errors import TandemError
from tandem.router.caller import Caller
from tandem.router.fastpath import FastPath, Lent, Told
from tandem.router.outbox import Outbox
from tandem.router.splice import Frame

# Bytes of an answer that may wait for a slow caller before the engine is told to wait too.
_BUFFER = 256 * 1024
_MOST_HEADERS = 64 * 1024

Reader = Callable[[bytes], None]  # takes a body as it comes


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


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._lost: UpstreamError | None = None
        self._lent: Lent | None = None
        self._chunks: list[bytes] = []
        self.on_body = self._chunks.append  # the parser's callback, without a frame of Python's for each part
        self._begin()
        self._complete = True  # nothing has been asked

    def _begin(self) -> None:
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._waiter: asyncio.Future[None] | None = None  # of whoever waits for what comes next
        self._reader: Reader | None = None
        self._fault: Exception | None = None  # of the reader
        self._chunks.clear()
        self._buffered = 0
        self._reads = 0  # of which the parts are joined
        self._complete = False
        self._between_chunks = False  # whether what comes next is a chunk, from its first byte
        self._paused = False
        self._keep_alive = False
        self._header_bytes = 0
        self._heard = 0.0
        self._between: float | None = None
        self._patience: float | None = None  # seconds in which the next part must come; none: for ever
        self._most: int | None = None  # bytes that the body may have, if it is waited for; none: it is read as it comes

    @property
    def reusable(self) -> bool:
        # Of an answer that nobody read to its end, something may still wait in the socket.
        return self._lost is None and self._complete and self._keep_alive and not self._chunks and not self._paused

    def prepare(self, most: int | None, first: float | None, between: float | None) -> float:
        """An exchange begins; when somebody has to :meth:`look` at it.

        Args:
            most: bytes that the answer may have, all of which is waited for; None: its body is read as it comes.
            first: seconds until the first byte of the answer's body; unbounded by default.
            between: seconds from one part of the body to the next; unbounded by default.
        """
        self._begin()
        self._most, self._patience, self._between = most, first, between
        self._heard = time.monotonic()
        return self._due(self._heard)

    async def exchange(self, outbox: Outbox, message: bytes) -> tuple[int, Mapping[bytes, bytes]]:
        """Send a request; status and headers of its answer, all of which has come unless it is read as it comes."""
        if self._lost is not None or self._transport is None:
            raise UpstreamError(str(self._lost or "the connection is closed"))
        outbox.put(self._transport, message)
        while not (self._complete if self._most else self._status):
            if self._status:
                self._check()
            if self._lost is not None:
                raise copy.copy(self._lost)  # what is raised knows its frames, and so this: it is not to be kept here
            await self._news()
        return self._status, self._headers

    async def chunk(self) -> bytes:
        """What has come of the body since the last call, waiting for it if need be; empty at its end."""
        while not self._chunks and not self._complete:
            self._check()
            await self._news()
        chunk = self._taken()
        self.hold(paused=False)
        return chunk

    async def feed(self, reader: Reader, *, paused: bool = False) -> None:
        """Hand the body to ``reader`` as it comes, and return at its end; ``paused`` as :meth:`hold` has it."""
        self.hold(paused=paused)
        if self._chunks:
            reader(self._taken())
        self._reader = reader
        try:
            while not self._complete:
                self._check()
                await self._news()
        finally:
            self._recall()
        self._check()

    def lend(self, path: FastPath, caller: Caller, frame: Frame, said: bytes, told: Told) -> bool:
        """Have ``path`` send on the events of a stream that :meth:`feed` reads, until it comes to one that it does not
        know. For the reader to call, of the only event in its part.

        Args:
            said: what the caller gets of this event.
            told: takes how many events more were sent on, and when the last of them came.

        Returns:
            whether ``said`` is on its way; what comes next may be the reader's all the same.
        """
        transport = self._transport
        if transport is None or transport.is_closing() or not self._between_chunks or self._paused:
            return False
        if transport.get_extra_info("sslcontext") is not None or (sink := caller.descriptor()) is None:
            return False
        if not caller.write_to(sink, said):
            os.close(sink)
            return True
        source = transport.get_extra_info("socket").fileno()
        self._lent = path.lend(source, sink, frame, partial(self._returned, caller), told)
        if self._lent is not None:
            transport.pause_reading()
        return True

    def _returned(self, caller: Caller, unread: bytes, unsent: bytes) -> None:
        """``unread`` has come, and is for the reader; ``unsent``, on which we may have to hold, is written first."""
        self._heard = time.monotonic()
        self._go_on()
        if unsent:
            caller.put(unsent)
        if unread:
            self.data_received(unread)

    def _recall(self) -> None:
        if self._lent is not None:
            self._heard = self._lent.heard
            self._lent.recall()
            self._go_on()

    def _go_on(self) -> None:
        self._lent = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def hold(self, *, paused: bool) -> None:
        """Stop or go on reading what the engine sends."""
        if paused is not self._paused and self._transport is not None:
            self._recall()
            self._paused = paused
            self._heard = time.monotonic()  # the engine is not to blame for the time that was held
            if self._transport.is_closing():
                return
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def look(self, now: float) -> float:
        """Give the exchange up if nothing has come for too long, and the caller is not the one who is slow.

        Returns:
            when to look again: it cannot be too long before.
        """
        limit = self._patience
        if self._complete or self._lost is not None:
            return inf
        if self._paused or (self._chunks and not self._most):
            return self._due(now)
        if self._lent is not None:
            self._heard = self._lent.heard
        if limit is not None and now - self._heard >= limit:
            self._fail(UpstreamTimeout(f"nothing came from the engine for {limit:g} s"))
            self.abort()
        return self._due(self._heard)

    def _due(self, heard: float) -> float:
        """What comes next may be awaited for less long than this is."""
        return heard + min(inf if self._patience is None else self._patience, self._between or inf)

    def fail(self, reason: str) -> None:
        """End the exchange as if the engine had closed the connection."""
        self._fail(UpstreamError(reason))
        self.abort()

    def abort(self) -> None:
        self._lost = self._lost or UpstreamError("the connection is closed")
        self._recall()
        self._reader = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        if self._between_chunks and (reader := self._reader) is not None:
            # Most reads of a stream are one chunk. It is seen here whether they are: the parser takes several calls.
            start = data.find(b"\r\n") + 2
            size = len(data) - start - 2
            if size > 0 and data.endswith(b"\r\n") and data.startswith(b"%x\r\n" % size):
                self._heard = time.monotonic()
                self._patience = self._between
                self._hand_on(reader, data[start:-2])
                return
        if self._parser is None or self._complete:
            self.abort()  # nobody asked
            return
        nonsense = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            nonsense = Nonsense(f"the engine answered nonsense ({exc})")
        if not data.endswith(b"\r\n"):  # the beginning of a chunk's size may have come
            self._between_chunks = False
        if self._chunks:
            self._body_came(len(data))
        if nonsense is not None:
            self._fail(nonsense)
            self.abort()

    def eof_received(self) -> bool:
        # An answer without a length ends with the connection.
        if self._status and not self._complete and self._unframed():
            self._complete = True
            self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._recall()
        self._fail(UpstreamError(f"the engine closed the connection{f' ({exc})' if exc else ''}"))
        self._parser = None  # it knows this, too: nothing is to be left to the garbage collector

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            raise Nonsense("a second answer to one request")  # the parser goes no further

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
        if not self._most:
            self._wake()

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_message_complete(self) -> None:
        self._between_chunks = False
        assert self._parser is not None  # noqa: S101 - it is the caller
        if self._status:
            self._keep_alive = self._parser.should_keep_alive()
            self._complete = True
            self._wake()

    def _body_came(self, size: int) -> None:
        """Something of the body has, in ``size`` bytes: the reader gets it, or it waits to be asked for.

        What a reader raises is raised where the reader was given.
        """
        self._heard = time.monotonic()
        self._patience = self._between
        if self._reader is None:
            self._buffered += size
            if self._most:
                self._whole_came(self._most)
                return
            if self._buffered > _BUFFER:
                self.hold(paused=True)
            self._wake()
        else:
            self._hand_on(self._reader, self._taken())

    def _whole_came(self, most: int) -> None:
        """More of a body that is waited for; one object a read, however small the chunks."""
        if len(self._chunks) - self._reads > 1:
            self._chunks[self._reads :] = [b"".join(self._chunks[self._reads :])]
        self._reads = len(self._chunks)
        if self._buffered > most:
            self._complete = False  # it may have been
            self._fail(Nonsense(f"the answer has more than {most} bytes"))
            self.abort()

    def _hand_on(self, reader: Reader, part: bytes) -> None:
        try:
            reader(part)
        except Exception as exc:
            self._fault = exc
            self._reader = None
            self._wake()

    def _taken(self) -> bytes:
        """All that has come and was not taken yet."""
        parts = self._chunks
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._buffered = 0
        return body

    def _unframed(self) -> bool:
        return b"content-length" not in self._headers and b"transfer-encoding" not in self._headers

    def _check(self) -> None:
        """Raise what keeps the body from coming."""
        if self._fault is not None:
            fault, self._fault = self._fault, None
            try:
                raise fault
            finally:
                del fault
        if self._lost is not None and not self._complete:
            self._lost.answered = True
            raise copy.copy(self._lost)

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
