"""What Tandem must reach, and whether a run did."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "not measured", "not asked"]


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Args:
        name: what is measured, with its unit.
        least: whether ``value`` is the least that passes; else it is the bound to stay under.
        scenarios: those that measure it.
    """

    name: str
    least: bool
    value: float
    scenarios: frozenset[str]

    @property
    def wanted(self) -> str:
        return f"{self.value:g} or more" if self.least else f"under {self.value:g}"

    def met(self, measured: float) -> bool:
        return measured >= self.value if self.least else measured < self.value


EMBEDDINGS = Target("embeddings/s", True, 100, frozenset({"embeddings"}))
EMBEDDING_P95 = Target("embedding p95, ms", False, 500, frozenset({"embeddings"}))
COMPLETION_P95 = Target("100-token completion p95, s", False, 5, frozenset({"completions"}))
USERS = Target("concurrent users without an error", True, 50, frozenset({"embeddings", "completions", "streams"}))
# What chance would do, within two standard errors, counts as 0.
MEMORY = Target("memory growth over the run, %", False, 2, frozenset({"soak"}))
# Not one of the five, but without it each of them could be bought with refusals.
ERRORS = Target("failed requests", False, 1, frozenset({"overhead", "embeddings", "completions", "streams", "soak"}))

TARGETS = (EMBEDDINGS, EMBEDDING_P95, COMPLETION_P95, USERS, MEMORY, ERRORS)


@dataclass(frozen=True)
class Verdict:
    """How a run did by one target; ``measured`` None where it did not measure it."""

    target: Target
    measured: float | None
    outcome: Outcome


def verdicts(measured: Mapping[Target, float], ran: Sequence[str]) -> list[Verdict]:
    """Every target's verdict.

    Args:
        measured: what was measured.
        ran: the scenarios that were asked for. A target that one of them should have measured, and did not, is ``not
            measured``; one that none of them measures is ``not asked``.
    """
    return [Verdict(target, measured.get(target), _outcome(target, measured.get(target), ran)) for target in TARGETS]


def _outcome(target: Target, measured: float | None, ran: Sequence[str]) -> Outcome:
    if measured is not None and not math.isnan(measured):
        return "pass" if target.met(measured) else "fail"
    return "not measured" if target.scenarios & set(ran) else "not asked"


def passed(found: Sequence[Verdict]) -> bool:
    """Whether nothing failed, and nothing that should have been measured is missing."""
    return all(verdict.outcome in {"pass", "not asked"} for verdict in found)
