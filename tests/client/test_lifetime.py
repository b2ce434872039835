"""One client, from its making to its end: for many threads, for one event loop after the other, and closed."""

import asyncio
import gc
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tandem import (
    ClientClosedError,
    ServerError,
    VLLMClient,
    VLLMConfig,
)
from tandem.client import batching

from . import service as ways
from .calls import ALL, EXPECTED, TEXTS, Connect, embeds
from .service import DIM, Service, vector


def test_many_threads_share_a_client(connect: Connect) -> None:
    """Each gets its own texts' vectors."""
    client = connect()
    with ThreadPoolExecutor(8) as threads:
        assert np.array_equal(list(threads.map(client.embed_single, TEXTS)), EXPECTED)


def test_one_client_serves_one_loop_after_the_other(connect: Connect) -> None:
    """Connections close with the loop that opened them: nothing is left for the garbage collector to complain of."""
    client = connect()

    async def some() -> Any:
        return await asyncio.gather(*(client.embed_single_async(text) for text in TEXTS[:10]))

    for _ in range(3):
        assert np.array_equal(asyncio.run(some()), EXPECTED[:10])
        gc.collect()
    assert np.array_equal(client.embed_batch(TEXTS[:10]), EXPECTED[:10])


async def test_within_a_loop(connect: Connect) -> None:
    """An async client is opened and closed in the loop it is used in."""
    async with connect() as client:
        assert np.array_equal(await client.embed_chunks_async(TEXTS, 7), EXPECTED)
    with pytest.raises(ClientClosedError):
        await client.embed_batch_async(["a"])


def test_a_connection_that_is_made_while_the_client_is_closed_is_closed_too(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread whose batch nobody waits for any longer, say, since another one's failed."""
    client = connect()
    asked, closed = threading.Event(), threading.Event()
    made: list[socket.socket] = []

    def slow(*where: Any, **how: Any) -> socket.socket:
        asked.set()
        closed.wait(20)
        made.append(create_connection(*where, **how))
        return made[0]

    create_connection = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", slow)
    with ThreadPoolExecutor(1) as threads:
        answered = threads.submit(client.embed_single, "a")
        assert asked.wait(20)
        client.close()
        closed.set()
        assert np.array_equal(answered.result(20), vector("a"))
    assert [each.fileno() for each in made] == [-1]


async def test_a_cancelled_call_leaves_nothing(service: Service, connect: Connect) -> None:
    """Its requests are broken off, and the client goes on."""
    come, over = threading.Event(), threading.Event()

    def hang(handler: ways.Handler, asked: dict[str, Any]) -> None:
        come.set()
        over.wait(20)

    service.always = hang
    async with connect() as client:
        task = asyncio.create_task(client.embed_chunks_async(TEXTS, 7))
        await asyncio.to_thread(come.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        over.set()
        service.always = ways.well
        assert np.array_equal(await client.embed_single_async("a"), vector("a"))


def test_a_closed_client_says_so(service: Service, connect: Connect) -> None:
    """Closing twice is no error; asking afterwards is, in every way, and for no texts, too."""
    client = connect()
    with client:
        client.embed_batch(["a"])
    client.close()
    asyncio.run(client.aclose())
    for how in ALL:
        for texts in (["a"], []):
            with pytest.raises(ClientClosedError, match="closed"):
                embeds(client, how, texts)
    assert len(service.asked) == 1


def test_closing_ends_pauses(service: Service, connect: Connect) -> None:
    """A call that waits to be sent again ends when another thread closes the client."""
    retried = threading.Event()
    service.always = ways.error(503, "busy", headers={"retry-after": "15"})
    client = connect(on_step=lambda step: step.name == "retried" and retried.set())
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.embed_batch, ["a"])
        assert retried.wait(10)
        began = time.monotonic()
        client.close()
        with pytest.raises(ClientClosedError):
            call.result(10)
        assert time.monotonic() - began < 10  # and not the 15 s that were asked for


def test_a_unix_socket_is_an_address(unix_service: Service) -> None:
    """For threads and tasks alike."""
    with VLLMClient(VLLMConfig(base_url=unix_service.url, model="m")) as client:
        for how in ALL:
            assert np.array_equal(embeds(client, how, TEXTS), EXPECTED)
    assert unix_service.asked[0][0] == "/v1/embeddings"


def test_the_environment_makes_a_client(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """With arguments that win over it."""
    monkeypatch.setenv("VLLM_URL", service.url)
    monkeypatch.setenv("VLLM_MODEL", "other")
    with VLLMClient.from_env(model="m") as client:
        assert client.embed_single("a").shape == (DIM,)
        assert client.dimension == DIM
    assert service.asked[0][2]["model"] == "m"


def test_transports_are_arguments(service: Service) -> None:
    """Whoever brings one is asked, through the layer that sends again."""
    sent: list[list[str]] = []

    class Mine:
        def send(self, request: Any, call: Any) -> batching.Answer:
            assert call.remaining() > 0
            sent.append(list(request.input))
            if len(sent) == 1:
                raise ServerError("busy", again=True)
            return batching.Answer([vector(text) for text in request.input])

        def close(self) -> None:
            sent.append(["closed"])

    with VLLMClient(VLLMConfig(base_url=service.url, model="m"), transport=Mine()) as client:
        assert np.array_equal(client.embed_batch(["a"]), [vector("a")])
    assert sent == [["a"], ["a"], ["closed"]]
    assert service.asked == []


@pytest.mark.process
def test_ctrl_c_does_not_wait_for_the_server(service: Service) -> None:
    """A program that is interrupted while batches are in flight ends, whatever the server does."""
    come, over = threading.Event(), threading.Event()

    def hang(handler: ways.Handler, asked: dict[str, Any]) -> None:
        come.set()
        over.wait(60)
        handler.close_connection = True

    service.always = hang
    code = (
        "import sys, tandem as t; t.VLLMClient(t.VLLMConfig(base_url=sys.argv[1], model='m')).embed_chunks(['a'] * 500)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, service.url], stderr=subprocess.PIPE, text=True)
    try:
        assert come.wait(30)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
    finally:
        over.set()
        process.kill()
        process.wait()


def test_the_size_is_asked_for_by_one_task(service: Service, connect: Connect) -> None:
    """However many want to know it at once, in one loop and then in another."""
    client = connect()

    async def many() -> Any:
        return await asyncio.gather(*(client.embed_batch_async([]) for _ in range(8)))

    for _ in range(2):
        assert {found.shape for found in asyncio.run(many())} == {(0, DIM)}
    assert len(service.asked) == 1
