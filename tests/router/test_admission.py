"""Leases are bounded, the queue is fair and bounded, and whoever cannot be helped soon is told so at once.

The clock is put forward instead of waited for. Whether somebody waits is seen by letting the event loop turn until
nobody can go on.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from tandem.errors import ApiError
from tandem.fleet import Engine, Fleet, Snapshot, State, Work, now
from tandem.router.admission import Admission, Lease
from tandem.router.retry import Breaker
from tandem.settings import RouterSettings

A = Engine(name="a", kind="generation", model="org/m", url="http://a", state=State.READY, started=1.0)
B = replace(A, name="b", url="http://b", replica_of="a")
AWAY = replace(A, state=State.STARTING)
QUEUE_TIMEOUT = 30.0


class Clock:
    """The monotonic clock, the event loop's too, with hands that can be put forward."""

    def __init__(self) -> None:
        self._real = time.monotonic
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self._ahead

    async def advance(self, seconds: float) -> None:
        """What was due within ``seconds`` has happened."""
        self._ahead += seconds
        await settled()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


async def settled() -> None:
    """Whoever can go on without time passing has done so."""
    for _ in range(20):
        await asyncio.sleep(0)


def admitting(*engines: Engine, **settings: Any) -> tuple[Admission, Fleet]:
    """Admission to ``engines``, one request at a time each unless set otherwise."""
    fleet = Fleet(Snapshot(engines))
    wanted = RouterSettings(**{"max_in_flight": 1, "queue_timeout": QUEUE_TIMEOUT, **settings})
    return Admission(fleet, wanted), fleet


def ask(admission: Admission, engine: Engine = A, *, within: float = 600.0, **how: Any) -> asyncio.Task[Lease]:
    """A request that is on its way to a lease of ``engine``."""
    deadline = asyncio.get_running_loop().time() + within
    return asyncio.create_task(admission.lease(engine, deadline=deadline, **how))


def queued(admission: Admission, name: str = "a") -> int:
    """How many wait for that engine or one of its replicas."""
    return next(load.queued for load in admission.loads() if load.engine == name)


def in_flight(admission: Admission) -> dict[str, int]:
    """How many requests each engine has."""
    return {load.engine: load.in_flight for load in admission.loads()}


async def refused(asking: asyncio.Task[Lease]) -> ApiError:
    """What it was told, without any time passing."""
    await settled()
    assert asking.done()
    refusal = asking.exception()
    assert isinstance(refusal, ApiError)
    assert (refusal.status, refusal.type) == (503, "service_unavailable_error")
    return refusal


async def broken(admission: Admission) -> None:
    """The breaker of the only engine is open."""
    for _ in range(Breaker.CONSECUTIVE):
        (await ask(admission)).failed()


@asynccontextmanager
async def following(admission: Admission, gone: Callable[[Engine], None] = lambda _: None) -> AsyncIterator[None]:
    """As while the router serves."""
    task = asyncio.create_task(admission.follow(gone))
    await settled()
    yield
    task.cancel()
    await asyncio.wait({task})


async def test_a_breaker_that_lets_through_just_as_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer may be early by a part of a millisecond, as uvloop's are. Who comes a moment too soon waits that moment,
    and not until the deadline."""
    admission, _ = admitting(A)
    await broken(admission)
    due = time.monotonic() + Breaker.PAUSE
    readings = iter([due - 0.01] * 2)
    monkeypatch.setattr("tandem.router.admission.time", SimpleNamespace(monotonic=lambda: next(readings, due + 0.01)))
    async with asyncio.timeout(5):
        (await ask(admission, patient=True)).succeeded()


# The bound and the queue


async def test_each_engine_has_a_bound_on_what_is_in_flight() -> None:
    """The request beyond it waits, and goes on when one is given back; another model's engine is not concerned."""
    other = replace(A, name="c", model="org/c")
    admission, _ = admitting(A, other, max_in_flight=2)
    first, _second = await ask(admission), await ask(admission)
    third = ask(admission)
    await settled()
    assert not third.done()
    assert queued(admission) == 1
    assert (await ask(admission, other)).engine == other
    first.succeeded()
    assert (await third).engine == A
    assert queued(admission) == 0
    assert in_flight(admission) == {"a": 2, "c": 1}


