"""Whether an engine moves, by samples of it."""

from dataclasses import replace

import pytest

from tandem.engines.progress import Progress, Start
from tandem.engines.vitals import Counters, Processes, Sample
from tandem.settings import SupervisionSettings

BEFORE = Start(at=100, lines=5, processes=Processes(cpu=10, read=1000), moved=90)


@pytest.mark.parametrize(
    ("lines", "did", "still"),
    [
        (5, Processes(cpu=10, read=1000), 20),
        (6, Processes(cpu=10, read=1000), 0),
        (5, Processes(cpu=12, read=1000), 0),
        (5, Processes(cpu=10, read=10_000_000), 0),
        (5, Processes(cpu=10.1, read=1100), 20),
        (5, Processes(), 0),
    ],
    ids=["nothing", "logs", "computes", "reads", "waits and wakes up", "a process ended"],
)
def test_a_starting_engine_moves_while_it_logs_reads_or_computes(lines: int, did: Processes, still: float) -> None:
    """And not by what waiting processes use; for how long it has stood still adds up."""
    assert BEFORE.after(110, lines, did).still == still


def test_a_start_may_take_as_long_as_it_likes() -> None:
    """Weights of an hour: it is still while it reads nothing, and that alone counts."""
    start = BEFORE
    for minute in range(60):
        start = start.after(160 + minute * 60, 5, Processes(cpu=10, read=(minute + 1) * 10**8))
        assert start.still == 0
    assert start.after(start.at + 200, 5, start.processes).still == 200


# Serving

WORKING = Sample(
    100, in_flight=4, bytes=8000, processes=Processes(cpu=50, workers=40), counters=Counters(requests=7, tokens=900)
)
SERVING = Progress(WORKING, moved=70)


@pytest.mark.parametrize(
    ("after", "moves"),
    [
        (WORKING, False),
        (replace(WORKING, counters=Counters(requests=8, tokens=900)), True),
        (replace(WORKING, counters=Counters(requests=7, tokens=901)), True),
        (replace(WORKING, counters=None), False),
        (replace(WORKING, processes=Processes(cpu=60, workers=50)), True),
        (replace(WORKING, processes=Processes(cpu=60, workers=40)), False),
        (replace(WORKING, processes=Processes(cpu=60, workers=50, stopped=True)), False),
        (replace(WORKING, processes=Processes(cpu=60, workers=50, stopped=True), counters=Counters(8, 900)), True),
        (replace(WORKING, processes=Processes(cpu=50.2, workers=40.2)), False),
        (replace(WORKING, in_flight=9), False),
        (replace(WORKING, in_flight=0), True),
    ],
    ids=[
        "nothing",
        "a request is done",
        "a token more",
        "it does not tell",
        "workers compute",
        "the server alone computes",
        "one is stopped, another spins",
        "stopped, and yet counting",
        "waits and wakes up",
        "callers come",
        "nothing to do",
    ],
)
def test_a_serving_engine_moves_while_its_counters_or_its_workers_do(after: Sample, moves: bool) -> None:
    """Busy but moving is healthy; so is one without work. Callers who come, and its server that takes them, are no
    sign of its health."""
    assert SERVING.after(replace(after, at=110)).still == (0 if moves else 40)


def test_the_time_of_new_work_begins_with_it() -> None:
    idle = Progress(replace(WORKING, in_flight=0, bytes=0), moved=70)
    assert idle.after(replace(WORKING, at=110)).still == 0
    assert idle.after(replace(WORKING, at=110)).after(replace(WORKING, at=115)).still == 5


def test_an_answer_to_a_request_of_ours_is_a_movement() -> None:
    """Whatever the counters say: callers may be slow to take what they asked for."""
    assert SERVING.answered().still == 0


def test_the_grace_grows_with_the_tokens_queued() -> None:
    """About four bytes of a body are a token."""
    settings = SupervisionSettings(stall_timeout=60, stall_tokens_per_second=500)
    assert Progress(replace(WORKING, bytes=0), 0).grace(settings) == 60
    assert Progress(replace(WORKING, bytes=400_000), 0).grace(settings) == 260
