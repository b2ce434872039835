"""Connections to engines are kept, dropped when stale, and broken off with the work behind them."""

import asyncio

import pytest

from tandem.router import upstream as upstream_module
from tandem.router.connection import UpstreamError, UpstreamTimeout
from tandem.router.upstream import Answer, Upstream

from .conftest import Script, ScriptedEngine, answer, reset, stream


@pytest.fixture
def upstream(engine: ScriptedEngine) -> Upstream:
    return Upstream(engine.url, connect_timeout=1)


async def get(upstream: Upstream, path: str = "/x") -> tuple[int, bytes]:
    got = await upstream.request("GET", path)
    try:
        return got.status, await got.read()
    finally:
        got.close()


async def test_a_connection_is_used_again(engine: ScriptedEngine, upstream: Upstream) -> None:
    engine.scripts["/x"] = answer({"a": 1})
    for _ in range(3):
        assert await get(upstream) == (200, b'{"a": 1}')
    assert engine.connections == 1
    upstream.close()


async def test_many_at_once_get_a_connection_each(engine: ScriptedEngine, upstream: Upstream) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        await answer({})(writer)

    engine.scripts["/x"] = slow
    assert await asyncio.gather(*(get(upstream) for _ in range(20))) == [(200, b"{}")] * 20
    assert engine.connections == 20


async def test_a_stale_connection_costs_the_caller_nothing(engine: ScriptedEngine, upstream: Upstream) -> None:
    """One that the engine resets at the next request is replaced by a fresh one, unseen."""
    engine.scripts |= {"/x": answer({}), "/reset": reset()}
    await get(upstream)
    waiting = asyncio.create_task(get(upstream, "/reset"))
    await asyncio.sleep(0.05)
    with pytest.raises(UpstreamError, match="closed the connection"):
        await waiting
    assert engine.connections == 2


async def test_a_connection_with_an_unread_answer_is_not_used(engine: ScriptedEngine, upstream: Upstream) -> None:
    """Though all of it may have come: the next answer would be read from behind it."""
    engine.scripts |= {"/large": answer(None, raw=b"x" * 2_000_000), "/x": answer({})}
    got = await upstream.request("GET", "/large", streamed=True)
    await asyncio.sleep(0.2)
    got.close()
    assert await asyncio.wait_for(get(upstream), 2) == (200, b"{}")


async def test_a_connection_with_more_than_was_asked_for_is_not_used(
    engine: ScriptedEngine, upstream: Upstream
) -> None:
    """A second answer, at once or later, or the beginning of one: it is not the answer to what is asked next."""
    first, second = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", b"HTTP/1.1 201 OK\r\ncontent-length: 4\r\n\r\n"

    def two(at_once: bytes, later: bytes) -> Script:
        async def play(writer: asyncio.StreamWriter) -> None:
            writer.write(first + at_once)
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(later)

        return play

    engine.scripts |= {"/whole": two(second + b"evil", b""), "/head": two(second, b""), "/letter": two(b"H", b"")}
    engine.scripts |= {"/later": two(b"", second), "/x": answer({"a": 1})}
    for number, path in enumerate(("/whole", "/head", "/letter", "/later"), 2):
        got = await upstream.request("GET", path)
        assert (got.status, got.headers[b"content-length"], await got.read()) == (200, b"2", b"{}")
        got.close()
        await asyncio.sleep(0.05)
        assert await get(upstream) == (200, b'{"a": 1}')
        assert engine.connections == number


async def test_an_answer_may_have_so_many_bytes(engine: ScriptedEngine, upstream: Upstream) -> None:
    engine.scripts["/x"] = answer(None, raw=b"x" * 5_000_000)
    with pytest.raises(UpstreamError, match="more than 1000000 bytes") as caught:
        await upstream.request("GET", "/x", most=1_000_000)
    assert caught.value.answered
    engine.scripts["/x"] = answer(None, raw=b"x" * 10_000)  # in one read
    with pytest.raises(UpstreamError, match="more than 9000 bytes"):
        await upstream.request("GET", "/x", most=9_000)


async def test_an_answer_that_stops_in_the_middle_is_not_waited_for_for_ever(
    engine: ScriptedEngine, upstream: Upstream
) -> None:
    """Nobody has read what has come of it; that is no reason to wait longer."""

    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{}")
        await asyncio.sleep(60)

    engine.scripts["/x"] = half
    with pytest.raises(UpstreamTimeout, match=r"0\.1 s"):
        await asyncio.wait_for(upstream.request("GET", "/x", first=5.0, between=0.1), 5)


