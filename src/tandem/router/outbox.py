"""What is written in one turn of the event loop, written together.

A write to a peer that sleeps wakes it, which costs more than the write. While many requests are in flight, their parts
come many at a time: written one after the other at the end of the turn, most of them find their peer awake. Who is
alone is not to wait for the end of a turn: its parts are written at once.
"""

import asyncio


class Outbox:
    """Lives on one event loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None  # asking for it is a call of the kernel, in Python 3.11
        self._crowded = False  # whether several things were written in the turn before
        self._written = 0  # in this turn, or waiting for its end
        self._waiting: list[tuple[asyncio.WriteTransport, bytes]] = []

    def put(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Have ``data`` written to ``transport`` in this turn of the loop, in the order in which it was put here."""
        if not self._written:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._end_turn)
        self._written += 1
        self._waiting.append((transport, data))
        if self._written == 1 and not self._crowded:
            self.flush()

    def holds(self, transport: asyncio.WriteTransport) -> bool:
        """Whether something still waits to be written to it."""
        return any(each is transport for each, _ in self._waiting)

    def flush(self) -> None:
        """Write all there is; what is for a connection that was closed meanwhile goes nowhere."""
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():
                transport.write(data)

    def _end_turn(self) -> None:
        self._crowded = self._written > 1
        self._written = 0
        self.flush()
