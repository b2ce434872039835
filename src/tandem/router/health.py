"""Health: the fleet as the health routes tell it, and the probing of engines that nobody here supervises."""

import asyncio
import time
from collections.abc import Mapping

import msgspec
from msgspec import UNSET

from tandem.fleet import Engine, Fleet, Kind, Snapshot, State, now
from tandem.models.responses import Health, ServiceHealth
from tandem.router.connection import UpstreamError
from tandem.router.upstream import UNREADABLE, Upstream, Upstreams

_INTERVAL = 2.0
_PATIENCE = 10.0


def health(snapshot: Snapshot, *, reasons: bool = True) -> tuple[int, Health]:
    """Status and body: 200 when the router and every engine are healthy, else 503.

    Args:
        reasons: tell what the engines are doing and why they are not ready, and not just their states.
    """
    services = {
        "router": ServiceHealth("draining" if snapshot.draining else "healthy"),
        **{engine.name: _service(engine) if reasons else ServiceHealth(_status(engine)) for engine in snapshot.engines},
    }
    healthy = all(service.status == "healthy" for service in services.values()) and snapshot.ready
    return (200, Health("healthy", services)) if healthy else (503, Health("unhealthy", services))


def ready(snapshot: Snapshot) -> bool:
    """Whether it makes sense to send requests here: not on the way out, and at least one engine serves."""
    return not snapshot.draining and any(engine.ready for engine in snapshot.engines)


def _service(engine: Engine) -> ServiceHealth:
    if engine.ready:
        return ServiceHealth(_status(engine), model=engine.model, since=engine.since, restarts=engine.restarts)
    return ServiceHealth(
        _status(engine),
        model=engine.model,
        detail=engine.detail,
        reason=engine.reason,
        since=engine.since,
        elapsed=round(max(0.0, now() - engine.started), 1) if engine.started else UNSET,
        estimate=round(engine.estimate, 1) or UNSET,
        last_line=engine.line or UNSET,
        restarts=engine.restarts,
    )


def _status(engine: Engine) -> str:
    return "healthy" if engine.ready else engine.state.value


class Prober:
    """Keeps a fleet current by asking engines that run elsewhere.

    Args:
        addresses: by engine's name.
        tokenizers: likewise, the folders that hold their tokenizers, where there are some.
    """

    def __init__(
        self, addresses: Mapping[str, str], fleet: Fleet, upstreams: Upstreams, tokenizers: Mapping[str, str]
    ) -> None:
        self._addresses = addresses
        self._fleet = fleet
        self._upstreams = upstreams
        for name, url in addresses.items():
            fleet.put(_unknown(name, url, "it has not been asked yet", tokenizers.get(name, "")))

    async def run(self) -> None:
        """Ask every engine again and again."""
        async with asyncio.TaskGroup() as tasks:
            for name, url in self._addresses.items():
                tasks.create_task(self._probe(name, url))

    async def _probe(self, name: str, url: str) -> None:
        upstream = self._upstreams.to(url)
        while True:
            engine = next(e for e in self._fleet.now.engines if e.name == name)
            seen = await look(engine, upstream)
            if seen.state is not engine.state:
                seen = msgspec.structs.replace(seen, since=now())
            self._fleet.put(seen)
            await asyncio.sleep(_INTERVAL)


async def look(engine: Engine, upstream: Upstream) -> Engine:
    """``engine`` as it is now: ready if it is healthy and serves a model; what it serves is learned from itself."""
    try:
        async with asyncio.timeout(_PATIENCE):
            status, _ = await _get(upstream, "/health")
            if status != 200:
                return _down(engine, f"its health check answers {status}")
            status, models = await _get(upstream, "/v1/models")
            if status != 200:
                return _down(engine, f"its list of models answers {status}")
            served = msgspec.json.decode(models, type=_Models).data
            if not served:
                return _down(engine, "it serves no model")
            kind = _kind_by_name(engine.name) or await _kind_by_routes(upstream)
    except TimeoutError:
        if engine.ready:
            return engine  # busy is not down
        return _down(engine, f"it did not answer within {_PATIENCE:g} s")
    except UpstreamError as exc:
        # Gone, and perhaps somebody starts it again.
        gone = State.RESTARTING if engine.created else State.WAITING
        return _down(engine, str(exc), State.STALLED if exc.answered else gone)
    except UNREADABLE as exc:
        return _down(engine, str(exc))
    return msgspec.structs.replace(
        engine,
        kind=kind,
        model=served[0].id,
        aliases=tuple(model.id for model in served[1:]),
        created=engine.created or served[0].created or int(time.time()),
        context=served[0].max_model_len or 0,
        state=State.READY,
        detail="",
        reason="",
    )


class _ServedModel(msgspec.Struct):
    id: str
    created: int = 0
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_ServedModel]


class _OpenApi(msgspec.Struct):
    paths: dict[str, msgspec.Raw]


async def _get(upstream: Upstream, path: str) -> tuple[int, bytes]:
    answer = await upstream.request("GET", path)
    try:
        return answer.status, await answer.read()
    finally:
        answer.close()


def _kind_by_name(name: str) -> Kind | None:
    kinds: tuple[Kind, ...] = ("embedding", "generation")
    return next((kind for kind in kinds if name.startswith(kind)), None)


async def _kind_by_routes(upstream: Upstream) -> Kind:
    _, document = await _get(upstream, "/openapi.json")
    routes = msgspec.json.decode(document, type=_OpenApi).paths
    return "embedding" if "/v1/embeddings" in routes and "/v1/completions" not in routes else "generation"


def _unknown(name: str, url: str, reason: str, tokenizer: str) -> Engine:
    return Engine(
        name=name,
        kind=_kind_by_name(name) or "generation",
        model=name,
        url=url,
        state=State.WAITING,
        reason=reason,
        since=now(),
        tokenizer=tokenizer,
    )


def _down(engine: Engine, reason: str, state: State = State.STALLED) -> Engine:
    return msgspec.structs.replace(engine, state=state, reason=reason)
