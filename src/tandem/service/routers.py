"""The router's process: kept up, with a spare one that is loaded already, and replaced when its settings change."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tandem.errors import SetupError
from tandem.logfile import LogPipe
from tandem.service.plans import Plan

_ROUTER = ("-X", "faulthandler", "-m", "tandem.router")  # should it crash, its log says where
_ROUTER_DEATHS = 5  # in a row, each within so many seconds of its start: then it is not going to live
_ROUTER_LIFE = 5.0
_ROUTER_SETTLED = 2.0  # seconds that it has served before a spare one is loaded: at the start others need the cores


@asynccontextmanager
async def keep(plan: Plan, listener: socket.socket, changed: asyncio.Event) -> AsyncIterator[asyncio.Task[None]]:
    """Keep a router process on ``listener`` until the block ends; the task that is yielded ends if it cannot.

    Args:
        changed: set when another one is to take the place of the one that serves.
    """
    stopping = asyncio.Event()
    with LogPipe(plan.run_dir.log("router"), plan.rotation) as output:
        keeping = asyncio.create_task(_keep_router(plan, listener, stopping, changed, output))
        try:
            yield keeping
        finally:
            listener.close()  # callers are refused from here on, and do not wait in a queue that nobody reads
            stopping.set()
            await asyncio.wait({keeping})


async def _keep_router(
    plan: Plan, listener: socket.socket, stopping: asyncio.Event, changed: asyncio.Event, output: LogPipe
) -> None:
    log = plan.run_dir.log("router")
    clock = asyncio.get_running_loop().time
    told = asyncio.create_task(stopping.wait())
    renewed = asyncio.create_task(changed.wait())
    deaths = 0
    spare: asyncio.subprocess.Process | None = None
    leaving: set[asyncio.Task[None]] = set()  # routers that finish what they have
    try:
        while deaths < _ROUTER_DEATHS:
            process, spare = spare or await _load_router(plan, listener, output), None
            if told.done():
                process.kill()
                await process.wait()
                return
            started = clock()
            _let_serve(process)
            ended = asyncio.create_task(process.wait())
            news = {ended, told, renewed}
            await asyncio.wait(news, timeout=_ROUTER_SETTLED, return_when=asyncio.FIRST_COMPLETED)
            if not any(each.done() for each in news):
                spare = await _load_router(plan, listener, output)
                await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                await _end_router(process, ended, plan.router.drain_timeout)
                return
            if renewed.done() and not ended.done():
                changed.clear()
                renewed = asyncio.create_task(changed.wait())
                # Callers wait in the socket's queue until the next one serves.
                leaving.add(asyncio.create_task(_end_router(process, ended, plan.router.drain_timeout)))
                continue
            deaths = deaths + 1 if clock() - started < _ROUTER_LIFE else 1
            if deaths > 1:
                await asyncio.sleep(0.1)
        output.carry()
        raise SetupError(
            f"the router ended {_ROUTER_DEATHS} times in a row; its last words: {_last_line(log)}",
            f"Its log is {log}",
        )
    finally:
        told.cancel()
        renewed.cancel()
        if spare is not None and spare.returncode is None:
            spare.kill()
            await spare.wait()
        if leaving:
            await asyncio.wait(leaving)


async def _load_router(plan: Plan, listener: socket.socket, output: LogPipe) -> asyncio.subprocess.Process:
    """A router that loads all it needs and then waits to be told to serve: loading takes most of a second."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", *_ROUTER, str(plan.run_dir.path), str(listener.fileno())),
        pass_fds=[listener.fileno()],
        stdin=asyncio.subprocess.PIPE,
        stdout=output.fd,
        stderr=output.fd,
        start_new_session=True,
    )


def _let_serve(router: asyncio.subprocess.Process) -> None:
    """Should it be dead by now, that is noticed as any other death is."""
    assert router.stdin is not None  # noqa: S101 - it was started with a pipe
    router.stdin.write(b"serve\n")


async def _end_router(router: asyncio.subprocess.Process, ended: asyncio.Task[int], drain_timeout: float) -> None:
    if router.returncode is None:
        router.terminate()
    # uvicorn cancels what is left after the same time; a little more, and it is killed.
    done, _ = await asyncio.wait({ended}, timeout=drain_timeout + 5)
    if not done:
        router.kill()
        await ended


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "none"