@pytest.mark.parametrize("verb", ["succeeded", "failed", "left"])
async def test_each_way_of_giving_back_makes_room(verb: str) -> None:
    admission, _ = admitting(A)
    lease = await ask(admission)
    waiting = ask(admission)
    await settled()
    getattr(lease, verb)()
    assert (await waiting).engine == A


async def test_first_come_first_served() -> None:
    """Leases given back go to those who wait in the order in which they came."""
    admission, _ = admitting(A, max_in_flight=2)
    held = [await ask(admission), await ask(admission)]
    waiting = [ask(admission) for _ in range(6)]
    await settled()
    for turn in range(0, 6, 2):
        for lease in held:
            lease.left()
        await settled()
        assert [task.done() for task in waiting] == [place < turn + 2 for place in range(6)]
        held = [task.result() for task in waiting[turn : turn + 2]]


async def test_a_newcomer_does_not_take_the_seat_of_one_who_waits() -> None:
    """Not even between the seat's becoming free and the waiting one's noticing."""
    admission, _ = admitting(A)
    held = await ask(admission)
    waiting = ask(admission)
    await settled()
    newcomer = ask(admission)
    held.left()
    await settled()
    assert waiting.done()
    assert not newcomer.done()
    waiting.result().left()
    await newcomer


async def test_nobody_in_the_queue_is_overtaken_by_one_whose_time_is_up(clock: Clock) -> None:
    """A seat that becomes free the moment that a later one's timer wakes it goes to the first."""
    admission, _ = admitting(A)
    held = await ask(admission)
    first, later = ask(admission), ask(admission, within=2)
    await settled()
    asyncio.get_running_loop().call_later(1, held.left)  # due in the same turn of the loop as the later one's timer
    await clock.advance(3)
    assert first.done()
    assert first.result().engine == A
    assert (await refused(later)).code == "overloaded"


async def test_a_full_queue_refuses_at_once() -> None:
    """503 ``overloaded`` with Retry-After; those who wait already keep their places."""
    admission, _ = admitting(A, max_queue=2)
    held = await ask(admission)
    waiting = [ask(admission), ask(admission)]
    await settled()
    refusal = await refused(ask(admission))
    assert refusal.code == "overloaded"
    assert int(refusal.headers["Retry-After"]) >= 1
    assert queued(admission) == 2
    held.left()
    await waiting[0]


async def test_without_a_queue_nobody_waits() -> None:
    """``max_queue`` 0."""
    admission, _ = admitting(A, max_queue=0)
    await ask(admission)
    assert (await refused(ask(admission))).code == "overloaded"


async def test_the_queue_is_left_after_queue_timeout(clock: Clock) -> None:
    """503 ``overloaded`` then, and not before."""
    admission, _ = admitting(A)
    await ask(admission)
    waiting = ask(admission)
    await settled()
    await clock.advance(QUEUE_TIMEOUT - 1)
    assert not waiting.done()
    await clock.advance(1)
    refusal = await refused(waiting)
    assert refusal.code == "overloaded"
    assert int(refusal.headers["Retry-After"]) >= 1
    assert queued(admission) == 0


async def test_queue_timeout_holds_on_the_real_clock_too() -> None:
    admission, _ = admitting(A, queue_timeout=0.05)
    await ask(admission)
    with pytest.raises(ApiError, match="overloaded"):
        await ask(admission)


async def test_a_deadline_ends_the_wait_before_queue_timeout_does(clock: Clock) -> None:
    admission, _ = admitting(A)
    await ask(admission)
    waiting = ask(admission, within=5)
    await settled()
    await clock.advance(5)
    assert (await refused(waiting)).code == "overloaded"


# Cancelled waiters


async def test_a_cancelled_waiter_leaves_no_place_behind() -> None:
    admission, _ = admitting(A, max_queue=1)
    held = await ask(admission)
    waiting = ask(admission)
    await settled()
    waiting.cancel()
    await settled()
    assert waiting.cancelled()
    assert queued(admission) == 0
    next_one = ask(admission)
    held.left()
    assert (await next_one).engine == A


