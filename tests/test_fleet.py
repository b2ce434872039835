"""Snapshots are found by name, and waited for."""

import asyncio

from tandem.fleet import Engine, Fleet, Snapshot, State

A = Engine(name="a", kind="embedding", model="org/a", aliases=("b",))
B = Engine(name="b", kind="generation", model="org/b", state=State.READY)


def test_served_names_win_over_aliases_over_engine_names() -> None:
    """Each name finds one engine, the most specific first."""
    snapshot = Snapshot((B, A))
    assert [snapshot.find(name) for name in ("org/a", "org/b", "b", "a", "c")] == [A, B, A, A, None]


def test_ready_means_every_engine() -> None:
    assert not Snapshot().ready
    assert not Snapshot((A, B)).ready
    assert Snapshot((B,)).ready


async def test_a_reader_gets_the_current_snapshot_then_the_newest() -> None:
    """A slow reader skips what came in between; an equal snapshot is no news."""
    fleet = Fleet()
    snapshots = fleet.snapshots()
    assert await anext(snapshots) == Snapshot()
    waiting = asyncio.ensure_future(anext(snapshots))
    fleet.replace(Snapshot())
    await asyncio.sleep(0)
    assert not waiting.done()
    fleet.put(A)
    fleet.put(B)
    fleet.drain()
    assert await waiting == Snapshot((A, B), draining=True)
