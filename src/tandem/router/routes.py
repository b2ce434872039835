"""The routes where speed does not matter, which FastAPI answers, and its refusals in OpenAI's form."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from tandem import __version__
from tandem.errors import ApiError
from tandem.fleet import Fleet
from tandem.models.responses import Model, ModelList
from tandem.router import answers, document, health, wording
from tandem.router.connection import UpstreamError
from tandem.router.dispatch import Dispatch
from tandem.router.upstream import Upstreams
from tandem.telemetry.events import Sink
from tandem.telemetry.metrics import Metrics, merged

_SCRAPE_TIMEOUT = 2.0
_LARGEST_SCRAPE = 8 * 2**20


def application(
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
        return as_json({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @api.get("/health", summary="The state of the router and of every engine", tags=["service"])
    @api.get("/v1/health", include_in_schema=False)
    async def all_health(request: Request) -> Response:
        told = request.state.router.told(request.state.exchange)
        status, body = health.health(fleet.now, reasons=told)
        return as_json(body, status)

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
        return as_json(ModelList(list(reversed(listed.values()))))

    @api.get("/v1/models/{model:path}", summary="One model", tags=["OpenAI"])
    async def model(model: str) -> Response:
        engine = fleet.now.find(model)
        if engine is None:
            raise wording.model_not_found(model, param="model")
        return as_json(Model(model, engine.created))

    api.openapi = lambda: document.document(api)  # type: ignore[method-assign]
    return api


def lifespan(
    upstreams: Upstreams, sinks: Sequence[Sink], background: Sequence[Callable[[], Coroutine[Any, Any, None]]]
) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def context(_: FastAPI) -> AsyncIterator[None]:
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

    return context


async def _scrape(upstreams: Upstreams, url: str) -> bytes:
    """An engine's own metrics; empty if it does not give them in time."""
    try:
        async with asyncio.timeout(_SCRAPE_TIMEOUT):
            answer = await upstreams.to(url).request("GET", "/metrics", most=_LARGEST_SCRAPE)
            try:
                return await answer.read() if answer.status == 200 else b""
            finally:
                answer.close()
    except (TimeoutError, UpstreamError):
        return b""


async def _refuse(request: Request, exc: Exception) -> Response:
    """FastAPI's own refusals (no such URL, wrong method) in OpenAI's form."""
    assert isinstance(exc, HTTPException)  # noqa: S101 - it is registered for these
    path, method = request.url.path, request.method
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refusal = wrong_method(method, path, (exc.headers or {}).get("Allow", "GET"))
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
    return as_json(exc.body(), exc.status, exc.headers)


async def _refuse_bug(request: Request, _: Exception) -> Response:
    """The exception itself goes on, and is logged where all are."""
    return await _refuse_api(request, answers.our_fault())


def wrong_method(method: str, path: str, allowed: str) -> ApiError:
    return ApiError(
        405,
        f"Not allowed to {method} on {path} (HINT: Perhaps you meant to use a different HTTP method?)",
        code="method_not_supported",
        headers={"Allow": allowed},
    )


def as_json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
