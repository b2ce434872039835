"""The supervisor's process with fake engines and a real router: whatever happens, it ends, and nothing is left."""

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tandem import control
from tandem.engines import probes
from tandem.engines.keeper import descendants
from tandem.engines.process import EngineProcess
from tandem.errors import EngineError, SettingsError, SetupError
from tandem.fleet import Fleet, Kind, State
from tandem.rundir import RunDir
from tandem.service import lifecycle, plans, ports, routers
from tandem.service.desk import Desk
from tandem.service.plans import Again, Plan
from tandem.settings import ApiSettings, RouterSettings

from ..engines.fakes import fake_spec, gone
from ..engines.test_orphans import left_behind

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_POLL", 0.01)


@pytest.fixture
def folder(short_path: Path) -> Iterator[Path]:
    """The run folder; after the test there may be nothing in it but logs."""
    yield short_path / "run"
    assert {path.name for path in (short_path / "run").iterdir()} <= {"logs"}


def plan(folder: Path, port: int, *flags: str, kind: Kind = "embedding") -> Plan:
    run_dir = RunDir(folder)
    router = RouterSettings(port=port, drain_timeout=2)
    return Plan(
        (fake_spec(folder.parent, "embedding", *flags, kind=kind),),
        router,
        ApiSettings(),
        run_dir,
        "info",
        "console",
        Path("/no/python"),
    )


async def nothing() -> None:
    pass


@asynccontextmanager
async def running(wanted: Plan, fleet: Fleet, again: Again | None = None) -> AsyncIterator[asyncio.Task[None]]:
    """The service, once its engines are ready."""
    task = asyncio.create_task(lifecycle.run(wanted, fleet, nothing, again))
    async with asyncio.timeout(20):
        async for snapshot in fleet.snapshots():
            if snapshot.ready:
                break
    yield task


def command_of(file: Path) -> bytes:
    """A command line from /proc; empty when the process is gone."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


async def healthy(client: httpx2.AsyncClient, status: int = 200) -> None:
    """Wait until the router says so."""
    async with asyncio.timeout(20):
        while True:
            try:
                if (await client.get("/health")).status_code == status:
                    return
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.05)


async def test_it_serves_until_it_is_told_to_stop(folder: Path, free_port: int) -> None:
    """By `tandem stop`'s own words; engine and router are gone, the port is free."""
    fleet = Fleet()
    wanted = plan(folder, free_port)
    async with running(wanted, fleet) as serving, httpx2.AsyncClient(base_url=wanted.address) as client:
        await healthy(client)
        pid = fleet.now.engines[0].pid
        async with control.ask(wanted.run_dir, "stop") as conversation:
            states = [snapshot.engines[0].state async for snapshot in conversation.snapshots()]
        await asyncio.wait_for(serving, 20)
    assert states[-1] is State.STOPPED
    assert pid is not None
    assert await gone(pid)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", free_port)) != 0


