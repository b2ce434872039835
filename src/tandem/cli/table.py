"""A running service as people see it, a row for each engine, and as scripts do."""

from collections.abc import Iterator, Sequence

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tandem.cli.talk import Status, duration
from tandem.fleet import Engine, State, Vitals, now

_GIB = 2**30
_STYLES = {State.READY: "green", State.FAILED: "red", State.STALLED: "yellow", State.RESTARTING: "yellow"}
_COLUMNS = (
    *("ENGINE", "MODEL", "STATE", "SINCE", "PID", "MEMORY"),
    *("IN FLIGHT", "REQUESTS", "TOKENS/S", "USE", "RESTARTS", "LAST ERROR"),
)
_NUMBERS = {"PID", "MEMORY", "IN FLIGHT", "REQUESTS", "TOKENS/S", "USE", "RESTARTS"}


def as_json(status: Status) -> str:
    """All that is known, as one JSON object; memory in bytes."""
    engines = [
        {**msgspec.to_builtins(engine), **_builtins(status.vitals.get(engine.name))}
        for engine in status.snapshot.engines
    ]
    return msgspec.json.encode(
        {
            "pid": status.hello.pid,
            "address": status.hello.address,
            "ready": status.snapshot.ready,
            "draining": status.snapshot.draining,
            "engines": engines,
        }
    ).decode()


def show(status: Status, console: Console) -> None:
    """A table; elsewhere than on a terminal each engine is one line of plain text, however long."""
    rows = [_row(each, status.vitals.get(each.name, Vitals(engine=each.name))) for each in status.snapshot.engines]
    draining = ", draining" if status.snapshot.draining else ""
    console.print(f"{status.hello.address}/v1 (pid {status.hello.pid}){draining}")
    if console.is_terminal:
        console.print(_table(rows))
    else:
        for line in _lines([_COLUMNS, *([cell.plain for cell in row] for row in rows)]):
            console.print(line, markup=False, soft_wrap=True)
    for engine in status.snapshot.engines:
        if said := engine.reason or engine.detail:
            console.print(f"{engine.name}: {said}", markup=False, soft_wrap=True)


def _table(rows: Sequence[Sequence[Text]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for column in _COLUMNS:
        right = column in _NUMBERS
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(_COLUMNS, row, widths, strict=True)
        yield "  ".join(
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width) for column, cell, width in cells
        ).rstrip()


def _row(engine: Engine, vitals: Vitals) -> list[Text]:
    cells = (
        engine.name,
        engine.model,
        engine.state.value,
        duration(now() - engine.since) if engine.since else "-",
        "-" if engine.pid is None else str(engine.pid),
        _memory(vitals),
        str(vitals.in_flight),
        "-" if vitals.requests is None else str(vitals.requests),
        "-" if vitals.tokens_per_second is None else f"{vitals.tokens_per_second:,.0f}",
        _use(vitals),
        str(engine.restarts),
        engine.error.partition(". ")[0] or "-",
    )
    styles = {2: _STYLES.get(engine.state, ""), 11: "red" if engine.error else "dim"}
    return [Text(cell, styles.get(number, "")) for number, cell in enumerate(cells)]


def _memory(vitals: Vitals) -> str:
    """Of its cards where that is known, since there it is scarce; else of RAM."""
    if vitals.card_memory is not None:
        return f"{vitals.card_memory / _GIB:.1f} GiB GPU"
    return "-" if vitals.memory is None else f"{vitals.memory / _GIB:.1f} GiB"


def _use(vitals: Vitals) -> str:
    if vitals.card_use is not None:
        return f"{vitals.card_use:.0%} GPU"
    return "-" if vitals.cores is None else f"{vitals.cores:.0%} CPU"


def _builtins(vitals: Vitals | None) -> dict[str, object]:
    told: dict[str, object] = msgspec.to_builtins(vitals) if vitals else {}
    told.pop("engine", None)
    return told