async def test_a_waiter_cancelled_as_it_is_called_passes_the_call_on() -> None:
    """The seat that it was called for goes to the next in the queue."""
    admission, _ = admitting(A)
    held = await ask(admission)
    first, second = ask(admission), ask(admission)
    await settled()
    held.left()
    first.cancel()
    await settled()
    assert first.cancelled()
    assert second.done()
    assert second.result().engine == A


@pytest.mark.parametrize("turns", range(6))
async def test_a_waiter_cancelled_on_its_way_to_the_seat_takes_none(turns: int) -> None:
    """However far it has come: either it holds a lease, or the next one does."""
    admission, _ = admitting(A)
    held = await ask(admission)
    first, second = ask(admission), ask(admission)
    await settled()
    held.left()
    for _ in range(turns):
        await asyncio.sleep(0)
    first.cancel()
    await settled()
    assert first.cancelled() == second.done()
    assert in_flight(admission) == {"a": 1}


# Replicas


async def test_the_replica_with_the_least_in_flight_is_asked() -> None:
    """Whichever of the two a caller's model name was found under."""
    admission, _ = admitting(A, B, max_in_flight=3)
    leases = [await ask(admission, engine) for engine in (A, B, A, B)]
    assert Counter(lease.engine.name for lease in leases) == {"a": 2, "b": 2}
    for lease in leases:
        if lease.engine.name == "b":
            lease.succeeded()
    assert (await ask(admission)).engine == B


async def test_the_supervisor_is_told_what_each_engine_has_to_do() -> None:
    """Requests and their bytes, those who waited among them, and whether it gets more."""
    admission, fleet = admitting(A, max_in_flight=2)
    first, _ = await ask(admission, size=100), await ask(admission, size=20)
    waiting = ask(admission, size=7)
    await settled()
    assert admission.work() == (Work("a", 2, 120, open=True),)
    first.succeeded()
    await waiting
    async with following(admission):
        fleet.put(replace(A, state=State.DRAINING))
        await settled()
        assert admission.work() == (Work("a", 2, 27, open=False),)


async def test_a_waiter_takes_a_seat_of_either_replica() -> None:
    """All that serve one model have one queue."""
    admission, _ = admitting(A, B)
    leases = {lease.engine.name: lease for lease in (await ask(admission), await ask(admission))}
    waiting = ask(admission, A)
    await settled()
    assert queued(admission) == 1
    leases["b"].succeeded()
    assert (await waiting).engine == B


async def test_the_engine_that_has_just_failed_is_not_preferred() -> None:
    """Another is, even with more in flight; but it is better than none."""
    admission, _ = admitting(A, B, max_in_flight=2)
    assert (await ask(admission, tried="a")).engine == B
    assert (await ask(admission, tried="a")).engine == B
    assert (await ask(admission, tried="a")).engine == A


async def test_a_replica_that_is_away_or_failing_is_passed_over() -> None:
    admission, fleet = admitting(A, AWAY, max_in_flight=10)
    fleet.put(replace(B, state=State.RESTARTING))
    fleet.put(A)
    assert [(await ask(admission)).engine.name for _ in range(4)] == ["a"] * 4
    fleet.put(B)
    while admission.loads()[0].breaker == "closed":
        (await ask(admission, tried="b")).failed()
    assert [(await ask(admission)).engine.name for _ in range(4)] == ["b"] * 4


# Engines that are not ready


@pytest.mark.parametrize(
    ("seconds", "told"), [(None, "5"), (42.0, "42"), (41.2, "42"), (300.0, "60"), (QUEUE_TIMEOUT + 1, "31")]
)
async def test_an_engine_that_is_not_ready_is_told_at_once(seconds: float | None, told: str) -> None:
    """503 ``model_not_ready``; Retry-After is when it is expected, no more than SDKs heed, or soon if nobody knows."""
    expected = 0.0 if seconds is None else now() + seconds
    admission, _ = admitting(replace(AWAY, expected=expected))
    refusal = await refused(ask(admission, AWAY))
    assert refusal.code == "model_not_ready"
    assert refusal.headers["Retry-After"] == told


