"""One connection, against servers that answer byte by byte as told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tandem.bench.connection import Address, Answer, Connections

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


def parts(*sent: bytes, close: bool = False) -> Script:
    """Send these, each as a packet of its own as far as that can be had."""

    async def play(writer: asyncio.StreamWriter) -> None:
        for part in sent:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        if close:
            writer.close()

    return play


def chunks(*sent: bytes) -> Script:
    return parts(EVENTS, *(b"%x\r\n%s\r\n" % (len(part), part) for part in sent), b"0\r\n\r\n")


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[tuple[Connections, list[int]]]:
    """Connections to a server that plays ``script`` for each request, and how many were made to it."""
    made: list[int] = []
    over: list[asyncio.Event] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(1)
        over.append(ended := asyncio.Event())
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await script(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.transport.abort()
        ended.set()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        connections = Connections(Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        yield connections, made
        connections.close()
        for ended in over:
            await ended.wait()
        await asyncio.sleep(0)


async def asked(script: Script, timeout: float = 5) -> Answer:
    async with serving(script) as (connections, _):
        return await connections.ask(connections.address.message("GET", "/x"), timeout)


async def test_events_are_counted_however_they_are_cut() -> None:
    """In the middle of a line, several at once, with either end of line; `[DONE]` is none of them."""
    whole = b'data: {"a": 1}\r\n\r\n: a comment\n\ndata:{"b": 2}\n\ndata: [DONE]\n\n'
    for cut in (1, 5, 17, len(whole)):
        answer = await asked(chunks(*(whole[at : at + cut] for at in range(0, len(whole), cut))))
        assert (len(answer.events), answer.done, answer.body) == (2, True, whole)
        assert answer.events == sorted(answer.events)
        assert answer.events[-1] <= answer.ended


async def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    """As HTTP/1.0 has it; one that has a length and does not reach it was broken off."""
    answer = await asked(parts(b"HTTP/1.0 200 OK\r\n\r\n", b"some", b"thing", close=True))
    assert (answer.failure, answer.body) == (None, b"something")
    broken = await asked(parts(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", b"some", close=True))
    assert broken.failure is not None
    assert broken.failure == ("connection closed", "in the middle of an answer")


async def test_a_connection_is_used_again_and_a_closed_one_is_not() -> None:
    """What connecting costs is not part of every request's latency."""
    for head, connected in ((b"", 1), (b"connection: close\r\n", 3)):
        async with serving(parts(b"HTTP/1.1 200 OK\r\n" + head + b"content-length: 2\r\n\r\nok")) as (
            connections,
            made,
        ):
            for _ in range(3):
                answer = await connections.ask(connections.address.message("GET", "/x"), 5)
                assert (answer.failure, answer.body) == (None, b"ok")
        assert len(made) == connected


async def test_an_interim_answer_is_none() -> None:
    """100 Continue is followed by the answer itself."""
    answer = await asked(parts(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"))
    assert (answer.status, answer.body) == (200, b"ok")


async def test_what_was_not_asked_for_ends_the_connection_only() -> None:
    """A late second answer is not taken for the next one's."""
    twice = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" * 2
    async with serving(parts(twice)) as (connections, _):
        for _ in range(2):
            answer = await connections.ask(connections.address.message("GET", "/x"), 5)
            assert answer.body == b"ok"
