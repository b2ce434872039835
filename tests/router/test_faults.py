"""What callers get, and what engines are spared, when an engine misbehaves; over real sockets, the engine a process.

Three claims run through all of it: every request ends within its time; every error has OpenAI's form and says whose
fault it is (502 an answer that is none, or was broken off; 503 cannot be had, and when to ask again; 504 silence); and
nothing of which the caller has seen a part is asked again.
"""

import asyncio
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import pytest_asyncio

from tandem.fleet import Engine, Fleet, Snapshot, State
from tandem.router import retry

from .conftest import fronting, two_engines

# One router for most of the file: starting and stopping one takes longer than most of these tests.
pytestmark = [pytest.mark.process, pytest.mark.timeout(30), pytest.mark.asyncio(loop_scope="module")]
shared = pytest_asyncio.fixture(scope="module", loop_scope="module")

SCRIPT = Path(__file__).with_name("faulty_engine.py")
SHORT: dict[str, float] = {"timeout": 1.2, "first_event_timeout": 0.4, "event_timeout": 0.4, "queue_timeout": 1}
BOUND = SHORT["timeout"] + 1.0  # for the answer to be made and read on a busy machine
AT_ONCE = 0.4  # a request that waits for nothing takes less

ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "embeddings": ("/v1/embeddings", {"model": "embedding", "input": ["a", "b"]}),
    "plain": ("/v1/completions", {"model": "generation", "prompt": "a"}),
    "chat": ("/v1/chat/completions", {"model": "generation", "messages": [{"role": "user", "content": "a"}]}),
    "stream": ("/v1/completions", {"model": "generation", "prompt": "a", "stream": True}),
    "chat stream": (
        "/v1/chat/completions",
        {"model": "generation", "messages": [{"role": "user", "content": "a"}], "stream": True},
    ),
}
E, P, S = "embeddings", "plain", "stream"
ALL = (E, P, S)


class Child:
    """A faulty engine, and what it has seen."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        self.process = process
        port = int(process.stdout.readline())
        self.url = f"http://127.0.0.1:{port}"
        self._control = http.client.HTTPConnection("127.0.0.1", port, timeout=5)

    def _tell(self, method: str, path: str, body: object = None) -> Any:
        self._control.request(method, path, None if body is None else json.dumps(body))
        return json.loads(self._control.getresponse().read())

    def misbehave(self, how: str, times: int = -1, **options: Any) -> None:
        self._tell("POST", "/misbehave", {"how": how, "times": times, **options})

    def follow(self, plans: list[dict[str, Any]]) -> None:
        """Misbehave in one way after the other."""
        self._tell("POST", "/misbehave", plans)

    def behave(self) -> None:
        self.follow([])

    def forget(self) -> None:
        self._tell("POST", "/forget")

    def __getitem__(self, counter: str) -> Any:
        return self._tell("GET", "/counters")[counter]

    async def until(self, counter: str, number: int, seconds: float = 1.5) -> None:
        """Wait until a counter has come so far."""
        deadline = time.monotonic() + seconds
        while (found := self[counter]) < number:
            assert time.monotonic() < deadline, f"{counter} is {found} after {seconds} s, not {number}"
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self._control.close()


@contextmanager
def faulty() -> Iterator[Child]:
    """A faulty engine, ended by its own process id."""
    with subprocess.Popen([sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        child = Child(process)
        try:
            yield child
        finally:
            child.close()
            process.kill()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Child]:
    with faulty() as child:
        yield child


@pytest.fixture
def child(lasting: Child) -> Child:
    """One that is as new, and is not to be killed."""
    lasting.forget()
    return lasting


@pytest.fixture
def mortal() -> Iterator[Child]:
    """One that may be killed."""
    with faulty() as child:
        yield child


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What seems gone is believed gone for a moment only."""
    monkeypatch.setattr("tandem.router.admission._NEWS", 0.1)


@shared
async def fleet(lasting: Child) -> Fleet:
    return Fleet(two_engines(lasting.url))


Front = Callable[..., Awaitable[httpx2.AsyncClient]]


