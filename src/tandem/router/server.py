"""The router as a process: uvicorn around the application, fed by a supervisor or by probing."""

import asyncio
import signal
import socket
from collections.abc import Mapping

import uvicorn

from tandem.fleet import Fleet
from tandem.router.app import Router
from tandem.router.health import Prober
from tandem.router.upstream import Upstreams
from tandem.settings import RouterSettings


def server(router: Router, settings: RouterSettings) -> uvicorn.Server:
    """uvicorn, set up for ``router``."""
    return uvicorn.Server(
        uvicorn.Config(
            router,
            host=settings.host,
            port=settings.port,
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, int(settings.drain_timeout)),
        )
    )


def event_loop() -> asyncio.AbstractEventLoop:
    """A new loop, uvloop's where that runs."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def front(addresses: Mapping[str, str], settings: RouterSettings, listener: socket.socket) -> None:
    """Front engines that run elsewhere, by name, until SIGINT or SIGTERM."""
    # uvicorn raises the signal that ended it once more when it is done; by then it has been heeded.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    fleet, upstreams = Fleet(), Upstreams(connect_timeout=settings.connect_timeout)
    prober = Prober(addresses, fleet, upstreams)
    await server(Router(fleet, upstreams, settings, prober.run), settings).serve([listener])
