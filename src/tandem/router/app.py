"""Every route and guard of the router, in one place.

The three hot routes are answered here, before FastAPI's middleware; all others, and the API's documentation for all of
them, are FastAPI's.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.datastructures import Headers as StarletteHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from tandem import __version__
from tandem.errors import ApiError
from tandem.fleet import Fleet, Snapshot
from tandem.models.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from tandem.models.responses import (
    ChatCompletion,
    Completion,
    EmbeddingResponse,
    ErrorResponse,
    Health,
    Model,
    ModelList,
)
from tandem.router import answers, health, line, wording
from tandem.router.admission import draining
from tandem.router.answers import Form
from tandem.router.context import Contexts
from tandem.router.dispatch import Dispatch
from tandem.router.embed import Embeddings
from tandem.router.exchange import Exchange, Receive, Scope, Send, clock
from tandem.router.keys import Keys
from tandem.router.outbox import Outbox
from tandem.router.relay import CHAT, COMPLETIONS, Relay
from tandem.router.upstream import UpstreamError, Upstreams
from tandem.settings import ApiSettings, RouterSettings
from tandem.telemetry.events import RequestEnded, Sink
from tandem.telemetry.metrics import Metrics, merged
from tandem.telemetry.tracing import Tracing

Handler = Callable[[Exchange], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("tandem.router")
_CLIENT_LEFT = 499  # nginx's status for a caller that went away; never sent
_SCRAPE_TIMEOUT = 2.0
_LARGEST_SCRAPE = 8 * 2**20
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
        self._rest = _api(fleet, upstreams, dispatch, self._metrics, _lifespan(upstreams, self._sinks, tasks))
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
            self._ended(exchange, left=end.gone and not exchange.complete)

    async def _handle(self, exchange: Exchange) -> None:
        """The guards, in order, and the route."""
        if self.cors is not None:
            await self._mark_for_browsers(exchange)
        self._keys.admit(exchange)
        if exchange.method != "POST":
            raise _wrong_method(exchange.method, exchange.path, "POST")
        self._from_a_page(exchange)
        exchange.hurry()
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
            await _json(exc.body(), exc.status, exc.headers)(scope, receive, respond)
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
        now = clock()
        for exchange in self._running:
            if exchange.deadline <= now:
                self._expire(exchange)
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


def _api(
    fleet: Fleet,
    upstreams: Upstreams,
    dispatch: Dispatch,
    metrics: Metrics,
    lifespan: Callable[[FastAPI], Any],
) -> FastAPI:
    """The routes where speed does not matter."""
    api = FastAPIOffline(
        title="Tandem",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _refuse, ApiError: _refuse_api, Exception: _refuse_bug},
    )

    @api.get("/", summary="What this is", tags=["service"])
    async def root() -> dict[str, str]:
        return {"name": "tandem", "version": __version__, "docs": "/docs"}

    @api.get("/livez", summary="Whether the router runs", tags=["service"])
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz", summary="Whether to send requests here", tags=["service"])
    async def readyz(request: Request) -> Response:
        ready = request.state.router.ready(fleet.now)
        return _json({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @api.get("/health", summary="The state of the router and of every engine", tags=["service"])
    @api.get("/v1/health", include_in_schema=False)
    async def all_health(request: Request) -> Response:
        told = request.state.router.told(request.state.exchange)
        status, body = health.health(fleet.now, reasons=told)
        return _json(body, status)

    @api.get("/metrics", summary="Prometheus metrics: the router's and each engine's", tags=["service"])
    async def all_metrics() -> Response:
        engines = [engine for engine in fleet.now.engines if engine.ready]
        texts = await asyncio.gather(*(_scrape(upstreams, engine.url) for engine in engines))
        scraped = {engine.name: text for engine, text in zip(engines, texts, strict=True) if text}
        theirs = await asyncio.to_thread(merged, scraped)  # long texts, and requests go on meanwhile
        body = metrics.render(fleet.now, dispatch.admission.loads()) + theirs
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/v1/models", summary="The models that are served", tags=["OpenAI"])
    async def models() -> Response:
        listed = {e.model: Model(e.model, e.created) for e in reversed(fleet.now.engines) if e.model}
        return _json(ModelList(list(reversed(listed.values()))))

    @api.get("/v1/models/{model:path}", summary="One model", tags=["OpenAI"])
    async def model(model: str) -> Response:
        engine = fleet.now.find(model)
        if engine is None:
            raise wording.model_not_found(model, param="model")
        return _json(Model(model, engine.created))

    api.openapi = lambda: _document(api)  # type: ignore[method-assign]
    return api


def _lifespan(
    upstreams: Upstreams, sinks: Sequence[Sink], background: Sequence[Callable[[], Coroutine[Any, Any, None]]]
) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = [asyncio.create_task(each()) for each in background]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            for outcome in await asyncio.gather(*running, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome
            upstreams.close()
            for sink in sinks:
                await asyncio.to_thread(sink.close)

    return lifespan


async def _scrape(upstreams: Upstreams, url: str) -> bytes:
    """An engine's own metrics; empty if it does not give them in time."""
    try:
        async with asyncio.timeout(_SCRAPE_TIMEOUT):
            answer = await upstreams.to(url).request("GET", "/metrics")
            try:
                return await answer.read(_LARGEST_SCRAPE) if answer.status == 200 else b""
            finally:
                answer.close()
    except (TimeoutError, UpstreamError):
        return b""