async def test_an_engine_that_is_expected_soon_is_waited_for(clock: Clock) -> None:
    """The request is served once the fleet says ready, though that is later than expected."""
    coming = replace(AWAY, expected=now() + 10)
    admission, fleet = admitting(coming)
    async with following(admission):
        waiting = ask(admission, coming)
        await settled()
        await clock.advance(20)
        assert not waiting.done()
        fleet.put(replace(A, started=2.0))
        assert (await waiting).engine.started == 2.0


async def test_an_engine_that_is_not_ready_as_expected_is_waited_for_until_queue_timeout(clock: Clock) -> None:
    coming = replace(AWAY, expected=now() + 10)
    admission, _ = admitting(coming)
    waiting = ask(admission, coming)
    await settled()
    await clock.advance(QUEUE_TIMEOUT)
    assert (await refused(waiting)).code == "model_not_ready"
    assert queued(admission) == 0


async def test_news_that_it_takes_longer_ends_the_wait() -> None:
    """An estimate beyond ``queue_timeout`` is told at once to those who wait already, though the patient stay."""
    coming = replace(AWAY, expected=now() + 10)
    admission, fleet = admitting(coming)
    async with following(admission):
        staying = ask(admission, coming, patient=True)
        waiting = ask(admission, coming)
        await settled()
        fleet.put(replace(coming, expected=now() + 50))
        assert (await refused(waiting)).headers["Retry-After"] == "50"
        assert not staying.done()
        fleet.put(A)
        assert (await staying).engine == A


async def test_the_patient_wait_until_their_deadline(clock: Clock) -> None:
    """For an engine that is expected at some time, beyond ``queue_timeout``."""
    coming = replace(AWAY, expected=now() + 100)
    admission, _ = admitting(coming)
    waiting = ask(admission, coming, within=90, patient=True)
    await settled()
    await clock.advance(89)
    assert not waiting.done()
    await clock.advance(1)
    assert (await refused(waiting)).code == "model_not_ready"


async def test_the_patient_are_served_when_their_engine_is_back(clock: Clock) -> None:
    """All of them, one after the other, although they have waited for longer than ``queue_timeout`` by then."""
    coming = replace(AWAY, expected=now() + 60)
    admission, fleet = admitting(coming)
    async with following(admission):
        waiting = [ask(admission, coming, patient=True) for _ in range(3)]
        await settled()
        await clock.advance(QUEUE_TIMEOUT * 2)
        fleet.put(A)
        for each in waiting:
            (await each).succeeded()


async def test_the_patient_wait_a_while_for_an_engine_of_which_nobody_knows_when(clock: Clock) -> None:
    """Until ``queue_timeout``."""
    admission, _ = admitting(AWAY)
    waiting = ask(admission, AWAY, patient=True)
    await settled()
    await clock.advance(QUEUE_TIMEOUT - 1)
    assert not waiting.done()
    await clock.advance(1)
    assert (await refused(waiting)).code == "model_not_ready"


@pytest.mark.parametrize("state", [State.DRAINING, State.STARTING])
@pytest.mark.parametrize("expected", [0.0, 300.0])
async def test_everybody_waits_for_an_engine_that_is_away_on_request(
    expected: float, state: State, clock: Clock
) -> None:
    """Beyond ``queue_timeout``, whether or not somebody knows for how long; in the queue, which is bounded."""
    coming = replace(A, state=state, renewed=True, expected=now() + expected if expected else 0.0)
    admission, fleet = admitting(coming, max_queue=1)
    async with following(admission):
        waiting = ask(admission, coming, within=100)
        await settled()
        assert (await refused(ask(admission, coming))).code == "overloaded"
        await clock.advance(QUEUE_TIMEOUT * 2)
        fleet.put(replace(A, started=2.0))
        assert (await waiting).engine.started == 2.0


