"""The router over a real socket, in front of engines whose HTTP answers are scripted."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from tandem.fleet import Engine, Fleet, Snapshot, State
from tandem.router.app import Router
from tandem.router.fastpath import COMPILED
from tandem.router.listener import listen
from tandem.router.server import Server, server
from tandem.router.upstream import Upstreams
from tandem.settings import RouterSettings
from tandem.telemetry.logs import RequestLog

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]

USAGE = {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1}
COMPLETION = {"id": "c", "created": 1, "model": "org/gen", "choices": [{"index": 0, "text": "x"}], "usage": USAGE}
CHUNK = {"id": "c", "created": 1, "model": "org/gen", "choices": [{"index": 0, "text": "x"}]}


def answer(body: object, status: int = 200, *, raw: bytes | None = None) -> Script:
    """One whole JSON answer."""

    async def play(writer: asyncio.StreamWriter) -> None:
        payload = json.dumps(body).encode() if raw is None else raw
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(payload)}\r\n\r\n".encode() + payload)

    return play


def stream(*events: object, close: bool = False, pause: float = 0) -> Script:
    """Server-sent events as vLLM sends them, chunked; ``close`` breaks off without the end of the chunks."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in events:
            data = b"data: " + (event.encode() if isinstance(event, str) else json.dumps(event).encode()) + b"\n\n"
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            await asyncio.sleep(pause)
        if close:
            writer.transport.abort()
        else:
            writer.write(b"0\r\n\r\n")

    return play


def reset() -> Script:
    """The connection is reset instead of an answer."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    return play


class ScriptedEngine:
    """An engine that answers as told, by path, and remembers what it was asked and whether it was broken off."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.connections = 0
        self.left = asyncio.Event()
        self.url = ""

    async def serve(self) -> asyncio.Server:
        listening = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = listening.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return listening

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = lines[0].split()[1]
                self.asked.append((path, headers, json.loads(body) if body else None))
                playing = asyncio.ensure_future(self.scripts.get(path, answer({}, 404))(writer))
                leaving = asyncio.ensure_future(reader.read(1)) if path.startswith("/v1/") else None
                if leaving is None:
                    await playing
                    continue
                await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    self.left.set()
                    playing.cancel()
                    return
                leaving.cancel()
                await asyncio.wait({leaving})
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def until_asked(self) -> None:
        """Wait for the first request."""
        async with asyncio.timeout(10):
            while not self.asked:
                await asyncio.sleep(0.005)

    def forget(self) -> None:
        """As new, but for its connections."""
        self.scripts.clear()
        self.asked.clear()
        self.left.clear()


def two_engines(url: str, *, started: float = 0.0) -> Snapshot:
    """One ready engine of each kind, both at ``url``."""
    return Snapshot(
        tuple(
            Engine(
                name=name,
                kind=name,
                model=model,
                aliases=(f"{name}-alias",),
                url=url,
                state=State.READY,
                started=started,
            )
            for name, model in (("embedding", "org/emb"), ("generation", "org/gen"))
        )
    )


@asynccontextmanager
async def serving(fleet: Fleet, *, fast: bool = COMPILED, **settings: Any) -> AsyncIterator[tuple[Server, str]]:
    """A router that fronts ``fleet``, and its address; ``fast`` as :class:`Upstreams` has it."""
    wanted = RouterSettings(**{"drain_timeout": 1, "max_body_bytes": 100_000, **settings})
    with listen("127.0.0.1", 0) as listener:
        log = RequestLog("info")
        made = server(Router(fleet, Upstreams(connect_timeout=1, fast=fast), wanted, sinks=[log]), wanted)
        running = asyncio.create_task(made.serve([listener]))
        host, port = listener.getsockname()
        try:
            yield made, f"{'https' if wanted.tls_cert else 'http'}://{host}:{port}"
        finally:
            made.should_exit = True
            await running


@asynccontextmanager
async def fronting(fleet: Fleet, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a router that fronts ``fleet``."""
    async with (
        serving(fleet, **settings) as (_, address),
        httpx2.AsyncClient(base_url=address, trust_env=False, timeout=30) as client,
    ):
        yield client


async def connected(address: str, **how: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A plain connection to a router at ``address``."""
    return await asyncio.open_connection(*address.removeprefix("http://").split(":"), **how)


async def said(address: str, *sent: bytes, pause: float = 0.0) -> bytes:
    """All that a connection says to these bytes, to its end; ``pause`` seconds pass after each of them."""
    reader, writer = await connected(address)
    async with asyncio.timeout(20):
        for part in sent:
            writer.write(part)
            await asyncio.sleep(pause)
        got = await reader.read()
    writer.close()
    return got


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    """A scripted engine of the test's own."""
    scripted = ScriptedEngine()
    listening = await scripted.serve()
    yield scripted
    listening.close()


@pytest.fixture
def fleet(engine: ScriptedEngine) -> Fleet:
    """The scripted engine in both places; it completes prompts."""
    engine.scripts["/v1/completions"] = answer(COMPLETION)
    return Fleet(two_engines(engine.url))
