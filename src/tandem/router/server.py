"""The router as a process: uvicorn around the application, fed by a supervisor or by probing."""

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tandem.errors import ApiError
from tandem.fleet import Fleet
from tandem.router import answers
from tandem.router.app import Router
from tandem.router.exchange import Caller
from tandem.router.health import Prober
from tandem.router.upstream import Upstreams
from tandem.settings import ApiSettings, RouterSettings
from tandem.telemetry import tracing
from tandem.telemetry.events import Sink

_MOST_HEADERS = 64 * 1024
_EXPOSED = ("x-request-id", "openai-processing-ms", "retry-after", "server-timing")


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with what it lacks: bounds on the size of a request's head and on the time that a request may take to
    come, and news of a caller who goes away for whoever works for it.

    What is no HTTP at all is refused in the form of all other errors.
    """

    def __init__(self, *args: Any, patience: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience = patience
        self._head_size: int | None = None  # None: no head is being read
        self._incoming = False  # whether a request is being read
        self._timer: asyncio.TimerHandle | None = None  # runs while something is due
        self._callers: list[Caller] = []  # of the requests that are not answered yet: more than one, if pipelined

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._patience, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)
        for caller in self._callers:
            caller.leave()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._incoming = True
        self._head_size = 0

    def on_headers_complete(self) -> None:
        self._head_size = None
        if self.cycle is None or self.cycle.response_complete:
            self._callers.clear()
        caller = Caller()
        self._callers.append(caller)
        self.scope["tandem.caller"] = caller  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._incoming = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_size is not None:
            self._head_size += len(data)
            if self._head_size > _MOST_HEADERS:
                self._refuse(ApiError(431, f"The request's headers are larger than {_MOST_HEADERS} bytes."))
                return
        if not self._incoming:  # most requests come in one piece, and need no timer
            self._rest()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._patience, self._too_slow)

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg))

    def _too_slow(self) -> None:
        self._timer = None
        if self._head_size is not None:
            self._refuse(ApiError(408, "The request's headers did not arrive in time.", code="request_timeout"))
        elif self._incoming and self._callers:
            self._callers[-1].dawdle()
        else:  # nothing was ever sent
            self.transport.close()

    def _refuse(self, refusal: ApiError) -> None:
        self._rest()
        self._head_size = None
        if not self.transport.is_closing():
            body = answers.body(refusal)
            head = (
                f"HTTP/1.1 {refusal.status} Refused\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """uvicorn's; when it is told to end, requests in flight get their time, and those left over an answer."""

    def __init__(self, config: uvicorn.Config, router: Router) -> None:
        super().__init__(config)
        self._router = router

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._router.drain()
        await super().shutdown(sockets)


def server(router: Router, settings: RouterSettings) -> Server:
    """uvicorn, set up for ``router``."""
    app: Any = router
    if settings.cors_origins:
        app = CORSMiddleware(
            router,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    protocol: Any = partial(_Protocol, patience=settings.body_timeout)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
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
    sinks: Sequence[Sink] = (),
) -> None:
    """Front engines that run elsewhere, by name, until SIGINT or SIGTERM; ``sinks`` are told of each request."""
    # uvicorn raises the signal that ended it once more when it is done; by then it has been heeded.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    fleet, upstreams = Fleet(), Upstreams(connect_timeout=settings.connect_timeout)
    prober = Prober(addresses, fleet, upstreams)
    traces = tracing.from_environment(os.environ)
    router = Router(fleet, upstreams, settings, api, background=prober.run, sinks=sinks, tracing=traces)
    await server(router, settings).serve([listener])
