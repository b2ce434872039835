"""What every request passes, in one place: guards, deadlines, telemetry, and the way to its route.

The three hot routes are answered here, before FastAPI's middleware; all others are FastAPI's.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from math import inf
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers as StarletteHeaders
from starlette.middleware.cors import CORSMiddleware

from tandem.errors import ApiError
from tandem.fleet import Fleet, Snapshot
from tandem.router import answers, health, line, routes
from tandem.router.admission import draining
from tandem.router.answers import Form
from tandem.router.context import Contexts
from tandem.router.dispatch import Dispatch
from tandem.router.embed import Embeddings
from tandem.router.exchange import Exchange, Receive, Scope, Send, clock
from tandem.router.keys import Keys
from tandem.router.outbox import Outbox
from tandem.router.relay import CHAT, COMPLETIONS, Relay
from tandem.router.upstream import Upstreams
from tandem.settings import ApiSettings, RouterSettings
from tandem.telemetry.events import RequestEnded, Sink
from tandem.telemetry.metrics import Metrics
from tandem.telemetry.tracing import Tracing

Handler = Callable[[Exchange], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("tandem.router")
_CLIENT_LEFT = 499  # nginx's status for a caller that went away; never sent
_LOOK = 0.05  # seconds between two looks at who has waited for too long
_EXPOSED = (
    *("x-request-id", "openai-processing-ms", "server-timing", "retry-after", "retry-after-ms", "x-should-retry"),
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_PLAIN = {
    "/",
    "/livez",
    "/readyz",
    "/health",
    "/v1/health",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/v1/models",
}


class Router:
    """All routes. The hot ones are answered by :meth:`serve`, the others by :attr:`application`.

    Args:
        background: runs as long as the router serves.
        sinks: are told of each request, beside metrics and traces.
        tracing: makes each request part of a trace; None where nobody keeps them.

    Attributes:
        application: the ASGI application of all routes but the hot ones.
        hot: their paths, by the bytes of them.
        cors: what answers browsers' questions and marks answers for them; None where no other page may call.
        timeout: seconds in which a request must be answered.
        outbox: through which hot requests are answered.
        work: tells what every engine has to do.

    Raises:
        SettingsError: the key file is not usable.
    """

    def __init__(
        self,
        fleet: Fleet,
        upstreams: Upstreams,
        settings: RouterSettings,
        api: ApiSettings | None = None,
        *,
        background: Callable[[], Coroutine[Any, Any, None]] | None = None,
        sinks: Sequence[Sink] = (),
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._keys = Keys(settings)
        self._metrics = Metrics()
        self._tracing = tracing
        self._sinks: tuple[Sink, ...] = (self._metrics, *sinks, *([tracing] if tracing else []))
        self._running: set[Exchange] = set()
        self._watching: asyncio.TimerHandle | None = None
        self._due = inf  # before that, nobody's deadline has passed
        self._draining = False
        form = Form(strict=(api or ApiSettings()).strict)
        dispatch, contexts = Dispatch(fleet, upstreams, settings), Contexts(upstreams)
        self._handlers: dict[str, Handler] = {
            line.PATH: Embeddings(dispatch, upstreams, settings, form),
            COMPLETIONS.path: Relay(COMPLETIONS, dispatch, contexts, settings, form),
            CHAT.path: Relay(CHAT, dispatch, contexts, settings, form),
        }
        self.work = dispatch.admission.work
        tasks = [dispatch.follow, *([background] if background else [])]
        lifespan = routes.lifespan(upstreams, self._sinks, tasks)
        self._rest = routes.application(fleet, upstreams, dispatch, self._metrics, lifespan)
        self.timeout = settings.timeout
        self.outbox = Outbox()
        self.hot = {path.encode(): path for path in self._handlers}
        self.cors = _cors(self._others, settings.cors_origins) if settings.cors_origins else None
        self.application: Application = self.cors or self._others

    async def serve(self, exchange: Exchange) -> None:
        """One request for a hot route. It always ends in an answer: the handler's, or an error in OpenAI's form."""
        self._began(exchange)
        self._running.add(exchange)
        if self._watching is None:
            self._watching = asyncio.get_running_loop().call_later(_LOOK, self._watch)
        end = exchange.end
        assert end is not None  # noqa: S101 - it is a hot request
        refusal: ApiError | None = None
        try:
            await self._handle(exchange)
        except ApiError as exc:
            refusal = exc
        except asyncio.CancelledError:
            if not end.gone and not exchange.expired:
                raise
            refusal = draining() if self._draining else answers.timed_out(exchange.deadline - exchange.started)
        except TimeoutError:
            refusal = answers.timed_out(exchange.deadline - exchange.started)
        except Exception:
            _log.exception("%s %s %s failed", exchange.id, exchange.method, exchange.path)
            refusal = answers.our_fault()
        finally:
            self._running.discard(exchange)
            end.task = None  # else the two would wait for the collector
            if refusal is not None and not end.gone:
                exchange.error = refusal.code or refusal.type
                exchange.fail(refusal.status, answers.body(refusal), answers.event(refusal), refusal.headers)
            refusal = None  # what was raised knows this frame: kept, it would wait for the collector, too
            self._ended(exchange, left=end.gone and not exchange.complete)

    async def _handle(self, exchange: Exchange) -> None:
        """The guards, in order, and the route."""
        if self.cors is not None:
            await self._mark_for_browsers(exchange)
        self._keys.admit(exchange)
        if exchange.method != "POST":
            raise routes.wrong_method(exchange.method, exchange.path, "POST")
        self._from_a_page(exchange)
        exchange.hurry()
        self._due = min(self._due, exchange.deadline)
        self._keys.charge(exchange)
        await self._handlers[exchange.path](exchange)

    async def _others(self, scope: Scope, receive: Receive, send: Send) -> None:
        """All routes but the hot ones, with the same guard before them and the same telemetry behind."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        exchange = Exchange(scope["method"], scope["path"], scope["headers"], self.timeout)
        self._began(exchange)
        respond = exchange.relayed(send)
        scope["state"] = {"exchange": exchange, "router": self}
        try:
            self._keys.admit(exchange)
            await self._rest(scope, receive, respond)
        except ApiError as exc:
            exchange.error = exc.code or exc.type
            await routes.as_json(exc.body(), exc.status, exc.headers)(scope, receive, respond)
        except Exception:  # it has been answered, as all of those
            _log.exception("%s %s %s failed", exchange.id, exchange.method, exchange.path)
        finally:
            self._ended(exchange, left=not exchange.complete)

    def drain(self) -> None:
        """Not ready from now on; what is in flight when the drain time-out ends is answered with an error."""
        self._draining = True
        asyncio.get_running_loop().call_later(self._settings.drain_timeout, self._cut_off)

    def _cut_off(self) -> None:
        for exchange in self._running:
            self._expire(exchange)

    def _watch(self) -> None:
        """See that nobody waits beyond the deadline: one timer for all is cheaper than one for each request."""
        self._watching = None
        if (now := clock()) >= self._due:
            for exchange in self._running:
                if exchange.deadline <= now:
                    self._expire(exchange)
            self._due = min([exchange.deadline for exchange in self._running if not exchange.expired], default=inf)
        if self._running:
            self._watching = asyncio.get_running_loop().call_later(_LOOK, self._watch)

    @staticmethod
    def _expire(exchange: Exchange) -> None:
        if not exchange.expired and exchange.end is not None and exchange.end.task is not None:
            exchange.expired = True
            exchange.end.task.cancel()

    def _began(self, exchange: Exchange) -> None:
        if self._tracing is not None:
            exchange.trace = self._tracing.begin(exchange.header(b"traceparent"), exchange.header(b"tracestate"))
        for sink in self._sinks:
            sink.request_began()

    def _ended(self, exchange: Exchange, *, left: bool) -> None:
        self._keys.settle(exchange)
        path = exchange.path
        event = _record(exchange, path if path in self._handlers or path in _PLAIN else "other", left=left)
        for sink in self._sinks:
            sink.request_ended(event)

    async def _mark_for_browsers(self, exchange: Exchange) -> None:
        """Put the headers on the answer by which a browser lets a page see it."""
        origin = exchange.header(b"origin")
        if origin and self.cors is not None:
            started: dict[str, Any] = {"type": "http.response.start", "headers": []}
            await self.cors.send(started, _nowhere, StarletteHeaders({"origin": origin}))
            exchange.more_headers |= {name.decode(): value.decode("latin-1") for name, value in started["headers"]}

    def _from_a_page(self, exchange: Exchange) -> None:
        """Without keys, whoever can make a browser on this machine open a page could call: refuse foreign pages.

        Raises:
            ApiError: 403, the request is of a page that is not among ``cors_origins``.
        """
        origin = exchange.header(b"origin")
        allowed = self._settings.cors_origins
        if not origin or self._settings.keys or self._settings.insecure or origin in allowed or "*" in allowed:
            return
        if urlsplit(origin).hostname not in _LOCAL:
            raise ApiError(
                403,
                f"Pages of {origin:.200} may not call this service. Whoever runs it can allow that: with keys, or with "
                "'cors_origins'.",
            )

    def ready(self, snapshot: Snapshot) -> bool:
        """Whether it makes sense to send requests here."""
        return not self._draining and health.ready(snapshot)

    def told(self, exchange: Exchange) -> bool:
        """Whether the caller may know why an engine is not well."""
        return self._keys.told(exchange)


