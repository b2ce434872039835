"""What people see of a benchmark: where it is, live on a terminal, as plain lines elsewhere; then what it found."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tandem.bench import report
from tandem.bench.page import described, memory_line
from tandem.bench.report import headlines, number, several
from tandem.bench.rounds import Progress, Round
from tandem.bench.run import Plan, Run
from tandem.bench.side import Side
from tandem.bench.soak import Row
from tandem.cli.talk import duration

_WIDE = 200  # columns of what no terminal wraps
_OUTCOMES = {"pass": "green", "fail": "red", "not measured": "red", "not asked": "dim"}


class Watching:
    """A live line on a terminal, else a line for each round or minute; on standard error."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def meeting(self, url: str) -> None:
        self._show(f"Asking {url} what it serves")

    def met(self, side: Side) -> None:
        models = ", ".join(dict.fromkeys(side.models.values()))
        self._say(f"{side.name}: {side.address.url} ({models})")
        for kind, refusal in side.refusals.items():
            self._say(f"{side.name}: no {kind}: {refusal}")

    def progress(self, at: Progress) -> None:
        self._show(
            f"{at.case}, {at.side}, round {at.number} of {at.rounds}: {at.part:.0%}, {at.answered:,} answered, "
            f"{at.in_flight:,} in flight" + (f", {at.errors:,} errors" if at.errors else "")
        )

    def finished(self, case: str, one: Round, rounds: int) -> None:
        found = one.figures
        slow = f", p95 {number(found['latency_p95'] * 1000)} ms" if "latency_p95" in found else ""
        self._say(
            f"{case}, {one.side}, round {one.number} of {rounds}: {number(found['requests_per_second'])} requests/s"
            f"{slow}" + (f", {one.errors.total:,} errors" if one.errors.total else "")
        )

    def watching(self, pids: frozenset[int]) -> None:
        seen = (
            f"pid {', '.join(map(str, sorted(pids)))}" if pids else "not watched, since nobody is seen to listen there"
        )
        self._say(f"Memory: {seen}")

    def going(self, seconds: float, requests: int, errors: int, in_flight: int) -> None:
        whole = duration(self._plan.load.seconds)
        self._show(
            f"soak: {duration(seconds)} of {whole}, {requests:,} requests, {in_flight:,} in flight"
            + (f", {errors:,} errors" if errors else "")
        )

    def minute(self, row: Row) -> None:
        held = "" if row.resident is None else f", {row.resident / 2**20:.1f} MiB"
        slow = (
            "" if row.p50 is None or row.p95 is None else f", p50 {row.p50 * 1000:.1f} ms, p95 {row.p95 * 1000:.1f} ms"
        )
        self._say(f"{duration(row.at)}: {row.requests:,} requests, {row.errors:,} errors{slow}{held}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _show(self, line: str) -> None:
        if self._live.is_started:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True))


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one: a load generator must be the faster end."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = new_event_loop()
    return loop


async def until_interrupted(run: Callable[[asyncio.Event], Awaitable[Run]]) -> Run:
    """Run, and ask to stop on the first Ctrl-C or SIGTERM; the second one ends it as it would any program."""
    stop = asyncio.Event()
    with _signals(stop):
        return await run(stop)


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    caught = (signal.SIGINT, signal.SIGTERM)

    def release() -> None:
        for one in caught:
            loop.remove_signal_handler(one)

    def first() -> None:
        stop.set()
        release()

    try:
        for one in caught:
            loop.add_signal_handler(one, first)
    except (NotImplementedError, ValueError):  # Windows, or not the main thread
        yield
        return
    try:
        yield
    finally:
        release()


def show(found: dict[str, Any], *, check: bool) -> None:
    """Everything found: errors first, then a table for each case, then the targets."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDE)
    for line in headlines(found):
        console.print(line, style="red", markup=False, soft_wrap=True)
    for case in found["cases"]:
        _case(console, case, list(found["sides"]))
    missing = [name for name in found["scenarios"] if not _has(found, name)]
    if missing:
        console.print(f"\nNot measured: {', '.join(missing)}", markup=False)
    if found["soak"]:
        rows = found["soak"]["rows"]
        asked = several(sum(row["requests"] for row in rows), "request")
        console.print(f"\nsoak: {asked}, {several(len(rows), 'row')}", style="bold")
        console.print(memory_line(found["soak"]), markup=False, soft_wrap=True)
    if check:
        _targets(console, found["targets"])


def _has(found: dict[str, Any], scenario: str) -> bool:
    if scenario == "soak":
        return bool(found["soak"] and found["soak"]["rows"])
    return any(case["name"].startswith(scenario) and case["rounds"] for case in found["cases"])


def _case(console: Console, case: dict[str, Any], sides: list[str]) -> None:
    if not case["rounds"]:
        return
    console.print(f"\n{case['name']}", style="bold")
    console.print(described(case), style="dim", markup=False, soft_wrap=True)
    head, rows = report.table(case, sides)
    table = Table(*head, box=None, header_style="bold", padding=(0, 3, 0, 0))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _targets(console: Console, found: list[dict[str, Any]]) -> None:
    console.print("\ntargets", style="bold")
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    for target in found:
        measured = "-" if target["measured"] is None else number(target["measured"])
        table.add_row(
            target["name"], target["wanted"], measured, Text(target["outcome"], style=_OUTCOMES[target["outcome"]])
        )
    console.print(table)
