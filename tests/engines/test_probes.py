"""What is asked of an engine's HTTP server, and what is made of its answers."""

import json
from collections.abc import Callable

import httpx2
import pytest

from tandem.engines import probes
from tandem.engines.probes import NotServing
from tandem.engines.vitals import Counters
from tandem.fleet import Engine, Kind

Answer = Callable[[httpx2.Request], httpx2.Response]


def asking(answer: Answer) -> httpx2.AsyncClient:
    """A client whose requests ``answer`` is given."""
    return httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://engine")


def engine(kind: Kind = "embedding") -> Engine:
    return Engine(name="e", kind=kind, model="m", url="http://engine")


def failing(error: type[httpx2.TransportError]) -> Answer:
    def fail(_: httpx2.Request) -> httpx2.Response:
        raise error("no more")

    return fail


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda _: httpx2.Response(200), 200),
        (lambda _: httpx2.Response(503), 503),
        (failing(httpx2.ConnectError), 0),
        (failing(httpx2.ReadTimeout), None),
    ],
)
async def test_one_that_is_too_busy_is_told_from_one_that_does_not_listen(answer: Answer, told: int | None) -> None:
    async with asking(answer) as client:
        assert await probes.health(client) == told


@pytest.mark.parametrize(
    ("kind", "path", "body"),
    [
        ("embedding", "/v1/embeddings", {"model": "m", "input": "ready?"}),
        ("generation", "/v1/completions", {"model": "m", "prompt": "ready?", "max_tokens": 1}),
    ],
)
async def test_it_has_come_up_once_it_is_healthy_and_answers(
    kind: Kind, path: str, body: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health is asked until it is good; then, and once only, what engines of its kind are there for."""
    monkeypatch.setattr(probes, "_POLL", 0)
    asked: list[tuple[str, object]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append((request.url.path, json.loads(request.content or "null")))
        return httpx2.Response(200 if len(asked) > 1 else 503)

    async with asking(answer) as client:
        await probes.come_up(client, engine(kind))
    assert asked == [("/health", None), ("/health", None), (path, body)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _: httpx2.Response(500, text="broken"), "it answered its first request with 500: broken"),
        (failing(httpx2.ReadError), r"it broke off its first request \(no more\)"),
    ],
)
async def test_one_that_fails_its_first_request_does_not_serve(answer: Answer, reason: str) -> None:
    async with asking(answer) as client:
        with pytest.raises(NotServing, match=reason):
            await probes.first_request(client, engine())


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (lambda _: httpx2.Response(200, json={"data": [{"id": "m", "max_model_len": 512}]}), 512),
        (lambda _: httpx2.Response(200, json={"data": []}), 0),
        (lambda _: httpx2.Response(200, json={"data": [{"max_model_len": None}]}), 0),
        (lambda _: httpx2.Response(404, text="nothing"), 0),
        (failing(httpx2.ConnectError), 0),
    ],
)
async def test_a_context_that_is_not_told_is_not_known(answer: Answer, tokens: int) -> None:
    async with asking(answer) as client:
        assert await probes.context(client) == tokens


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (lambda _: httpx2.Response(200, text='vllm:prompt_tokens_total{engine="0"} 7.0\n'), Counters(tokens=7)),
        (lambda _: httpx2.Response(503), None),
        (failing(httpx2.ConnectError), None),
    ],
)
async def test_one_that_does_not_answer_has_counted_nothing_that_is_known(
    answer: Answer, counted: Counters | None
) -> None:
    async with asking(answer) as client:
        assert await probes.counted(client) == counted
