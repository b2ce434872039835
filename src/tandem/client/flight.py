"""Batches on their way: several at once, for threads and for tasks, and the windows of a stream that they fill."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tandem.client.batching import Batch, Rows

_HELD = 2  # windows of a stream that wait for vectors; a third is being handed out


class Flight:
    """Batches on their way, each in a thread of its own.

    Nobody waits for these threads: when the flight is left, or the interpreter with Ctrl-C, what is on its way ends by
    its own deadline, and its vectors are wanted no more.

    Args:
        embed: a batch's whole way, to its rows.
        most: batches at once.
    """

    def __init__(self, embed: Callable[[Batch, Rows], None], most: int) -> None:
        self._embed, self._most = embed, most
        self.sent: set[Future[None]] = set()

    @property
    def room(self) -> int:
        """How many more may be sent."""
        return self._most - len(self.sent)

    @property
    def landed(self) -> bool:
        """Whether any has come back that :meth:`land` was not called for."""
        return any(future.done() for future in self.sent)

    def send(self, batch: Batch, rows: Rows) -> Future[None]:
        """Send ``batch``, within the caller's own context: its span and its timelines."""
        future: Future[None] = Future()
        context = contextvars.copy_context()
        self.sent.add(future)
        threading.Thread(
            target=self._travel, args=(future, context, batch, rows), name="tandem-embed", daemon=True
        ).start()
        return future

    def land(self) -> None:
        """Wait for the next to come back, and raise what it met."""
        done, self.sent = wait(self.sent, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()

    def _travel(self, future: Future[None], context: contextvars.Context, batch: Batch, rows: Rows) -> None:
        try:
            context.run(self._embed, batch, rows)
        except BaseException as exc:  # whoever waits for it is another thread
            future.set_exception(exc)
        else:
            future.set_result(None)


class AsyncFlight:
    """The same, each in a task of its own; leaving it cancels those that are on their way."""

    def __init__(self, embed: Callable[[Batch, Rows], Coroutine[Any, Any, None]], most: int) -> None:
        self._embed, self._most = embed, most
        self.sent: set[asyncio.Task[None]] = set()

    @property
    def room(self) -> int:
        """How many more may be sent."""
        return self._most - len(self.sent)

    def send(self, batch: Batch, rows: Rows) -> None:
        """Send ``batch``."""
        self.sent.add(asyncio.create_task(self._embed(batch, rows)))

    async def land(self) -> None:
        """Wait for the next to come back, and raise what it met."""
        done, self.sent = await asyncio.wait(self.sent, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.sent:
            task.cancel()
        await asyncio.gather(*self.sent, return_exceptions=True)


class Window:
    """Some of a stream's texts, cut into batches, and the rows that their vectors go to."""

    def __init__(self, rows: Rows, waiting: Sequence[Batch]) -> None:
        self.rows = rows
        self.waiting = deque(waiting)
        self.sent: list[Future[None]] = []

    @property
    def whole(self) -> bool:
        """Whether all of its vectors are there."""
        return not self.waiting and all(future.done() for future in self.sent)


class Windows:
    """The windows of a stream that are held at a time, in order."""

    def __init__(self, source: Iterator[Window]) -> None:
        self._source = source
        self._held: deque[Window] = deque()

    def go_on(self, flight: Flight) -> None:
        """Send as much as there is room for; read a further window if those at hand are used up."""
        while flight.room:
            window = next((held for held in self._held if held.waiting), None)
            if window is None:
                window = next(self._source, None) if len(self._held) < _HELD else None
                if window is None:
                    return
                self._held.append(window)
            window.sent.append(flight.send(window.waiting.popleft(), window.rows))

    def whole(self) -> Iterator[NDArray[np.float32]]:
        """The rows of all windows at the front that are whole, one after the other."""
        while self._held and self._held[0].whole:
            # A copy of each: a caller who keeps one vector should not keep its whole window.
            yield from (row.copy() for row in self._held.popleft().rows.array)
