"""What `status`, `restart`, `reload` and `stop` say to a running service."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from tandem import control, rundir
from tandem.errors import SettingsError, SetupError
from tandem.fleet import Snapshot, Vitals
from tandem.rundir import RunDir

_LEAVING = 60.0


def find(run_dir: Path | None, port: int | None) -> RunDir:
    """The run folder of the service that is meant: as named, else that of the configured port, else the only one.

    Raises:
        SetupError: none runs there, or several do and none was named.
    """
    if run_dir is not None:
        return RunDir(run_dir.absolute())
    if port is not None:
        return rundir.for_port(port)
    configured = _configured()
    if configured.alive():
        return configured
    running = rundir.running()
    if len(running) > 1:
        raise SetupError(
            "several services run: " + ", ".join(str(one.path) for one in running),
            "Name one with --port or --run-dir",
        )
    return running[0] if running else configured


@dataclass(frozen=True)
class Status:
    """A service at one moment."""

    hello: control.Hello
    snapshot: Snapshot
    vitals: Mapping[str, Vitals]


async def status(run_dir: RunDir) -> Status:
    """What the service says of itself."""
    async with control.ask(run_dir, "status") as service:
        snapshots = [snapshot async for snapshot in service.snapshots()]
    if not snapshots:
        raise SetupError(f"the service on {run_dir.path} ended before it answered")
    return Status(service.hello, snapshots[0], {each.engine: each for each in service.vitals})


async def stop(run_dir: RunDir) -> int:
    """Stop the service and wait until its process is gone; its pid."""
    import asyncio

    async with control.ask(run_dir, "stop") as service:
        async for _ in service.snapshots():
            pass
        pid = service.hello.pid
    deadline = time.monotonic() + _LEAVING
    while _alive(pid):
        if time.monotonic() > deadline:
            raise SetupError(f"the service (pid {pid}) has not ended {_LEAVING:g} s after its last word")
        await asyncio.sleep(0.05)
    return pid


async def change(run_dir: RunDir, verb: Literal["restart", "reload"], engine: str = "") -> tuple[str, ...]:
    """Have the service do ``verb``, showing its engines meanwhile; what it says of it.

    Raises:
        SetupError: it was not done, and why.
    """
    from tandem.cli import progress

    async with control.ask(run_dir, verb, engine) as service:
        await progress.until_done(service.snapshots(), Console())
        if service.said is None:
            raise SetupError(f"the service on {run_dir.path} ended before that was done")
        return service.said


def duration(seconds: float) -> str:
    """``42 s``, ``3 m 20 s``, ``2 h 5 m``."""
    whole = max(0, int(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} m"
    return f"{minutes} m {whole % 60} s" if minutes else f"{whole} s"


def _configured() -> RunDir:
    from tandem import settings

    try:
        configured = settings.load(gpu=False).settings
    except SettingsError:  # a service that runs can be asked and stopped, whatever was written since
        return rundir.for_port(settings.RouterSettings().port)
    return RunDir(configured.run_dir) if configured.run_dir else rundir.for_port(configured.router.port)


def _alive(pid: int) -> bool:
    try:
        # A zombie has ended; whoever started it just has not looked yet.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