@pytest.mark.parametrize("state", [State.FAILED, State.STOPPED])
async def test_an_engine_that_does_not_come_back_is_told_even_to_the_patient(state: State) -> None:
    """At once, and as soon as it is known to those who wait already."""
    coming = replace(AWAY, expected=now() + 10)
    admission, fleet = admitting(coming)
    async with following(admission):
        waiting = ask(admission, coming, patient=True)
        await settled()
        lost = replace(coming, state=state)
        fleet.put(lost)
        assert (await refused(waiting)).code == "model_not_ready"
        assert (await refused(ask(admission, lost, patient=True))).code == "model_not_ready"


async def test_a_replica_that_comes_back_is_waited_for_while_the_other_is_lost() -> None:
    """The estimate is that of the one that will be there first."""
    admission, fleet = admitting(replace(A, state=State.FAILED), replace(B, state=State.LOADING, expected=now() + 10))
    async with following(admission):
        waiting = ask(admission)
        await settled()
        assert not waiting.done()
        fleet.put(B)
        assert (await waiting).engine == B


async def test_a_service_on_its_way_out_refuses() -> None:
    """At once, and those who wait for an engine to come back as well: it will not."""
    coming = replace(AWAY, expected=now() + 10)
    admission, fleet = admitting(coming)
    async with following(admission):
        waiting = ask(admission, coming, patient=True)
        await settled()
        fleet.drain()
        for asking in (waiting, ask(admission, coming)):
            refusal = await refused(asking)
            assert refusal.code == "service_unavailable"
            assert refusal.headers["Connection"] == "close"
            assert int(refusal.headers["Retry-After"]) >= 1


# Engines that fail


async def test_an_engine_that_keeps_failing_is_not_asked() -> None:
    """503 with Retry-After once so many leases in a row have failed, and not before."""
    admission, _ = admitting(A)
    for _ in range(Breaker.CONSECUTIVE - 1):
        (await ask(admission)).failed()
    (await ask(admission)).succeeded()
    for _ in range(Breaker.CONSECUTIVE - 1):
        (await ask(admission)).failed()
    (await ask(admission)).failed()
    refusal = await refused(ask(admission))
    assert refusal.code == "engine_failing"
    assert refusal.headers["Retry-After"] == f"{Breaker.PAUSE:g}"


async def test_those_who_wait_are_told_as_well_that_it_keeps_failing() -> None:
    """Nobody stays in the queue of an engine that is not asked."""
    admission, _ = admitting(A, max_in_flight=Breaker.CONSECUTIVE)
    held = [await ask(admission) for _ in range(Breaker.CONSECUTIVE)]
    waiting = [ask(admission) for _ in range(3 * Breaker.CONSECUTIVE)]
    await settled()
    for lease in held:
        lease.failed()
    for asking in waiting:
        assert (await refused(asking)).code == "engine_failing"
    assert queued(admission) == 0


async def test_the_patient_wait_for_the_pause_to_pass(clock: Clock) -> None:
    admission, _ = admitting(A)
    await broken(admission)
    waiting = ask(admission, patient=True)
    await settled()
    assert not waiting.done()
    await clock.advance(Breaker.PAUSE)
    assert waiting.done()
    assert waiting.result().engine == A


async def test_after_a_pause_exactly_one_request_probes_it(clock: Clock) -> None:
    """The others are refused until it has ended; its success lets everybody through."""
    admission, _ = admitting(A, max_in_flight=10)
    await broken(admission)
    await clock.advance(Breaker.PAUSE)
    asking = [ask(admission) for _ in range(4)]
    await settled()
    probe = await asking[0]
    for other in asking[1:]:
        assert (await refused(other)).code == "engine_failing"
    probe.succeeded()
    assert [(await ask(admission)).engine for _ in range(4)] == [A] * 4


async def test_a_probe_that_fails_leaves_it_closed_off_for_longer(clock: Clock) -> None:
    admission, _ = admitting(A)
    await broken(admission)
    await clock.advance(Breaker.PAUSE)
    (await ask(admission)).failed()
    await clock.advance(Breaker.PAUSE)
    await refused(ask(admission))
    await clock.advance(Breaker.PAUSE)
    await ask(admission)


