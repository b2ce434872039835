"""An engine's states, from start to end, with a fake engine that is a real process."""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from tandem.engines import engine as engine_module
from tandem.engines.engine import EngineRunner
from tandem.engines.footprints import Seen
from tandem.engines.supervisor import Supervisor, in_turn
from tandem.errors import EngineError
from tandem.fleet import Engine, Fleet, Snapshot, State

from .conftest import MakeSpec
from .fakes import gone

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_POLL", 0.01)
    monkeypatch.setattr(engine_module, "_WATCH", 0.02)
    monkeypatch.setattr(engine_module, "_LAST_WORDS", 0.1)


async def reached(fleet: Fleet, test: Callable[[Engine], bool]) -> Engine:
    """The first engine's snapshot once it passes ``test``."""
    async with asyncio.timeout(10):
        async for snapshot in fleet.snapshots():
            if snapshot.engines and test(snapshot.engines[0]):
                return snapshot.engines[0]
    raise AssertionError


async def test_an_engine_starts_serves_and_stops(make_spec: MakeSpec) -> None:
    """Its states in order, its process while it serves, nothing afterwards."""
    fleet, spec = Fleet(), make_spec()
    seen: list[State] = []

    async def record() -> None:
        async for snapshot in fleet.snapshots():
            seen.extend(e.state for e in snapshot.engines if seen[-1:] != [e.state])

    recording = asyncio.create_task(record())
    runner = EngineRunner(spec, fleet)
    running = asyncio.create_task(runner.run())
    ready = await reached(fleet, lambda e: e.ready)
    assert ready.pid is not None
    assert (ready.reason, ready.restarts) == ("", 0)
    assert ready.detail == "context shortened from 8 to 4 tokens, as its memory allows"
    runner.stop()
    await asyncio.wait_for(running, 10)
    assert await gone(ready.pid)
    assert seen == [State.STARTING, State.LOADING, State.READY, State.DRAINING, State.STOPPED]
    assert list(spec.tmp.iterdir()) == []
    recording.cancel()


async def test_a_failed_start_is_final_and_says_why(make_spec: MakeSpec) -> None:
    """An engine that ends before it was ready is not tried again: the cause is in its snapshot."""
    fleet = Fleet()
    spec = make_spec("embedding", "--fail", "SafetensorError: header too short")
    await asyncio.wait_for(EngineRunner(spec, fleet).run(), 10)
    (engine,) = fleet.now.engines
    assert (engine.state, engine.pid) == (State.FAILED, None)
    assert engine.reason == "a weight file is damaged or cut short (header too short). Download the model again"


async def test_health_alone_is_not_readiness(make_spec: MakeSpec) -> None:
    """An engine that says it is healthy and fails a real request has failed."""
    fleet, spec = Fleet(), make_spec("embedding", "--refuse")
    await asyncio.wait_for(EngineRunner(spec, fleet).run(), 10)
    (engine,) = fleet.now.engines
    assert engine.state is State.FAILED
    assert engine.reason.startswith('it answered its first request with 500: {"error": "broken"}')


async def test_a_crashed_engine_is_restarted(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it serves: restarting, with the reason, and ready again with another process."""
    monkeypatch.setattr(EngineRunner, "_pause", lambda *_: asyncio.sleep(0.05))
    fleet = Fleet()
    runner = EngineRunner(make_spec(), fleet)
    running = asyncio.create_task(runner.run())
    first = await reached(fleet, lambda e: e.ready)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    down = await reached(fleet, lambda e: e.state is State.RESTARTING)
    assert (down.restarts, down.pid) == (1, None)
    assert down.reason.startswith("it was killed")
    again = await reached(fleet, lambda e: e.ready)
    assert again.pid not in (None, first.pid)
    runner.stop()
    await asyncio.wait_for(running, 10)


async def test_an_engine_that_listens_no_more_and_does_not_end_is_restarted(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to end by somebody else, vLLM was seen to hang like that, and its callers with it."""
    monkeypatch.setattr(EngineRunner, "_pause", lambda *_: asyncio.sleep(0.05))
    monkeypatch.setattr(engine_module, "_DEAF", -4.5)  # the rest of the drain time-out
    fleet = Fleet()
    runner = EngineRunner(make_spec("embedding", "--deaf-end"), fleet)
    running = asyncio.create_task(runner.run())
    first = await reached(fleet, lambda e: e.ready)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGTERM)
    down = await reached(fleet, lambda e: e.state is State.RESTARTING)
    assert down.reason == "it did not listen any more, and did not end"
    again = await reached(fleet, lambda e: e.ready)
    assert again.pid not in (None, first.pid)
    runner.kill()
    await asyncio.wait_for(running, 20)


async def test_an_engine_that_keeps_crashing_is_given_up(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineRunner, "_pause", lambda *_: asyncio.sleep(0))
    monkeypatch.setattr(engine_module, "_RESTARTS", 2)
    fleet = Fleet()
    running = asyncio.create_task(EngineRunner(make_spec(), fleet).run())
    killed: set[int] = set()
    while len(killed) < 3:
        engine = await reached(fleet, lambda e: e.ready and e.pid not in killed)
        assert engine.pid is not None
        killed.add(engine.pid)
        os.kill(engine.pid, signal.SIGKILL)
    await asyncio.wait_for(running, 10)
    assert (fleet.now.engines[0].state, fleet.now.engines[0].restarts) == (State.FAILED, 2)


