"""What keeps a server safe on a network: bounds on all that is read, keys, TLS, CORS, and an orderly end."""

import asyncio
import gzip
import json
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from tandem.errors import SettingsError
from tandem.fleet import Fleet
from tandem.router import exposure
from tandem.settings import RouterSettings

from .conftest import CHUNK, COMPLETION, ScriptedEngine, answer, connected, fronting, said, serving, stream

ASK = {"model": "generation", "prompt": "a"}
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


async def raw(address: str, *sent: bytes) -> tuple[int, Any]:
    """What a connection says to these bytes: status and JSON body, up to its end."""
    head, _, body = (await said(address, *sent)).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ([b"GET /livez HTTP/1.1\r\nhost: x\r\nx-large: " + b"x" * 100_000], 431, None),
        ([b"GET /livez HTTP/1.1\r\nhost: x\r\n"], 408, "request_timeout"),
        ([b"this is no HTTP\r\n\r\n"], 400, None),
        ([POST + b"content-length: 50\r\n\r\n{"], 408, "request_timeout"),
        ([POST + b"content-length: 50\r\n\r\n"], 408, "request_timeout"),
        ([POST + b"content-length: 9999999999\r\n\r\n"], 413, "request_too_large"),
        ([POST + b"transfer-encoding: chunked\r\n\r\n" + b"8000\r\n" + b" " * 0x8000 + b"\r\n"] * 1
         + [b"8000\r\n" + b" " * 0x8000 + b"\r\n"] * 3, 413, "request_too_large"),
    ],
    ids=["large head", "slow head", "no HTTP", "slow body", "no body", "large body", "large chunks"],
)  # fmt: skip
async def test_what_is_read_is_bounded(sent: list[bytes], status: int, code: str | None, fleet: Fleet) -> None:
    """In size and in time, with an error in OpenAI's form and the connection's end."""
    async with serving(fleet, body_timeout=0.5) as (_, address):
        got, body = await raw(address, *sent)
        assert (got, body["error"]["code"]) == (status, code)
        assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_a_connection_on_which_nothing_is_said_is_closed(fleet: Fleet) -> None:
    async with serving(fleet, body_timeout=0.2) as (_, address):
        reader, writer = await connected(address)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/nowhere"])
async def test_trailers_are_neither_kept_nor_headers(path: str, fleet: Fleet) -> None:
    """Endless ones end the connection, whatever was answered to their request."""
    async with serving(fleet, api_key="k") as (_, address):
        head = b"POST " + path.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        chunked = b"transfer-encoding: chunked\r\n"
        closing = head + chunked + b"connection: close\r\n\r\n0\r\nauthorization: Bearer k\r\n\r\n"
        assert (await raw(address, closing))[0] == 401
        reader, writer = await connected(address)
        writer.write(head + chunked + b"\r\n0\r\n")

        async def trail() -> None:
            while True:
                writer.write(b"x-trailer: " + b"x" * 10_000 + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.001)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(trail(), 20)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_connection_may_be_used_for_long(fleet: Fleet) -> None:
    """However many requests came on it, the next is judged by itself."""
    body = json.dumps(ASK).encode()
    async with serving(fleet) as (_, address):
        reader, writer = await connected(address)
        async with asyncio.timeout(20):
            for _ in range(100):
                writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\nx-filler: " + b"x" * 1000 + b"\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
            writer.write(POST + b"content-length: %d\r\n\r\n" % len(body))
            await asyncio.sleep(0.1)
            writer.write(body)
            assert (await reader.readline()).split()[1] == b"200"
        writer.close()


