"""The router's routes, over a real socket."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest
import pytest_asyncio

from tandem.fleet import Fleet, State

from .conftest import CHUNK, COMPLETION, USAGE, ScriptedEngine, answer, fronting, reset, stream, two_engines

# One router for the whole file: starting and stopping one takes longer than most of these tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")
shared = pytest_asyncio.fixture(scope="module", loop_scope="module")

EMBEDDINGS = {
    "id": "embd-1",
    "model": "org/emb",
    "data": [{"index": 0, "embedding": [1.0]}],
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
}
MESSAGE = {"role": "assistant", "content": "x"}
CHAT = {"id": "c", "created": 1, "model": "org/gen", "choices": [{"index": 0, "message": MESSAGE}], "usage": USAGE}
REFUSAL = {"error": {"message": "Token id 9 is out of vocabulary", "code": 400}}
ASK = {"model": "generation", "prompt": "a"}


@shared
async def engine() -> AsyncIterator[ScriptedEngine]:
    scripted = ScriptedEngine()
    listening = await scripted.serve()
    yield scripted
    listening.close()


@shared
async def fleet(engine: ScriptedEngine) -> Fleet:
    return Fleet(two_engines(engine.url))


@shared
async def client(fleet: Fleet) -> AsyncIterator[httpx2.AsyncClient]:
    async with fronting(fleet) as made:
        yield made


@pytest.fixture(autouse=True)
def _as_new(engine: ScriptedEngine, fleet: Fleet) -> None:
    """The engines are started again, so that what the router holds against them counts no more."""
    engine.forget()
    fleet.replace(two_engines(engine.url, started=time.time()))


def error(got: httpx2.Response) -> dict[str, Any]:
    """The error object, which must have OpenAI's form."""
    found = got.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert got.headers["x-request-id"].startswith("req_")
    return dict(found)


def events(text: str) -> list[Any]:
    lines = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.mark.parametrize("name", ["org/emb", "embedding", "embedding-alias"])