async def test_a_probe_whose_caller_leaves_makes_room_for_another(clock: Clock) -> None:
    admission, _ = admitting(A)
    await broken(admission)
    await clock.advance(Breaker.PAUSE)
    (await ask(admission)).left()
    assert (await ask(admission)).engine == A


@pytest.mark.parametrize("verb", ["left", "failed"])
async def test_requests_from_before_it_opened_do_not_speak_for_the_probe(clock: Clock, verb: str) -> None:
    """As long as the probe is out there is no second one, however those end."""
    admission, _ = admitting(A, max_in_flight=10)
    earlier = await ask(admission)
    await broken(admission)
    await clock.advance(Breaker.PAUSE)
    probe = await ask(admission)
    getattr(earlier, verb)()
    await clock.advance(Breaker.LONGEST)
    assert (await refused(ask(admission))).code == "engine_failing"
    probe.succeeded()
    await ask(admission)


async def test_a_restart_of_the_engine_wipes_the_slate() -> None:
    """A new ``started`` lets everybody through at once."""
    admission, fleet = admitting(A, max_in_flight=10)
    async with following(admission):
        await broken(admission)
        await refused(ask(admission))
        fleet.put(replace(A, started=2.0))
        await settled()
        assert [(await ask(admission)).engine.started for _ in range(4)] == [2.0] * 4


async def test_a_change_that_is_no_restart_does_not(clock: Clock) -> None:
    """Nor does the first snapshot that is followed."""
    admission, fleet = admitting(A)
    async with following(admission):
        await broken(admission)
        fleet.put(replace(A, detail="busy"))
        await settled()
        assert (await refused(ask(admission))).code == "engine_failing"


async def test_an_engine_that_seems_gone_is_given_a_moment(clock: Clock) -> None:
    """Requests wait rather than run into it; without news to the contrary it is asked again."""
    admission, _ = admitting(A)
    (await ask(admission)).failed(gone=True)
    waiting = ask(admission)
    await settled()
    assert not waiting.done()
    await clock.advance(5)
    assert waiting.done()
    assert waiting.result().engine == A


async def test_those_who_wait_out_the_moment_keep_their_order(clock: Clock) -> None:
    admission, _ = admitting(A)
    (await ask(admission)).failed(gone=True)
    waiting = [ask(admission) for _ in range(20)]
    await settled()
    await clock.advance(5)
    for number in range(20):
        await settled()
        assert [each.done() for each in waiting] == [place <= number for place in range(20)]
        waiting[number].result().succeeded()


async def test_a_moment_longer_than_anybody_may_wait_is_told_at_once() -> None:
    admission, _ = admitting(A, queue_timeout=1)
    (await ask(admission)).failed(gone=True)
    refusal = await refused(ask(admission))
    assert 2 <= int(refusal.headers["Retry-After"]) <= 5


async def test_news_of_the_engine_end_the_moment() -> None:
    """It ended, and is expected back: who waits for it is served by its next life at once."""
    admission, fleet = admitting(A)
    async with following(admission):
        (await ask(admission)).failed(gone=True)
        waiting = ask(admission)
        await settled()
        fleet.put(replace(A, state=State.RESTARTING, expected=now() + 10))
        await settled()
        assert not waiting.done()
        fleet.put(replace(A, started=2.0))
        assert (await waiting).engine.started == 2.0


@pytest.mark.parametrize("heard", [True, False])
async def test_faults_of_an_earlier_life_do_not_count(heard: bool) -> None:
    """They are stale news, even if they come before that of the engine's new life is heard."""
    admission, fleet = admitting(A, max_in_flight=Breaker.CONSECUTIVE)
    async with following(admission):
        leases = [await ask(admission) for _ in range(Breaker.CONSECUTIVE)]
        waiting = ask(admission)
        await settled()
        fleet.put(replace(A, started=2.0))
        if heard:
            await settled()
        for lease in leases:
            lease.failed(gone=True)
        await settled()
        for asking in (waiting, ask(admission)):
            await settled()
            assert asking.done()
            assert asking.result().engine.started == 2.0
        assert in_flight(admission) == {"a": 2}


# Following the fleet


