"""Rounds of one case, those of two services interleaved, and what each round gave."""

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from tandem.bench import figures
from tandem.bench.connection import Connections, Failure, now
from tandem.bench.figures import Bucket, Spread
from tandem.bench.load import Load, Reply, drive
from tandem.bench.scenarios import Case
from tandem.bench.side import Side

_TICK = 0.5  # seconds between two looks at the progress


class Errors:
    """Errors by kind, each with the first example."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def add(self, failure: Failure, count: int = 1) -> None:
        self.counts[failure.kind] = self.counts.get(failure.kind, 0) + count
        self.examples.setdefault(failure.kind, failure.example)

    def listed(self) -> list[dict[str, str | int]]:
        """``kind``, ``count`` and ``example`` of each."""
        return [{"kind": kind, "count": count, "example": self.examples[kind]} for kind, count in self.counts.items()]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class Tally:
    """What one round has seen so far; its load writes it.

    A request counts if it was due while the round was measured, however late it ended; one that failed, also if it
    was due before: who hangs through the whole round is not to be forgotten.

    Throughput counts what was done in that time. In a closed loop a request counts by the share of its own time that
    lies in it: users who were answered together ask together, and of 50 answers every 5 s, 6 s hold 50 or 100. In an
    open loop, where a request's time may be mostly waiting, it counts when its answer came in that time.
    """

    def __init__(self, load: Load, start: float) -> None:
        self._open_loop = load.rate is not None
        self.start = start + load.warm_up
        self.end = self.start + load.seconds
        self.in_flight = self.peak = self.asked = self.answered = 0
        self.requests = self.texts = self.tokens = 0.0
        self.errors = Errors()
        self.latencies: list[float] = []
        self.first_events: list[float] = []
        self.gaps: list[float] = []
        self.lengths: list[int] = []
        self.lateness: list[float] = []

    def begun(self, late: float) -> None:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if self._open_loop:
            self.lateness.append(late)

    def ended(self, due: float, reply: Reply) -> None:
        self.in_flight -= 1
        if reply.failure is not None:
            if due < self.end and self.start <= reply.ended:
                self.asked += 1
                self.errors.add(reply.failure)
        elif self.start <= due < self.end:
            self.asked += 1
            self._measured(due, reply)
        if reply.failure is None:
            self._counted(due, reply)

    def _measured(self, due: float, reply: Reply) -> None:
        self.latencies.append(reply.ended - due)
        self.lengths.append(reply.tokens)
        if reply.events:
            self.first_events.append(reply.events[0] - due)
            self.gaps += [later - sooner for sooner, later in pairwise(reply.events)]

    def _counted(self, due: float, reply: Reply) -> None:
        self.answered += 1
        share = self._share(due, reply.ended)
        self.requests += share
        self.texts += share * reply.texts
        if reply.events:
            self.tokens += sum(self.start <= at < self.end for at in reply.events)
        else:
            self.tokens += share * reply.tokens

    def _share(self, due: float, ended: float) -> float:
        if self._open_loop:
            return float(self.start <= ended < self.end)
        return max(0.0, min(ended, self.end) - max(due, self.start)) / (ended - due)

    def figures(self, seconds: float) -> dict[str, float]:
        """Everything measured, by name; times in seconds."""
        found = {"requests_per_second": self.requests / seconds}
        if self.texts:
            found["texts_per_second"] = self.texts / seconds
        if self.tokens:
            unit = "events" if self.first_events else "tokens"
            found[f"{unit}_per_second"] = self.tokens / seconds
            found[f"{unit}_per_answer"] = float(statistics.median(self.lengths or [0]))
        found |= figures.percentiles(self.latencies, "latency")
        found |= figures.percentiles(self.first_events, "first_event")
        found |= figures.percentiles(self.gaps, "gap")
        return found | (figures.percentiles(self.lateness, "lateness") if self._open_loop else {})


@dataclass(frozen=True)
class Round:
    """What one round gave.

    Args:
        seconds: how long was measured; less than was asked for when it was cut short.
        generator: CPU time of the load generator, as a share of one core.
        peak: the most requests in flight at once.
        figures: see ``report`` for their names; times in seconds.
        latencies: how many requests took how long.
    """

    side: str
    number: int
    seconds: float
    cut: bool
    requests: int
    errors: Errors
    peak: int
    generator: float
    figures: dict[str, float]
    latencies: list[Bucket] = field(repr=False)


class Progress(NamedTuple):
    """Where a run is; ``part`` goes from 0 to 1 within the round."""

    case: str
    side: str
    number: int
    rounds: int
    part: float
    answered: int
    errors: int
    in_flight: int


class Watch(Protocol):
    """Who is told how far a run is."""

    def progress(self, at: Progress) -> None:
        """The round goes on; told about twice a second."""

    def finished(self, case: str, one: Round, rounds: int) -> None:
        """A round is over."""


@dataclass(frozen=True)
class Measured:
    """All rounds of one case."""

    case: Case
    rounds: Sequence[Round]

    def of(self, side: str) -> list[Round]:
        return [one for one in self.rounds if one.side == side]

    def spreads(self, side: str) -> dict[str, Spread]:
        """Each figure over the rounds of one side."""
        rounds = self.of(side)
        names = dict.fromkeys(name for one in rounds for name in one.figures)
        return {name: figures.spread([one.figures[name] for one in rounds if name in one.figures]) for name in names}

    def ratios(self) -> dict[str, Spread]:
        """A as a multiple of B, round by round."""
        return self._compared(figures.ratio)

    def differences(self) -> dict[str, Spread]:
        """How far A lies above B, round by round."""
        return self._compared(figures.difference)

    def _compared(self, by: Callable[[Sequence[float], Sequence[float]], Spread | None]) -> dict[str, Spread]:
        those = {one.number: one for one in self.of("B")}  # a round in which nothing was due is missing
        pairs = [(one, those[one.number]) for one in self.of("A") if one.number in those]
        names = dict.fromkeys(name for a, b in pairs for name in a.figures if name in b.figures)
        found = {}
        for name in names:
            both = [(a.figures[name], b.figures[name]) for a, b in pairs if name in a.figures and name in b.figures]
            if compared := by([a for a, _ in both], [b for _, b in both]):
                found[name] = compared
        return found


def order(sides: Sequence[Side], rounds: int) -> Iterator[tuple[Side, int]]:
    """A, B, B, A, A, B …: neighbours are compared, and neither is always first."""
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            yield side, number + 1


async def measure(
    case: Case, sides: Sequence[Side], rounds: int, seed: int, watch: Watch, stop: asyncio.Event
) -> Measured:
    """Run every round of ``case``; once ``stop`` is set, return what there is."""
    found: list[Round] = []
    for side, number in order(sides, rounds):
        if stop.is_set():
            break
        if one := await _round(case, side, number, rounds, f"{seed} {case.name} {number}", watch, stop):
            found.append(one)
            watch.finished(case.name, one, rounds)
    return Measured(case, found)


async def _round(
    case: Case, side: Side, number: int, rounds: int, seed: str, watch: Watch, stop: asyncio.Event
) -> Round | None:
    load = case.load
    connections = Connections(side.address)
    start, cpu = now(), time.process_time()
    tally = Tally(load, start)

    def tell() -> None:
        part = min(1.0, (now() - start) / (load.warm_up + load.seconds))
        errors = tally.errors.total
        watch.progress(Progress(case.name, side.name, number, rounds, part, tally.answered, errors, tally.in_flight))

    chance = random.Random(seed)
    # Requests are due at the same times on both sides, but their texts differ: both sides may ask one engine, which
    # remembers what it has read.
    ask = side.asking(case, f"{seed} {side.name}", connections)
    cut = await until(stop, drive(load, ask, tally, chance), tell)
    connections.close()
    ended = now()
    seconds = min(ended, tally.end) - tally.start
    if seconds <= 0 or not tally.asked:
        return None
    generator = (time.process_time() - cpu) / (ended - start)
    return Round(
        side=side.name,
        number=number,
        seconds=seconds,
        cut=cut,
        requests=tally.asked,
        errors=tally.errors,
        peak=tally.peak,
        generator=generator,
        figures=tally.figures(seconds),
        latencies=figures.histogram(tally.latencies),
    )


async def until(stop: asyncio.Event, work: Coroutine[Any, Any, None], tell: Callable[[], None]) -> bool:
    """Do ``work`` to its end, or until ``stop``, telling of it now and then; whether it was stopped."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        while not working.done() and not stopping.done():
            tell()
            await asyncio.wait({working, stopping}, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
        return not working.done()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