async def test_systemd_hears_of_it(folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it lives, is ready, and stops, in this order."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder.parent / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder.parent / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        heard: list[str] = []
        # Read as it comes: the queue holds few.
        asyncio.get_running_loop().add_reader(manager, lambda: heard.append(manager.recv(4096).decode().split("\n")[0]))
        fleet = Fleet()
        wanted = plan(folder, free_port)
        async with running(wanted, fleet) as serving, control.ask(wanted.run_dir, "stop") as conversation:
            async for _ in conversation.snapshots():
                pass
            await asyncio.wait_for(serving, 20)
        with suppress(BlockingIOError):
            while True:
                heard.append(manager.recv(4096).decode().split("\n")[0])
        asyncio.get_running_loop().remove_reader(manager)
    said = [message for message in dict.fromkeys(heard) if not message.startswith("STATUS")]
    assert said == ["WATCHDOG=1", "READY=1", "STOPPING=1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_is_heeded_even_while_readiness_is_announced(number: int, folder: Path, free_port: int) -> None:
    """Whatever the announcement waits for."""
    announced = asyncio.Event()

    async def forever() -> None:
        announced.set()
        await asyncio.Event().wait()

    serving = asyncio.create_task(lifecycle.run(plan(folder, free_port), Fleet(), forever))
    await asyncio.wait_for(announced.wait(), 20)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(serving, 20)


async def test_the_second_signal_ends_it_at_once(folder: Path, free_port: int) -> None:
    """An engine that takes its time to stop is killed."""
    async with running(plan(folder, free_port, "--slow-stop", "60"), Fleet()) as serving:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(serving, 10)


async def test_the_port_is_open_while_engines_start(folder: Path, free_port: int) -> None:
    """Health says what they are at; the port on which an engine will listen is nobody else's."""
    wanted = plan(folder, free_port, "--slow-start", "60")
    serving = asyncio.create_task(lifecycle.run(wanted, Fleet(), nothing))
    async with httpx2.AsyncClient(base_url=wanted.address) as client:
        await healthy(client, 503)
        told = (await client.get("/health")).json()["services"]["embedding"]
        assert told["status"] in {"starting", "loading"}
        engines_port = httpx2.URL(wanted.specs[0].engine.url).port
        assert engines_port
        assert ports.free(engines_port, "another", (), asked=False) != engines_port
        refused = await client.post("/v1/embeddings", json={"model": "embedding", "input": "a"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    async with control.ask(wanted.run_dir, "stop"):
        await asyncio.wait_for(serving, 20)


@pytest.mark.parametrize(("head_start", "order"), [(30.0, ["router", "engine"]), (0.0, ["engine", "router"])])
async def test_engines_let_the_router_load_first(
    head_start: float, order: list[str], folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks in the first seconds is answered; but engines do not wait for it for ever."""
    seen: list[str] = []
    routed, start = Desk.routed, EngineProcess.start

    def noted(self: Desk) -> None:
        seen.append("router")
        routed(self)

    async def started(*args: Any, **kwargs: Any) -> EngineProcess:
        seen.append("engine")
        return await start(*args, **kwargs)

    monkeypatch.setattr(Desk, "routed", noted)
    monkeypatch.setattr(EngineProcess, "start", started)
    monkeypatch.setattr(lifecycle, "_HEAD_START", head_start)
    wanted = plan(folder, free_port)
    async with running(wanted, Fleet()) as serving, httpx2.AsyncClient(base_url=wanted.address) as client:
        await healthy(client)
        async with control.ask(wanted.run_dir, "stop"):
            await asyncio.wait_for(serving, 20)
    assert seen[:2] == order


async def test_callers_are_told_when_to_come_again_by_the_last_start(folder: Path, free_port: int) -> None:
    """Health has the phase, the time since the start began, what the last one took, and the last line."""
    wanted = plan(folder, free_port, "--slow-start", "60")
    wanted = replace(wanted, specs=(replace(wanted.specs[0], took=45.0),))
    serving = asyncio.create_task(lifecycle.run(wanted, Fleet(), nothing))
    async with httpx2.AsyncClient(base_url=wanted.address) as client:
        await healthy(client, 503)
        async with asyncio.timeout(20):
            while "last_line" not in (told := (await client.get("/health")).json()["services"]["embedding"]):
                await asyncio.sleep(0.1)
        assert (told["status"], told["detail"], told["estimate"]) == ("loading", "loading weights", 45.0)
        assert told["last_line"] == "INFO Starting to load model x..."
        assert 0 < told["elapsed"] < 45
        refused = await client.post("/v1/embeddings", json={"model": "embedding", "input": "a"})
        assert refused.status_code == 503
        assert 30 < int(refused.headers["retry-after"]) <= 45
    async with control.ask(wanted.run_dir, "stop"):
        await asyncio.wait_for(serving, 20)


async def test_a_failed_start_ends_it(folder: Path, free_port: int) -> None:
    with pytest.raises(EngineError, match=r"embedding: ValueError: bad luck\. Its log is "):
        await asyncio.wait_for(
            lifecycle.run(plan(folder, free_port, "--fail", "ValueError: bad luck"), Fleet(), nothing), 20
        )


async def test_the_next_start_clears_what_a_killed_service_left(
    folder: Path, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Supervisor and keeper were killed together: of the engine its grandchild lives on until then."""
    (server, grandchild), engine = await left_behind(RunDir(folder))
    wanted = plan(folder, free_port)
    async with running(wanted, Fleet()) as serving:
        assert await gone(server, grandchild)
        assert f"cleared 1 processes that an earlier service on {folder} left behind" in caplog.text
        async with control.ask(wanted.run_dir, "stop"):
            await asyncio.wait_for(serving, 20)
    await asyncio.wait_for(engine.wait(), 10)
    (folder / "embedding.log").unlink()


async def test_a_taken_port_ends_it_before_anything_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"port {port} on 127.0.0.1 is taken"):
            await lifecycle.run(plan(folder, port), Fleet(), nothing)


async def test_a_router_that_cannot_run_ends_it(folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its last words; one death alone is mended (shown with real engines)."""
    monkeypatch.setattr(routers, "_ROUTER", ("-c", "raise SystemExit('no luck today')"))
    with pytest.raises(SetupError, match="the router ended 5 times in a row; its last words: no luck today"):
        await asyncio.wait_for(lifecycle.run(plan(folder, free_port), Fleet(), nothing), 30)


async def test_a_killed_router_is_replaced_by_one_that_was_loaded_before(
    folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a spare one that was killed, by one that is loaded then; in the end none of them is left."""
    monkeypatch.setattr(routers, "_ROUTER_SETTLED", 0.0)
    wanted = plan(folder, free_port)

    async def living(count: int) -> list[int]:
        """The oldest of them serves."""
        async with asyncio.timeout(20):
            while True:
                every = [(pid, Path(f"/proc/{pid}/cmdline")) for pid in descendants(os.getpid())]
                found = [pid for pid, command in every if b"tandem.router" in command_of(command)]
                if len(found) == count:
                    return found
                await asyncio.sleep(0.02)

    async with running(wanted, Fleet()) as serving, httpx2.AsyncClient(base_url=wanted.address) as client:
        await healthy(client)
        first, spare = await living(2)
        os.kill(first, signal.SIGKILL)
        await healthy(client)
        now, _ = await living(2)
        assert now == spare
        os.kill((await living(2))[1], signal.SIGKILL)
        assert (await living(1)) == [now]
        os.kill(now, signal.SIGKILL)
        await healthy(client)
        last = await living(2)
        async with control.ask(wanted.run_dir, "stop"):
            await asyncio.wait_for(serving, 20)
    assert await gone(first, spare, now, *last)


async def changed(wanted: Plan, verb: control.Verb, engine: str = "") -> tuple[str, ...] | None:
    """What the running service said of it, once it was done."""
    async with control.ask(wanted.run_dir, verb, engine) as conversation:
        async for _ in conversation.snapshots():
            pass
        return conversation.said


async def test_a_restart_of_replicas_under_load_drops_nothing(folder: Path, free_port: int) -> None:
    """Callers who ask all the while get an answer each; one replica alone can be named, too."""
    first = plan(folder, free_port, kind="generation")
    (spec,) = first.specs
    other = fake_spec(folder.parent, "embedding-2", kind="generation")
    other = replace(other, engine=msgspec.structs.replace(other.engine, replica_of="embedding"), sized=True)
    wanted = replace(first, specs=(replace(spec, sized=True), other))
    fleet, statuses = Fleet(), Counter[int]()
    async with running(wanted, fleet) as serving, httpx2.AsyncClient(base_url=wanted.address, timeout=30) as client:
        await healthy(client)
        done = asyncio.Event()

        async def asking() -> None:
            while not done.is_set():
                got = await client.post("/v1/completions", json={"model": "embedding", "prompt": "a"})
                statuses[got.status_code] += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(asking())
            assert await changed(wanted, "restart", "embedding") == ("embedding was started anew and is ready.",)
            assert await changed(wanted, "restart", "embedding-2") is not None
            done.set()
        assert set(statuses) == {200}
        async with control.ask(wanted.run_dir, "stop"):
            await asyncio.wait_for(serving, 20)


async def test_a_reload_replaces_what_changed_and_its_requests_wait(folder: Path, free_port: int) -> None:
    """A request that comes while its engine is away is answered by the new one; the other engine sees nothing; the
    router has its new settings, and answers all the time."""
    one = plan(folder, free_port, kind="generation")
    wanted = replace(one, specs=(*one.specs, fake_spec(folder.parent, "other", kind="generation")))
    new = fake_spec(folder.parent, "embedding", "--slow-start", "1", kind="generation")
    router = wanted.router.model_copy(update={"api_key": "sha256:" + "0" * 64})
    after = replace(
        wanted, specs=(new, wanted.specs[1]), kept=frozenset({"other"}), router=router, waiting=("run_dir",)
    )
    fleet, asked = Fleet(), list[plans.Running]()

    def again(running: plans.Running) -> Plan:
        asked.append(running)
        return after

    async with (
        running(wanted, fleet, again) as serving,
        httpx2.AsyncClient(base_url=wanted.address, timeout=30) as client,
    ):
        await healthy(client)
        before = fleet.now.engines
        reloading = asyncio.create_task(changed(wanted, "reload"))
        async with asyncio.timeout(20):
            async for snapshot in fleet.snapshots():
                if snapshot.engines[0].state is State.STARTING:
                    break
        waiting = client.post("/v1/completions", json={"model": "embedding", "prompt": "a"})
        other = client.post("/v1/completions", json={"model": "other", "prompt": "a"})
        assert [got.status_code for got in await asyncio.gather(waiting, other)] == [200, 200]
        assert await reloading == (
            "Started anew: embedding.",
            "Left alone: other.",
            "The router has its new settings.",
            "Only a restart of the service changes run_dir (`tandem stop`, then `tandem up`).",
        )
        assert fleet.now.engines[1] == before[1]
        assert asked[0].pids == {engine.name: engine.pid for engine in before}
        async with asyncio.timeout(20):
            while (await client.post("/v1/completions", json={"model": "other", "prompt": "a"})).status_code != 401:
                await asyncio.sleep(0.05)
    async with control.ask(wanted.run_dir, "stop"):
        await asyncio.wait_for(serving, 20)


async def test_a_reload_of_wrong_settings_changes_nothing(folder: Path, free_port: int) -> None:
    """And says why, with the exit code for wrong settings."""

    def again(_: plans.Running) -> Plan:
        raise SettingsError("router.port in tandem.toml: no", "Mend it")

    wanted, fleet = plan(folder, free_port), Fleet()
    async with running(wanted, fleet, again) as serving:
        before = fleet.now
        with pytest.raises(SetupError, match=r"router\.port in tandem\.toml: no\. Mend it") as raised:
            await changed(wanted, "reload")
        assert raised.value.exit_code == 2
        assert fleet.now == before
        async with control.ask(wanted.run_dir, "stop"):
            await asyncio.wait_for(serving, 20)
