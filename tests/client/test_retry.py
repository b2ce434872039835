"""When a request is sent again, and how long that waits."""

import time

import pytest

from tandem.client.retry import Attempts
from tandem.client.transports import Call
from tandem.errors import BadRequestError, ClientConnectionError, ClientError, ServerError
from tandem.telemetry.timeline import Step, Watch


def attempts(retries: int = 3, *, left: float = 100, chance: float = 1.0, steps: list[Step] | None = None) -> Attempts:
    watch = Watch([steps.append] if steps is not None else [], mode="http", model="m", n_texts=1)
    return Attempts(Call(time.monotonic() + left, watch), retries, lambda: chance)


def failure(retry_after: float | None = None) -> ClientError:
    return ServerError("busy", again=True, retry_after=retry_after)


def test_pauses_double_and_are_drawn_from_zero() -> None:
    """Full jitter: anything from nothing to a bound that doubles, up to 8 s."""
    longest, shortest = attempts(8), attempts(8, chance=0.0)
    assert [longest.pause(failure()) for _ in range(8)] == [0.25, 0.5, 1, 2, 4, 8, 8, 8]
    assert [shortest.pause(failure()) for _ in range(8)] == [0.0] * 8


def test_what_the_server_asks_for_is_kept() -> None:
    """Nobody comes before Retry-After, and not all at the same moment after it."""
    assert attempts(chance=0.0).pause(failure(3)) == 3
    assert attempts(chance=1.0).pause(failure(3)) == 3.25


def test_the_deadline_ends_it() -> None:
    """Where there is no time for the pause that is asked for, the error comes at once; jitter alone gives way."""
    with pytest.raises(ServerError, match="busy"):
        attempts(left=2).pause(failure(3))
    assert attempts(left=3.1).pause(failure(3)) == 3
    with pytest.raises(ServerError):
        attempts(left=0).pause(failure())


def test_retries_are_counted() -> None:
    """So many times again, and no more."""
    two = attempts(2)
    two.pause(failure())
    two.pause(failure())
    with pytest.raises(ServerError):
        two.pause(failure())
    with pytest.raises(ServerError):
        attempts(0).pause(failure())


def test_only_what_may_be_sent_again_is() -> None:
    """An error that would come again is raised at once."""
    with pytest.raises(BadRequestError):
        attempts().pause(BadRequestError("empty"))
    with pytest.raises(ClientConnectionError):
        attempts().pause(ClientConnectionError("certificate", again=False))


def test_each_repetition_is_told() -> None:
    """With its error and its pause."""
    steps: list[Step] = []
    attempts(steps=steps).pause(failure(1))
    assert [(step.name, step.error, step.pause) for step in steps] == [("started", "", 0), ("retried", "busy", 1.25)]