def _cors(application: Application, origins: Sequence[str]) -> CORSMiddleware:
    return CORSMiddleware(
        application,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
    )


async def _nowhere(_: object) -> None:
    """Takes what is not to be sent."""


def _record(exchange: Exchange, route: str, *, left: bool) -> RequestEnded:
    now = clock()
    status = _CLIENT_LEFT if left else exchange.status
    failed = status >= 500 or exchange.broken
    outcome = "left" if left else "failed" if failed else "refused" if status >= 400 else "ok"
    first = exchange.answered - exchange.started if exchange.events else None
    between = (exchange.last_event - exchange.answered) / (exchange.events - 1) if exchange.events > 1 else None
    return RequestEnded(
        id=exchange.id,
        client_id=exchange.client_id,
        caller=exchange.caller,
        method=exchange.method,
        route=route,
        model=exchange.model,
        engine=exchange.engine,
        status=status,
        outcome=outcome,
        seconds=now - exchange.started,
        queued=exchange.queued,
        engine_seconds=(exchange.answered or now) - exchange.asked if exchange.asked else 0.0,
        first_event=first,
        between_events=between,
        prompt_tokens=exchange.prompt_tokens,
        completion_tokens=exchange.completion_tokens,
        retries=exchange.retries,
        began=exchange.began,
        inputs=exchange.inputs,
        error=exchange.error,
        prompt=exchange.prompt,
        trace=exchange.trace,
    )
