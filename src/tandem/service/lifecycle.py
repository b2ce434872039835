"""A service's life: start up, serve, drain, stop."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from tandem import control, notify
from tandem.engines.install import remove_replaced
from tandem.engines.orphans import sweep
from tandem.engines.supervisor import Supervisor
from tandem.fleet import Fleet
from tandem.notify import Notifier
from tandem.router.listener import listen
from tandem.service import routers
from tandem.service.desk import Desk
from tandem.service.plans import Again, Plan
from tandem.service.ports import Ports

_log = logging.getLogger("tandem")
_HEAD_START = 5.0  # seconds at most that engines wait for the router
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, the terminal's end


async def run(plan: Plan, fleet: Fleet, on_ready: Callable[[], Awaitable[None]], again: Again | None = None) -> None:
    """Serve until SIGINT, SIGTERM or `tandem stop`. Whatever happens, nothing that was started outlives this.

    Args:
        fleet: filled and kept current here; the caller may watch it.
        on_ready: awaited once all engines are ready.
        again: makes the plan anew from the same sources, for `tandem reload`; called in a thread.

    Raises:
        SetupError: the run folder or the port is taken, or an engine or the router did not start.
    """
    with (
        plan.run_dir.claim(spec.engine.name for spec in plan.specs),
        listen(plan.router.host, plan.router.port) as listener,
        Ports() as ports,
    ):
        if killed := await asyncio.to_thread(sweep, plan.run_dir):
            _log.warning(
                "cleared %d processes that an earlier service on %s left behind", len(killed), plan.run_dir.path
            )
        supervisor = Supervisor(plan.specs, fleet)
        desk = Desk(plan, fleet, supervisor, ports, again)
        stop = desk.stopping
        ports.reserve(plan.specs)
        with _signals(stop.set, supervisor.kill):
            async with (
                notify.telling(Notifier.find(os.environ), fleet),
                control.serve(plan.run_dir, fleet, desk),
                supervisor,
                routers.keep(plan, listener, desk.router_changed) as router_ended,
            ):
                steps: tuple[Callable[[], Awaitable[object]], ...] = (
                    lambda: _head_start(desk.router_here),
                    supervisor.start,
                    on_ready,
                    lambda: asyncio.to_thread(remove_replaced, plan.engine_python),
                )
                for step in steps:
                    if not stop.is_set():
                        await _first(step(), stop.wait(), asyncio.shield(router_ended))
                await _first(stop.wait(), supervisor.broken(), asyncio.shield(router_ended))
                fleet.drain()


async def _head_start(router_here: asyncio.Event) -> None:
    """Let the router load before engines do: beside them it would take many times as long, and callers wait for it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_HEAD_START):
            await router_here.wait()


async def _first(*waits: Awaitable[object]) -> None:
    """Wait for whichever comes first, raise what it raised, and give up the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in tasks:
            task.cancel()


@contextmanager
def _signals(first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """The first of these signals asks for an orderly end, the next one for an immediate one."""
    loop = asyncio.get_running_loop()
    seen = False

    def heard() -> None:
        nonlocal seen
        (second if seen else first)()
        seen = True

    for number in _SIGNALS:
        loop.add_signal_handler(number, heard)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