async def test_who_offers_to_speak_http_2_is_answered_all_the_same(fleet: Fleet) -> None:
    """Java's client does, with each of its first requests."""
    body = json.dumps(ASK).encode()
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    async with serving(fleet) as (_, address):
        reader, writer = await connected(address)
        writer.write(POST + offer + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert (await asyncio.wait_for(reader.readline(), 20)).split()[1] == b"200"
        writer.close()


async def test_who_does_not_read_is_given_up(
    fleet: Fleet, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what waited for them is forgotten."""
    monkeypatch.setattr("tandem.router.protocol._UNREAD", 0.2)
    large = json.dumps({**COMPLETION, "choices": [{"index": 0, "text": "x" * 30_000_000}]}).encode()
    engine.scripts["/v1/completions"] = answer(None, raw=large)
    body = json.dumps(ASK).encode()
    async with serving(fleet) as (made, address):
        _, writer = await connected(address, limit=1024)
        writer.write(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(20):
            while not made.server_state.total_requests:
                await asyncio.sleep(0.01)
            while made.server_state.connections:
                await asyncio.sleep(0.01)
        writer.transport.abort()


async def test_pages_need_to_be_allowed(fleet: Fleet) -> None:
    """Without keys, a page that a browser on this machine happens to show must not be able to call."""
    async with fronting(fleet) as client:
        got = await client.post("/v1/completions", json=ASK, headers={"Origin": "https://evil.example.org"})
        assert (got.status_code, got.json()["error"]["type"]) == (403, "invalid_request_error")
        for origin in ("http://localhost:3000", "http://127.0.0.1:8080"):
            assert (await client.post("/v1/completions", json=ASK, headers={"Origin": origin})).status_code == 200
        untyped = await client.post("/v1/completions", content=json.dumps(ASK).encode())
        assert untyped.status_code == 415
    async with fronting(fleet, insecure=True) as client:
        got = await client.post("/v1/completions", json=ASK, headers={"Origin": "https://evil.example.org"})
        assert got.status_code == 200


async def test_compressed_bodies_are_not_unpacked(fleet: Fleet, engine: ScriptedEngine) -> None:
    """A gzip bomb is refused by its name."""
    bomb = gzip.compress(b" " * 50_000_000)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    async with fronting(fleet) as client:
        got = await client.post("/v1/completions", content=bomb, headers=headers)
    assert got.status_code == 415
    assert not engine.asked


async def test_deeply_nested_json_is_refused(fleet: Fleet) -> None:
    deep = b'{"model": "generation", "prompt": "a", "structured_outputs": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001
    async with fronting(fleet) as client:
        got = await client.post("/v1/completions", content=deep, headers={"content-type": "application/json"})
    assert got.status_code == 400


async def test_keys_guard_everything_but_liveness(fleet: Fleet, tmp_path: Path) -> None:
    """Before the body is read; without a key, health tells states and no reasons."""
    (tmp_path / "keys").write_text("alice:sk-alice\n")
    async with serving(fleet, api_keys_file=tmp_path / "keys") as (_, address):
        status, body = await raw(address, POST + b"connection: close\r\ncontent-length: 50\r\n\r\n")
        assert (status, body["error"]["message"][:35]) == (401, "You didn't provide an API key. You ")
        async with httpx2.AsyncClient(base_url=address, trust_env=False) as client:
            for path in ("/livez", "/readyz", "/health", "/v1/health"):
                assert (await client.get(path)).status_code == 200
            services = (await client.get("/health")).json()["services"]
            assert services["generation"] == {"status": "healthy"}
            for path in ("/", "/metrics", "/docs", "/openapi.json", "/v1/models", "/nowhere"):
                assert (await client.get(path)).status_code == 401
            client.headers["Authorization"] = "Bearer sk-wrong-key-0123456789"
            got = await client.post("/v1/completions", json=ASK)
            assert (got.status_code, got.json()["error"]["code"]) == (401, "invalid_api_key")
            assert "sk-wrong-key-0123456789" not in got.text
            client.headers["Authorization"] = "Bearer sk-alice"
            assert (await client.post("/v1/completions", json=ASK)).status_code == 200
            assert (await client.get("/health")).json()["services"]["generation"]["model"] == "org/gen"


async def test_rates(fleet: Fleet) -> None:
    """What is left is told with every answer; beyond it, 429 with when to come again."""
    async with fronting(fleet, requests_per_minute=2, tokens_per_minute=10) as client:
        first = await client.post("/v1/completions", json=ASK)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert (await client.post("/v1/completions", json=ASK)).headers["x-ratelimit-remaining-tokens"] == "8"
        got = await client.post("/v1/completions", json=ASK)
        assert (got.status_code, got.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert got.json()["error"]["type"] == "requests"
        assert int(got.headers["retry-after"]) > 0


@pytest.fixture
async def certificate(tmp_path: Path) -> dict[str, Path]:
    made = trustme.CA()
    issued = made.issue_cert("127.0.0.1")
    paths = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem", "ca": tmp_path / "ca.pem"}
    for blob in issued.cert_chain_pems:
        blob.write_to_path(paths["tls_cert"], append=True)
    issued.private_key_pem.write_to_path(paths["tls_key"])
    made.cert_pem.write_to_path(paths["ca"])
    return paths


async def test_tls(fleet: Fleet, certificate: dict[str, Path]) -> None:
    """By certificate and key; who speaks plain HTTP to it gets nothing."""
    ca = certificate.pop("ca")
    async with serving(fleet, **certificate) as (_, address):
        trusting = ssl.create_default_context(cafile=str(ca))
        async with httpx2.AsyncClient(base_url=address, trust_env=False, verify=trusting) as client:
            assert (await client.post("/v1/completions", json=ASK)).status_code == 200
        async with httpx2.AsyncClient(trust_env=False) as client:
            with pytest.raises(httpx2.TransportError):
                await client.get(address.replace("https", "http"))


async def test_no_page_may_call_unless_configured(fleet: Fleet) -> None:
    """CORS: off, no header at all; on, for the origins that are named, errors included, and preflights need no key."""
    origin = {"Origin": "https://chat.example.org"}
    asking = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with fronting(fleet) as client:
        got = await client.get("/v1/models", headers=origin)
        assert not [name for name in got.headers if name.startswith("access-control")]
        assert (await client.options("/v1/completions", headers=asking)).status_code == 405
    async with fronting(fleet, cors_origins=["https://chat.example.org"], api_key="k") as client:
        got = await client.options("/v1/completions", headers=asking)
        assert (got.status_code, got.headers["access-control-allow-origin"]) == (200, origin["Origin"])
        got = await client.post("/v1/completions", json=ASK, headers=origin)
        assert (got.status_code, got.headers["access-control-allow-origin"]) == (401, origin["Origin"])
        got = await client.post("/v1/completions", json=ASK, headers={"Origin": "https://evil.example.org"})
        assert "access-control-allow-origin" not in got.headers


def test_an_address_that_others_reach_needs_keys(tmp_path: Path, certificate: dict[str, Path]) -> None:
    """Or the word that it shall not; files that are of no use are named before anything starts."""
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(SettingsError, match="can be reached from other machines"):
            exposure.check(RouterSettings(host=host))
        exposure.check(RouterSettings(host=host, insecure=True))
        exposure.check(RouterSettings(host=host, api_key="k"))
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        exposure.check(RouterSettings(host=host))
    with pytest.raises(SettingsError, match="cannot be read"):
        exposure.check(RouterSettings(api_keys_file=tmp_path / "none"))
    (tmp_path / "none.pem").write_text("none")
    with pytest.raises(SettingsError, match="cannot be used"):
        exposure.check(RouterSettings(tls_cert=certificate["tls_cert"], tls_key=tmp_path / "none.pem"))
    exposure.check(RouterSettings(tls_cert=certificate["tls_cert"], tls_key=certificate["tls_key"]))


async def test_what_is_in_flight_finishes_when_the_service_stops(fleet: Fleet, engine: ScriptedEngine) -> None:
    """Readiness is gone at once; nobody new gets in; what is in flight has its time."""
    engine.scripts["/v1/completions"] = stream(*[CHUNK] * 4, "[DONE]", pause=0.1)
    async with serving(fleet, drain_timeout=10) as (made, address), httpx2.AsyncClient(trust_env=False) as client:
        asking = asyncio.create_task(client.post(f"{address}/v1/completions", json={**ASK, "stream": True}))
        await engine.until_asked()
        made.should_exit = True
        got = await asking
        assert got.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"{address}/readyz")


async def test_who_keeps_a_connection_is_told_of_the_last_answer(fleet: Fleet, engine: ScriptedEngine) -> None:
    """No request meets a closed connection when the service stops; one on which nothing comes is closed, too."""
    engine.scripts["/v1/completions"] = answer(COMPLETION)
    body = json.dumps(ASK).encode()
    asked = (POST + b"content-length: %d\r\n\r\n" % len(body) + body, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")

    async def until_the_last(address: str, request: bytes) -> int:
        reader, writer = await connected(address)
        answers = 0
        while True:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length: ")[1].split()[0]))
            answers += 1
            if b"connection: close" in head:
                assert await reader.read() == b""
                writer.close()
                return answers
            await asyncio.sleep(0.03)  # most of the time it is idle

    async with serving(fleet) as (made, address), asyncio.timeout(20):
        idle, closed = await connected(address)
        refused, unfinished = await connected(address)  # its answer has come, its body never does
        unfinished.write(asked[0].replace(b"POST", b"PUT")[:-1])
        assert (await refused.readline()).split()[1] == b"405"
        callers = [asyncio.create_task(until_the_last(address, request)) for request in asked]
        await asyncio.sleep(0.2)
        made.should_exit = True
        assert all(answers > 1 for answers in await asyncio.gather(*callers))
        assert await idle.read() == b""
        await refused.read()  # to the connection's end
        closed.close()
        unfinished.close()


def test_it_takes_as_many_callers_as_the_system_allows() -> None:
    """Whatever the shell that started it does: that allows 1,024 files, as a rule."""
    code = (
        "import resource; _, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, most), most))\n"
        "from tandem.router.server import tune; tune()\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_what_outlasts_the_drain_is_answered_with_an_error(fleet: Fleet, engine: ScriptedEngine) -> None:
    """A 503 in OpenAI's form; a stream that has begun ends with an error event; and the engine's work ends."""
    engine.scripts["/v1/completions"] = stream(*[CHUNK] * 1000, pause=0.05)
    engine.scripts["/v1/chat/completions"] = lambda _: asyncio.sleep(60)
    chat = {"model": "generation", "messages": [{"role": "user", "content": "a"}]}
    async with (
        serving(fleet, drain_timeout=0.5) as (made, address),
        httpx2.AsyncClient(base_url=address, trust_env=False, timeout=30) as client,
    ):
        streaming = asyncio.create_task(client.post("/v1/completions", json={**ASK, "stream": True}))
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=chat))
        async with asyncio.timeout(10):
            while len(engine.asked) < 2:
                await asyncio.sleep(0.01)
        made.should_exit = True
        began = time.monotonic()
        got = await asking
        assert (got.status_code, got.json()["error"]["code"]) == (503, "service_unavailable")
        last = (await streaming).text.split("\n\n")[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "service_unavailable"
        assert time.monotonic() - began < 20
    await asyncio.wait_for(engine.left.wait(), 10)


@pytest.fixture(autouse=True)
async def _ended() -> AsyncIterator[None]:
    """Each test leaves no task of its own behind."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in left if "tandem" in str(task.get_coro())]
