"""What people see while engines start, and of what changes later: a live table on a terminal, plain lines elsewhere."""

from collections.abc import AsyncIterator

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tandem.cli.talk import duration
from tandem.fleet import Engine, Snapshot, State, now

Snapshots = AsyncIterator[Snapshot]

_MARKS = {
    State.READY: ("✔", "green"),
    State.FAILED: ("✘", "red"),
    State.STALLED: ("!", "yellow"),
    State.RESTARTING: ("!", "yellow"),
    State.PLANNED: ("·", "dim"),
    State.WAITING: ("·", "dim"),
    State.STOPPED: ("·", "dim"),
}


async def bring_up(snapshots: Snapshots, console: Console) -> None:
    """Show engines starting; returns once all are ready."""
    await _shown(snapshots, console, until_ready=True)


async def until_done(snapshots: Snapshots, console: Console) -> None:
    """Show engines for as long as snapshots come."""
    await _shown(snapshots, console, until_ready=False)


async def _shown(snapshots: Snapshots, console: Console, *, until_ready: bool) -> None:
    if not console.is_terminal:
        await _lines(snapshots, console, until_ready=until_ready)
        return
    shown = Snapshot()
    with Live(get_renderable=lambda: _table(shown), console=console, refresh_per_second=8):
        async for shown in snapshots:
            if until_ready and shown.ready:
                return


async def changes(snapshots: Snapshots, console: Console) -> None:
    """A line for whatever happens to a running engine; does not end by itself."""
    await _lines(snapshots, console, until_ready=False)


async def _lines(snapshots: Snapshots, console: Console, *, until_ready: bool) -> None:
    said: dict[str, tuple[State, str]] = {}
    async for snapshot in snapshots:
        for engine in snapshot.engines:
            news = (engine.state, engine.detail)
            first = engine.name not in said
            if said.get(engine.name) != news and not (first and not until_ready):
                console.print(_line(engine), highlight=False, markup=False, soft_wrap=True)
            said[engine.name] = news
        if until_ready and snapshot.ready:
            return


def _line(engine: Engine) -> str:
    elapsed = f" after {duration(now() - engine.started)}" if engine.started else ""
    detail = engine.detail or (engine.reason if engine.state is not State.STARTING else "")
    return f"{engine.name}: {engine.state}{elapsed}" + (f": {detail}" if detail else "")


def _time(engine: Engine, elapsed: float) -> str:
    about = f" of about {duration(engine.estimate)}" if engine.estimate and not engine.ready else ""
    return duration(elapsed) + about


def _table(snapshot: Snapshot) -> Table:
    table = Table.grid(padding=(0, 2))
    for engine in snapshot.engines:
        mark, style = _MARKS.get(engine.state, ("", ""))
        began, ended = engine.started, engine.since if engine.ready else now()
        table.add_row(
            Text(mark, style) if mark else Spinner("dots"),
            Text(engine.name, "bold"),
            Text(engine.model, "dim"),
            Text(engine.state.value, style),
            Text(engine.detail or (engine.reason if engine.state in _MARKS else "")),
            Text(_time(engine, ended - began) if began else "", "dim"),
        )
    return table
