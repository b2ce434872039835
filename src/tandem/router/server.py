"""The router as a process: uvicorn around the application, fed by a supervisor or by probing."""

import asyncio
import gc
import os
import re
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
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_EXPOSED = (
    *("x-request-id", "openai-processing-ms", "server-timing", "retry-after", "retry-after-ms", "x-should-retry"),
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)
_GARBAGE = 50_000  # objects, beyond those that went, after which cycles among the new ones are looked for
_ACCEPTED = 32  # new connections in one turn of the loop
_UNREAD = 60.0  # seconds in which a caller must have read something of what waits for it


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with what it lacks: bounds on the size of a request's head and on the time that a request may take to
    come, an end for callers who do not read, and news of a caller who goes away for whoever works for it.

    What is no HTTP at all is refused in the form of all other errors.
    """

    def __init__(self, *args: Any, patience: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience = patience
        self._head_size: int | None = None  # None: no head is being read
        self._incoming = False  # whether a request is being read
        self._silent_bytes = 0  # that came of a request and were no part of its body
        self._timer: asyncio.TimerHandle | None = None  # runs while something is due
        self._unread: asyncio.TimerHandle | None = None  # runs while too much waits to be read by the caller
        self._callers: list[Caller] = []  # of the requests that are not answered yet: more than one, if pipelined

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._patience, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)
        for caller in self._callers:
            caller.leave()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._incoming = True
        self._head_size = 0
        self._silent_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_size is not None:  # else it is a trailer: of no use, and no header
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._head_size = None
        if self.cycle is None or self.cycle.response_complete:
            self._callers.clear()
        caller = Caller(self.transport)
        self._callers.append(caller)
        self.scope["tandem.caller"] = caller  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._incoming = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if not self._incoming and _UPGRADE.search(data):
            # What asks for HTTP/2 (Java's client does) is to be answered in HTTP/1.1; the parser would drop its body.
            data = _UPGRADE.sub(b"\r\nx-upgrade:", data, count=1)
        self._silent_bytes += len(data)
        super().data_received(data)
        if self._head_size is not None:
            self._head_size += len(data)
            if self._head_size > _MOST_HEADERS:
                self._refuse(ApiError(431, f"The request's headers are larger than {_MOST_HEADERS} bytes."))
                return
        elif self._incoming and self._silent_bytes > _MOST_HEADERS + len(data):
            self.transport.abort()  # endless trailers, of whatever was refused by now
            return
        if not self._incoming:  # most requests come in one piece, and need no timer
            self._rest()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._patience, self._too_slow)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # of an answer from long ago
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _watch(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(_UNREAD, self._look, left)

    def _look(self, before: int) -> None:
        """Give up a caller who has read nothing since there were ``before`` bytes to read; nothing was added since."""
        if self.transport.get_write_buffer_size() < before:
            self._watch()
        else:
            self.transport.abort()

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


def tune_collector() -> None:
    """For a process that does nothing but serve: what it has loaded stays, and need not be looked through for garbage
    again and again, which takes a tenth of a busy router's time. Requests leave few cycles, which can wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)


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
    tune_collector()
    await server(router, settings).serve([listener])