@pytest_asyncio.fixture(loop_scope="module")
async def front() -> AsyncIterator[Front]:
    """Starts a router of the test's own, which ends in good order even if the test does not."""
    async with AsyncExitStack() as stack:

        async def start(fleet: Fleet, **settings: float) -> httpx2.AsyncClient:
            return await stack.enter_async_context(fronting(fleet, **{**SHORT, **settings}))

        yield start


@shared
async def router(fleet: Fleet) -> AsyncIterator[httpx2.AsyncClient]:
    """One request at a time: a lease that is not given back would be missed at the next."""
    async with fronting(fleet, max_in_flight=1, **SHORT) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def client(
    child: Child, fleet: Fleet, router: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> httpx2.AsyncClient:
    """Of the router that fronts ``child``, as if that had just been started; with retries to spare."""
    monkeypatch.setattr(retry.Budget, "SHARE", retry.Budget.RESERVE)
    for engine in two_engines(child.url).engines:
        fleet.put(msgspec.structs.replace(engine, started=time.time()))
    await asyncio.sleep(0.01)  # for the router to hear of it
    return router


@pytest.fixture
def unbreakable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No breaker opens."""
    monkeypatch.setattr(retry.Breaker, "CONSECUTIVE", 10**9)
    monkeypatch.setattr(retry.Breaker, "RATE", 2.0)


@pytest_asyncio.fixture(loop_scope="module")
async def quick(child: Child, front: Front, monkeypatch: pytest.MonkeyPatch) -> httpx2.AsyncClient:
    """Of a router whose breakers let the first probe through soon, and which lets many ask at once."""
    monkeypatch.setattr(retry.Breaker, "PAUSE", 0.4)
    return await front(Fleet(two_engines(child.url)))


async def ask(client: httpx2.AsyncClient, route: str, **headers: str) -> httpx2.Response:
    """An answer, which must come within its time."""
    path, body = ROUTES[route]
    async with asyncio.timeout(BOUND):
        return await client.post(path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def events(got: httpx2.Response) -> list[Any]:
    assert got.headers["content-type"].startswith("text/event-stream")
    lines = [block.removeprefix("data: ") for block in got.text.split("\n\n") if block]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def in_form(said: Any) -> dict[str, Any]:
    """The error object in ``said``, which must have OpenAI's form; an engine's fault is not told in its own words."""
    assert set(said) == {"error"}
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert said["error"]["message"]
    assert said["error"]["type"] == "invalid_request_error" or "it is broken" not in said["error"]["message"]
    return dict(said["error"])


def error(got: httpx2.Response) -> dict[str, Any]:
    """The error that was answered, with the headers that every error has."""
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-request-id"].startswith("req_")
    if got.status_code == 503:
        assert int(got.headers["retry-after"]) >= 1
    found = in_form(got.json())
    kind = {503: "service_unavailable_error"}.get(got.status_code, "server_error")
    assert found["type"] == (kind if got.status_code >= 500 else "invalid_request_error")
    return found


def good(got: httpx2.Response, route: str) -> None:
    """All that the engine says when it is well, and nothing twice."""
    assert got.status_code == 200
    if ROUTES[route][1].get("stream"):
        *chunks, done = events(got)
        assert done == "[DONE]"
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    elif route == E:
        assert [item["index"] for item in got.json()["data"]] == [0, 1]
    else:
        assert got.json()["choices"][0]["finish_reason"] == "length"


def cases(
    *table: tuple[str, dict[str, Any], tuple[str, ...], int, str, int],
) -> list[Any]:
    return [
        pytest.param(how, options, route, status, code, asked, id="-".join(map(str, [how, *options.values(), route])))
        for how, options, routes, status, code, asked in table
        for route in routes
    ]


# The way, on which routes, the answer's status and code, and how often the engine is asked.
BEFORE_THE_FIRST_EVENT = cases(
    ("silent", {}, ALL, 504, "timeout", 1),
    ("silent_after_head", {}, (S,), 504, "timeout", 1),
    ("slow_drip", {"seconds": 0.05}, (P, S), 504, "timeout", 1),
    ("reset", {}, ALL, 503, "model_not_ready", 3),
    ("half_body", {}, ALL, 502, "upstream_broke_off", 3),
    ("half_stream", {"events": 0}, (S,), 502, "upstream_broke_off", 3),
    ("half_stream_clean", {"events": 0}, (S,), 502, "upstream_broke_off", 3),
    ("abort_finish", {"events": 0}, (P, "chat", S, "chat stream"), 502, "upstream_broke_off", 3),
    ("status", {"status": 500}, ALL, 502, "engine_error", 3),
    ("status", {"status": 503}, ALL, 503, "overloaded", 3),
    ("status", {"status": 429}, ALL, 503, "overloaded", 3),
    ("status", {"status": 503, "form": "html"}, ALL, 503, "overloaded", 3),
    ("status", {"status": 404}, ALL, 502, "bad_gateway", 1),
    ("status", {"status": 302, "form": "html"}, ALL, 502, "bad_gateway", 1),
    ("html", {}, ALL, 502, "bad_gateway", 1),
    ("wrong_content_type", {}, (S, "chat stream"), 502, "bad_gateway", 1),
    ("wrong_content_type", {"whole": True}, (S,), 502, "upstream_broke_off", 3),
    ("not_http", {}, ALL, 502, "bad_gateway", 1),
    ("bad_json", {}, ALL, 502, "bad_gateway", 1),
    ("bad_json", {"form": "bytes"}, ALL, 502, "bad_gateway", 1),
    ("bad_json", {"form": "deep"}, ALL, 502, "bad_gateway", 1),
    ("empty", {}, (E, P), 502, "bad_gateway", 1),
    ("empty", {}, (S,), 502, "upstream_broke_off", 3),
    ("error_event", {"code": 500}, (S, "chat stream"), 502, "engine_error", 3),
    ("wrong_count", {"indices": [0]}, (E,), 502, "bad_gateway", 1),
    ("wrong_count", {"indices": [1, 0]}, (E,), 502, "bad_gateway", 1),
    ("wrong_count", {"indices": [0, 0]}, (E,), 502, "bad_gateway", 1),
    ("wrong_count", {"indices": [0, 1, 2]}, (E,), 502, "bad_gateway", 1),
    ("wrong_count", {"indices": []}, (E, P, "chat"), 502, "bad_gateway", 1),
    ("oversized", {"what": "body", "size": 1_100_000}, ALL, 502, "bad_gateway", 1),
    ("oversized", {"what": "event", "size": 2_000_000}, (S,), 502, "bad_gateway", 1),
    ("oversized", {"what": "header", "size": 200_000}, (P, S), 502, "bad_gateway", 1),
    ("oversized", {"what": "headers", "size": 200_000}, (P, S), 502, "bad_gateway", 1),
)


@pytest.mark.parametrize(("how", "options", "route", "status", "code", "asked"), BEFORE_THE_FIRST_EVENT)
async def test_a_fault_is_an_error_in_openai_s_form(
    how: str,
    options: dict[str, Any],
    route: str,
    status: int,
    code: str,
    asked: int,
    child: Child,
    client: httpx2.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine is asked as often as may help, the caller is told not to repeat that, and all is well afterwards."""
    monkeypatch.setattr("tandem.router.upstream._LARGEST", 1_000_000)
    monkeypatch.setattr("tandem.router.relay._LARGEST_EVENT", 1_000_000)  # more than one read has
    child.misbehave(how, **options)
    got = await ask(client, route)
    assert (got.status_code, error(got)["code"], child["asked"]) == (status, code, asked)
    if "Nothing came" in error(got)["message"] or code != "timeout":
        assert got.headers["x-should-retry"] == "false"
    child.behave()
    good(await ask(client, route), route)


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("reset", {}),
        ("half_body", {}),
        ("status", {"status": 500}),
        ("status", {"status": 503}),
        ("status", {"status": 500, "form": "html"}),
        ("status", {"status": 502, "form": "html"}),
    ],
)
@pytest.mark.parametrize("route", ALL)
async def test_a_passing_fault_is_not_the_caller_s(
    how: str, options: dict[str, Any], route: str, child: Child, client: httpx2.AsyncClient
) -> None:
    """Broken connections and answers of 5xx: the engine is asked once more, and the caller sees a good answer."""
    child.misbehave(how, times=1, **options)
    good(await ask(client, route), route)
    assert child["asked"] == 2


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("half_stream", {"events": 0}),
        ("half_stream_clean", {"events": 0}),
        ("abort_finish", {"events": 0}),
        ("error_event", {"code": 500}),
    ],
)
async def test_a_stream_s_passing_fault_before_its_first_event_is_not_the_caller_s(
    how: str, options: dict[str, Any], child: Child, client: httpx2.AsyncClient
) -> None:
    child.misbehave(how, times=1, **options)
    good(await ask(client, S), S)
    assert child["asked"] == 2


