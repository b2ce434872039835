"""A service that goes on after its command has returned."""

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import typer
from rich.console import Console

from tandem import control
from tandem.cli import progress
from tandem.errors import SetupError
from tandem.fleet import Fleet, Snapshot
from tandem.service import lifecycle, plans

_KNOCK = 0.05  # seconds between two tries to reach a service that is just starting


def run(
    plan: plans.Plan,
    *,
    wait: bool,
    announce: Callable[[plans.Plan, Snapshot], Awaitable[None]],
    again: plans.Again,
) -> None:
    """Run ``plan`` in a process of its own, cut off from this terminal; return once it is ready.

    Args:
        wait: without it, return once the service answers its control socket.
        announce: says where it is, once it is ready.
        again: makes the plan anew, for `tandem reload`.

    Raises:
        SetupError: it did not start; by then nothing of it is left.
    """
    telling, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(telling)
        _child(plan, said, again)
    os.close(said)
    try:
        asyncio.run(_follow(plan, pid, telling, wait=wait, announce=announce))
    except BaseException:
        _end(pid)
        raise
    finally:
        os.close(telling)


def _child(plan: plans.Plan, said: int, again: plans.Again) -> None:
    """The service's own process; writes why it failed, if it did, to ``said``. Does not return."""
    code = 1
    try:
        os.setsid()
        plan.run_dir.make()
        log = os.open(plan.run_dir.service_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)

        async def ready() -> None:
            os.close(said)

        asyncio.run(lifecycle.run(plan, Fleet(), ready, again))
        code = 0
    except SetupError as exc:
        _say(said, str(exc))
    except BaseException as exc:
        traceback.print_exc()
        _say(said, f"{type(exc).__name__}: {exc}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _say(said: int, message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    try:
        os.write(said, message.encode())
    except OSError:
        return  # it was ready before: whoever waited has gone


async def _follow(
    plan: plans.Plan,
    pid: int,
    telling: int,
    *,
    wait: bool,
    announce: Callable[[plans.Plan, Snapshot], Awaitable[None]],
) -> None:
    async with AsyncExitStack() as stack:
        while True:
            try:
                conversation = await stack.enter_async_context(control.ask(plan.run_dir, "watch"))
                if conversation.hello.pid == pid:
                    break
            except SetupError:  # it does not listen yet
                pass
            if _ended(pid):
                raise SetupError(_told(telling, plan))
            await asyncio.sleep(_KNOCK)
        await _shown(plan, conversation, pid, telling, wait=wait, announce=announce)


async def _shown(
    plan: plans.Plan,
    conversation: control.Conversation,
    pid: int,
    telling: int,
    *,
    wait: bool,
    announce: Callable[[plans.Plan, Snapshot], Awaitable[None]],
) -> None:
    if wait:
        last = Snapshot()

        async def kept() -> progress.Snapshots:
            nonlocal last
            async for last in conversation.snapshots():
                yield last

        await progress.bring_up(kept(), Console())
        if not last.ready:
            await asyncio.to_thread(os.waitpid, pid, 0)
            raise SetupError(_told(telling, plan))
        await announce(plan, last)
    else:
        typer.echo(f"Starting on {plan.address}/v1; `tandem status` shows how far it is.")
    where = f" --run-dir {plan.run_dir.path}"
    typer.echo(f"It runs on in the background (pid {pid}); `tandem stop{where}` ends it.")


def _ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _told(telling: int, plan: plans.Plan) -> str:
    os.set_blocking(telling, False)
    try:
        message = os.read(telling, 2**16).decode()
    except BlockingIOError:
        message = ""
    return message or f"the service ended; its log is {plan.run_dir.service_log}"


def _end(pid: int) -> None:
    """Have a service that did not come up put everything away, and wait until it has."""
    try:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return
