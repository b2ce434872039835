"""What a gateway costs a whole answer: requests a second on one core, and time added to one request.

wrk asks through each gateway, and directly, for completions and for embeddings as floats that nginx has ready, with 50
connections and with one, in rounds that take all of them in turn. Prints the medians of seven rounds, with the spread.
Usage: ``python benchmarks/overhead.py [--quick] [--beside TANDEM]``; needs nginx and wrk
(``apt install nginx-light wrk``).
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import load
import machine
import peers
import report
import static_upstream
from load import Case
from peers import Running

# Not base64: no gateway looks into a vector, and that is the smaller answer.
CASES = (static_upstream.COMPLETIONS, static_upstream.FLOATS)
CONNECTIONS = 50
HEAD = (
    "",
    "through",
    f"requests/s, {CONNECTIONS} connections",
    "Tandem's by this",
    "its CPU a request, µs",
    "median, 1 connection, µs",
    "added, µs",
)


@dataclass
class Series:
    """Of one case through one gateway, a value a round."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


def main() -> None:
    """Measure all and print the table."""
    given = machine.arguments(str(__doc__), beside=True)
    quick = given.quick
    rounds, many, alone = (1, 1, 1) if quick else (7, 1, 1)
    cores, versions = machine.cores(), peers.versions()
    asked = 0
    with contextlib.ExitStack() as stack:
        others = stack.enter_context(machine.neighbours())
        folder = stack.enter_context(machine.workspace())
        upstream = stack.enter_context(static_upstream.whole(cores.upstream, folder))
        through = [peers.direct(upstream)]
        gateways = peers.gateways(given.beside)
        through += [stack.enter_context(peers.running(each, upstream, cores.router, folder)) for each in gateways]
        series = {(case.name, each.name): Series() for case in CASES for each in through}
        for case in CASES:
            for each in through:
                _check(case, each)
                asked += _round(case, each, Series(), 1, 1, cores.load, folder)  # warms up
            for _ in range(rounds):
                for each in through:
                    seen = series[case.name, each.name]
                    asked += _round(case, each, seen, many, alone, cores.load, folder)
        taken = others()
    print(f"Whole answers, {'one round' if rounds == 1 else f'median of {rounds} rounds (least to most)'}.")
    print(machine.described(versions | {"nginx": machine.nginx_version()}, cores), end="\n\n")
    print(report.table(HEAD, [_row(case, each, series) for case in CASES for each in through]), end="\n\n")
    print(f"Every one of {asked:,} answers was a 200. {taken}")


def _check(case: Case, through: Running) -> None:
    if not static_upstream.check(case, load.ask(case, through.url)):
        raise load.Failed(f"{through.name}: the answer to {case.name} is not the upstream's")


def _round(case: Case, through: Running, seen: Series, many: int, alone: int, core: int, folder: Path) -> int:
    """One value more for ``seen``; how many requests that took."""
    try:
        before = machine.cpu_seconds(through.pid) if through.pid else 0.0
        crowd = load.run(case, through.url, CONNECTIONS, many, core, folder)
        spent = machine.cpu_seconds(through.pid) - before if through.pid else 0.0
        single = load.run(case, through.url, 1, alone, core, folder)
    except load.Failed as exc:
        raise load.Failed(f"{case.name} through {through.name}: {exc}") from exc
    seen.rates.append(crowd.rate)
    seen.cpu.append(spent / crowd.requests * 1e6)
    seen.alone.append(single.p50)
    return crowd.requests + single.requests


def _row(case: Case, through: Running, series: dict[tuple[str, str], Series]) -> list[str]:
    seen, ours, direct = (series[case.name, name] for name in (through.name, peers.TANDEM.name, "direct"))
    ratios = [a / b for a, b in zip(ours.rates, seen.rates, strict=True)]
    added = [a - b for a, b in zip(seen.alone, direct.alone, strict=True)]
    return [
        case.name,
        through.name,
        report.spread(seen.rates),
        "" if seen is ours else report.spread(ratios, ".2f"),
        report.spread(seen.cpu, ".0f") if through.pid else "",
        report.spread(seen.alone),
        report.spread(added) if through.pid else "",
    ]


if __name__ == "__main__":
    main()
