"""What people see while engines start."""

import io
from collections.abc import AsyncIterator

import msgspec
import pytest
from rich.console import Console

from tandem.cli import progress
from tandem.cli.talk import duration
from tandem.fleet import Engine, Snapshot, State, now

EMBEDDING = Engine(name="embedding", kind="embedding", model="org/emb")
STARTING = Engine(name="embedding", kind="embedding", model="org/emb", state=State.LOADING, detail="loading weights")
READY = Engine(name="embedding", kind="embedding", model="org/emb", state=State.READY)
FAILED = Engine(name="embedding", kind="embedding", model="org/emb", state=State.RESTARTING, reason="it was killed")


async def told(*engines: Engine) -> AsyncIterator[Snapshot]:
    for engine in engines:
        yield Snapshot((engine,))


async def test_plain_lines_where_there_is_no_terminal() -> None:
    """One for each change, none for repetitions; it returns when all are ready."""
    out = io.StringIO()
    await progress.bring_up(told(EMBEDDING, STARTING, STARTING, READY, FAILED), Console(file=out))
    assert out.getvalue().splitlines() == [
        "embedding: planned",
        "embedding: loading: loading weights",
        "embedding: ready",
    ]


async def test_a_live_table_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    await progress.bring_up(told(EMBEDDING, STARTING, READY), console)
    assert all(part in out.getvalue() for part in ("✔", "embedding", "org/emb", "ready"))


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_change_is_shown_to_its_end(terminal: bool) -> None:
    """Though all are ready at its beginning."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    await progress.until_done(told(READY, STARTING, READY), console)
    assert "ready" in out.getvalue()
    assert terminal or "loading weights" in out.getvalue()


async def test_how_long_it_will_take_is_said_where_somebody_knows() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    starting = msgspec.structs.replace(STARTING, started=now() - 65, estimate=120.0)
    await progress.until_done(told(starting), console)
    assert "1 m 5 s of about 2 m 0 s" in out.getvalue()


async def test_later_changes_are_told_with_their_reason() -> None:
    """Not the state they were found in, which was said before."""
    out = io.StringIO()
    await progress.changes(told(READY, FAILED, READY), Console(file=out))
    assert out.getvalue().splitlines() == ["embedding: restarting: it was killed", "embedding: ready"]


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (42.9, "42 s"), (200, "3 m 20 s"), (7500, "2 h 5 m")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
