"""A stream on the fast path is the one that goes the long way; whatever it does not know comes back, all of it."""

import asyncio
import itertools
import json
import random
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from tandem.fleet import Fleet, Snapshot, State
from tandem.models.responses import Completion
from tandem.router import _fastpath
from tandem.router.answers import Form
from tandem.router.fastpath import FastPath
from tandem.router.relay import _Events
from tandem.router.splice import Frame, Splicer
from tandem.router.translate import Asked

from .conftest import CHUNK, Script, ScriptedEngine, connected, fronting, said, serving

PROMPT = {"model": "generation", "prompt": "a", "stream": True}


def event(text: str, **choice: Any) -> bytes:
    sent = {**CHUNK, "choices": [{"index": 0, "text": text, **choice}]}
    return b"data: " + json.dumps(sent, ensure_ascii=False).encode() + b"\n\n"


def chunked(data: bytes, size: str = "x") -> bytes:
    return b"%b\r\n%b\r\n" % (format(len(data), size).encode(), data)


def unchunked(data: bytes) -> list[bytes]:
    found = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        assert data[length : length + 2] == b"\r\n"
        found.append(data[:length])
        data = data[length + 2 :]
    return found


def splicer() -> Splicer:
    """One that knows events as :func:`event` makes them."""
    form = Form()
    made = Splicer(lambda data: form.chunk(Completion, data, Asked("m")))
    made.chunk(event("first"))
    assert made.frame is not None
    return made


class Lane:
    """One stream from a socket to another, with nothing of the router around it.

    Attributes:
        engine, caller: the other ends.
    """

    def __init__(self, frame: Frame) -> None:
        self.engine, self.source = socket.socketpair()
        self.caller, self.sink = socket.socketpair()
        for each in (self.source, self.caller, self.sink):
            each.setblocking(False)
        self.path = _fastpath.FastPath()
        self.path.add(
            self.source.fileno(), self.sink.fileno(), frame.before, frame.after, frame.ours_before, frame.ours_after
        )

    def close(self) -> None:
        for each in (self.engine, self.source, self.caller, self.sink):
            each.close()

    def received(self) -> bytes:
        got = b""
        try:
            while part := self.caller.recv(2**16):
                got += part
        except BlockingIOError:
            pass
        return got


@contextmanager
def lane() -> Iterator[tuple[Lane, Splicer]]:
    known = splicer()
    assert known.frame is not None
    made = Lane(known.frame)
    try:
        yield made, known
    finally:
        made.close()


TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.sampled_from([" the", "\n", '"', "\\", "\t\r\b\f", "\x00", "é", "你好🙂", '","text":"', "</s>", ""]),
)
EVENTS = st.one_of(
    *[TEXTS.map(event)] * 6,
    TEXTS.map(lambda text: event(text, finish_reason="stop")),
    st.sampled_from(
        [
            *(b"data: [DONE]\n\n", b": a comment\n\n", b"x", event("a") + event("b"), event("a")[:-1]),
            *(event("MARK").replace(b"MARK", mark) for mark in (b"\xff", b"\xed\xa0\x80", rb"\u0041", rb"\/", b"\\")),
        ]
    ),
)
CHUNKS = st.one_of(
    *[EVENTS.map(chunked)] * 6,
    EVENTS.map(lambda data: chunked(data, "X")),
    EVENTS.map(lambda data: chunked(data, "010x")),
    st.sampled_from(
        [b"0\r\n\r\n", b"5;name=value\r\nhello\r\n", b"\r\n", b"-1\r\n", b"fffffffff\r\n", b"5\r\nhelloXX"]
    ),
)


@given(st.lists(CHUNKS, min_size=1, max_size=8), st.lists(st.integers(0, 2000), max_size=5))
def test_what_is_sent_on_is_what_would_be_spliced(chunks: list[bytes], cuts: list[int]) -> None:
    """However the stream is cut. And what is handed back begins where that ends, with what would not be."""
    whole = b"".join(chunks)
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    with lane() as (stream, known):
        sent, rest = 0, None
        for start, end in itertools.pairwise(edges):
            stream.engine.sendall(whole[start:end])
            sent = end
            if back := stream.path.run():
                ((_, rest, unsent, number, _),) = back
                assert not unsent
                break
        taken = whole[: sent - len(rest or b"")]
        got = unchunked(stream.received())
        assert got == [known.splice(data) for data in unchunked(taken)]
        if rest is None:
            number, _ = stream.path.remove(stream.source.fileno())
        assert number == len(got)
        if rest is not None and len(rest) > 2 and (size := rest.partition(b"\r\n")[0]).isalnum():
            data = rest[len(size) + 2 :]
            whole_chunk = len(size) <= 8 and data[int(size, 16) :][:2] == b"\r\n" and int(size, 16)
            assert not whole_chunk or known.splice(data[: int(size, 16)]) is None


