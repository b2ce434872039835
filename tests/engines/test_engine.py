"""An engine's states, from start to end, with a fake engine that is a real process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from tandem.engines import engine as engine_module
from tandem.engines import probes
from tandem.engines.engine import EngineRunner
from tandem.engines.spec import Spec
from tandem.engines.supervisor import Supervisor, in_turn
from tandem.errors import EngineError, SetupError
from tandem.fleet import Engine, Fleet, Snapshot, State, Work
from tandem.settings import SupervisionSettings

from .conftest import MakeSpec
from .fakes import alive, gone

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_POLL", 0.01)
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


async def test_a_start_is_broken_off_at_once(make_spec: MakeSpec) -> None:
    """Also of an engine that does not heed it: it has no requests to finish, whatever time those would get."""
    fleet = Fleet()
    spec = replace(make_spec("embedding", "--deaf-start", "--slow-start", "600"), drain_timeout=600)
    runner = EngineRunner(spec, fleet)
    running = asyncio.create_task(runner.run())
    loading = await reached(fleet, lambda e: e.state is State.LOADING)
    runner.stop()
    await asyncio.wait_for(running, 10)
    assert loading.pid is not None
    assert await gone(loading.pid)
    assert fleet.now.engines[0].state is State.STOPPED


async def test_a_start_that_stands_still_is_stalled_and_then_ended(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it did last, and its last line; its arguments are not told."""
    monkeypatch.setattr(engine_module, "_LOOK", 0.05)
    fleet = Fleet()
    spec = replace(make_spec("embedding", "--slow-start", "600"), supervision=SupervisionSettings(start_timeout=1))
    running = asyncio.create_task(EngineRunner(spec, fleet).run())
    stalled = await reached(fleet, lambda e: e.state is State.STALLED)
    assert stalled.reason == (
        "for 1 s it has logged, read and computed nothing; the last it did: loading weights; "
        "its last line: INFO Starting to load model x..."
    )
    failed = await reached(fleet, lambda e: e.state is State.FAILED)
    assert failed.reason.startswith("it stalled: for 2 s it has logged, read and computed nothing; the last it did")
    await asyncio.wait_for(running, 10)


