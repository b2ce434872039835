"""Hours of modest load, a row for each minute, and whether the memory of who answers stays flat."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tandem.bench import figures, memory
from tandem.bench.connection import Connections, now
from tandem.bench.figures import Bucket, Slope
from tandem.bench.load import Load, Reply, drive
from tandem.bench.rounds import Errors, until
from tandem.bench.scenarios import Case, Kind, Shape
from tandem.bench.side import Side

MINUTE = 60.0
_ROWS = 20  # at least, of a soak too short for as many minutes
_WARMING = 0.1  # share of the rows, the first ones, that say nothing about growth: pools and caches fill
TOKENS = 16


@dataclass(frozen=True)
class Row:
    """One minute. Times in seconds, ``resident`` in bytes; None where nothing was answered or seen."""

    at: float
    seconds: float
    requests: int
    errors: int
    p50: float | None
    p95: float | None
    resident: int | None
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Soaked:
    """What a soak gave.

    Args:
        kinds: what was asked, in turn.
        latencies: of the whole run, in buckets.
        generator: CPU time of the load generator, as a share of one core.
    """

    side: str
    load: Load
    kinds: Sequence[Kind]
    cut: bool
    rows: Sequence[Row]
    errors: Errors
    generator: float
    latencies: list[Bucket] = field(repr=False)

    @property
    def growth(self) -> "Growth | None":
        return growth(self.rows)


@dataclass(frozen=True)
class Growth:
    """How resident memory went.

    Args:
        slope: bytes/s, with its standard error.
        seconds: from the first to the last row that counts.
    """

    slope: Slope
    seconds: float

    @property
    def share(self) -> float:
        """What the line gains over the run, as a share of where it starts."""
        return self.slope.per_unit * self.seconds / self.slope.start

    @property
    def percent(self) -> float:
        """Growth over the run, in % of where it starts; 0 when chance would do as much (two standard errors)."""
        return 100 * self.share if self.slope.per_unit > 2 * self.slope.error else 0.0


def growth(rows: Sequence[Row]) -> Growth | None:
    """The line through the rows' memory, those of the warm-up left out; None of fewer than three.

    A process that was replaced begins anew: only rows of the last one count.
    """
    counted = rows[round(len(rows) * _WARMING) :]
    points = [(row.at, float(row.resident)) for row in counted if row.resident and row.pids == rows[-1].pids]
    line = figures.slope([at for at, _ in points], [resident for _, resident in points])
    return Growth(line, points[-1][0] - points[0][0]) if line else None


class Watch(Protocol):
    """Who is told how far a soak is."""

    def watching(self, pids: frozenset[int]) -> None:
        """The processes whose memory is looked at, before anything is asked; empty where none is seen."""

    def going(self, seconds: float, requests: int, errors: int, in_flight: int) -> None:
        """The soak goes on, and has ended so many requests, some with an error; told about twice a second."""

    def minute(self, row: Row) -> None:
        """It has made a row."""


class _Log:
    """Makes rows; holds the latencies of the minute that runs, and no others."""

    def __init__(self, start: float, watched: "_Watched") -> None:
        self.rows: list[Row] = []
        self.errors = Errors()
        self.latencies: list[Bucket] = []
        self.asked = self.in_flight = 0
        self._watched = watched
        self._start = self._since = start
        self._minute: list[float] = []
        self._failed = 0

    def begun(self, late: float) -> None:
        self.in_flight += 1

    def ended(self, due: float, reply: Reply) -> None:
        self.in_flight -= 1
        self.asked += 1
        if reply.failure is None:
            self._minute.append(reply.ended - due)
        else:
            self._failed += 1
            self.errors.add(reply.failure)

    def row(self, at: float) -> Row:
        ordered = sorted(self._minute)
        resident = self._watched.resident()
        made = Row(
            at=at - self._start,
            seconds=at - self._since,
            requests=len(ordered) + self._failed,
            errors=self._failed,
            p50=figures.percentile(ordered, 0.5) if ordered else None,
            p95=figures.percentile(ordered, 0.95) if ordered else None,
            resident=resident,
            pids=tuple(sorted(self._watched.pids)),
        )
        self.rows.append(made)
        self.latencies = figures.merged([self.latencies, figures.histogram(ordered)])
        self._minute, self._failed, self._since = [], 0, at
        return made


async def soak(
    side: Side, shape: Shape, load: Load, pid: int | None, seed: int, watch: Watch, stop: asyncio.Event
) -> Soaked:
    """Ask for each kind of answer in turn, for as long as ``load`` says or until ``stop`` is set.

    Args:
        pid: whose memory to watch; by default that of whoever listens on the side's port, if that is this machine.
    """
    connections = Connections(side.address)
    kinds = sorted(side.models)
    short = replace(shape, max_tokens=shape.max_tokens or TOKENS)
    asks = [side.asking(Case("soak", kind, short, load), f"{seed} {kind}", connections) for kind in kinds]
    turn = 0

    async def ask() -> Reply:
        nonlocal turn
        turn += 1
        return await asks[turn % len(asks)]()

    watched = _Watched(side, pid)
    watch.watching(watched.look())
    start, cpu = now(), time.process_time()
    log = _Log(start, watched)
    interval = min(MINUTE, load.seconds / _ROWS)
    due = start + interval

    def look() -> None:
        nonlocal due
        at = now()
        watch.going(at - start, log.asked, log.errors.total, log.in_flight)
        if at >= due:
            watch.minute(log.row(at))
            due = at + interval - (at - due) % interval

    chance = random.Random(seed)
    cut = await until(stop, drive(replace(load, warm_up=0), ask, log, chance), look)
    connections.close()
    ended = now()
    if not log.rows or ended - start - log.rows[-1].at > interval / 2:
        watch.minute(log.row(ended))
    generator = (time.process_time() - cpu) / (ended - start)
    return Soaked(side.name, load, kinds, cut, log.rows, log.errors, generator, log.latencies)


class _Watched:
    """The processes whose memory is looked at; looked for again only when one is gone: to look takes milliseconds."""

    def __init__(self, side: Side, pid: int | None) -> None:
        self.pids = frozenset() if pid is None else frozenset({pid})
        self._port = side.address.port if pid is None and memory.local(side.address.host) else None

    def resident(self) -> int | None:
        found = memory.resident(self.pids)
        return memory.resident(self.look()) if found is None and self._port is not None else found

    def look(self) -> frozenset[int]:
        """Who they are now."""
        if self._port is not None:
            self.pids = memory.answering(self._port)
        return self.pids
