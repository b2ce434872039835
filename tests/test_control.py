"""The control socket tells and takes what the commands need, and nobody else may use it."""

import asyncio
import stat
from pathlib import Path

import msgspec
import pytest

from tandem import control
from tandem.errors import SettingsError, SetupError
from tandem.fleet import Engine, Fleet, Snapshot, Vitals, Work
from tandem.rundir import RunDir
from tandem.settings import ApiSettings, RouterSettings

ROUTER = RouterSettings(port=1234)
API = ApiSettings(strict=False)
HELLO = control.Hello(
    7,
    "http://127.0.0.1:1234",
    "info",
    "json",
    msgspec.Raw(ROUTER.model_dump_json().encode()),
    msgspec.Raw(API.model_dump_json().encode()),
)
ENGINE = Engine(name="a", kind="embedding", model="m")


class Desk:
    """A service that does what it is asked once ``go`` is set."""

    def __init__(self, stopped: asyncio.Event | None = None) -> None:
        self.go = asyncio.Event()
        self.done = asyncio.Event()
        self.routers = 0
        self._stopped = stopped or asyncio.Event()

    def hello(self) -> control.Hello:
        return HELLO

    def stop(self) -> None:
        self._stopped.set()

    def routed(self) -> None:
        self.routers += 1

    async def vitals(self) -> list[Vitals]:
        return [Vitals(engine="a", in_flight=3, memory=7)]

    async def restart(self, engine: str) -> list[str]:
        await self.go.wait()
        self.done.set()
        return [f"{engine} is back."]

    async def reload(self) -> list[str]:
        raise SettingsError("router.port: no", "Mend it")


async def test_status_watch_and_stop(tmp_path: Path) -> None:
    """`status` gets one snapshot, `watch` each newer one until the service's end, `stop` asks for that end."""
    fleet, stopped = Fleet(), asyncio.Event()
    run_dir = RunDir(tmp_path)
    async with control.serve(run_dir, fleet, Desk(stopped)):
        assert stat.S_IMODE(run_dir.socket.stat().st_mode) == 0o600
        async with control.ask(run_dir, "status") as service:
            assert (service.hello.pid, service.hello.router_settings()) == (7, ROUTER)
            assert [snapshot async for snapshot in service.snapshots()] == [Snapshot()]
            assert service.vitals == (Vitals(engine="a", in_flight=3, memory=7),)
        watching = asyncio.create_task(_watched(run_dir))
        await asyncio.sleep(0.05)
        fleet.put(ENGINE)
        async with control.ask(run_dir, "stop") as service:
            await asyncio.wait_for(stopped.wait(), 5)
        await asyncio.sleep(0.05)
    assert await watching == [Snapshot(), Snapshot((ENGINE,))]


async def test_nonsense_gets_an_answer(tmp_path: Path) -> None:
    """A line that is no question is answered with an error, and the service goes on."""
    async with control.serve(RunDir(tmp_path), Fleet(), Desk()):
        reader, writer = await asyncio.open_unix_connection(RunDir(tmp_path).socket)
        writer.write(b'{"verb": "dance"}\n')
        assert b"error" in await reader.read()
        writer.close()
        async with control.ask(RunDir(tmp_path), "status") as service:
            assert service.hello.pid == 7


async def test_a_verb_that_takes_time_shows_the_engines_and_then_what_came_of_it(tmp_path: Path) -> None:
    """Or why it was not done, with the exit code for that."""
    desk, fleet, run_dir = Desk(), Fleet(), RunDir(tmp_path)
    async with control.serve(run_dir, fleet, desk):
        async with control.ask(run_dir, "restart", "a") as service:
            shown = service.snapshots()
            assert await anext(shown) == Snapshot()
            fleet.put(ENGINE)
            assert await anext(shown) == Snapshot((ENGINE,))
            desk.go.set()
            assert [snapshot async for snapshot in shown] == []
            assert service.said == ("a is back.",)
        async with control.ask(run_dir, "reload") as service:
            with pytest.raises(SetupError, match=r"router\.port: no\. Mend it") as raised:
                [snapshot async for snapshot in service.snapshots()]
        assert raised.value.exit_code == 2


async def test_a_verb_goes_on_without_its_caller(tmp_path: Path) -> None:
    desk, fleet, run_dir = Desk(), Fleet(), RunDir(tmp_path)
    async with control.serve(run_dir, fleet, desk):
        async with control.ask(run_dir, "restart", "a") as service:
            await anext(service.snapshots())
        fleet.put(ENGINE)
        desk.go.set()
        await asyncio.wait_for(desk.done.wait(), 5)


async def test_routers_tell_what_the_engines_have_to_do(tmp_path: Path) -> None:
    """Of two the sum; whoever waits for an engine to be idle is told when both have nothing, or are gone."""
    fleet, run_dir = Fleet(), RunDir(tmp_path)
    async with control.serve(run_dir, fleet, Desk()), control.ask(run_dir, "route") as one:
        async with control.ask(run_dir, "route") as other:
            await one.tell([Work("a", 2, 100, open=True), Work("b", 1)])
            await other.tell([Work("a", 1, 50)])
            async with asyncio.timeout(5):
                while fleet.work("a") != Work("a", 3, 150, open=True):
                    await asyncio.sleep(0.01)
            idle = asyncio.create_task(fleet.idle("a"))
            await one.tell([Work("a")])
            async with asyncio.timeout(5):
                while fleet.work("a") != Work("a", 1, 50):
                    await asyncio.sleep(0.01)
            assert not idle.done()
        await asyncio.wait_for(idle, 5)


async def test_no_service_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no service runs on .*tandem up"):
        async with control.ask(RunDir(tmp_path), "status"):
            pass


async def _watched(run_dir: RunDir) -> list[Snapshot]:
    async with control.ask(run_dir, "watch") as service:
        return [snapshot async for snapshot in service.snapshots()]