def test_what_the_caller_does_not_take_comes_back() -> None:
    """To the byte, with the stream; and what comes then is nobody's here."""
    with lane() as (stream, known):
        stream.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sent = 0
        data = event("x" * 3000)
        while not (back := stream.path.run()):
            stream.engine.sendall(chunked(data))
            sent += 1
        ((source, unread, unsent, number, heard),) = back
        assert (source, unread, number) == (stream.source.fileno(), b"", sent)
        assert unsent
        assert time.monotonic() - heard < 1
        assert unchunked(stream.received() + unsent) == [known.splice(data)] * sent
        stream.engine.sendall(chunked(data))
        assert stream.path.run() == []
        with pytest.raises(KeyError):
            stream.path.remove(source)


@pytest.mark.parametrize("leave", ["engine", "caller"])
def test_an_end_comes_back(leave: str) -> None:
    with lane() as (stream, known):
        stream.engine.sendall(chunked(event("a")))
        getattr(stream, leave).close()
        ((_, unread, unsent, number, _),) = stream.path.run() or stream.path.run()
        assert unread == b""
        if leave == "engine":
            assert (unsent, number) == (b"", 1)
            assert unchunked(stream.received()) == [known.splice(event("a"))]
        else:
            assert unchunked(unsent) == [known.splice(event("a"))]


def test_many_streams_are_each_other_s_neighbours() -> None:
    """More than one turn takes, and than one list of descriptors has; each has its own events, in order."""
    known = splicer()
    assert known.frame is not None
    path, pairs = _fastpath.FastPath(), [(socket.socketpair(), socket.socketpair()) for _ in range(150)]
    try:
        for (_, source), (sink, caller) in pairs:
            caller.setblocking(False)
            path.add(source.fileno(), sink.fileno(), *known.frame[:4])
        for round_ in range(3):
            for number, ((engine, _), _) in enumerate(pairs):
                engine.sendall(chunked(event(f"{number} in {round_}")))
        for _ in range(3):
            assert path.run() == []
        for number, ((_, source), (_, caller)) in enumerate(pairs):
            expected = [known.splice(event(f"{number} in {round_}")) for round_ in range(3)]
            assert unchunked(caller.recv(2**16)) == expected
            assert path.heard(source.fileno()) <= time.monotonic()
            assert path.remove(source.fileno())[0] == 3
    finally:
        for pair in pairs:
            for each in (*pair[0], *pair[1]):
                each.close()


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with lane() as (stream, _), (tmp_path / "file").open("w+") as file:
        with pytest.raises(ValueError, match="is read already"):
            stream.path.add(stream.source.fileno(), 1, b"", b"", b"", b"")
        with pytest.raises(PermissionError):  # a file is always ready
            stream.path.add(file.fileno(), 1, b"", b"", b"", b"")
        for unknown in (-1, 10**6, 2**40):
            with pytest.raises(KeyError):
                stream.path.remove(unknown)
            with pytest.raises(KeyError):
                stream.path.heard(unknown)


# Through the router


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many events were sent on, each time that a stream was back."""
    counts: list[int] = []
    told = _Events._returned

    def count(self: _Events, number: int, last: float) -> None:
        counts.append(number)
        told(self, number, last)

    monkeypatch.setattr(_Events, "_returned", count)
    return counts


def pieces(*parts: bytes, pause: float = 0.005, close: bool = False) -> Script:
    """The body of a stream, as it is written part by part; ``close`` is its end, too, without a last chunk."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number, part in enumerate(parts):
            await asyncio.sleep(pause if number else 0)
            writer.write(part)
            await writer.drain()
        if close:
            writer.close()

    return play