async def _refuse(request: Request, exc: Exception) -> Response:
    """FastAPI's own refusals (no such URL, wrong method) in OpenAI's form."""
    assert isinstance(exc, HTTPException)  # noqa: S101 - it is registered for these
    path, method = request.url.path, request.method
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refusal = _wrong_method(method, path, (exc.headers or {}).get("Allow", "GET"))
    elif path.startswith("/v1/"):
        refusal = ApiError(404, f"Invalid URL ({method} {path})")
    else:
        refusal = ApiError(
            404,
            f"Unknown request URL: {method} {path}. Please check the URL for typos, or see the docs at /docs.",
            code="unknown_url",
        )
    return await _refuse_api(request, refusal)


async def _refuse_api(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, ApiError)  # noqa: S101 - it is registered for these
    return _json(exc.body(), exc.status, exc.headers)


async def _refuse_bug(request: Request, _: Exception) -> Response:
    """The exception itself goes on, and is logged where all are."""
    return await _refuse_api(request, answers.our_fault())


def _wrong_method(method: str, path: str, allowed: str) -> ApiError:
    return ApiError(
        405,
        f"Not allowed to {method} on {path} (HINT: Perhaps you meant to use a different HTTP method?)",
        code="method_not_supported",
        headers={"Allow": allowed},
    )


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def _document(api: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's routes, and the hot ones from their models."""
    if api.openapi_schema:
        return api.openapi_schema
    document = get_openapi(title=api.title, version=api.version, routes=api.routes)
    reference = "#/components/schemas/{model}"
    requests: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (EmbeddingRequest, "validation"),
        (CompletionRequest, "validation"),
        (ChatCompletionRequest, "validation"),
    ]
    _, schemas = models_json_schema([*requests], ref_template=reference)
    responses = (EmbeddingResponse, Completion, ChatCompletion, ErrorResponse, Model, ModelList, Health)
    refs, components = msgspec.json.schema_components(responses, ref_template=reference.format(model="{name}"))
    embedding, completion, chat, error, one_model, all_models, state = refs
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"] | components)
    for path, request, answer, streams in (
        (line.PATH, EmbeddingRequest, embedding, False),
        (COMPLETIONS.path, CompletionRequest, completion, True),
        (CHAT.path, ChatCompletionRequest, chat, True),
    ):
        content = {"application/json": {"schema": answer}}
        if streams:
            content["text/event-stream"] = {"schema": {"type": "string"}}
        document["paths"][path] = {
            "post": {
                "tags": ["OpenAI"],
                "summary": (request.__doc__ or path).splitlines()[0],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": reference.format(model=request.__name__)}}},
                },
                "responses": {"200": {"description": "The answer", "content": content}},
            }
        }
    for path, schema in (("/v1/models", all_models), ("/v1/models/{model}", one_model), ("/health", state)):
        document["paths"][path]["get"]["responses"]["200"] = _described("The answer", schema)
    document["paths"]["/health"]["get"]["responses"]["503"] = _described("Not every part is healthy", state)
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    document["paths"]["/readyz"]["get"]["responses"]["503"] = _described("Not ready", status)
    text = {"text/plain": {"schema": {"type": "string"}}}
    document["paths"]["/metrics"]["get"]["responses"]["200"] = {
        "description": "Prometheus' text format",
        "content": text,
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own form of error, which nobody gets
            operation["responses"].setdefault("default", _described("An error", error))
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    api.openapi_schema = document
    return document


def _described(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