async def test_who_follows_is_told_of_engines_that_went_away() -> None:
    """Of those whose address is known: there may be answers to break off."""
    gone: list[Engine] = []
    admission, fleet = admitting(A, replace(B, url=""))
    async with following(admission, gone.append):
        assert not gone
        lost = replace(A, state=State.RESTARTING)
        fleet.put(lost)
        fleet.put(replace(B, url="", state=State.FAILED))
        await settled()
        assert gone == [lost]


@pytest.mark.parametrize("state", [State.LOADING, State.SIZING, State.WARMING, State.STALLED, State.DRAINING])
async def test_an_engine_whose_process_is_there_is_not_gone(state: State) -> None:
    """What it was asked may still be answered."""
    gone: list[Engine] = []
    admission, fleet = admitting(A)
    async with following(admission, gone.append):
        fleet.put(replace(A, state=state))
        await settled()
        assert not gone


async def test_a_change_calls_everybody_who_waits() -> None:
    """As many go on as there is room for, the first first."""
    coming = replace(AWAY, expected=now() + 10)
    admission, fleet = admitting(coming, max_in_flight=2)
    async with following(admission):
        waiting = [ask(admission, coming) for _ in range(5)]
        await settled()
        fleet.put(A)
        await settled()
        assert [each.done() for each in waiting] == [True, True, False, False, False]


# Whatever happens


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_the_bound_holds_and_everybody_ends(clock: Clock, seed: int) -> None:
    """Random requests, ends, cancellations, restarts and pauses: no seat, place or wake-up is ever lost."""
    bound = 2
    chance = random.Random(seed)  # noqa: S311 - seeded, and guards nothing
    admission, fleet = admitting(A, B, max_in_flight=bound, max_queue=25)
    lives = Counter({"a": 1, "b": 1})

    async def some_turns(most: int) -> None:
        for _ in range(chance.randrange(most)):
            await asyncio.sleep(0)

    async def request(deadline: float) -> None:
        engine, patient = chance.choice([A, B]), chance.random() < 0.3
        tried = chance.choice(["", "a", "b"])
        lease = await admission.lease(engine, deadline=deadline, patient=patient, tried=tried)
        assert 0 < in_flight(admission)[lease.engine.name] <= bound
        try:
            await some_turns(12)
        except asyncio.CancelledError:
            lease.left()
            raise
        verb = chance.choices(["succeeded", "left", "failed", "gone"], [8, 3, 2, 1])[0]
        if verb == "gone":
            lease.failed(gone=True)
        else:
            getattr(lease, verb)()

    def something() -> None:
        name = chance.choice("ab")
        engine = next(each for each in fleet.now.engines if each.name == name)
        if not engine.ready:
            lives[name] += 1
            fleet.put(replace(engine, state=State.READY, started=float(lives[name]), expected=0.0))
        elif chance.random() < 0.5:
            expected = chance.choice([0.0, now() + 5, now() + 500])
            fleet.put(replace(engine, state=chance.choice([State.RESTARTING, State.FAILED]), expected=expected))

    async with following(admission):
        requests: list[asyncio.Task[None]] = []
        for _ in range(400):
            deadline = asyncio.get_running_loop().time() + chance.uniform(1, 60)
            requests.append(asyncio.create_task(request(deadline)))
            await some_turns(4)
            if chance.random() < 0.2:
                chance.choice(requests[-30:]).cancel()
            if chance.random() < 0.05:
                something()
            if chance.random() < 0.05:
                await clock.advance(chance.uniform(0, 3))
            assert all(0 <= number <= bound for number in in_flight(admission).values())
        for _ in range(120):
            await clock.advance(1)
        assert all(each.done() for each in requests)
        outcomes = Counter(type(each).__name__ for each in await asyncio.gather(*requests, return_exceptions=True))
        assert set(outcomes) <= {"NoneType", "ApiError", "CancelledError"}
        assert outcomes["NoneType"] > 50
        assert in_flight(admission) == {"a": 0, "b": 0}
        assert queued(admission) == 0
        for engine in (A, B):
            fleet.put(replace(engine, started=1000.0))
        await settled()
        again = [ask(admission) for _ in range(2 * bound)]
        await settled()
        assert all(each.done() for each in again)
