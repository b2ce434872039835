"""Every route and guard of the router, in one place.

The three hot routes are answered here, before FastAPI's middleware; all others, and the API's documentation for all of
them, are FastAPI's.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.exceptions import HTTPException

from tandem import __version__
from tandem.errors import ApiError
from tandem.fleet import Fleet
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
from tandem.router import answers, checks, embed, health
from tandem.router.embed import Embeddings
from tandem.router.exchange import Disconnected, Exchange, Receive, Scope, Send
from tandem.router.relay import CHAT, COMPLETIONS, Relay
from tandem.router.upstream import UpstreamError, Upstreams
from tandem.settings import RouterSettings
from tandem.telemetry.metrics import Metrics

Handler = Callable[[Exchange], Awaitable[None]]

_log = logging.getLogger("tandem.router")
_CLIENT_LEFT = 499  # nginx's status for a caller that went away; never sent
_SCRAPE_TIMEOUT = 2.0
_LAST_WORDS = 5.0
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
    """The ASGI application. ``background`` runs as long as it serves."""

    def __init__(
        self,
        fleet: Fleet,
        upstreams: Upstreams,
        settings: RouterSettings,
        background: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = Metrics()
        self._hot: dict[str, Handler] = {
            embed.PATH: Embeddings(fleet, upstreams, settings),
            COMPLETIONS.path: Relay(COMPLETIONS, fleet, upstreams, settings),
            CHAT.path: Relay(CHAT, fleet, upstreams, settings),
        }
        self._rest = _api(fleet, upstreams, self._metrics, _lifespan(upstreams, background))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        self._metrics.began()
        status = _CLIENT_LEFT
        try:
            await self._answer(exchange, scope, receive)
            status = exchange.status
        except Disconnected:
            pass
        finally:
            self._done(exchange, status)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive) -> None:
        """Every request ends in an answer: the handler's, or an error in OpenAI's form."""
        refusal: ApiError
        try:
            async with asyncio.timeout(self._settings.timeout):
                if handler := self._hot.get(exchange.path):
                    if exchange.method != "POST":
                        raise _wrong_method(exchange.method, exchange.path, "POST")
                    await handler(exchange)
                else:
                    await self._rest(scope, receive, exchange.relay)
                return
        except ApiError as exc:
            refusal = exc
        except TimeoutError:
            refusal = answers.timed_out(self._settings.timeout)
        except Disconnected:
            raise
        except Exception:
            _log.exception("%s %s %s failed", exchange.id, exchange.method, exchange.path)
            refusal = answers.our_fault()
        with suppress(TimeoutError):  # a caller who has stopped reading is not waited for
            async with asyncio.timeout(_LAST_WORDS):
                await exchange.fail(refusal.status, answers.body(refusal), answers.event(refusal), refusal.headers)

    def _done(self, exchange: Exchange, status: int) -> None:
        seconds = time.monotonic() - exchange.started
        known = exchange.path in self._hot or exchange.path in _PLAIN
        route = exchange.path if known else "other"
        self._metrics.ended(route=route, model=exchange.model, status=status, seconds=seconds)
        if exchange.path in self._hot:
            _log.info(
                "%s %s %s model=%s status=%d ms=%.1f",
                *(exchange.id, exchange.method, exchange.path, exchange.model or "-", status, seconds * 1000),
            )


def _api(fleet: Fleet, upstreams: Upstreams, metrics: Metrics, lifespan: Callable[[FastAPI], Any]) -> FastAPI:
    """The routes where speed does not matter."""
    api = FastAPIOffline(
        title="Tandem",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        exception_handlers={HTTPException: _refuse, ApiError: _refuse_api, Exception: _refuse_bug},
    )

    @api.get("/", summary="What this is", tags=["service"])
    async def root() -> dict[str, str]:
        return {"name": "tandem", "version": __version__, "docs": "/docs"}

    @api.get("/livez", summary="Whether the router runs", tags=["service"])
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz", summary="Whether to send requests here", tags=["service"])
    async def readyz() -> Response:
        ready = health.ready(fleet.now)
        return _json({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @api.get("/health", summary="The state of the router and of every engine", tags=["service"])
    @api.get("/v1/health", include_in_schema=False)
    async def all_health() -> Response:
        status, body = health.health(fleet.now)
        return _json(body, status)

    @api.get("/metrics", summary="Prometheus metrics: the router's and each engine's", tags=["service"])
    async def all_metrics() -> Response:
        snapshot = fleet.now
        engines = [engine for engine in snapshot.engines if engine.ready]
        texts = await asyncio.gather(*(_scrape(upstreams, engine.url) for engine in engines))
        scraped = {engine.name: text for engine, text in zip(engines, texts, strict=True) if text}
        return Response(metrics.render(snapshot, scraped), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/v1/models", summary="The models that are served", tags=["OpenAI"])
    async def models() -> Response:
        listed = {e.model: Model(e.model, e.created) for e in reversed(fleet.now.engines) if e.model}
        return _json(ModelList(list(reversed(listed.values()))))

    @api.get("/v1/models/{model:path}", summary="One model", tags=["OpenAI"])
    async def model(model: str) -> Response:
        engine = fleet.now.find(model)
        if engine is None:
            raise checks.model_not_found(model, param="model")
        return _json(Model(model, engine.created))

    api.openapi = lambda: _document(api)  # type: ignore[method-assign]
    return api


def _lifespan(upstreams: Upstreams, background: Callable[[], Awaitable[None]] | None) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.ensure_future(background()) if background else None
        try:
            yield
        finally:
            if running:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
            upstreams.close()

    return lifespan


async def _scrape(upstreams: Upstreams, url: str) -> str:
    """An engine's own metrics; empty if it does not give them in time."""
    try:
        async with asyncio.timeout(_SCRAPE_TIMEOUT):
            answer = await upstreams.to(url).request("GET", "/metrics")
            try:
                return (await answer.read()).decode() if answer.status == 200 else ""
            finally:
                answer.close()
    except (TimeoutError, UpstreamError):
        return ""


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
        (embed.PATH, EmbeddingRequest, embedding, False),
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
                "responses": {
                    "200": {"description": "The answer", "content": content},
                    "default": _described("An error", error),
                },
            }
        }
    for path, schema in (
        ("/v1/models", all_models),
        ("/v1/models/{model}", one_model),
        ("/health", state),
    ):
        document["paths"][path]["get"]["responses"]["200"] = _described("The answer", schema)
    api.openapi_schema = document
    return document


def _described(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
