"""When requests are due, and what of them is counted."""

import asyncio
import itertools
import random

import pytest

from tandem.bench.connection import Failure, now
from tandem.bench.load import Load, Reply, arrivals, drive
from tandem.bench.rounds import Tally, order
from tandem.bench.scenarios import Kind
from tandem.bench.side import Address, Side

BROKEN = Failure("HTTP 503", "it is broken")


def reply(ended: float, *, events: list[float] | None = None, failure: Failure | None = None) -> Reply:
    return Reply(ended, events or [], texts=2, tokens=len(events or []), failure=failure)


def test_arrivals_are_a_poisson_process() -> None:
    """As many as the rate says, in order, with gaps whose standard deviation is their mean (exponential)."""
    times = list(arrivals(50, 200, random.Random(1)))
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 200
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.05)


def test_arrivals_are_the_same_for_the_same_seed() -> None:
    """Both sides of a comparison are asked at the same times."""
    assert list(arrivals(9, 9, random.Random("x"))) == list(arrivals(9, 9, random.Random("x")))


def test_rounds_are_interleaved_and_neither_side_is_always_first() -> None:
    """A, B, B, A, A, B."""
    sides = [Side(name, Address("http://h"), None, {Kind.EMBEDDINGS: "m"}, {}) for name in "AB"]
    assert [(side.name, number) for side, number in order(sides, 3)] == [
        ("A", 1),
        ("B", 1),
        ("B", 2),
        ("A", 2),
        ("A", 3),
        ("B", 3),
    ]


def tallied(rate: float | None, *requests: tuple[float, float]) -> Tally:
    """A round that is measured from 105 to 115, with requests due and ended at these times."""
    tally = Tally(Load(clients=3, rate=rate, seconds=10, warm_up=5, timeout=60), start=100)
    for due, ended in requests:
        tally.begun(0)
        tally.ended(due, reply(ended))
    return tally


def test_latency_is_that_of_what_was_due_in_the_window() -> None:
    """The warm-up does not count, and what is slow cannot fall out of the percentiles by ending late."""
    tally = tallied(None, (101, 104), (104, 106), (107, 108), (114, 144))
    assert sorted(tally.latencies) == [1, 30]
    assert tally.figures(10)["latency_p50"] == 15.5


def test_closed_loop_throughput_counts_a_request_by_its_share_in_the_window() -> None:
    """Half of one from the warm-up, all of one, a tenth of one that ends late; and the texts in them."""
    found = tallied(None, (101, 104), (104, 106), (107, 108), (114, 124)).figures(10)
    assert found["requests_per_second"] == pytest.approx(0.16)
    assert found["texts_per_second"] == pytest.approx(0.32)


def test_closed_loop_throughput_does_not_depend_on_where_answers_fall() -> None:
    """Three users who are answered together every 4 s are 0.75 requests/s, whenever the window begins."""
    for start in (100.0, 101.0, 102.5, 103.9):
        rounds = [(start + 4 * at, start + 4 * at + 4) for at in range(-1, 4) for _ in range(3)]
        assert tallied(None, *rounds).figures(10)["requests_per_second"] == pytest.approx(0.75)


def test_open_loop_throughput_counts_what_was_answered_in_the_window() -> None:
    """Of an overloaded service, requests mostly wait: a share of that time is no work."""
    assert tallied(9, (101, 104), (104, 106), (107, 108), (114, 144)).figures(10)["requests_per_second"] == 0.2


def test_errors_are_counted_by_kind_with_one_example_and_are_no_latencies() -> None:
    """A service that refuses quickly is not a fast one."""
    tally = Tally(Load(clients=1, rate=None, seconds=10, warm_up=0, timeout=60), start=0)
    for at in (1, 2, 3):
        tally.begun(0)
        tally.ended(at, reply(at + 0.001, failure=BROKEN if at < 3 else None))
    assert tally.errors.counts == {"HTTP 503": 2}
    assert tally.errors.examples == {"HTTP 503": "it is broken"}
    assert (tally.asked, tally.answered, len(tally.latencies)) == (3, 1, 1)


def test_a_stream_has_a_first_event_and_gaps() -> None:
    """Events count as throughput when they come in the window, whenever their stream ends."""
    tally = Tally(Load(clients=1, rate=None, seconds=10, warm_up=0, timeout=60), start=0)
    tally.begun(0)
    tally.ended(8, reply(12, events=[9, 9.5, 11]))
    found = tally.figures(10)
    assert found["first_event_p50"] == 1
    assert tally.gaps == [0.5, 1.5]
    assert found["events_per_second"] == 0.2
    assert found["events_per_answer"] == 3


def test_a_request_that_hangs_through_the_whole_round_is_an_error() -> None:
    """It was due in the warm-up and failed after the end; else a service that hangs would have no errors at all."""
    tally = Tally(Load(clients=1, rate=None, seconds=10, warm_up=5, timeout=60), start=0)
    for due, ended in ((1, 61), (1, 3)):
        tally.begun(0)
        tally.ended(due, reply(ended, failure=BROKEN))
    assert (tally.asked, tally.errors.total) == (1, 1)


async def test_open_loop_latency_counts_from_the_time_a_request_was_due() -> None:
    """Coordinated omission: a load generator that is held up does not hide what callers would have waited."""
    load = Load(clients=1, rate=500, seconds=0.2, warm_up=0, timeout=60)
    tally = Tally(load, now())
    held_up = False

    async def ask() -> Reply:
        nonlocal held_up
        if not held_up:
            held_up = True
            release = now() + 0.1
            while now() < release:  # nothing else can run
                pass
        return reply(now())

    await drive(load, ask, tally, random.Random(3))
    assert max(tally.latencies) >= 0.1
    # With 500 requests/s, dozens were due meanwhile; from when they were sent, none of them took any time.
    assert sum(latency > 0.02 for latency in tally.latencies) > 10


async def test_a_timer_that_rings_early_makes_no_latency_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop's may, by a millisecond; a request that is sent before it was due counts from when it was sent."""
    sleep = asyncio.sleep

    async def early(seconds: float) -> None:
        await sleep(max(0, seconds - 0.001))

    monkeypatch.setattr(asyncio, "sleep", early)
    load = Load(clients=1, rate=200, seconds=0.2, warm_up=0, timeout=60)
    tally = Tally(load, now())

    async def ask() -> Reply:
        return reply(now())

    await drive(load, ask, tally, random.Random(3))
    assert len(tally.latencies) > 10
    assert min(tally.latencies) >= 0
    assert min(tally.lateness) == 0


async def test_closed_loop_has_one_request_of_each_client_in_flight() -> None:
    """Never more than there are clients, and all of them at once."""
    load = Load(clients=7, rate=None, seconds=0.2, warm_up=0, timeout=60)
    tally = Tally(load, now())

    async def ask() -> Reply:
        await asyncio.sleep(0.01)
        return reply(now())

    await drive(load, ask, tally, random.Random(3))
    assert tally.peak == 7
    assert tally.in_flight == 0