async def test_engines_start_one_after_the_other_and_stop_together(make_spec: MakeSpec) -> None:
    """The second waits until the first is ready; leaving the supervisor ends both."""
    fleet, seen = Fleet(), list[Snapshot]()

    async def record() -> None:
        async for snapshot in fleet.snapshots():
            seen.append(snapshot)

    recording = asyncio.create_task(record())
    async with Supervisor([make_spec("embedding"), make_spec("generation")], fleet) as supervisor:
        await asyncio.wait_for(supervisor.start(), 20)
        assert fleet.now.ready
        pids = [engine.pid for engine in fleet.now.engines]
    recording.cancel()
    assert all(first.ready for first, second in (s.engines for s in seen[2:]) if second.state is State.STARTING)
    assert {engine.state for engine in fleet.now.engines} == {State.STOPPED}
    assert await gone(*(pid for pid in pids if pid is not None))


@pytest.mark.parametrize(
    ("engines", "turns"),
    [
        # Engine, its cards, whether it is told its size.
        ([("a", (), False), ("b", (), False)], ["a", "b"]),
        ([("a", (), True), ("b", (), True)], ["ab"]),
        ([("a", (), True), ("b", (), False), ("c", (), True)], ["a", "b", "c"]),
        ([("a", (0,), False), ("b", (1,), False)], ["ab"]),
        ([("a", (0,), False), ("b", (1,), False), ("c", (0, 1), False), ("d", (1,), False)], ["ab", "c", "d"]),
        ([("a", (0,), False), ("b", (0,), True), ("c", (1,), True)], ["ac", "b"]),
    ],
)
def test_engines_start_together_that_do_not_disturb_each_other(
    engines: list[tuple[str, tuple[int, ...], bool]], turns: list[str], make_spec: MakeSpec
) -> None:
    """One that measures its memory does so while no other on its cards starts."""
    specs = [replace(make_spec(name), cards=cards, sized=sized) for name, cards, sized in engines]
    assert ["".join(spec.engine.name for spec in turn) for turn in in_turn(specs)] == turns


async def test_engines_whose_sizes_are_known_start_together(make_spec: MakeSpec) -> None:
    """None waits; neither becomes ready before the other one starts."""
    fleet = Fleet()
    specs = [replace(make_spec(name, "--slow-start", "60"), sized=True) for name in ("embedding", "generation")]
    async with Supervisor(specs, fleet) as supervisor:
        starting = asyncio.create_task(supervisor.start())
        async with asyncio.timeout(20):
            async for snapshot in fleet.snapshots():
                if all(engine.started for engine in snapshot.engines):
                    break
        assert not any(engine.ready for engine in fleet.now.engines)
        starting.cancel()


async def test_what_an_engine_said_of_its_memory_is_handed_on_once_it_is_ready(make_spec: MakeSpec) -> None:
    """With the process that it is."""
    told: list[tuple[int, Seen]] = []
    fleet = Fleet()
    spec = replace(make_spec(), remember=lambda pid, seen: told.append((pid, seen)))
    async with Supervisor([spec], fleet) as supervisor:
        await asyncio.wait_for(supervisor.start(), 20)
        async with asyncio.timeout(5):
            while not told:
                await asyncio.sleep(0.01)
        assert [pid for pid, _ in told] == [fleet.now.engines[0].pid]


async def test_an_engine_that_fails_while_the_next_starts_ends_the_start(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness of the last is not readiness of all."""
    monkeypatch.setattr(engine_module, "_RESTARTS", 0)
    first, second = make_spec("embedding", "--die-after", "0.3"), make_spec("generation", "--slow-start", "30")
    with pytest.raises(EngineError, match="embedding: it was killed"):
        async with Supervisor([first, second], Fleet()) as supervisor:
            await asyncio.wait_for(supervisor.start(), 20)


async def test_nobody_who_stops_waiting_for_a_bug_stops_an_engine(make_spec: MakeSpec) -> None:
    """Waiting for engines to break can be given up without them; a bug in running one is raised by it."""
    fleet = Fleet()
    async with Supervisor([make_spec()], fleet) as supervisor:
        await asyncio.wait_for(supervisor.start(), 20)
        waiting = asyncio.create_task(supervisor.broken())
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.sleep(0.1)
        assert fleet.now.ready
        supervisor._runners[0]._write = lambda *_, **__: 1 / 0
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(supervisor.broken(), 5)
        supervisor._tasks.clear()


async def test_one_failed_start_stops_what_was_started(make_spec: MakeSpec) -> None:
    """The supervisor names the engine and the cause, and the first engine is gone by then."""
    fleet = Fleet()
    bad = make_spec("generation", "--fail", "KeyError: 'nothing here'")
    with pytest.raises(EngineError, match=r"generation: KeyError: 'nothing here'\. Its log is .*generation\.log"):
        async with Supervisor([make_spec("embedding"), bad], fleet) as supervisor:
            await asyncio.wait_for(supervisor.start(), 20)
    assert [engine.state for engine in fleet.now.engines] == [State.STOPPED, State.FAILED]
