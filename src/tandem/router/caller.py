"""The caller's end of a hot request: its body comes in here, its answer goes out, and its leaving is noticed.

What a server for any application does between its socket and the application costs more than all of the router's own
work on a request, so the three hot routes are answered without it. The connection, its parser, its time-outs and what
is pipelined on it stay uvicorn's, to whose protocol this is the cycle of a request (see
:mod:`tandem.router.protocol`).
"""

import asyncio
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from tandem.errors import TandemError
from tandem.router.outbox import Outbox

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_CLOSE = b"connection: close\r\n"


class TooLarge(TandemError):
    """The body has more bytes than it may have."""


class Caller:
    """One request on its connection. Whatever is written is on its way in this turn of the loop; nothing here waits for
    a reader.

    Args:
        transport: the connection.
        outbox: through which all is written.
        done: called when the answer has been written to its end.
        most: bytes that the body may have.
        keep_alive: whether the connection may be used again.
        chunked: whether the caller understands chunks: HTTP/1.1.
        bodiless: whether the answer is to have no body: HEAD.
        expects: whether the caller waits to be told to send its body.

    Attributes:
        task: what works for the caller; cancelled when it leaves.
        gone: whether it has left.
        paused: whether it is slow to read, and too much waits for it already.
        on_flow: told of each change of that, while a stream is written.
        response_complete, disconnected, keep_alive, message_event: of a cycle, for uvicorn.
    """

    __slots__ = (
        *("_bodiless", "_chunked", "_done", "_expects", "_framed", "_most", "_outbox", "_parts", "_size", "_transport"),
        *("_waiter", "_whole", "disconnected", "gone", "keep_alive", "on_flow", "paused"),
        *("response_complete", "task"),
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        outbox: Outbox,
        done: Callable[[], None],
        most: int,
        *,
        keep_alive: bool = True,
        chunked: bool = True,
        bodiless: bool = False,
        expects: bool = False,
    ) -> None:
        self._transport = transport
        self._outbox = outbox
        self._done = done
        self._most = most
        self._chunked = chunked
        self._bodiless = bodiless
        self._expects = expects
        self._parts: list[bytes] = []
        self._size = 0
        self._whole = False
        self._framed = False
        self._waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.gone = False
        self.paused = False
        self.on_flow: Callable[[bool], None] | None = None
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False

    @property
    def message_event(self) -> "Caller":
        return self

    # What comes in, by the protocol

    def receive(self, part: bytes) -> None:
        """A part of the body has come."""
        self._size += len(part)
        if self._size <= self._most:
            self._parts.append(part)
        else:
            self._parts.clear()
            self._wake()

    def received(self) -> None:
        """The body is whole."""
        self._whole = True
        self._wake()

    def dawdle(self) -> None:
        """The body has not come in time."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    def leave(self) -> None:
        """The connection is lost."""
        self.gone = True
        if self.task is not None:
            self.task.cancel()

    def flow(self, *, paused: bool) -> None:
        """The caller has become slow, or quick again."""
        self.paused = paused
        if self.on_flow is not None:
            self.on_flow(paused)

    def set(self) -> None:
        """uvicorn's word for news of the connection, of which :meth:`leave` tells."""

    # What is asked of it, by whoever works for it

    async def body(self) -> bytes:
        """The request's whole body.

        Raises:
            TooLarge: it has too many bytes; what has come of it is forgotten.
            TimeoutError: it did not come in time.
        """
        if not self._whole and self._size <= self._most:
            if self._expects:
                self._outbox.put(self._transport, _CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._size > self._most:
            raise TooLarge
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def answer(self, status: int, head: bytes, body: bytes) -> None:
        """Write a whole answer.

        Args:
            head: headers, each with its end of line; all but length and connection.
        """
        if self.gone:
            return
        close = b"" if self.keep_alive else _CLOSE
        shown = b"" if self._bodiless else body
        said = b"%bcontent-length: %d\r\n%b%b\r\n%b" % (_STATUS_LINES[status], len(body), head, close, shown)
        self._outbox.put(self._transport, said)
        self._finish()

    def begin(self, head: bytes, data: bytes) -> None:
        """Write the head of a stream and its first part, together."""
        if self.gone:
            return
        self._framed = self._chunked
        self.keep_alive = self.keep_alive and self._chunked  # else only the connection's end tells of the stream's
        framing = _CHUNKED if self._chunked else b""
        close = b"" if self.keep_alive else _CLOSE
        said = b"%b%b%b%b\r\n%b" % (_STATUS_LINES[200], framing, head, close, self._part(data))
        self._outbox.put(self._transport, said)

    def write(self, data: bytes) -> None:
        """Write a part of a stream."""
        if not self.gone:
            self._outbox.put(self._transport, self._part(data))

    def put(self, data: bytes) -> None:
        """Write what is left of a part, as it is."""
        if not self.gone:
            self._outbox.put(self._transport, data)

    def descriptor(self) -> int | None:
        """One more descriptor of the connection, the taker's to close, for parts to be written to past all else; None
        where that cannot be: for HTTP/1.0, over TLS, when something still waits to be written, or without one left."""
        transport = self._transport
        if self.gone or not self._framed or transport.is_closing() or transport.get_write_buffer_size():
            return None
        if self._outbox.holds(transport) or transport.get_extra_info("sslcontext") is not None:
            return None
        try:
            return os.dup(transport.get_extra_info("socket").fileno())
        except OSError:
            return None

    def write_to(self, descriptor: int, data: bytes) -> bool:
        """Write a part of a stream to :meth:`descriptor`, and, where that takes it not or not whole, the rest as ever;
        whether there was none."""
        part = self._part(data)
        try:
            rest = part[os.write(descriptor, part) :]
        except OSError:  # it is full, or gone, which shows in time
            rest = part
        if rest:
            self.put(rest)
        return not rest

    def end(self, data: bytes = b"") -> None:
        """Write the last part of a stream, and its end."""
        if self.gone:
            return
        if data:
            self.write(data)
        if self._framed:
            self._outbox.put(self._transport, b"0\r\n\r\n")
        self._finish()

    def abort(self) -> None:
        """Give the connection up, and what of an answer still waits in it."""
        self._transport.abort()

    def _part(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._framed else data

    def _finish(self) -> None:
        self.response_complete = True
        self.on_flow = None
        if not self.keep_alive:
            self._outbox.flush()
            self._transport.close()
        self._done()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def header(name: str, value: Any) -> bytes:
    """One line of a head."""
    return f"{name.lower()}: {value}\r\n".encode("latin-1")
