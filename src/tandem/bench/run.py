"""One run of the benchmark: meet the services, measure what was asked for, in order."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tandem.bench import rounds, scenarios, soak
from tandem.bench.connection import Address
from tandem.bench.load import Load
from tandem.bench.rounds import Measured
from tandem.bench.scenarios import Kind, Shape
from tandem.bench.side import Side, meet
from tandem.bench.soak import Soaked
from tandem.errors import SettingsError, SetupError

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


class Watch(rounds.Watch, soak.Watch, Protocol):
    """Who is told how far a run is."""

    def meeting(self, url: str) -> None:
        """A service is being asked what it serves; told about twice a second."""

    def met(self, side: Side) -> None:
        """A service has told what it serves."""


async def run(plan: Plan, watch: Watch, stop: asyncio.Event) -> Run:
    """Measure everything that ``plan`` says; once ``stop`` is set, return what there is.

    Raises:
        SettingsError: a URL is none.
        SetupError: a service does not answer, or not what the plan needs.
    """
    started = time.time()
    measured: list[Measured] = []
    soaked = None
    sides, cut = await _met(plan, watch, stop)
    if not cut and plan.scenario == "soak":
        load = replace(plan.load, rate=plan.load.rate or _RATE)
        soaked = await soak.soak(sides[0], plan.shape, load, plan.pid, plan.seed, watch, stop)
    elif not cut:
        measured = [
            await rounds.measure(case, sides, plan.rounds, plan.seed, watch, stop) for case in _cases(plan, sides)
        ]
    return Run(plan.scenarios, sides, measured, soaked, plan.seed, started, time.time() - started, stop.is_set())


async def _met(plan: Plan, watch: Watch, stop: asyncio.Event) -> tuple[list[Side], bool]:
    """Each side, once it was asked what it serves; and whether ``stop`` was set before all had told."""
    asked = [("A", _address(plan.url), plan.model)]
    if plan.vs is not None:
        asked.append(("B", _address(plan.vs), plan.vs_model))
    sides: list[Side] = []

    async def meet_all() -> None:
        for name, address, model in asked:
            others = plan.scenario is None
            sides.append(await meet(name, address, plan.key, model, plan.kinds, plan.shape, others=others))
            watch.met(sides[-1])

    def tell() -> None:
        watch.meeting(asked[len(sides)][1].url)

    return sides, await rounds.until(stop, meet_all(), tell)


def _address(url: str) -> Address:
    try:
        return Address(url)
    except ValueError as exc:
        raise SettingsError(str(exc), "Name one such as http://127.0.0.1:8200/v1") from exc


def _cases(plan: Plan, sides: Sequence[Side]) -> list[scenarios.Case]:
    """The cases for which each side has a model; of the default scenarios, one that has none is left out."""
    shared = frozenset(sides[0].models).intersection(*(side.models for side in sides))
    if not shared:
        raise SetupError("the two services have no kind of request in common")
    return [
        case
        for scenario in plan.scenarios
        if scenario == "overhead" or Kind(scenario) in shared
        for case in scenarios.cases(scenario, plan.shape, plan.load, shared)
    ]
