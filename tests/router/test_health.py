"""Engines that nobody here supervises are known by asking them."""

import asyncio

import pytest

from tandem.fleet import Engine, Fleet, State
from tandem.router import health
from tandem.router.health import Prober, look
from tandem.router.upstream import Upstream, Upstreams

from .conftest import ScriptedEngine, answer

MODELS = {"data": [{"id": "org/emb", "created": 7, "root": "/srv/x"}, {"id": "second"}]}


def known(name: str, engine: ScriptedEngine) -> Engine:
    return Engine(name=name, kind="generation", model=name, url=engine.url)


async def test_a_healthy_engine_tells_its_model(engine: ScriptedEngine) -> None:
    """Its kind is told by its name, else by its routes."""
    engine.scripts |= {
        "/health": answer({}),
        "/v1/models": answer(MODELS),
        "/openapi.json": answer({"paths": {"/v1/embeddings": {}}}),
    }
    upstream = Upstream(engine.url, connect_timeout=1)
    for name in ("embedding", "embedding-2", "vectors"):
        seen = await look(known(name, engine), upstream)
        assert (seen.state, seen.kind, seen.model, seen.aliases, seen.created) == (
            State.READY,
            "embedding",
            "org/emb",
            ("second",),
            7,
        )


@pytest.mark.parametrize(
    ("scripts", "reason"),
    [
        ({"/health": answer({}, 503)}, "its health check answers 503"),
        ({"/health": answer({}), "/v1/models": answer({"data": []})}, "it serves no model"),
        ({"/health": answer({}), "/v1/models": answer("?")}, "Expected `object`"),
        ({"/health": answer({}), "/v1/models": answer(None, raw=b'{"data": [{"id": "\xff"}]}')}, "'utf-8' codec"),
    ],
)
async def test_an_engine_that_is_not_well(scripts: dict[str, object], reason: str, engine: ScriptedEngine) -> None:
    engine.scripts |= scripts
    seen = await look(known("embedding", engine), Upstream(engine.url, connect_timeout=1))
    assert seen.state is State.STALLED
    assert reason in seen.reason


async def test_probing_follows_an_engine(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    """Up, down, and up again; one that is not there hinders no other."""
    monkeypatch.setattr(health, "_INTERVAL", 0.01)
    engine.scripts |= {"/health": answer({}), "/v1/models": answer(MODELS)}
    fleet = Fleet()
    addresses = {"embedding": engine.url, "generation": f"http://127.0.0.1:{free_port}"}
    prober = Prober(addresses, fleet, Upstreams(connect_timeout=1), {})
    running = asyncio.create_task(prober.run())

    async def until(state: State) -> None:
        async with asyncio.timeout(5):
            async for snapshot in fleet.snapshots():
                if snapshot.engines[0].state is state:
                    return

    await until(State.READY)
    engine.scripts["/health"] = answer({}, 500)
    await until(State.STALLED)
    engine.scripts["/health"] = answer({})
    await until(State.READY)
    assert fleet.now.engines[1].state is State.WAITING
    assert "no connection" in fleet.now.engines[1].reason
    running.cancel()
