"""The router as a process: uvicorn around the application, fed by a supervisor or by probing."""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import uvicorn

from tandem.fleet import Fleet
from tandem.router.app import Router
from tandem.router.health import Prober
from tandem.router.listener import open_files
from tandem.router.protocol import Protocol
from tandem.router.upstream import Upstreams
from tandem.settings import ApiSettings, RouterSettings
from tandem.telemetry import tracing
from tandem.telemetry.events import Sink

_GARBAGE = 50_000  # objects, beyond those that went, after which cycles among the new ones are looked for
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 32 * 2**20  # bytes of memory that is not in use and kept all the same
_ACCEPTED = 32  # new connections in one turn of the loop


class Server(uvicorn.Server):
    """uvicorn's; when it is told to end, requests in flight get their time, and those left over an answer."""

    def __init__(self, config: uvicorn.Config, router: Router) -> None:
        super().__init__(config)
        self._router = router

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on ``sockets`` until the end.

        libuv takes one new connection from a listening socket in each turn of its loop (since 1.45), and a turn is long
        when many requests are in flight: most of a thousand callers who came at once were let in after seconds. The
        same socket, several times over, lets in as many a turn.
        """
        sockets = sockets or []
        await super().serve([*sockets, *(each.dup() for each in sockets for _ in range(_ACCEPTED - 1))])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._router.drain()
        await super().shutdown(sockets)


def server(router: Router, settings: RouterSettings) -> Server:
    """uvicorn, set up for ``router``."""
    protocol: Any = partial(Protocol, router=router, patience=settings.body_timeout, most=settings.max_body_bytes)
    config = uvicorn.Config(
        router.application,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        # By then the router has answered all; this is for those who do not read.
        timeout_graceful_shutdown=int(settings.drain_timeout) + 3,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    return Server(config, router)


def tune() -> None:
    """For a process that does nothing but serve, as many callers at once as the system allows.

    What it has loaded stays, and need not be looked through for garbage again and again, which takes a tenth of a busy
    router's time; requests leave few cycles, which can wait. And memory of the size of an answer is kept for the next
    one: given back to the system each time, it costs as much as writing the answer (``benchmarks/rendering.py``).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    open_files()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # glibc has it
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _KEPT // 4)


def event_loop() -> asyncio.AbstractEventLoop:
    """A new loop, uvloop's where that runs."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def front(
    addresses: Mapping[str, str],
    settings: RouterSettings,
    api: ApiSettings,
    listener: socket.socket,
    tokenizers: Mapping[str, str],
    sinks: Sequence[Sink] = (),
) -> None:
    """Front engines that run elsewhere, by name, until SIGINT or SIGTERM.

    Args:
        tokenizers: by engine's name, the folder that holds its tokenizer.
        sinks: are told of each request.
    """
    # uvicorn raises the signal that ended it once more when it is done; by then it has been heeded.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    fleet, upstreams = Fleet(), Upstreams(connect_timeout=settings.connect_timeout)
    prober = Prober(addresses, fleet, upstreams, tokenizers)
    traces = tracing.from_environment(os.environ)
    router = Router(fleet, upstreams, settings, api, background=prober.run, sinks=sinks, tracing=traces)
    tune()
    await server(router, settings).serve([listener])
