"""A run as one JSON object, version 1; docs/bench.md describes it. The HTML page is drawn from it, too."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from tandem import __version__
from tandem.bench import machine, targets
from tandem.bench.figures import Spread, merged
from tandem.bench.rounds import Measured
from tandem.bench.run import Run
from tandem.bench.soak import Soaked
from tandem.bench.targets import Target, Verdict

VERSION = 1
# A generator that is this busy, as a share of a core, may be what was measured.
BUSY = 0.8


@dataclass(frozen=True)
class Figure:
    """How a figure is shown.

    Args:
        name: its key in the JSON, where times are in seconds.
        scale: what to multiply it by for ``label``'s unit.
    """

    name: str
    label: str
    scale: float = 1


FIGURES = (
    Figure("requests_per_second", "requests/s"),
    Figure("texts_per_second", "texts/s"),
    Figure("tokens_per_second", "tokens/s"),
    Figure("tokens_per_answer", "tokens an answer"),
    Figure("events_per_second", "events/s"),
    Figure("events_per_answer", "events an answer"),
    *(Figure(f"latency_{at}", f"latency {at}, ms", 1000) for at in ("p50", "p95", "p99")),
    *(Figure(f"first_event_{at}", f"time to first event {at}, ms", 1000) for at in ("p50", "p95", "p99")),
    *(Figure(f"gap_{at}", f"between events {at}, ms", 1000) for at in ("p50", "p95", "p99")),
    *(Figure(f"lateness_{at}", f"sent late {at}, ms", 1000) for at in ("p50", "p99")),
)


def build(run: Run) -> dict[str, Any]:
    """The JSON object."""
    return {
        "version": VERSION,
        "tandem": __version__,
        "started": datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds"),
        "seconds": round(run.seconds, 1),
        "cut": run.cut,
        "machine": machine.describe(),
        "scenarios": list(run.scenarios),
        "seed": run.seed,
        "sides": {
            side.name: {
                "url": side.address.url,
                "models": dict(side.models),
                "extra": dict(side.extra),
                "refusals": dict(side.refusals),
            }
            for side in run.sides
        },
        "errors": sum(_errors(run).values()),
        "cases": [_case(one, [side.name for side in run.sides]) for one in run.measured],
        "soak": _soak(run.soaked) if run.soaked else None,
        "targets": [
            {
                "name": verdict.target.name,
                "wanted": verdict.target.wanted,
                "measured": verdict.measured,
                "outcome": verdict.outcome,
            }
            for verdict in verdicts(run)
        ],
    }


def verdicts(run: Run) -> list[Verdict]:
    """How the run did by each target."""
    return targets.verdicts(_reached(run), run.scenarios)


def _case(measured: Measured, sides: Sequence[str]) -> dict[str, Any]:
    case = measured.case
    return {
        "name": case.name,
        "kind": case.kind,
        "shape": asdict(case.shape),
        "load": asdict(case.load),
        "rounds": [
            {
                "side": one.side,
                "number": one.number,
                "seconds": one.seconds,
                "cut": one.cut,
                "requests": one.requests,
                "errors": one.errors.listed(),
                "peak_in_flight": one.peak,
                "generator_cpu": one.generator,
                "figures": one.figures,
            }
            for one in measured.rounds
        ],
        "summary": {side: _spreads(measured.spreads(side)) for side in sides},
        "ratios": _spreads(measured.ratios()),
        "differences": _spreads(measured.differences()),
        "latency_histogram": {side: merged(one.latencies for one in measured.of(side)) for side in sides},
    }


def _soak(soaked: Soaked) -> dict[str, Any]:
    growth = soaked.growth
    return {
        "kinds": list(soaked.kinds),
        "load": asdict(soaked.load),
        "cut": soaked.cut,
        "generator_cpu": soaked.generator,
        "errors": soaked.errors.listed(),
        "rows": [asdict(row) for row in soaked.rows],
        "latency_histogram": soaked.latencies,
        "memory": growth
        and {
            "start": growth.slope.start,
            "bytes_per_hour": growth.slope.per_unit * 3600,
            "standard_error": growth.slope.error * 3600,
            "growth_percent": growth.percent,
            "verdict": "flat" if targets.MEMORY.met(growth.percent) else "growing",
        },
    }


def _spreads(found: dict[str, Spread]) -> dict[str, dict[str, float]]:
    return {name: spread._asdict() for name, spread in found.items()}


def _errors(run: Run) -> dict[str, int]:
    """Failed requests by side."""
    found = {side.name: 0 for side in run.sides}
    for measured in run.measured:
        for one in measured.rounds:
            found[one.side] += one.errors.total
    if run.soaked:
        found[run.soaked.side] += run.soaked.errors.total
    return found


def _reached(run: Run) -> dict[Target, float]:
    """What A reached of what the targets are about: medians over its rounds."""
    found: dict[Target, float] = {}
    users = []
    for measured in run.measured:
        rounds = measured.of("A")
        if not rounds:
            continue
        median = {name: spread.median for name, spread in measured.spreads("A").items()}
        name = measured.case.name
        if name == "embeddings" and "latency_p95" in median:
            found[targets.EMBEDDINGS] = median.get("texts_per_second", 0)
            found[targets.EMBEDDING_P95] = median["latency_p95"] * 1000
        # Shorter answers would say nothing about 100 tokens.
        if name == "completions" and "latency_p95" in median and median.get("tokens_per_answer", 0) >= 100:
            found[targets.COMPLETION_P95] = median["latency_p95"]
        if name in targets.USERS.scenarios:
            users.append(0 if any(one.errors.total for one in rounds) else min(one.peak for one in rounds))
        found[targets.ERRORS] = _errors(run)["A"]
    if users:
        found[targets.USERS] = min(users)
    if run.soaked and run.soaked.rows:
        found[targets.ERRORS] = _errors(run)["A"]
        if growth := run.soaked.growth:
            found[targets.MEMORY] = growth.percent
    return found


def headlines(report: dict[str, Any]) -> list[str]:
    """What must be read before the numbers: errors, each kind with an example, and what casts doubt on the rest."""
    said = []
    if report["cut"]:
        said.append("Cut short: this is what was measured until then.")
    for part in [*report["cases"], *([{"name": "soak", **report["soak"]}] if report["soak"] else [])]:
        said += _errors_of(part)
        busiest = max((one["generator_cpu"] for one in part.get("rounds", [part])), default=0.0)
        if busiest > BUSY:
            share = f"{busiest:.0%} of a core"
            said.append(f"{part['name']}: the load generator used {share}; it may be what was measured.")
    return said


def _errors_of(part: dict[str, Any]) -> list[str]:
    rounds = part.get("rounds") or [{"side": "A", "requests": _requests(part), "errors": part.get("errors", [])}]
    said = []
    for side in dict.fromkeys(one["side"] for one in rounds):
        mine = [one for one in rounds if one["side"] == side]
        kinds: dict[str, int] = {}
        examples: dict[str, str] = {}
        for error in (error for one in mine for error in one["errors"]):
            kinds[error["kind"]] = kinds.get(error["kind"], 0) + error["count"]
            examples.setdefault(error["kind"], error["example"])
        if kinds:
            failed = f"{sum(kinds.values()):,} of {sum(one['requests'] for one in mine):,} requests failed"
            each = "; ".join(f"{kind}: {count:,} (such as: {examples[kind]})" for kind, count in kinds.items())
            said.append(f"{part['name']}, {side}: {failed}. {each}")
    return said


def _requests(soak: dict[str, Any]) -> int:
    return sum(row["requests"] for row in soak.get("rows", []))


def table(case: dict[str, Any], sides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of what one case gave, for people; a column for each side, and two where they are compared."""
    compared = len(sides) > 1
    rows = []
    for figure in FIGURES:
        by_side = [case["summary"][side].get(figure.name) for side in sides]
        if any(by_side):
            row = [figure.label, *(spread(found, figure.scale) if found else "-" for found in by_side)]
            if compared:
                ratio, difference = case["ratios"].get(figure.name), case["differences"].get(figure.name)
                row.append(f"x{spread(ratio)}" if ratio else "-")
                timed = figure.scale != 1
                row.append(spread(difference, figure.scale) if difference and timed else "")
            rows.append(row)
    return ["median (lowest to highest round)", *sides, *(["A / B", "A - B"] if compared else [])], rows


def number(value: float) -> str:
    """For people: three digits, or all before the point."""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def several(number: int, what: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def spread(found: dict[str, float], scale: float = 1) -> str:
    """``12.3 (11.9 to 13.0)``; of one round, its value alone."""
    median, low, high = (found[part] * scale for part in ("median", "low", "high"))
    return number(median) if low == high else f"{number(median)} ({number(low)} to {number(high)})"
