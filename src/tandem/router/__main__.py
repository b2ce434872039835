"""The router beside a supervisor: `python -m tandem.router RUN_DIR LISTENER`, started by the service alone.

It loads all that it needs and then waits for a line on its standard input: so a second one, kept ready beside the one
that serves, takes over at once. The end of its input before that means that it is not needed any more.
"""

import asyncio
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from tandem import control
from tandem.fleet import Fleet, Work
from tandem.router.app import Router
from tandem.router.server import event_loop, server, tune
from tandem.router.upstream import Upstreams
from tandem.rundir import RunDir
from tandem.telemetry import logs, tracing

_REPORT = 0.25  # seconds between two words to the supervisor of what the engines have to do


async def main(run_dir: RunDir, listener: socket.socket) -> None:
    """Serve on ``listener`` what the service on ``run_dir`` tells of its engines, until SIGTERM or its end."""
    async with control.ask(run_dir, "route") as service:
        settings, api = service.hello.router_settings(), service.hello.api_settings()
        logs.configure(service.hello.log_level, service.hello.log_format)
        fleet, upstreams = Fleet(), Upstreams(connect_timeout=settings.connect_timeout)

        async def follow() -> None:
            async for snapshot in service.snapshots():
                fleet.replace(snapshot)
            # The supervisor is gone, however it went, and the engines with it.
            serving.should_exit = True

        async def report() -> None:
            told: tuple[Work, ...] = ()
            with suppress(ConnectionError):  # of which those hear who follow
                while True:
                    if (work := router.work()) != told:
                        await service.tell(told := work)
                    await asyncio.sleep(_REPORT)

        async def supervised() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(follow())
                tasks.create_task(report())

        router = Router(
            fleet,
            upstreams,
            settings,
            api,
            background=supervised,
            sinks=[logs.RequestLog(service.hello.log_level, service.hello.log_format)],
            tracing=tracing.from_environment(os.environ),
        )
        serving = server(router, settings)
        tune()
        await serving.serve([listener])


if __name__ == "__main__":
    if not sys.stdin.readline():
        sys.exit()
    with socket.socket(fileno=int(sys.argv[2])) as inherited, asyncio.Runner(loop_factory=event_loop) as loop:
        loop.run(main(RunDir(Path(sys.argv[1])), inherited))
