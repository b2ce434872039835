"""Streams sent on without Python, for as long as their events differ in nothing but their text.

What an event costs is hardly its own work but all that event loop, transport, parser and router touch on the way, which
the caches have lost when the next one comes. A stream that has come to where its events are spliced
(:mod:`tandem.router.splice`) is therefore lent to three hundred lines of C (``_fastpath.c``), which watch the engine's
socket and write to the caller's. The first thing that is anything else (another kind of event, the end, an error, a
caller who does not read) comes back, and the stream with it: only the commonplace is known there.

Where it could not be compiled, and for connections that are encrypted, everything goes the long way, to the same end.
"""

import asyncio
import os
from collections.abc import Callable

from tandem.router.splice import Frame

try:
    from tandem.router import _fastpath
except ImportError:  # there was no compiler, or there is no epoll
    COMPILED = False
else:
    COMPILED = True

Back = Callable[[bytes, bytes], None]  # takes what has come and was not sent on, and what the caller's socket left
Told = Callable[[int, float], None]  # takes how many events were sent on, and when the last of them came


class Lent:
    """A stream that is on the fast path."""

    __slots__ = ("_path", "back", "sink", "source", "told")

    def __init__(self, path: "FastPath", source: int, sink: int, back: Back, told: Told) -> None:
        self._path = path
        self.source = source
        self.sink = sink
        self.back = back
        self.told = told

    @property
    def heard(self) -> float:
        """When something came last, in seconds on the monotonic clock."""
        return self._path.heard(self)

    def recall(self) -> None:
        """Have it back; what was read by now was sent on, and what comes next is for whoever reads it."""
        self._path.recall(self)


class FastPath:
    """Lives on one event loop; only where it is :data:`COMPILED`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams = _fastpath.FastPath()
        self._lent: dict[int, Lent] = {}

    def lend(self, source: int, sink: int, frame: Frame, back: Back, told: Told) -> Lent | None:
        """Send on what comes from ``source``, which nobody else is to read meanwhile.

        Args:
            sink: a descriptor for the caller's connection, which closes when the stream is back. Being its own, it
                stays what it is, whatever becomes of the connection: nothing that is written reaches anybody else.
            frame: of the events that can be sent on.
            back: called when the stream comes back unasked: its first part begins with a chunk, its second is to be
                written before anything else.
            told: called whenever it is back, before that.

        Returns:
            None if the kernel does not want to watch one more; ``sink`` is closed then.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._streams.fileno(), self._run)
        try:
            self._streams.add(source, sink, frame.before, frame.after, frame.ours_before, frame.ours_after)
        except (OSError, MemoryError):
            os.close(sink)
            return None
        lent = self._lent[source] = Lent(self, source, sink, back, told)
        return lent

    def heard(self, lent: Lent) -> float:
        return self._streams.heard(lent.source)

    def recall(self, lent: Lent) -> None:
        del self._lent[lent.source]
        os.close(lent.sink)
        lent.told(*self._streams.remove(lent.source))

    def close(self) -> None:
        """Give all of them back."""
        for lent in list(self._lent.values()):
            lent.recall()
            lent.back(b"", b"")
        if self._loop is not None:
            self._loop.remove_reader(self._streams.fileno())
            self._loop = None

    def _run(self) -> None:
        for source, unread, unsent, events, last in self._streams.run():
            lent = self._lent.pop(source)
            os.close(lent.sink)
            lent.told(events, last)
            lent.back(unread, unsent)
