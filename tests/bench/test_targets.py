"""The target table, and what passes."""

import pytest

from tandem.bench import targets
from tandem.bench.targets import COMPLETION_P95, EMBEDDING_P95, EMBEDDINGS, ERRORS, MEMORY, USERS

GOOD = {EMBEDDINGS: 100.0, EMBEDDING_P95: 499.9, COMPLETION_P95: 4.9, USERS: 50.0, ERRORS: 0.0}
RAN = ("embeddings", "completions", "streams")


def outcomes(measured: dict[targets.Target, float], ran: tuple[str, ...]) -> dict[targets.Target, str]:
    return {verdict.target: verdict.outcome for verdict in targets.verdicts(measured, ran)}


def test_a_run_at_its_bounds_passes() -> None:
    """100 embeddings/s and 50 users are enough; what was not asked for does not count."""
    found = targets.verdicts(GOOD, RAN)
    assert targets.passed(found)
    assert outcomes(GOOD, RAN)[MEMORY] == "not asked"


@pytest.mark.parametrize(
    ("target", "value"),
    [(EMBEDDINGS, 99.9), (EMBEDDING_P95, 500), (COMPLETION_P95, 5), (USERS, 49), (ERRORS, 1)],
)
def test_each_target_can_fail_the_run(target: targets.Target, value: float) -> None:
    """p95 must be under its bound, not at it; one failed request is one too many."""
    assert outcomes({**GOOD, target: value}, RAN)[target] == "fail"
    assert not targets.passed(targets.verdicts({**GOOD, target: value}, RAN))


def test_what_should_have_been_measured_and_was_not_fails() -> None:
    """A completion scenario that gave no 100 tokens, or a soak that saw no process, proves nothing."""
    measured = {target: value for target, value in GOOD.items() if target is not COMPLETION_P95}
    assert outcomes(measured, RAN)[COMPLETION_P95] == "not measured"
    assert not targets.passed(targets.verdicts(measured, RAN))
    assert not targets.passed(targets.verdicts({ERRORS: 0}, ("soak",)))
    assert targets.passed(targets.verdicts({ERRORS: 0, MEMORY: 0}, ("soak",)))
