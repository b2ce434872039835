"""The control socket tells and takes what the commands need, and nobody else may use it."""

import asyncio
import stat
from pathlib import Path

import msgspec
import pytest

from tandem import control
from tandem.errors import SetupError
from tandem.fleet import Engine, Fleet, Snapshot
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


async def test_status_watch_and_stop(tmp_path: Path) -> None:
    """`status` gets one snapshot, `watch` each newer one until the service's end, `stop` asks for that end."""
    fleet, stopped = Fleet(), asyncio.Event()
    run_dir = RunDir(tmp_path)
    async with control.serve(run_dir, fleet, HELLO, stopped.set):
        assert stat.S_IMODE(run_dir.socket.stat().st_mode) == 0o600
        async with control.ask(run_dir, "status") as service:
            assert (service.hello.pid, service.hello.router_settings()) == (7, ROUTER)
            assert [snapshot async for snapshot in service.snapshots()] == [Snapshot()]
        watching = asyncio.create_task(_watched(run_dir))
        await asyncio.sleep(0.05)
        fleet.put(ENGINE)
        async with control.ask(run_dir, "stop") as service:
            await asyncio.wait_for(stopped.wait(), 5)
        await asyncio.sleep(0.05)
    assert await watching == [Snapshot(), Snapshot((ENGINE,))]


async def test_nonsense_gets_an_answer(tmp_path: Path) -> None:
    """A line that is no question is answered with an error, and the service goes on."""
    async with control.serve(RunDir(tmp_path), Fleet(), HELLO, lambda: None):
        reader, writer = await asyncio.open_unix_connection(RunDir(tmp_path).socket)
        writer.write(b'{"verb": "dance"}\n')
        assert b"error" in await reader.read()
        writer.close()
        async with control.ask(RunDir(tmp_path), "status") as service:
            assert service.hello.pid == 7


async def test_no_service_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no service runs on .*tandem up"):
        async with control.ask(RunDir(tmp_path), "status"):
            pass


async def _watched(run_dir: RunDir) -> list[Snapshot]:
    async with control.ask(run_dir, "watch") as service:
        return [snapshot async for snapshot in service.snapshots()]
