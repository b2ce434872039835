"""One run of the benchmark: meet the services, measure what was asked for, in order."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tandem.bench import rounds, scenarios
from tandem.bench.load import Load
from tandem.bench.rounds import Measured
from tandem.bench.scenarios import Kind, Shape
from tandem.bench.side import Side, meet
from tandem.bench.soak import Row, Soaked, soak
from tandem.errors import SetupError

_RATE = 5.0  # requests/s of a soak, unless told otherwise


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        scenario: one of ``scenarios.SCENARIOS``; None for those of ``scenarios.DEFAULT``.
        url: the base URL of the service, A.
        vs: that of the one to compare it with, B.
        key: the API key of both.
        model: the model to ask A for; by default, and where it does not answer one of several scenarios, the first
            that answers.
        vs_model: the same for B.
        rounds: of each case, on each side.
        pid: whose memory a soak watches; by default that of whoever listens at ``url``, on this machine.
        seed: what texts and arrival times are drawn from.
    """

    scenario: str | None
    url: str
    vs: str | None
    key: str | None
    model: str | None
    vs_model: str | None
    shape: Shape
    load: Load
    rounds: int
    pid: int | None
    seed: int

    @property
    def scenarios(self) -> tuple[str, ...]:
        return (self.scenario,) if self.scenario else scenarios.DEFAULT

    @property
    def kinds(self) -> frozenset[Kind]:
        """What may be asked for."""
        if self.scenario in {"overhead", "soak"}:
            return frozenset(Kind)
        return frozenset(map(Kind, self.scenarios))


@dataclass(frozen=True)
class Run:
    """Everything one run measured.

    Args:
        scenarios: those that were asked for.
        started: Unix time, seconds.
        seconds: how long it took.
        cut: whether it was ended before its end.
    """

    scenarios: Sequence[str]
    sides: Sequence[Side]
    measured: Sequence[Measured]
    soaked: Soaked | None
    seed: int
    started: float
    seconds: float
    cut: bool


class Watch(rounds.Watch, Protocol):
    """Who is told how far a run is."""

    def met(self, side: Side) -> None:
        """A service was asked what it serves."""

    def minute(self, row: Row) -> None:
        """A soak has made a row."""


async def run(plan: Plan, watch: Watch, stop: asyncio.Event) -> Run:
    """Measure everything that ``plan`` says; once ``stop`` is set, return what there is.

    Raises:
        SettingsError: a URL is none.
        SetupError: a service does not answer, or not what the plan needs.
    """
    started = time.time()
    asked = [("A", plan.url, plan.model), *([("B", plan.vs, plan.vs_model)] if plan.vs else [])]
    sides = []
    for name, url, model in asked:
        sides.append(await meet(name, url, plan.key, model, plan.kinds, others=plan.scenario is None))
        watch.met(sides[-1])
    shared = frozenset(sides[0].models).intersection(*(side.models for side in sides))
    measured: list[Measured] = []
    soaked = None
    if plan.scenario == "soak":
        load = replace(plan.load, rate=plan.load.rate or _RATE)
        soaked = await soak(sides[0], plan.shape, load, plan.pid, plan.seed, watch.minute, stop)
    else:
        measured = [
            await rounds.measure(case, sides, plan.rounds, plan.seed, watch, stop) for case in _cases(plan, shared)
        ]
    return Run(plan.scenarios, sides, measured, soaked, plan.seed, started, time.time() - started, stop.is_set())


def _cases(plan: Plan, shared: frozenset[Kind]) -> list[scenarios.Case]:
    """The cases for which each side has a model; of the default scenarios, one that has none is left out."""
    if not shared:
        raise SetupError("the two services have no kind of request in common")
    return [
        case
        for scenario in plan.scenarios
        if scenario == "overhead" or Kind(scenario) in shared
        for case in scenarios.cases(scenario, plan.shape, plan.load, shared)
    ]
