"""What people see while a file is embedded: a bar on a terminal, now and then a line elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tandem.client.files import Progress as Rows

_BETWEEN = 10.0  # seconds from one line to the next
Watch = Callable[[Rows], None]


class Pace:
    """How fast rows are done, and how long the rest takes. Pure but for its clock.

    Args:
        first: how far everything was at the beginning.
        clock: seconds, from any beginning.
    """

    def __init__(self, first: Rows, clock: Callable[[], float] = time.monotonic) -> None:
        self._first, self._clock, self._began = first, clock, clock()

    def told(self, now: Rows) -> str:
        """``12,000 rows, 3 bad, 34 %, 812 rows/s, 0:02:03 left``; without what nobody knows."""
        seconds = self._clock() - self._began
        done = now.rows + now.skipped - self._first.rows - self._first.skipped
        said = [f"{now.rows:,} rows", *([f"{now.skipped:,} bad"] if now.skipped else [])]
        if now.part is not None:
            said.append(f"{100 * now.part:.0f} %")
        if done and seconds > 0:
            said.append(f"{done / seconds:,.0f} rows/s")
            part = (now.part or 0) - (self._first.part or 0)
            if now.part is not None and part > 0:
                said.append(f"{timedelta(seconds=round(seconds * (1 - now.part) / part))} left")
        return ", ".join(said)


@contextmanager
def shown(console: Console) -> Iterator[Watch]:
    """What is told of each step, and shows it."""
    if console.is_terminal:
        with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
            yield _bar(bar)
    else:
        yield _lines(console)


def _bar(bar: Progress) -> Watch:
    pace: Pace | None = None
    task: TaskID | None = None

    def watch(now: Rows) -> None:
        nonlocal pace, task
        pace = pace or Pace(now)
        if task is None:
            task = bar.add_task("", total=1 if now.part is not None else None)
        bar.update(task, completed=now.part or 0, description=pace.told(now))

    return watch


def _lines(console: Console) -> Watch:
    pace: Pace | None = None
    due = 0.0

    def watch(now: Rows) -> None:
        nonlocal pace, due
        if pace is None and now.rows + now.skipped:
            console.print(f"Going on after {now.rows + now.skipped:,} rows.", soft_wrap=True)
        pace = pace or Pace(now)
        if time.monotonic() >= due or now.part == 1:
            console.print(pace.told(now), soft_wrap=True)
            due = time.monotonic() + _BETWEEN

    return watch