async def test_embeddings(name: str, client: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    """By any of its names; the engine is asked for its own, and the answer says the caller's."""
    engine.scripts["/v1/embeddings"] = answer(EMBEDDINGS)
    got = await client.post("/v1/embeddings", json={"model": name, "input": "a"})
    assert got.status_code == 200
    assert (got.json()["model"], got.json()["data"][0]["embedding"]) == (name, [1.0])
    assert engine.asked[0][2] == {"model": "org/emb", "input": "a"}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/completions", ASK, COMPLETION),
        ("/v1/chat/completions", {"model": "org/gen", "messages": [{"role": "user", "content": "a"}]}, CHAT),
    ],
)
async def test_generation(
    path: str, body: dict[str, object], said: object, client: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.scripts[path] = answer(said)
    got = await client.post(path, json=body)
    assert got.status_code == 200
    assert got.json()["model"] == body["model"]
    assert got.json()["usage"] == USAGE


async def test_no_header_of_the_caller_s_reaches_an_engine(client: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    """vLLM acts on some of them, and X-Request-Id would become the completion's id."""
    engine.scripts["/v1/completions"] = answer(COMPLETION)
    sent = {"X-Request-Id": "mine", "X-data-parallel-rank": "1", "Authorization": "Bearer k", "X-Vllm-Priority": "1"}
    got = await client.post("/v1/completions", json=ASK, headers=sent)
    assert set(engine.asked[0][1]) == {"host", "content-type", "content-length"}
    assert got.headers["x-request-id"] != "mine"


async def test_logs_show_what_was_asked_only_where_that_is_set(
    engine: ScriptedEngine, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.scripts["/v1/completions"] = answer(COMPLETION)
    asked = {**ASK, "prompt": "a secret of mine"}
    async with fronting(fleet) as discreet:
        got = await discreet.post("/v1/completions", json=asked)
    said = capsys.readouterr().err
    assert got.headers["x-request-id"] in said
    assert "a secret of mine" not in said
    async with fronting(fleet, log_prompts=True) as telling:
        await telling.post("/v1/completions", json=asked)
    assert "a secret of mine" in capsys.readouterr().err


async def test_streaming(client: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    """Each chunk in the specification's keys, one [DONE], last."""
    engine.scripts["/v1/completions"] = stream({**CHUNK, "metrics": 1}, CHUNK, "[DONE]")
    for _ in range(2):
        got = await client.post("/v1/completions", json={**ASK, "stream": True})
        assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
        *chunks, done = events(got.text)
        assert done == "[DONE]"
        assert [set(chunk) for chunk in chunks] == [{"id", "object", "created", "model", "choices"}] * 2
    assert len(engine.asked) == 2


async def test_a_stream_that_the_engine_refuses_is_a_plain_400(
    client: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    """vLLM says 200 first, and then sends the refusal as its first event."""
    engine.scripts["/v1/completions"] = stream(REFUSAL, "[DONE]")
    got = await client.post("/v1/completions", json={**ASK, "stream": True})
    assert got.status_code == 400
    assert error(got)["message"] == "Invalid 'prompt': the token id 9 is not in the model's vocabulary."


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (stream(CHUNK, close=True), 502),
        (stream(CHUNK), 502),
        (stream(CHUNK, {"error": {"message": "dead", "code": 500}}, "[DONE]"), 502),
    ],
    ids=["reset", "ended", "error"],
)
async def test_a_stream_that_dies_says_so(
    script: Any, status: int, client: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    """An error event, and neither [DONE] nor an invented finish reason."""
    engine.scripts["/v1/completions"] = script
    chunk, last = events((await client.post("/v1/completions", json={**ASK, "stream": True})).text)
    assert chunk["choices"][0]["finish_reason"] is None
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (answer(REFUSAL, 400), 400),
        (answer({"error": {"message": "dead"}}, 500), 502),
        (answer({}), 502),
        (answer(None, raw=b"<html>"), 502),
        (reset(), 503),
        (stream(close=True), 502),
    ],
    ids=["refused", "500", "empty", "html", "reset", "half"],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_an_engine_s_failures_come_back_in_openai_s_form(
    script: Any, status: int, streaming: bool, client: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.scripts["/v1/completions"] = script
    got = await client.post("/v1/completions", json={**ASK, "stream": streaming})
    assert got.status_code == status
    assert error(got)["type"] == {400: "invalid_request_error", 503: "service_unavailable_error"}.get(
        status, "server_error"
    )


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_caller_who_leaves_ends_the_engine_s_work(
    streaming: bool, client: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    """At once, streaming or not."""
    engine.scripts["/v1/completions"] = (
        stream(*([CHUNK] * 1000), pause=0.02) if streaming else (lambda _: asyncio.sleep(60))
    )
    async with httpx2.AsyncClient(base_url=client.base_url, trust_env=False) as leaving:
        asking = asyncio.create_task(leaving.post("/v1/completions", json={**ASK, "stream": streaming}))
        await engine.until_asked()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await asyncio.wait_for(engine.left.wait(), 10)


async def test_a_request_that_takes_too_long_is_a_504(engine: ScriptedEngine, fleet: Fleet) -> None:
    """And the engine's work on it ends."""
    engine.scripts["/v1/embeddings"] = lambda _: asyncio.sleep(60)
    async with fronting(fleet, timeout=0.5) as client:
        got = await client.post("/v1/embeddings", json={"model": "embedding", "input": "a"})
        assert got.status_code == 504
        assert error(got)["code"] == "timeout"
        await asyncio.wait_for(engine.left.wait(), 10)


async def test_a_stream_that_takes_too_long_ends_with_an_error(engine: ScriptedEngine, fleet: Fleet) -> None:
    engine.scripts["/v1/completions"] = stream(*([CHUNK] * 1000), pause=0.05)
    async with fronting(fleet, timeout=0.8) as client:
        *chunks, last = events((await client.post("/v1/completions", json={**ASK, "stream": True})).text)
        assert chunks
        assert last["error"]["code"] == "timeout"


async def test_an_engine_that_is_down_is_a_503_and_the_other_still_serves(
    client: httpx2.AsyncClient, engine: ScriptedEngine, fleet: Fleet
) -> None:
    engine.scripts["/v1/embeddings"] = answer(EMBEDDINGS)
    down = msgspec.structs.replace(fleet.now.engines[1], state=State.RESTARTING, reason="it was killed")
    fleet.put(down)
    got = await client.post("/v1/completions", json=ASK)
    assert (got.status_code, got.headers["retry-after"]) == (503, "5")
    assert error(got)["code"] == "model_not_ready"
    assert (await client.post("/v1/embeddings", json={"model": "embedding", "input": "a"})).status_code == 200
    for path in ("/health", "/v1/health"):
        health = await client.get(path)
        assert health.status_code == 503
        assert health.json()["status"] == "unhealthy"
        services = health.json()["services"]
        assert {name: service["status"] for name, service in services.items()} == {
            "router": "healthy",
            "embedding": "healthy",
            "generation": "restarting",
        }
        assert services["generation"]["reason"] == "it was killed"
    assert (await client.get("/readyz")).status_code == 200
    fleet.drain()
    assert (await client.get("/readyz")).status_code == 503


async def test_healthy(client: httpx2.AsyncClient) -> None:
    for path in ("/health", "/v1/health", "/readyz", "/livez"):
        assert (await client.get(path)).status_code == 200
    assert (await client.get("/health")).json()["status"] == "healthy"


async def test_models(client: httpx2.AsyncClient) -> None:
    """Four keys each; one by any of its names, slashes and all."""
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["org/emb", "org/gen"]
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in listed["data"])
    for path in ("org/gen", "org%2Fgen", "generation"):
        got = (await client.get(f"/v1/models/{path}")).json()
        assert (got["id"], got["object"]) == (path.replace("%2F", "/"), "model")
    got = await client.get("/v1/models/nope")
    assert (got.status_code, error(got)["code"], error(got)["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "message"),
    [
        ("GET", "/v1/nope", 404, None, "Invalid URL (GET /v1/nope)"),
        ("POST", "/completions", 404, "unknown_url", "Unknown request URL: POST /completions."),
        ("POST", "/invocations", 404, "unknown_url", "Unknown request URL"),
        ("GET", "/tokenize", 404, "unknown_url", "Unknown request URL"),
        ("GET", "/v1/completions", 405, "method_not_supported", "Not allowed to GET on /v1/completions"),
        ("DELETE", "/v1/models", 405, "method_not_supported", "Not allowed to DELETE on /v1/models"),
    ],
)
async def test_other_urls(
    method: str, path: str, status: int, code: str | None, message: str, client: httpx2.AsyncClient
) -> None:
    """No catch-all: what is not a route of the router's never reaches an engine."""
    got = await client.request(method, path)
    assert (got.status_code, error(got)["code"]) == (status, code)
    assert error(got)["message"].startswith(message)
    assert ("allow" in got.headers) == (status == 405)


async def test_bodies_are_bounded_and_typed(client: httpx2.AsyncClient) -> None:
    """413 by what the caller says and by what comes; 415; 400 for what is no JSON."""
    large = b"x" * 100_001
    got = await client.post("/v1/embeddings", content=large, headers={"content-type": "application/json"})
    assert (got.status_code, error(got)["code"]) == (413, "request_too_large")

    async def pieces() -> Any:
        for _ in range(11):
            yield b"x" * 10_000

    got = await client.post("/v1/embeddings", content=pieces(), headers={"content-type": "application/json"})
    assert got.status_code == 413
    got = await client.post("/v1/embeddings", content=b"{}", headers={"content-type": "text/plain"})
    assert (got.status_code, error(got)["type"]) == (415, "invalid_request_error")
    got = await client.post("/v1/completions", content=b'{"model": ', headers={"content-type": "application/json"})
    assert got.status_code == 400


async def test_a_bug_of_ours_is_a_500_with_an_id(
    client: httpx2.AsyncClient, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else about it."""
    monkeypatch.setattr("tandem.router.checks.engine_for", lambda *_: 1 / 0)
    got = await client.post("/v1/completions", json=ASK)
    assert got.status_code == 500
    assert error(got)["type"] == "server_error"
    assert "division" not in got.text


async def test_a_bug_outside_the_hot_routes_is_one_too(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.router.health.health", lambda *_: 1 / 0)
    got = await client.get("/health")
    assert (got.status_code, error(got)["type"]) == (500, "server_error")


async def test_metrics(client: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    """The router's own series, and the engines' with their names, in one text that Prometheus reads."""
    from prometheus_client.parser import text_string_to_metric_families

    engine.scripts |= {
        "/v1/embeddings": answer(EMBEDDINGS),
        "/metrics": answer(
            None, raw=b'# TYPE vllm:x gauge\nvllm:x{engine="0"} 3.0\n# TYPE process_x gauge\nprocess_x 1\n'
        ),
    }

    async def samples() -> dict[tuple[Any, ...], float]:
        families = text_string_to_metric_families((await client.get("/metrics")).text)
        return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}

    asked = ("tandem_requests_total", ("model", "org/emb"), ("route", "/v1/embeddings"), ("status", "200"))
    other = ("tandem_requests_total", ("model", ""), ("route", "other"), ("status", "404"))
    before = await samples()
    await client.post("/v1/embeddings", json={"model": "embedding", "input": "a"})
    await client.get("/v1/whatever-a-caller-thinks-of")
    after = await samples()
    assert [after[series] - before.get(series, 0) for series in (asked, other)] == [1, 1]
    assert after["tandem_engine_state", ("engine", "embedding"), ("state", "ready")] == 1
    assert after["vllm:x", ("engine", "embedding"), ("engine_index", "0")] == 3
    assert after["vllm:x", ("engine", "generation"), ("engine_index", "0")] == 3
    assert not any(series[0].startswith("process_") for series in after)


async def test_docs_need_no_network(client: httpx2.AsyncClient) -> None:
    """The page loads everything from the router itself, and documents the hot routes."""
    page = (await client.get("/docs")).text
    assert "https://" not in page.replace("http://www.w3.org", "")
    document = (await client.get("/openapi.json")).json()
    hot = {"/v1/embeddings", "/v1/completions", "/v1/chat/completions"}
    assert hot < set(document["paths"])
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])
    assert (await client.get("/")).json()["docs"] == "/docs"
