"""The worst that can befall a real engine: its core killed or frozen, its server told to end, requests in flight."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tandem.engines.keeper import descendants

from ..conftest import Service, engines, name_of, router_alone

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ASK = {"model": "generation", "prompt": "a", "max_tokens": 1}
# So many at once that it takes far longer than anything here waits.
LONG = {"model": "generation", "prompt": "a", "n": 64, "max_tokens": 1000, "ignore_eos": True}
EMBED = {"model": "embedding", "input": "a"}


def api_server(demo: Service) -> int:
    return int(engines(demo)["generation"]["pid"])


def engine_core(demo: Service) -> int:
    return next(pid for pid in descendants(api_server(demo)) if "VLLM::EngineCore" in name_of(pid))


class Stream:
    """A long stream that is read in the background."""

    def __init__(self, address: str) -> None:
        self.begun = threading.Event()
        self.blocks: list[str] = []
        self._address = address

    def read(self) -> list[str]:
        """To its end: the data of each event."""
        body = {**LONG, "stream": True}
        with httpx2.stream("POST", f"{self._address}/v1/completions", json=body, trust_env=False, timeout=120) as got:
            for line in got.iter_lines():
                if line:
                    self.blocks.append(line.removeprefix("data: "))
                    self.begun.set()
        return self.blocks


@contextmanager
def busy(demo: Service) -> Iterator[tuple[Future[list[str]], Future[httpx2.Response]]]:
    """A stream that has begun and a plain completion, both in flight; what comes of them."""
    with ThreadPoolExecutor(2) as threads:
        stream = Stream(demo.address)
        streaming = threads.submit(stream.read)
        short = {**LONG, "n": 1, "max_tokens": 600}
        asking = threads.submit(httpx2.post, f"{demo.address}/v1/completions", json=short, trust_env=False, timeout=300)
        assert stream.begun.wait(60)
        yield streaming, asking


def check_broken_off(blocks: list[str]) -> None:
    """An error event, last; no [DONE], and no finish reason that nobody gave."""
    *chunks, last = [json.loads(block) for block in blocks]
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["type"] in {"server_error", "service_unavailable_error"}
    assert {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]} <= {None, "length"}


def test_a_frozen_engine_is_a_504_within_the_bound(demo: Service, tmp_path: Path) -> None:
    """SIGSTOP of EngineCore: vLLM's own health check stays well, and nothing comes any more."""
    (tmp_path / "tandem.toml").write_text("[router]\nfirst_event_timeout = 2\nevent_timeout = 2\ntimeout = 4\n")
    addresses = {name: engine["url"] for name, engine in engines(demo).items()}
    core = engine_core(demo)
    with (
        router_alone(addresses, tmp_path) as address,
        httpx2.Client(base_url=address, trust_env=False, timeout=60) as http,
        ThreadPoolExecutor(2) as threads,
    ):
        stream = Stream(address)
        streaming = threads.submit(stream.read)
        assert stream.begun.wait(60)
        os.kill(core, signal.SIGSTOP)
        try:
            asked = [(time.monotonic(), http.post("/v1/completions", json={**ASK, "stream": s})) for s in (True, False)]
            check_broken_off(streaming.result(timeout=30))
            assert http.post("/v1/embeddings", json=EMBED).status_code == 200
        finally:
            os.kill(core, signal.SIGCONT)
        for began, got in asked:
            assert (got.status_code, got.json()["error"]["code"]) == (504, "timeout")
            assert got.elapsed.total_seconds() < 15, began
        demo.until(lambda: http.post("/v1/completions", json=ASK).status_code == 200, "an answer", 60)


def test_an_engine_that_is_killed(demo: Service, http: httpx2.Client) -> None:
    """A stream that has begun ends with an error; a plain completion costs its caller nothing but time; newcomers are
    told at once when to come again; the other engine serves on; and it comes back by itself."""
    restarts = engines(demo)["generation"]["restarts"]
    with busy(demo) as (streaming, asking):
        killed = time.monotonic()
        os.kill(engine_core(demo), signal.SIGKILL)
        check_broken_off(streaming.result(timeout=30))
        assert time.monotonic() - killed < 15
        demo.until(lambda: http.get("/health").status_code == 503, "a 503", 20)
        health = http.get("/health").json()
        assert health["services"]["embedding"]["status"] == "healthy"
        assert health["services"]["generation"]["status"] != "healthy"
        assert health["services"]["generation"]["reason"]
        assert http.post("/v1/embeddings", json=EMBED).status_code == 200
        told = http.post("/v1/completions", json=ASK, headers={"X-Request-Timeout": "3"})
        assert told.status_code == 503
        assert int(told.headers["retry-after"]) >= 1
        assert http.get("/readyz").status_code == 200
        answered: httpx2.Response = asking.result(timeout=300)
    assert answered.status_code == 200, answered.text
    assert answered.json()["usage"]["completion_tokens"] == 600
    demo.until(lambda: http.get("/health").status_code == 200, "its return")
    assert http.get("/health").json()["services"]["generation"]["restarts"] == restarts + 1
    retried = 'tandem_retries_total{engine="generation"}'
    assert any(line.startswith(retried) for line in http.get("/metrics").text.splitlines())


def test_an_engine_that_is_told_to_end(demo: Service, http: httpx2.Client) -> None:
    """SIGTERM: whoever is in flight gets a whole answer or a proper error, and nobody waits in silence."""
    with busy(demo) as (streaming, asking):
        os.kill(api_server(demo), signal.SIGTERM)
        blocks = streaming.result(timeout=60)
        if blocks[-1] != "[DONE]":
            check_broken_off(blocks)
        answered: httpx2.Response = asking.result(timeout=300)
    assert answered.status_code == 200, answered.text
    demo.until(lambda: http.get("/health").status_code == 200, "its return")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {**LONG, "stream": True}),
        ("/v1/completions", LONG),
        ("/v1/embeddings", {"model": "embedding", "input": [f"{n} " + "many words " * 100 for n in range(1000)]}),
    ],
    ids=["stream", "plain", "embeddings"],
)
async def test_who_leaves_stops_the_engine(path: str, body: dict[str, Any], demo: Service, http: httpx2.Client) -> None:
    """The engine's own counter says so; of embeddings, for which it has none, the router's."""
    engine = body["model"]
    counter = "tandem_engine_in_flight" if path == "/v1/embeddings" else "vllm:num_requests_running"

    def at_work() -> float:
        lines = http.get("/metrics").text.splitlines()
        own = [line for line in lines if line.startswith(f'{counter}{{engine="{engine}"')]
        return sum(float(line.rsplit(" ", 1)[1]) for line in own)

    async with httpx2.AsyncClient(base_url=demo.address, trust_env=False, timeout=60) as leaving:
        asking = asyncio.create_task(leaving.post(path, json=body))
        await asyncio.to_thread(demo.until, lambda: at_work() > 0, "the request at work", 20)
        asking.cancel()
        await asyncio.wait({asking})
        await asyncio.to_thread(demo.until, lambda: at_work() == 0, "the end of its work", 20)
    assert asking.cancelled()
    assert http.post("/v1/embeddings", json=EMBED, timeout=10).status_code == 200
