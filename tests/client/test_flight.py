"""Many batches in flight, and streams of them."""

import asyncio
import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tandem import (
    BadRequestError,
    SettingsError,
    Step,
)

from . import service as ways
from .calls import EXPECTED, TEXTS, Connect, embeds
from .service import DIM, Service, vector


def test_a_stream_names_it_too(service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its first window."""
    monkeypatch.setattr("tandem.client.client.WINDOW", 2)
    service.ways = [ways.well] * 5
    service.always = ways.error(400, "input[0] is bad")
    with pytest.raises(BadRequestError) as refused:
        list(connect(max_concurrent_requests=1).embed_iter([f"{i}" for i in range(9)], batch_size=1))
    assert refused.value.index == 5


@pytest.mark.parametrize("how", ["embed_chunks", "embed_chunks_async", "embed_iter"])
def test_an_error_ends_all_that_is_in_flight(how: str, service: Service, connect: Connect) -> None:
    """The first error of many batches is raised without waiting for the others, and no further ones are sent."""
    over = threading.Event()

    def hang(handler: ways.Handler, asked: dict[str, Any]) -> None:
        over.wait(20)
        ways.well(handler, asked)

    service.always = hang
    service.ways = [ways.error(400, "bad")]
    steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
    with pytest.raises(BadRequestError, match="bad"):
        embeds(connect(steps.put, max_concurrent_requests=3), how, TEXTS)
    over.set()
    in_flight = {steps.get(timeout=10).batch}
    while in_flight:
        in_flight ^= {steps.get(timeout=10).batch}  # in with its start, out with its end
    assert len(service.asked) <= 3


@pytest.mark.parametrize("how", ["embed_chunks", "embed_chunks_async", "embed_iter"])
def test_batches_are_in_flight_together(how: str, service: Service, connect: Connect) -> None:
    """As many as are allowed: each waits here until all the others have come."""
    together = threading.Barrier(3)

    def meet(handler: ways.Handler, asked: dict[str, Any]) -> None:
        together.wait(20)
        ways.well(handler, asked)

    service.always = meet
    found = embeds(connect(max_concurrent_requests=3), how, TEXTS[:42])  # 6 batches of 7
    assert np.array_equal(found, EXPECTED[:42])


def test_a_stream_is_bounded_and_in_order(service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes an endless source, reads at most three windows ahead, and keeps no window for one vector."""
    monkeypatch.setattr("tandem.client.client.WINDOW", 4)
    read: list[int] = []

    def source() -> Iterator[str]:
        for i in itertools.count():
            read.append(i)
            yield f"text {i}"

    stream = connect().embed_iter(source(), batch_size=5)
    for i, found in enumerate(itertools.islice(stream, 200)):
        assert np.array_equal(found, vector(f"text {i}"))
        assert found.base is None
        assert len(read) <= i + 3 * 4 * 5
    stream.close()  # type: ignore[attr-defined]


def test_a_source_that_fails_fails_the_stream(connect: Connect) -> None:
    """With its own error."""

    def source() -> Iterator[str]:
        yield "a"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(connect().embed_iter(source()))


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "8"])
def test_a_batch_size_must_be_one(size: Any, connect: Connect) -> None:
    """In every way to embed that takes it."""
    client = connect()
    with pytest.raises(SettingsError, match="batch_size"):
        client.embed_chunks(["a"], batch_size=size)
    with pytest.raises(SettingsError, match="batch_size"):
        client.embed_iter(["a"], batch_size=size)
    with pytest.raises(SettingsError, match="batch_size"):
        asyncio.run(client.embed_chunks_async(["a"], batch_size=size))


@pytest.mark.parametrize("raised", [False, True])
def test_a_stream_that_is_left_sends_nothing_more(raised: bool, service: Service, connect: Connect) -> None:
    """Whether its caller has had enough, or its source fails half way: what is on its way comes, and that is all."""

    def source() -> Iterator[str]:
        yield from (f"text {i}" for i in range(200))
        if raised:
            raise OSError("the disk is gone")
        yield from (f"text {i}" for i in range(200, 500))

    steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
    client = connect(steps.put, max_concurrent_requests=2)
    stream = client.embed_iter(source(), batch_size=2)
    if raised:
        with pytest.raises(OSError, match="the disk is gone"):
            list(stream)
    else:
        assert np.array_equal(next(stream), vector("text 0"))
        stream.close()  # type: ignore[attr-defined]
    in_flight = {steps.get(timeout=10).batch_id}
    while in_flight or not steps.empty():
        in_flight ^= {steps.get(timeout=10).batch_id}  # in with its start, out with its end
    before = len(service.asked)
    assert before <= 100
    assert client.embed_single("a").shape == (DIM,)
    assert len(service.asked) == before + 1
