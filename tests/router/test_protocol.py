"""Hot requests on a raw connection: however they are put, each gets its own answer, in order, and nothing hangs."""

import asyncio
import json
from typing import Any

import pytest

from tandem.fleet import Fleet
from tandem.router.outbox import Outbox

from .conftest import CHUNK, ScriptedEngine, connected, said, serving, stream

ASK = json.dumps({"model": "generation", "prompt": "a"}).encode()
STREAM = json.dumps({"model": "generation", "prompt": "a", "stream": True}).encode()


def post(body: bytes, *headers: str, target: str = "/v1/completions", version: str = "1.1") -> bytes:
    lines = [f"POST {target} HTTP/{version}", "host: x", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


LAST = "connection: close"


def parsed(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers."""
    first, *lines = head.decode().strip().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)


def heads(got: bytes) -> list[tuple[int, dict[str, str]]]:
    """Status and headers of each answer in ``got``, all of which have a length."""
    found = []
    while got:
        head, _, rest = got.partition(b"\r\n\r\n")
        found.append(parsed(head))
        got = rest[int(found[-1][1]["content-length"]) :]
    return found


@pytest.mark.parametrize(
    "target",
    ["/v1/completions?api-version=1", "/v1/%63ompletions", "http://x/v1/completions", "http://x:1/v1/completions?"],
)
async def test_a_hot_route_by_another_spelling(target: str, fleet: Fleet) -> None:
    async with serving(fleet) as (_, address):
        ((status, headers),) = heads(await said(address, post(ASK, LAST, target=target)))
        assert status == 200
        assert headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_a_hot_route_by_another_method(method: str, fleet: Fleet) -> None:
    """405 with what is allowed; no body for HEAD."""
    async with serving(fleet) as (_, address):
        got = await said(address, f"{method} /v1/completions HTTP/1.1\r\nhost: x\r\n{LAST}\r\n\r\n".encode())
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nallow: POST\r\n" in head + b"\r\n"
    assert bool(body) is (method != "HEAD")


async def test_requests_that_do_not_wait_for_answers(fleet: Fleet) -> None:
    """Hot ones and others, all in one piece: answered one by one, in order."""
    cold = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    wrong = post(b"{}")
    async with serving(fleet) as (_, address):
        sent = post(ASK) + cold + wrong + cold + post(ASK) + post(ASK, LAST)
        for parts in ([sent], [sent[:200], sent[200:390], sent[390:]]):
            got = heads(await said(address, *parts, pause=0.02))
            assert [status for status, _ in got] == [200, 200, 400, 200, 200, 200]
            assert len({headers["x-request-id"] for _, headers in got}) == 6
            assert [headers.get("connection") for _, headers in got] == [None] * 5 + ["close"]


async def test_a_stream_between_pipelined_requests(fleet: Fleet, engine: ScriptedEngine) -> None:
    """What comes behind it on the same connection waits for its end."""
    engine.scripts["/v1/completions"] = stream(CHUNK, CHUNK, "[DONE]", pause=0.02)
    async with serving(fleet) as (_, address):
        got = await said(address, post(STREAM) + b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    events, _, rest = got.partition(b"\r\n0\r\n\r\n")
    assert events.count(b"data: ") == 3
    assert heads(rest)[0][0] == 200


async def test_a_body_that_waits_to_be_asked_for(fleet: Fleet) -> None:
    """``Expect: 100-continue``, as curl sends it; and one that does not need to be asked after all."""
    head, body = post(ASK, "expect: 100-continue", LAST).split(b"\r\n\r\n")
    async with serving(fleet) as (_, address):
        got = await said(address, head + b"\r\n\r\n", body, pause=0.05)
        first, _, rest = got.partition(b"\r\n\r\n")
        assert first == b"HTTP/1.1 100 Continue"
        assert heads(rest)[0][0] == 200
        assert heads(await said(address, head + b"\r\n\r\n" + body))[0][0] == 200


async def test_the_older_protocol(fleet: Fleet, engine: ScriptedEngine) -> None:
    """HTTP/1.0 knows no chunks: the end of the connection is the end of the stream."""
    async with serving(fleet) as (_, address):
        ((status, headers),) = heads(await said(address, post(ASK, version="1.0")))
        assert (status, headers["connection"]) == (200, "close")
        engine.scripts["/v1/completions"] = stream(CHUNK, "[DONE]")
        head, _, body = (await said(address, post(STREAM, version="1.0"))).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")


async def test_an_early_refusal_leaves_the_connection_fit(fleet: Fleet) -> None:
    """The rest of a refused body is passed over, and the next request is answered."""
    wrong = post(ASK, "content-encoding: gzip")
    async with serving(fleet) as (_, address):
        got = heads(await said(address, wrong[:-5], wrong[-5:] + post(ASK, LAST), pause=0.05))
        assert [status for status, _ in got] == [415, 200]


async def test_an_idle_connection_is_closed(fleet: Fleet) -> None:
    """Some time after its last answer; one that is used stays."""
    async with serving(fleet) as (made, address):
        made.config.timeout_keep_alive = 0.3  # type: ignore[assignment]
        reader, writer = await connected(address)
        async with asyncio.timeout(10):
            for _ in range(4):
                writer.write(post(ASK))
                head = await reader.readuntil(b"\r\n\r\n")
                status, headers = parsed(head)
                assert status == 200
                await reader.readexactly(int(headers["content-length"]))
                await asyncio.sleep(0.15)
            await reader.read()
        writer.close()


async def test_bad_bytes_behind_a_request_do_not_cost_its_answer(fleet: Fleet) -> None:
    async with serving(fleet) as (_, address):
        wrong = post(b"{}")
        got = heads(await said(address, wrong, b"this is no HTTP\r\n\r\n", pause=0.1))
        assert [status for status, _ in got] == [400, 400]


class Wire:
    """A transport that remembers what is written to it."""

    def __init__(self, said: list[bytes], *, closed: bool = False) -> None:
        self.said = said
        self.closed = closed

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.said.append(data)


async def test_what_is_written_in_one_turn_goes_out_in_order() -> None:
    """Alone at once; several at the turn's end, and nothing to who has gone."""
    out: list[bytes] = []
    wires: list[Any] = [Wire(out), Wire(out), Wire(out, closed=True)]
    outbox = Outbox()
    outbox.put(wires[0], b"alone")
    assert out == [b"alone"]
    await asyncio.sleep(0)
    outbox.put(wires[0], b"1")
    outbox.put(wires[1], b"2")
    outbox.put(wires[2], b"lost")
    outbox.put(wires[0], b"3")
    await asyncio.sleep(0)
    assert out == [b"alone", b"1", b"2", b"3"]
    outbox.put(wires[0], b"4")
    assert out[-1] == b"3", "the turn before was crowded"
    outbox.flush()
    assert out[-1] == b"4"
    await asyncio.sleep(0)
    outbox.put(wires[0], b"5")
    assert out[-1] == b"5", "the turn before was not"