DONE = chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
WORDS = [chunked(event(f" word {number}")) for number in range(12)]
STREAMS: dict[str, tuple[Script, bool]] = {
    # What the engine writes, and whether the stream is lent.
    "alike": (pieces(*WORDS, DONE), True),
    "several at a time": (pieces(*WORDS[:3], b"".join(WORDS[3:9]), *WORDS[9:], DONE), True),
    "the end at once": (pieces(*WORDS, WORDS[0] + DONE), True),
    "cut": (pieces(*WORDS[:4], WORDS[4][:7], WORDS[4][7:], WORDS[5] + WORDS[6][:1], WORDS[6][1:], *WORDS, DONE), True),
    "a size apart": (pieces(*WORDS[:4], WORDS[4][:4], WORDS[4][4:], WORDS[5][:3], WORDS[5][3:], DONE), True),
    "written otherwise": (
        pieces(*WORDS[:4], *(chunked(event(text)) for text in ("\n", '"', "\x01", "é", "你好", "")), *WORDS, DONE),
        True,
    ),
    "in turns": (pieces(*(chunked(event("x", index=number % 2)) for number in range(60)), DONE, pause=0.002), True),
    "a refusal": (pieces(*WORDS, chunked(b'data: {"error":{"message":"no","code":400}}\n\n'), DONE), True),
    "broken off": (pieces(*WORDS, close=True), True),
    "broken off within a chunk": (pieces(*WORDS, WORDS[0][:9], close=True), True),
    "nonsense": (pieces(*WORDS, b"nonsense\r\n"), True),
    "a comment": (pieces(*WORDS[:5], chunked(b": ping\n\n"), *WORDS, DONE), True),
    "never alike": (pieces(*(chunked(event("x", token=number)) for number in range(20)), DONE), False),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_caller_cannot_tell(name: str, engine: ScriptedEngine, fleet: Fleet, lent: list[int]) -> None:
    engine.scripts["/v1/completions"], sent_on = STREAMS[name]
    got = []
    for fast in (False, True):
        assert not lent
        async with fronting(fleet, fast=fast) as client, asyncio.timeout(10):
            got.append((await client.post("/v1/completions", json=PROMPT)).text)
    assert got[0] == got[1]
    assert got[0].count("data: ") >= 7
    assert bool(lent) is sent_on


async def test_a_stream_that_keeps_coming_back_is_left_alone(
    engine: ScriptedEngine, fleet: Fleet, lent: list[int]
) -> None:
    """Of 600 events that take turns, one in two is spliced, and few of these are worth a try."""
    turns = (chunked(event("x", index=number % 2)) for number in range(600))
    engine.scripts["/v1/completions"] = pieces(*turns, DONE, pause=0.001)
    async with fronting(fleet) as client, asyncio.timeout(20):
        got = await client.post("/v1/completions", json=PROMPT)
    assert got.text.count("data: ") == 601
    assert 3 <= len(lent) <= 12


async def test_events_are_counted(engine: ScriptedEngine, fleet: Fleet) -> None:
    """With the time between them, to which what is none does not count."""

    async def play(writer: asyncio.StreamWriter) -> None:
        await pieces(*WORDS, pause=0.03)(writer)
        await asyncio.sleep(1)
        writer.write(b"nonsense\r\n")

    engine.scripts["/v1/completions"] = play
    async with fronting(fleet) as client, asyncio.timeout(10):
        await client.post("/v1/completions", json=PROMPT)
        metrics = (await client.get("/metrics")).text
    (between,) = re.findall(r"^tandem_inter_token_latency_seconds_sum.* (\S+)$", metrics, re.MULTILINE)
    assert 0.025 < float(between) < 0.1


def asks(version: str = "1.1", **headers: str) -> bytes:
    body = json.dumps(PROMPT)
    lines = {"host": "router", "content-type": "application/json", "content-length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST /v1/completions HTTP/{version}\r\n{head}\r\n{body}".encode()


def forever(*, pause: float = 0.01, text: str = "x") -> Script:
    """A stream of events that are alike."""
    return pieces(*[chunked(event(text))] * 2000, pause=pause)


def open_files() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def up(address: str) -> int:
    """The router at ``address`` is; how many files are open then."""
    await said(address, b"GET /livez HTTP/1.0\r\n\r\n")
    return open_files()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_caller_who_leaves_ends_the_engine_s_work(
    engine: ScriptedEngine, fleet: Fleet, lent: list[int]
) -> None:
    """And nothing of the stream stays open."""
    engine.scripts["/v1/completions"] = forever()
    async with serving(fleet) as (_, address):
        before = await up(address)
        for _ in range(3):
            engine.left.clear()
            reader, writer = await connected(address)
            writer.write(asks())
            async with asyncio.timeout(5):
                for _ in range(8):
                    await reader.readuntil(b"data: ")
                writer.transport.abort()
                await engine.left.wait()
            await until(lambda: open_files() <= before)
    assert len(lent) == 3
    assert min(lent) > 1


async def test_a_deadline_ends_it(engine: ScriptedEngine, fleet: Fleet, lent: list[int]) -> None:
    engine.scripts["/v1/completions"] = forever()
    async with fronting(fleet) as client, asyncio.timeout(5):
        got = await client.post("/v1/completions", json=PROMPT, headers={"X-Request-Timeout": "0.4"})
    *_, last = [block for block in got.text.split("\n\n") if block]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert sum(lent) > 5


async def test_silence_is_noticed(engine: ScriptedEngine, fleet: Fleet, lent: list[int]) -> None:
    """Counted from the last event, and not from when the stream was lent."""

    async def play(writer: asyncio.StreamWriter) -> None:
        await pieces(*WORDS, pause=0.1)(writer)
        await asyncio.sleep(10)

    engine.scripts["/v1/completions"] = play
    async with fronting(fleet, event_timeout=0.5) as client, asyncio.timeout(8):
        got = await client.post("/v1/completions", json=PROMPT)
    *words, last = [block for block in got.text.split("\n\n") if block]
    assert len(words) == len(WORDS)
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert sum(lent) == len(WORDS) - 2


async def test_an_engine_that_is_taken_away_broke_off(engine: ScriptedEngine, fleet: Fleet, lent: list[int]) -> None:
    engine.scripts["/v1/completions"] = forever()
    async with fronting(fleet) as client, asyncio.timeout(5):
        asked = asyncio.ensure_future(client.post("/v1/completions", json=PROMPT))
        await engine.until_asked()
        await asyncio.sleep(0.2)
        gone = [msgspec.structs.replace(each, state=State.FAILED) for each in fleet.now.engines]
        fleet.replace(Snapshot(tuple(gone)))
        got = await asked
    assert "upstream_broke_off" in got.text
    assert sum(lent) > 5


async def test_a_caller_who_does_not_read_stops_the_engine(
    engine: ScriptedEngine, fleet: Fleet, lent: list[int]
) -> None:
    """And once it reads, it gets every event."""
    number, wrote = 3000, 0
    data = chunked(event("x" * 16_000))

    async def play(writer: asyncio.StreamWriter) -> None:
        nonlocal wrote
        await pieces(*WORDS)(writer)
        while wrote < number:
            writer.write(data)
            await writer.drain()
            wrote += 1
        writer.write(DONE)

    engine.scripts["/v1/completions"] = play
    async with serving(fleet) as (_, address), asyncio.timeout(20):
        reader, writer = await connected(address, limit=2**16)
        writer.write(asks(connection="close"))
        await until(lambda: wrote > 0)
        stopped, before = 0, -1
        while stopped < 4:
            await asyncio.sleep(0.05)
            stopped, before = (stopped + 1 if wrote == before else 0), wrote
        assert wrote < number
        got = await reader.read()
    writer.close()
    assert b"".join(unchunked(got.partition(b"\r\n\r\n")[2])).count(b"x" * 16_000) == number
    assert lent


async def test_a_caller_who_does_not_read_stops_it_whatever_an_event_grows_to(
    engine: ScriptedEngine, fleet: Fleet, lent: list[int]
) -> None:
    """By a long alias, sixteen times: what one read becomes is more than what may wait for the caller."""
    alias = "m" * 3000
    ready = fleet.now.engines
    fleet.replace(Snapshot(tuple(msgspec.structs.replace(each, aliases=(each.name + alias,)) for each in ready)))
    wrote = 0

    async def play(writer: asyncio.StreamWriter) -> None:
        nonlocal wrote
        await pieces(*WORDS)(writer)
        while True:
            writer.write(WORDS[0] * 100)
            await writer.drain()
            wrote += 1

    engine.scripts["/v1/completions"] = play
    body = json.dumps(PROMPT | {"model": f"generation{alias}"})
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    async with serving(fleet) as (_, address), asyncio.timeout(20):
        _, writer = await connected(address, limit=2**16)
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        await until(lambda: wrote > 0)
        stopped, before = 0, -1
        while stopped < 4:
            await asyncio.sleep(0.05)
            stopped, before = (stopped + 1 if wrote == before else 0), wrote
        writer.transport.abort()
    assert lent


async def test_what_is_given_back_goes_on(
    engine: ScriptedEngine, fleet: Fleet, lent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FastPath] = []
    began = FastPath.__init__
    monkeypatch.setattr(FastPath, "__init__", lambda self: (made.append(self), began(self))[1])
    engine.scripts["/v1/completions"] = pieces(*WORDS * 3, DONE, pause=0.02)
    async with fronting(fleet) as client, asyncio.timeout(5):
        asked = asyncio.ensure_future(client.post("/v1/completions", json=PROMPT))
        await engine.until_asked()
        await asyncio.sleep(0.2)
        assert not lent
        made[0].close()
        assert sum(lent) > 3
        got = await asked
    assert got.text.count("word") == 3 * len(WORDS)
    assert "[DONE]" in got.text


async def test_a_server_that_stops_ends_it(engine: ScriptedEngine, fleet: Fleet, lent: list[int]) -> None:
    engine.scripts["/v1/completions"] = forever()
    async with asyncio.timeout(10):
        async with serving(fleet, drain_timeout=0.3) as (server, address):
            reader, writer = await connected(address)
            writer.write(asks())
            for _ in range(8):
                await reader.readuntil(b"data: ")
            server.should_exit = True
            got = await reader.read()
        writer.close()
    assert b'"error"' in got
    assert sum(lent) > 2


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_what_is_kept_is_used_again(version: str, engine: ScriptedEngine, fleet: Fleet, lent: list[int]) -> None:
    """By the engine's connection and by the caller's; for HTTP/1.0, which has no chunks, nothing is sent on."""
    engine.scripts["/v1/completions"] = pieces(*WORDS, DONE, pause=0.002)
    async with serving(fleet) as (_, address), asyncio.timeout(10):
        before = await up(address)
        if version == "1.1":
            reader, writer = await connected(address)
        for _ in range(3):
            if version == "1.0":
                reader, writer = await connected(address)
            writer.write(asks(version))
            got = await (reader.readuntil(b"\r\n0\r\n\r\n") if version == "1.1" else reader.read())
            assert got.count(b"word") == len(WORDS)
            assert b"[DONE]" in got
            if version == "1.0":
                writer.close()
        writer.close()
        await until(lambda: open_files() <= before + 2)  # the engine's, at both its ends
    assert engine.connections == 1
    assert (sum(lent) >= 3) is (version == "1.1")


async def test_over_tls_nothing_is_sent_on(
    engine: ScriptedEngine, fleet: Fleet, lent: list[int], tmp_path: Path
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    engine.scripts["/v1/completions"] = pieces(*WORDS, DONE)
    files = {"tls_cert": tmp_path / "server.pem", "tls_key": tmp_path / "server.pem"}
    async with (
        serving(fleet, **files) as (_, address),
        httpx2.AsyncClient(base_url=address, verify=trusted, trust_env=False) as client,
    ):
        got = await client.post("/v1/completions", json=PROMPT)
    assert got.text.count("word") == len(WORDS)
    assert not lent


@pytest.mark.timeout(60)
async def test_nobody_gets_another_s_events(engine: ScriptedEngine, fleet: Fleet, lent: list[int]) -> None:
    """However many leave in the middle, and whoever comes in their place, with their descriptors' numbers."""
    chance = random.Random(7)  # noqa: S311 - it guards nothing

    def play(writer: asyncio.StreamWriter) -> Awaitable[None]:
        _, _, body = engine.asked[-1]
        return pieces(*[chunked(event(f"<{body['prompt']}>"))] * 40, DONE, pause=0.001)(writer)

    engine.scripts["/v1/completions"] = play

    async def call(name: str) -> None:
        body = json.dumps(PROMPT | {"prompt": name})
        reader, writer = await connected(address)
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        got = b""
        patience = chance.choice([300, 2000, 10**9])
        while len(got) < patience and not got.endswith(b"\r\n0\r\n\r\n"):
            part = await reader.read(2**16)
            assert part
            got += part
        if chance.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        assert set(re.findall(rb"<(\w+)>", got)) <= {name.encode()}

    async with serving(fleet) as (_, address), asyncio.timeout(50):
        before = await up(address)
        for round_ in range(12):
            await asyncio.gather(*(call(f"{round_}x{number}") for number in range(25)))
        await until(lambda: open_files() <= before + 2 * 25)
    assert len(lent) > 100