async def test_a_connection_idle_for_too_long_is_not_used(
    engine: ScriptedEngine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM closes idle connections after five seconds; the pool is quicker."""
    engine.scripts["/x"] = answer({})
    await get(upstream)
    monkeypatch.setattr(upstream_module, "_IDLE", -1)
    await get(upstream)
    assert engine.connections == 2


class Parts:
    """Takes all that comes."""

    def __init__(self) -> None:
        self.read_so_far = b""
        self.some = asyncio.Event()

    def read(self, part: bytes) -> None:
        self.read_so_far += part
        self.some.set()


async def test_an_answer_left_early_is_broken_off(engine: ScriptedEngine, upstream: Upstream) -> None:
    engine.scripts["/v1/x"] = stream(*({"n": n} for n in range(1000)), pause=0.01)
    got = await upstream.request("POST", "/v1/x", b"{}", streamed=True)
    parts = Parts()
    feeding = asyncio.create_task(got.feed(parts.read))
    await asyncio.wait_for(parts.some.wait(), 2)
    assert b"data" in parts.read_so_far
    feeding.cancel()
    got.close()
    await asyncio.wait_for(engine.left.wait(), 2)


async def test_what_a_reader_raises_is_raised_where_it_was_given(engine: ScriptedEngine, upstream: Upstream) -> None:
    """Also of what had come before it was given."""

    class Picky(Parts):
        def read(self, part: bytes) -> None:
            raise ValueError(part)

    for pause in (0.0, 0.05):
        engine.scripts["/v1/x"] = stream({"n": 1}, {"n": 2}, pause=pause)
        got = await upstream.request("POST", "/v1/x", b"{}", streamed=True)
        if not pause:
            await asyncio.sleep(0.05)
        with pytest.raises(ValueError, match="data"):
            await got.feed(Picky().read)
        got.close()


async def test_what_is_held_does_not_come(engine: ScriptedEngine, upstream: Upstream) -> None:
    """Until it is let go; the time counts against nobody."""
    engine.scripts["/v1/x"] = stream(*({"n": n} for n in range(5)), pause=0.02)
    got = await upstream.request("POST", "/v1/x", b"{}", streamed=True, first=1.0, between=0.1)
    parts = Parts()
    feeding = asyncio.create_task(got.feed(parts.read))
    await asyncio.wait_for(parts.some.wait(), 2)
    got.hold(True)
    before = len(parts.read_so_far)
    await asyncio.sleep(0.3)
    assert len(parts.read_so_far) == before
    got.hold(False)
    await asyncio.wait_for(feeding, 2)
    assert parts.read_so_far.count(b"data") == 5
    got.close()


async def test_who_is_slow_from_the_beginning_gets_nothing(engine: ScriptedEngine, upstream: Upstream) -> None:
    """Or becomes slow with the first part, of which some had come before anybody read."""
    for slow_at_once in (True, False):
        engine.scripts["/v1/x"] = stream(*({"n": n} for n in range(5)), pause=0.02)
        got = await upstream.request("POST", "/v1/x", b"{}", streamed=True)
        await asyncio.sleep(0.01)
        parts = Parts()

        def read(part: bytes, got: Answer = got, parts: Parts = parts) -> None:
            parts.read(part)
            got.hold(True)

        feeding = asyncio.create_task(got.feed(parts.read if slow_at_once else read, paused=slow_at_once))
        await asyncio.sleep(0.3)
        assert parts.read_so_far.count(b"data") == 1, "what had come is read, and no more"
        feeding.cancel()
        got.close()


async def test_cancelling_breaks_off(engine: ScriptedEngine, upstream: Upstream) -> None:
    """While waiting for the head, too: a time-out around a request ends the engine's work."""
    engine.scripts["/v1/x"] = lambda _: asyncio.sleep(60)
    asking = asyncio.create_task(upstream.request("POST", "/v1/x", b"{}", streamed=True))
    await engine.until_asked()
    asking.cancel()
    await asyncio.wait_for(engine.left.wait(), 10)


async def test_a_broken_body_is_an_error(engine: ScriptedEngine, upstream: Upstream) -> None:
    engine.scripts["/v1/x"] = stream({"n": 1}, close=True)
    got = await upstream.request("POST", "/v1/x", b"{}", streamed=True)
    with pytest.raises(UpstreamError) as caught:
        await got.read()
    assert caught.value.answered


async def test_an_answer_without_a_length_ends_with_the_connection(engine: ScriptedEngine, upstream: Upstream) -> None:
    async def until_close(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.write_eof()

    engine.scripts["/x"] = until_close
    assert await get(upstream) == (200, b"all of it")


async def test_a_large_answer_arrives_whole(engine: ScriptedEngine, upstream: Upstream) -> None:
    """Larger than what may wait for a slow reader."""
    engine.scripts["/x"] = answer(None, raw=b"x" * 5_000_000)
    got = await upstream.request("GET", "/x", streamed=True)
    await asyncio.sleep(0.05)
    assert len(await got.read()) == 5_000_000
    got.close()
    got = await upstream.request("GET", "/x", streamed=True)
    parts = Parts()
    await got.feed(parts.read)
    assert len(parts.read_so_far) == 5_000_000


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"])
async def test_nonsense_is_an_error(said: bytes, engine: ScriptedEngine, upstream: Upstream) -> None:
    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    engine.scripts["/x"] = play
    with pytest.raises(UpstreamError, match="nonsense"):
        await get(upstream)


async def test_nobody_listens(free_port: int) -> None:
    with pytest.raises(UpstreamError, match="no connection"):
        await get(Upstream(f"http://127.0.0.1:{free_port}", connect_timeout=1))


async def test_a_connection_that_is_not_accepted_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    with pytest.raises(UpstreamTimeout, match=r"within 0.05 s"):
        await get(Upstream("http://127.0.0.1:1", connect_timeout=0.05))


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8100", "http://"])
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(ValueError, match="no http:// or https:// address"):
        Upstream(url, connect_timeout=1)


async def test_a_base_url_may_have_a_path(engine: ScriptedEngine) -> None:
    engine.scripts["/prefix/x"] = answer({})
    assert await get(Upstream(f"{engine.url}/prefix/", connect_timeout=1)) == (200, b"{}")