async def test_a_start_that_computes_is_not_stalled_however_long_it_takes(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here more than twice the time-out, with which it would be ended; its last line is told meanwhile."""
    monkeypatch.setattr(engine_module, "_LOOK", 0.05)
    fleet, states, lines = Fleet(), set[State](), set[str]()
    spec = make_spec("embedding", "--busy", "--slow-start", "4")
    spec = replace(spec, supervision=SupervisionSettings(start_timeout=1.5), took=7.5)
    runner = EngineRunner(spec, fleet)
    running = asyncio.create_task(runner.run())
    starting = await reached(fleet, lambda e: e.state is State.STARTING)
    assert (starting.estimate, round(starting.expected - starting.started, 1)) == (7.5, 7.5)
    async for snapshot in fleet.snapshots():
        states |= {engine.state for engine in snapshot.engines}
        lines |= {engine.line for engine in snapshot.engines}
        if snapshot.ready or states & {State.STALLED, State.FAILED}:
            break
    assert states == {State.STARTING, State.LOADING, State.READY}
    assert "INFO Starting to load model x..." in lines
    assert fleet.now.engines[0].line == ""
    assert fleet.now.engines[0].estimate != 7.5
    runner.stop()
    await asyncio.wait_for(running, 10)


async def test_a_crashed_engine_is_restarted(make_spec: MakeSpec) -> None:
    """Killed while it serves: restarting, with the reason, and ready again with another process."""
    fleet = Fleet()
    runner = EngineRunner(replace(make_spec(), supervision=SupervisionSettings(first_pause=0.05)), fleet)
    running = asyncio.create_task(runner.run())
    first = await reached(fleet, lambda e: e.ready)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    down = await reached(fleet, lambda e: e.state is State.RESTARTING)
    assert (down.restarts, down.pid) == (1, None)
    assert down.reason.startswith("it was killed")
    assert down.error == down.reason
    again = await reached(fleet, lambda e: e.ready)
    assert again.pid not in (None, first.pid)
    runner.stop()
    await asyncio.wait_for(running, 10)


async def test_an_engine_that_listens_no_more_and_does_not_end_is_restarted(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to end by somebody else, vLLM was seen to hang like that, and its callers with it."""
    monkeypatch.setattr(engine_module, "_DEAF", -4.5)  # the rest of the drain time-out
    fleet = Fleet()
    supervision = SupervisionSettings(first_pause=0.05)
    runner = EngineRunner(replace(make_spec("embedding", "--deaf-end"), supervision=supervision), fleet)
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


STALLS = SupervisionSettings(first_pause=0, stall_timeout=1)


async def test_an_engine_that_has_work_and_does_not_move_is_started_anew(make_spec: MakeSpec) -> None:
    """Though its own health check stays good; one that has nothing to do is left alone."""
    async with serving(replace(make_spec(), supervision=STALLS)) as (_, fleet):
        (first,) = fleet.now.engines
        os.kill(first.pid or 0, signal.SIGUSR1)
        await asyncio.sleep(1.5)
        assert fleet.now.engines == (first,)
        fleet.report("router", [Work("embedding", in_flight=3, open=True)])
        stalled = await reached(fleet, lambda e: e.state is State.STALLED)
        assert stalled.reason == "it has 3 requests in flight, and for 1 s nothing of it has moved"
        down = await reached(fleet, lambda e: e.state is State.RESTARTING)
        assert down.error == stalled.reason
        fleet.report("router", [])
        again = await reached(fleet, lambda e: e.ready)
        assert (again.restarts, again.pid == first.pid) == (1, False)


@pytest.mark.parametrize("flags", [["--busy"], []], ids=["it computes", "callers are slow to take their answers"])
async def test_an_engine_that_moves_or_answers_is_left_alone(flags: list[str], make_spec: MakeSpec) -> None:
    """For many times its grace: one that computes and finishes nothing, or that finishes what is asked now."""
    async with serving(replace(make_spec("embedding", *flags), supervision=STALLS)) as (_, fleet):
        (first,) = fleet.now.engines
        if flags:
            os.kill(first.pid or 0, signal.SIGUSR1)
        fleet.report("router", [Work("embedding", in_flight=3, open=True)])
        await asyncio.sleep(3)
        assert fleet.now.engines == (first,)


async def test_an_engine_that_keeps_crashing_is_given_up_and_the_others_serve_on(make_spec: MakeSpec) -> None:
    """With why it ended the last time; a restart that somebody asks for brings it back, with a clean slate."""
    supervision = SupervisionSettings(max_restarts=2, first_pause=0)
    specs = [replace(make_spec(name), supervision=supervision, sized=True) for name in ("embedding", "other")]
    async with serving(*specs) as (supervisor, fleet):
        killed: set[int] = set()
        while len(killed) < 3:
            engine = await reached(fleet, lambda e: e.ready and e.pid not in killed)
            assert engine.pid is not None
            killed.add(engine.pid)
            os.kill(engine.pid, signal.SIGKILL)
        failed = await reached(fleet, lambda e: e.state is State.FAILED)
        assert failed.restarts == 2
        assert failed.reason.startswith("it ended 3 times within 600 s; the last time: it was killed")
        assert engine_of(fleet, "other").ready
        await asyncio.wait_for(supervisor.restart("embedding"), 20)
        assert fleet.now.ready


async def test_an_engine_that_died_starts_again_once_its_memory_is_free(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in the end without, since vLLM says best what it lacks; at its first start nobody asks."""
    monkeypatch.setattr(engine_module, "_ROOM_POLL", 0.01)
    asked = list[bool]()

    def room() -> bool:
        asked.append(len(asked) == 2)
        return asked[-1]

    fleet = Fleet()
    runner = EngineRunner(replace(make_spec(), supervision=SupervisionSettings(first_pause=0), room=room), fleet)
    running = asyncio.create_task(runner.run())
    first = await reached(fleet, lambda e: e.ready)
    assert not asked
    os.kill(first.pid or 0, signal.SIGKILL)
    await reached(fleet, lambda e: e.detail == "waiting until its memory is free again")
    again = await reached(fleet, lambda e: e.ready and e.pid != first.pid)
    assert asked == [False, False, True]
    monkeypatch.setattr(engine_module, "_ROOM", 0.02)
    os.kill(again.pid or 0, signal.SIGKILL)
    await reached(fleet, lambda e: e.ready and e.pid != again.pid)
    assert not any(asked[3:])
    runner.stop()
    await asyncio.wait_for(running, 10)


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


async def test_who_waits_for_another_tells_when_it_will_be_ready(make_spec: MakeSpec) -> None:
    """By the last starts of both; nothing where one is not known."""
    specs = [
        replace(make_spec("a", "--slow-start", "60"), took=30),
        replace(make_spec("b"), took=20),
        make_spec("c"),
        replace(make_spec("d"), took=20),
    ]
    fleet = Fleet()
    async with Supervisor(specs, fleet) as supervisor:
        starting = asyncio.create_task(supervisor.start())
        a = await reached(fleet, lambda e: e.state is not State.PLANNED)
        assert a.expected > 0
        expected = {engine.name: engine.expected for engine in fleet.now.engines}
        assert round(expected["b"] - a.expected) == 20
        assert (expected["c"], expected["d"]) == (0, 0)
        starting.cancel()


async def test_what_an_engine_said_of_its_memory_is_handed_on_once_it_is_ready(make_spec: MakeSpec) -> None:
    """With the process that it is, and how long its start took."""
    told: list[tuple[int, float]] = []
    fleet = Fleet()
    spec = replace(make_spec(), remember=lambda pid, seen, took: told.append((pid, took)))
    async with Supervisor([spec], fleet) as supervisor:
        await asyncio.wait_for(supervisor.start(), 20)
        async with asyncio.timeout(5):
            while not told:
                await asyncio.sleep(0.01)
        engine = fleet.now.engines[0]
        assert told == [(engine.pid, engine.estimate)]
        assert engine.estimate > 0


async def test_an_engine_that_fails_while_the_next_starts_ends_the_start(make_spec: MakeSpec) -> None:
    """Readiness of the last is not readiness of all."""
    first = replace(make_spec("embedding", "--die-after", "0.3"), supervision=SupervisionSettings(max_restarts=0))
    second = make_spec("generation", "--slow-start", "30")
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
        supervisor._runners["embedding"]._write = lambda *_, **__: 1 / 0
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(supervisor.broken(), 5)
        supervisor._tasks.clear()


@asynccontextmanager
async def serving(*specs: Spec) -> AsyncIterator[tuple[Supervisor, Fleet]]:
    """A supervisor whose engines are ready, and its fleet."""
    fleet = Fleet()
    async with Supervisor(specs, fleet) as supervisor:
        await asyncio.wait_for(supervisor.start(), 20)
        yield supervisor, fleet


def engine_of(fleet: Fleet, name: str) -> Engine:
    return next(engine for engine in fleet.now.engines if engine.name == name)


async def test_a_restart_drains_first_and_takes_replicas_in_turn(make_spec: MakeSpec) -> None:
    """The router gives it no more and has all it asked for before it is told to end; one of two is ready always, and
    whoever asks meanwhile may wait; it is no crash."""
    first, second = make_spec("embedding"), make_spec("embedding-2")
    second = replace(second, engine=msgspec.structs.replace(second.engine, replica_of="embedding"), sized=True)
    async with serving(replace(first, sized=True), second) as (supervisor, fleet):
        pids = {engine.name: engine.pid for engine in fleet.now.engines}
        seen = list[Snapshot]()

        async def record() -> None:
            async for snapshot in fleet.snapshots():
                seen.append(snapshot)

        recording = asyncio.create_task(record())
        fleet.report("router", [Work("embedding", in_flight=1, open=True)])
        restarting = asyncio.create_task(supervisor.restart("embedding"))
        await reached(fleet, lambda e: e.state is State.DRAINING)
        await asyncio.sleep(0.1)
        assert alive(pids["embedding"] or 0)
        fleet.report("router", [Work("embedding")])
        await asyncio.wait_for(restarting, 20)
        recording.cancel()
        assert all(any(engine.ready for engine in snapshot.engines) for snapshot in seen)
        away = [engine for snapshot in seen for engine in snapshot.engines if not engine.ready]
        assert all(engine.renewed for engine in away)
        assert all(engine.pid not in (None, pids[engine.name]) for engine in fleet.now.engines)
        assert [(engine.restarts, engine.renewed) for engine in fleet.now.engines] == [(0, False)] * 2


async def test_a_router_that_does_not_let_go_is_waited_for_no_longer_than_the_drain_time_out(
    make_spec: MakeSpec,
) -> None:
    async with serving(replace(make_spec(), drain_timeout=0.1)) as (supervisor, fleet):
        fleet.report("router", [Work("embedding", in_flight=1)])
        await asyncio.wait_for(supervisor.restart("embedding"), 20)


async def test_an_unknown_engine_is_named_with_those_there_are(make_spec: MakeSpec) -> None:
    async with serving(make_spec()) as (supervisor, _):
        with pytest.raises(SetupError, match=r"there is no engine nonsense\. There are: embedding"):
            await supervisor.restart("nonsense")


async def test_one_change_at_a_time_and_none_before_the_start_is_over(make_spec: MakeSpec) -> None:
    with pytest.raises(SetupError, match="still starting"):
        await Supervisor([make_spec()], Fleet()).restart("embedding")
    async with serving(make_spec()) as (supervisor, _):
        restarting = asyncio.create_task(supervisor.restart("embedding"))
        await asyncio.sleep(0)
        with pytest.raises(SetupError, match="another restart or reload is under way"):
            await supervisor.restart("embedding")
        await asyncio.wait_for(restarting, 20)


async def test_a_reload_touches_only_what_changed(make_spec: MakeSpec) -> None:
    """One is removed, one started anew with other settings, one added; one runs on, under a further name."""
    names = ("kept", "changed", "removed")
    kept, changed, removed = (replace(make_spec(name), sized=True) for name in names)
    async with serving(kept, changed, removed) as (supervisor, fleet):
        before = fleet.now.engines
        renamed = replace(kept, engine=msgspec.structs.replace(kept.engine, aliases=("also",)))
        other = make_spec("changed")
        await asyncio.wait_for(supervisor.reload([renamed, other, make_spec("added")], {"changed", "added"}), 20)
        assert [engine.name for engine in fleet.now.engines] == ["kept", "changed", "added"]
        assert fleet.now.ready
        assert engine_of(fleet, "kept") == msgspec.structs.replace(before[0], aliases=("also",))
        assert engine_of(fleet, "changed").url == other.engine.url != before[1].url
        assert await gone(before[1].pid or 0, before[2].pid or 0)


async def test_who_gives_memory_back_goes_first(make_spec: MakeSpec) -> None:
    """So that nobody starts before there is room."""
    grows, shrinks = (replace(make_spec(name), memory=4, sized=True) for name in ("grows", "shrinks"))
    async with serving(grows, shrinks) as (supervisor, fleet):
        specs = [replace(make_spec("new"), memory=1), replace(grows, memory=6), replace(shrinks, memory=1)]
        await asyncio.wait_for(supervisor.reload(specs, {"new", "grows", "shrinks"}), 20)
        started = {engine.name: engine.started for engine in fleet.now.engines}
        assert sorted(started, key=started.__getitem__) == ["shrinks", "new", "grows"]


async def test_an_engine_that_fails_in_a_reload_leaves_the_others_alone_and_can_be_brought_back(
    make_spec: MakeSpec,
) -> None:
    """It has failed at once, without further tries, and says why; the next reload, or a restart, starts it again."""
    kept, good = (replace(make_spec(name), sized=True) for name in ("kept", "changed"))
    async with serving(kept, good) as (supervisor, fleet):
        bad = make_spec("changed", "--fail", "ValueError: bad luck")
        with pytest.raises(SetupError, match=r"changed: ValueError: bad luck\. `tandem logs` tells more"):
            await asyncio.wait_for(supervisor.reload([kept, bad], {"changed"}), 20)
        assert (engine_of(fleet, "changed").state, engine_of(fleet, "kept").ready) == (State.FAILED, True)
        with pytest.raises(EngineError, match=r"changed: ValueError: bad luck\. Its log is .*tandem restart changed"):
            await asyncio.wait_for(supervisor.restart("changed"), 20)
        await asyncio.wait_for(supervisor.reload([kept, good], ()), 20)
        assert fleet.now.ready


async def test_one_failed_start_stops_what_was_started(make_spec: MakeSpec) -> None:
    """The supervisor names the engine and the cause, and the first engine is gone by then."""
    fleet = Fleet()
    bad = make_spec("generation", "--fail", "KeyError: 'nothing here'")
    with pytest.raises(EngineError, match=r"generation: KeyError: 'nothing here'\. Its log is .*generation\.log"):
        async with Supervisor([make_spec("embedding"), bad], fleet) as supervisor:
            await asyncio.wait_for(supervisor.start(), 20)
    assert [engine.state for engine in fleet.now.engines] == [State.STOPPED, State.FAILED]
