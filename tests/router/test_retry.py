"""Backoff, budget and breaker."""

import pytest

from tandem.router.retry import Breaker, Budget, delay


def test_delays_grow_with_full_jitter_up_to_a_bound() -> None:
    assert delay(1, 0.0) == 0
    assert [delay(attempt, 1.0) for attempt in (1, 2, 3, 20)] == [0.05, 0.1, 0.2, 2.0]


def test_retries_add_a_fifth_to_the_load() -> None:
    """After the reserve, one retry for five requests."""
    budget = Budget()
    assert sum(budget.spend() for _ in range(100)) == 10
    allowed = 0
    for _ in range(1000):
        budget.earn()
        allowed += budget.spend()
    assert allowed == pytest.approx(200, abs=1)


def test_consecutive_faults_open_it() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(0)
    breaker.succeeded()
    for _ in range(4):
        breaker.failed(0)
    assert not breaker.open
    breaker.failed(0)
    assert breaker.open
    assert breaker.wait(0.5) == 1.5


def test_a_rate_of_faults_opens_it() -> None:
    """Half of the last twenty, though never two in a row."""
    breaker = Breaker()
    for _ in range(9):
        breaker.succeeded()
        breaker.failed(0)
    assert not breaker.open
    breaker.succeeded()
    breaker.failed(0)
    assert breaker.open


def broken() -> Breaker:
    breaker = Breaker()
    for _ in range(Breaker.CONSECUTIVE):
        breaker.failed(0)
    return breaker


def test_one_probe_at_a_time_and_its_success_closes_it() -> None:
    breaker = broken()
    assert breaker.wait(Breaker.PAUSE) == 0
    breaker.began()
    assert breaker.wait(Breaker.PAUSE) > 0
    breaker.succeeded()
    assert not breaker.open
    assert breaker.wait(Breaker.PAUSE) == 0


def test_a_failed_probe_doubles_the_pause_and_one_that_tells_nothing_makes_room() -> None:
    breaker = broken()
    breaker.began()
    breaker.failed(10)
    assert breaker.wait(10) == 2 * Breaker.PAUSE
    breaker.began()
    breaker.left()
    assert breaker.wait(10 + 2 * Breaker.PAUSE) == 0


def test_a_new_life_of_the_engine_closes_it() -> None:
    breaker = broken()
    breaker.reset()
    assert not breaker.open


def test_faults_of_requests_that_began_before_it_opened_do_not_count_as_probes() -> None:
    breaker = broken()
    breaker.failed(1)
    assert breaker.wait(0) == Breaker.PAUSE