async def test_an_engine_that_says_how_long_it_is_busy_is_asked_then(child: Child, client: httpx2.AsyncClient) -> None:
    """If the caller's time allows; else the caller is told at once."""
    child.misbehave("status", times=1, status=503, retry_after=1)
    began = time.monotonic()
    good(await ask(client, P), P)
    assert time.monotonic() - began >= 1
    child.misbehave("status", status=503, retry_after=30)
    began = time.monotonic()
    got = await ask(client, P)
    assert (got.status_code, error(got)["code"], got.headers["retry-after"]) == (503, "overloaded", "30")
    assert time.monotonic() - began < AT_ONCE


MID_STREAM: list[tuple[str, dict[str, Any], str]] = [
    ("half_stream", {}, "upstream_broke_off"),
    ("half_stream_clean", {}, "upstream_broke_off"),
    ("stalls_mid_stream", {}, "timeout"),
    ("abort_finish", {}, "upstream_broke_off"),
    ("error_event", {"code": 500}, "engine_error"),
    ("bad_json", {}, "bad_gateway"),
    ("oversized", {"what": "event", "size": 2_000_000}, "bad_gateway"),
]


@pytest.mark.parametrize("route", ["stream", "chat stream"])
@pytest.mark.parametrize(("how", "options", "code"), MID_STREAM)
async def test_a_stream_that_has_begun_is_not_asked_for_again(
    how: str,
    options: dict[str, Any],
    code: str,
    route: str,
    child: Child,
    client: httpx2.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends with an error, and without ``[DONE]`` or a finish reason that nobody gave."""
    monkeypatch.setattr("tandem.router.relay._LARGEST_EVENT", 1_000_000)  # more than one read has
    child.misbehave(how, events=2, **options)
    got = await ask(client, route)
    assert got.status_code == 200
    *chunks, last = events(got)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None]
    assert in_form(last)["code"] == code
    assert child["asked"] == 1
    child.behave()
    good(await ask(client, route), route)


async def test_a_refusal_in_mid_stream_is_passed_on(child: Child, client: httpx2.AsyncClient) -> None:
    child.misbehave("error_event", code=400, events=1)
    _, last = events(await ask(client, S))
    assert in_form(last)["type"] == "invalid_request_error"
    assert child["asked"] == 1


@pytest.mark.parametrize("route", ["stream", "chat stream"])
async def test_what_comes_after_the_end_of_a_stream_is_not_passed_on(
    route: str, child: Child, client: httpx2.AsyncClient
) -> None:
    child.misbehave("duplicate_done")
    good(await ask(client, route), route)


@pytest.mark.parametrize("route", ALL)
async def test_an_engine_that_is_late_but_in_time_is_waited_for(
    route: str, child: Child, client: httpx2.AsyncClient
) -> None:
    child.misbehave("late", seconds=0.3)
    good(await ask(client, route), route)
    assert child["asked"] == 1


async def test_a_stream_may_take_longer_than_any_pause_in_it(child: Child, client: httpx2.AsyncClient) -> None:
    child.misbehave("long_stream", events=10, seconds=0.1)
    assert len(events(await ask(client, S))) == 11


async def test_json_by_any_name_is_json(child: Child, client: httpx2.AsyncClient) -> None:
    """Of an answer that comes whole, the content type does not matter."""
    child.misbehave("wrong_content_type")
    for route in (E, P, "chat"):
        good(await ask(client, route), route)


# Refusals


@pytest.mark.parametrize(
    ("how", "options", "routes"),
    [
        ("status", {"status": 400}, ALL),
        ("status", {"status": 422}, ALL),
        ("status", {"status": 413, "form": "html"}, ALL),
        ("error_event", {"code": 400}, (S, "chat stream")),
    ],
)
async def test_a_refusal_is_the_caller_s(
    how: str, options: dict[str, Any], routes: tuple[str, ...], child: Child, client: httpx2.AsyncClient
) -> None:
    """It is a 400, is never asked again, and says nothing against the engine, however often."""
    child.misbehave(how, **options)
    for n in range(8):
        got = await ask(client, routes[n % len(routes)])
        assert (got.status_code, error(got)["type"]) == (400, "invalid_request_error")
    assert child["asked"] == 8
    child.behave()
    good(await ask(client, routes[0]), routes[0])


# Breaker and budget


@pytest.mark.parametrize("route", [P, S])
async def test_faults_open_the_breaker_and_one_probe_closes_it(
    route: str, child: Child, quick: httpx2.AsyncClient
) -> None:
    """While it is open, callers are told at once and the engine has peace."""
    child.misbehave("html")
    for _ in range(retry.Breaker.CONSECUTIVE):
        assert (await ask(quick, route)).status_code == 502
    for _ in range(3):
        began = time.monotonic()
        got = await ask(quick, route)
        assert (got.status_code, error(got)["code"]) == (503, "engine_failing")
        assert time.monotonic() - began < AT_ONCE / 2
    assert child["asked"] == retry.Breaker.CONSECUTIVE
    child.misbehave("late", seconds=0.2)
    await asyncio.sleep(0.5)
    several = await asyncio.gather(*(ask(quick, route) for _ in range(5)))
    assert sorted(got.status_code for got in several) == [200, 503, 503, 503, 503]
    assert child["asked"] == retry.Breaker.CONSECUTIVE + 1
    several = await asyncio.gather(*(ask(quick, route) for _ in range(5)))
    assert [got.status_code for got in several] == [200] * 5


async def test_one_who_asked_before_the_breaker_opened_makes_no_room_for_a_second_probe(
    child: Child, quick: httpx2.AsyncClient
) -> None:
    """Leaving while the probe is out tells nothing of the probe."""
    late = {"how": "late", "seconds": 9}
    child.follow([late, {"how": "html", "times": 5}, {"how": "late", "seconds": 0.4, "times": -1}])
    leaving = asyncio.create_task(ask(quick, P))
    await child.until("asked", 1)
    for _ in range(retry.Breaker.CONSECUTIVE):
        assert (await ask(quick, P)).status_code == 502
    await asyncio.sleep(0.5)
    probe = asyncio.create_task(ask(quick, P))
    await child.until("asked", 7)
    leaving.cancel()
    await child.until("aborted", 1)
    assert (await ask(quick, P)).status_code == 503
    good(await probe, P)
    assert child["asked"] == 7


@pytest.mark.parametrize("route", ALL)
async def test_silence_opens_the_breaker(route: str, child: Child, front: Front) -> None:
    """It is a fault, if nothing comes for as long as the router itself waits."""
    child.misbehave("silent")
    c = await front(Fleet(two_engines(child.url)), timeout=0.2, first_event_timeout=0.15)
    for _ in range(retry.Breaker.CONSECUTIVE):
        assert (await ask(c, route)).status_code == 504
    assert (await ask(c, route)).status_code == 503
    assert child["asked"] == retry.Breaker.CONSECUTIVE


async def test_the_breaker_spares_an_engine_that_fails(child: Child, client: httpx2.AsyncClient) -> None:
    """Of a hundred requests it sees as many as open the breaker: each counts once, however often it is asked again."""
    child.misbehave("status", status=500)
    answers = [await ask(client, P) for _ in range(100)]
    seen = Counter((got.status_code, error(got)["code"]) for got in answers)
    assert set(seen) == {(502, "engine_error"), (503, "engine_failing")}
    assert retry.Breaker.CONSECUTIVE <= child["asked"] <= retry.Breaker.CONSECUTIVE * retry.ATTEMPTS


@pytest.mark.usefixtures("unbreakable")
async def test_retries_add_a_fifth_and_the_reserve_to_the_load(child: Child, front: Front) -> None:
    """Even where no breaker opens."""
    child.misbehave("status", status=500)
    client = await front(Fleet(two_engines(child.url)))
    answers = [await ask(client, P) for _ in range(100)]
    assert {(got.status_code, error(got)["code"]) for got in answers} == {(502, "engine_error")}
    assert 100 + retry.Budget.RESERVE <= child["asked"] <= 100 * (1 + retry.Budget.SHARE) + retry.Budget.RESERVE


async def test_kept_connections_do_not_multiply_a_request(child: Child, quick: httpx2.AsyncClient) -> None:
    """One that is reset may have been stale, so the question is put on a fresh one; not on each that is kept."""
    child.misbehave("late", times=20, seconds=0.2)
    await asyncio.gather(*(ask(quick, P) for _ in range(20)))
    child.misbehave("reset")
    assert (await ask(quick, P)).status_code == 503
    assert child["asked"] - 20 <= 2 * retry.ATTEMPTS


# Callers who leave or hurry


@pytest.mark.parametrize(
    ("route", "how", "options"),
    [
        ("embeddings", "silent", {}),
        ("plain", "silent", {}),
        ("chat", "late", {"seconds": 9}),
        ("stream", "silent_after_head", {}),
        ("stream", "long_stream", {"events": 1000, "seconds": 0.02}),
        ("chat stream", "long_stream", {"events": 1000, "seconds": 0.02}),
    ],
)
async def test_a_caller_who_leaves_ends_the_engine_s_work(
    route: str, how: str, options: dict[str, Any], child: Child, client: httpx2.AsyncClient
) -> None:
    """At once, and without having the engine asked again; its silence until then is not its fault."""
    child.misbehave(how, **options)
    for n in range(1, retry.Breaker.CONSECUTIVE + 1):
        asking = asyncio.create_task(ask(client, route))
        await child.until("asked", n)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await child.until("aborted", n)
    assert child["asked"] == retry.Breaker.CONSECUTIVE
    child.behave()
    good(await ask(client, route), route)


async def test_nobody_is_asked_again_for_a_caller_who_has_left(
    child: Child, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.router.admission._NEWS", 0.4)
    child.misbehave("reset")
    asking = asyncio.create_task(ask(client, P))
    await child.until("asked", 1)
    await asyncio.sleep(0.1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0.6)
    assert child["asked"] == 1


@pytest.mark.parametrize("route", ALL)
async def test_a_caller_s_own_deadline_is_kept_and_is_nobody_s_fault(
    route: str, child: Child, client: httpx2.AsyncClient
) -> None:
    child.misbehave("silent")
    for n in range(1, retry.Breaker.CONSECUTIVE + 2):
        began = time.monotonic()
        got = await ask(client, route, x_request_timeout="0.1")
        assert (got.status_code, error(got)["code"]) == (504, "timeout")
        assert 0.05 < time.monotonic() - began < 0.1 + AT_ONCE
        await child.until("aborted", n)
    child.behave()
    good(await ask(client, route), route)


@pytest.mark.parametrize("route", [P, S])
async def test_a_hurried_probe_says_nothing_good_either(route: str, child: Child, quick: httpx2.AsyncClient) -> None:
    """A breaker that is open stays so, and lets the next probe through, one."""
    child.misbehave("html")
    for _ in range(retry.Breaker.CONSECUTIVE):
        await ask(quick, route)
    child.misbehave("silent")
    await asyncio.sleep(0.5)
    assert (await ask(quick, route, x_request_timeout="0.15")).status_code == 504
    asked = child["asked"]
    several = await asyncio.gather(*(ask(quick, route, x_request_timeout="0.3") for _ in range(5)))
    assert sorted(got.status_code for got in several) == [503, 503, 503, 503, 504]
    assert child["asked"] == asked + 1


@pytest.mark.parametrize("route", ALL)
async def test_a_short_deadline_is_enough_for_a_quick_engine(
    route: str, child: Child, client: httpx2.AsyncClient
) -> None:
    """On a busy machine not each time."""
    child.misbehave("late", seconds=0.005)
    answers = [await ask(client, route, x_request_timeout="0.04") for _ in range(10)]
    assert 200 in {got.status_code for got in answers}


async def test_a_caller_s_deadline_ends_a_stream_that_has_begun(child: Child, client: httpx2.AsyncClient) -> None:
    child.misbehave("long_stream", events=1000, seconds=0.02)
    *chunks, last = events(await ask(client, S, x_request_timeout="0.3"))
    assert chunks
    assert in_form(last)["code"] == "timeout"
    await child.until("aborted", 1)


async def test_a_caller_s_deadline_ends_the_retries(child: Child, client: httpx2.AsyncClient) -> None:
    child.misbehave("reset")
    began = time.monotonic()
    got = await ask(client, P, x_request_timeout="0.1")
    assert got.status_code in {503, 504}
    error(got)
    assert time.monotonic() - began < 0.1 + AT_ONCE


async def test_a_caller_who_does_not_read_stops_the_engine(child: Child, front: Front) -> None:
    """What waits for it is bounded by what sockets hold; it gets the rest when it reads on, however late."""
    total, bound = 64 * 2**20, 28 * 2**20
    child.misbehave("long_stream", events=total // 65536, size=65536)
    client = await front(Fleet(two_engines(child.url)), event_timeout=0.3, timeout=30)
    body = json.dumps(ROUTES[S][1]).encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, (client.base_url.host, client.base_url.port))
        head = f"POST {ROUTES[S][0]} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
        head += "content-type: application/json\r\n\r\n"
        await loop.sock_sendall(slow, head.encode() + body)
        await child.until("asked", 1)
        before = -1
        async with asyncio.timeout(10):
            while (sent := child["sent"]) != before:
                before = sent
                await asyncio.sleep(0.5)
        assert 0 < sent < bound
        reader, writer = await asyncio.open_connection(sock=slow.dup(), limit=2**20)
        received, tail = 0, b""
        async with asyncio.timeout(15):
            while part := await reader.read(2**20):
                received += len(part)
                tail = (tail + part)[-100:]
        writer.close()
        await writer.wait_closed()
        assert received > total
        assert b"data: [DONE]\n\n" in tail


# Engines that die, hang or cannot be reached


@pytest.mark.parametrize("route", ALL)
async def test_an_engine_that_dies_cannot_be_had(route: str, mortal: Child, front: Front) -> None:
    mortal.misbehave("die")
    client = await front(Fleet(two_engines(mortal.url)))
    for _ in range(2):
        got = await ask(client, route)
        assert (got.status_code, error(got)["code"]) in {(503, "model_not_ready"), (503, "engine_failing")}


async def test_an_engine_that_dies_in_mid_stream_broke_off(mortal: Child, front: Front) -> None:
    mortal.misbehave("die", events=2)
    client = await front(Fleet(two_engines(mortal.url)))
    *chunks, last = events(await ask(client, S))
    assert len(chunks) == 2
    assert in_form(last)["code"] == "upstream_broke_off"


@pytest.mark.parametrize("route", [E, S])
async def test_an_engine_that_refuses_connections(route: str, child: Child, client: httpx2.AsyncClient) -> None:
    """Is a 503 within its time, and serves again as soon as it listens."""
    good(await ask(client, route), route)
    child.misbehave("refuse_connections", seconds=0.8)
    got = await ask(client, route)
    assert (got.status_code, error(got)["code"]) == (503, "model_not_ready")
    assert child["asked"] == 1  # answered when it listens again
    await asyncio.sleep(0.1)
    good(await ask(client, route), route)


async def test_a_moment_without_connections_is_not_the_caller_s(
    child: Child, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.router.admission._NEWS", 0.4)
    child.misbehave("refuse_connections", seconds=0.2)
    good(await ask(client, P), P)


@pytest.mark.parametrize("route", ALL)
async def test_an_engine_that_hangs_is_waited_for_no_longer_than_its_time(
    route: str, mortal: Child, front: Front
) -> None:
    """Stopped as a whole, its sockets still open; it serves again when it goes on."""
    client = await front(Fleet(two_engines(mortal.url)), timeout=0.6)
    good(await ask(client, route), route)
    mortal.process.send_signal(signal.SIGSTOP)
    try:
        got = await ask(client, route)
        assert (got.status_code, error(got)["code"]) == (504, "timeout")
    finally:
        mortal.process.send_signal(signal.SIGCONT)
    good(await ask(client, route), route)


# Replicas


def replicas(*children: Child) -> Fleet:
    """Engines of one model, each a child, in the order in which they are asked."""
    names = ["generation", *(f"generation-{n}" for n in range(2, len(children) + 1))]
    return Fleet(
        Snapshot(
            tuple(
                Engine(
                    name=name,
                    kind="generation",
                    model="org/gen",
                    url=child.url,
                    state=State.READY,
                    replica_of="" if name == "generation" else "generation",
                )
                for name, child in zip(names, children, strict=True)
            )
        )
    )


@pytest.mark.parametrize("route", [P, S])
@pytest.mark.parametrize(
    ("how", "options"),
    [("die", {}), ("reset", {}), ("half_body", {}), ("status", {"status": 500}), ("status", {"status": 503})],
)
async def test_another_replica_answers_at_once(
    how: str,
    options: dict[str, Any],
    route: str,
    child: Child,
    mortal: Child,
    monkeypatch: pytest.MonkeyPatch,
    front: Front,
) -> None:
    """For one that fails before its first event."""
    monkeypatch.setattr("tandem.router.admission._NEWS", 3.0)
    mortal.misbehave(how, **options)
    client = await front(replicas(mortal, child))
    began = time.monotonic()
    good(await ask(client, route), route)
    assert time.monotonic() - began < AT_ONCE
    assert child["asked"] == 1


async def test_a_stream_that_has_begun_stays_with_its_replica(child: Child, mortal: Child, front: Front) -> None:
    mortal.misbehave("die", events=2)
    client = await front(replicas(mortal, child))
    *chunks, last = events(await ask(client, S))
    assert len(chunks) == 2
    assert in_form(last)["code"] == "upstream_broke_off"
    assert child["asked"] == 0


async def test_a_replica_that_fails_is_left_alone_and_the_other_serves_all(
    child: Child, mortal: Child, front: Front
) -> None:
    mortal.misbehave("status", status=500)
    client = await front(replicas(mortal, child))
    for _ in range(20):
        good(await ask(client, P), P)
    assert (mortal["asked"], child["asked"]) == (retry.Breaker.CONSECUTIVE, 20)


# All at once

MIXED: list[dict[str, Any]] = [
    {"how": "good", "times": 3},
    {"how": "late", "seconds": 0.2},
    {"how": "silent"},
    {"how": "silent_after_head"},
    {"how": "half_stream", "events": 0},
    {"how": "half_stream", "events": 3},
    {"how": "half_stream_clean", "events": 2},
    {"how": "stalls_mid_stream", "events": 1},
    {"how": "half_body"},
    {"how": "reset"},
    {"how": "status", "status": 400},
    {"how": "status", "status": 500},
    {"how": "status", "status": 503, "form": "html"},
    {"how": "html"},
    {"how": "wrong_content_type"},
    {"how": "not_http"},
    {"how": "slow_drip", "seconds": 0.01},
    {"how": "oversized", "what": "headers", "size": 100_000},
    {"how": "error_event", "code": 400},
    {"how": "error_event", "code": 500, "events": 2},
    {"how": "abort_finish"},
    {"how": "bad_json", "events": 1},
    {"how": "empty"},
    {"how": "duplicate_done"},
]


@pytest.mark.parametrize("breaker", [True, False])
async def test_fifty_at_once_all_get_an_answer(
    breaker: bool, child: Child, quick: httpx2.AsyncClient, request: pytest.FixtureRequest
) -> None:
    """Whatever goes wrong: a good one, a whole error, or a stream that says how it ended; and nothing is left over."""
    if not breaker:
        request.getfixturevalue("unbreakable")
    chance = random.Random(50)  # noqa: S311 - which faults, not secrets
    child.follow([chance.choice(MIXED) for _ in range(100)])
    routes = [chance.choice(list(ROUTES)) for _ in range(50)]
    seen: Counter[int] = Counter()
    for route, got in zip(routes, await asyncio.gather(*(ask(quick, route) for route in routes)), strict=True):
        seen[got.status_code] += 1
        if got.status_code != 200:
            assert got.status_code in {400, 502, 503, 504}
            error(got)
        elif ROUTES[route][1].get("stream"):
            last = events(got)[-1]
            assert last == "[DONE]" or in_form(last)
        else:
            good(got, route)
    assert seen[200] > 5
    assert len(seen) > 3
    child.behave()
    if not breaker:
        for route in ROUTES:
            good(await ask(quick, route), route)
