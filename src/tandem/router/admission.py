"""Who is let through to which engine, and who waits: a bound on what is in flight, and a bounded queue before it.

An engine's lease is what counts a request as in flight. Whoever cannot have one soon enough is told so at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from math import ceil

from tandem.errors import ApiError
from tandem.fleet import Engine, Fleet, Snapshot, State, Work, now
from tandem.router import wording
from tandem.router.retry import Breaker
from tandem.settings import RouterSettings
from tandem.telemetry.events import Load

_SOON = 5.0  # seconds after which to ask again where nobody knows better
_NEWS = 2.0  # seconds within which whoever watches an engine hears of its end
_MOST_QUEUED = 256 * 2**20  # bytes of requests that wait, all queues together
_LATEST = 60.0  # OpenAI's SDKs heed no longer Retry-After


class Seat:
    """One engine as admission sees it: what is in flight with it, and whether it is fit to be asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.in_flight = 0
        self.bytes = 0  # of what is in flight
        self.breaker = Breaker()
        self.suspect_until = 0.0  # on the monotonic clock: it seems gone, and soon somebody will know

    def wait(self, clock: float) -> float:
        """Seconds until it may be asked; 0 when it may now."""
        return max(self.breaker.wait(clock), self.suspect_until - clock, 0.0)


class Lease:
    """The right to ask one engine once. Given back exactly once, by one of its three verbs."""

    __slots__ = ("_admission", "_probe", "_seat", "_size", "engine")

    def __init__(self, admission: "Admission", seat: Seat, size: int) -> None:
        self.engine = seat.engine
        self._seat = seat
        self._size = size
        seat.in_flight += 1
        seat.bytes += size
        seat.breaker.began()
        self._probe = seat.breaker.open  # else what comes of it is no news of an engine that is shut off by now
        self._admission = admission

    def succeeded(self) -> None:
        """The engine answered."""
        if self._probe or not self._seat.breaker.open:
            self._seat.breaker.succeeded()
        self._give_back()

    def failed(self, *, gone: bool = False, counts: bool = True) -> None:
        """The engine is at fault; ``gone``, if it seems to have ended. Not each fault ``counts`` for the breaker."""
        clock, seat = time.monotonic(), self._seat
        if self.engine.started == seat.engine.started:  # else it has ended since, and this is stale news
            if self._probe or (counts and not seat.breaker.open):
                seat.breaker.failed(clock)
            if gone:
                seat.suspect_until = clock + _NEWS
        self._give_back()

    def left(self) -> None:
        """Nothing was learned of the engine."""
        if self._probe:
            self._seat.breaker.left()
        self._give_back()

    def _give_back(self) -> None:
        self._seat.bytes -= self._size
        self._admission.release(self._seat)


class Admission:
    """Leases of all engines. Lives on one event loop.

    Args:
        fleet: read for each request; :meth:`follow` must run for those that wait to hear of changes.
    """

    def __init__(self, fleet: Fleet, settings: RouterSettings) -> None:
        self._fleet = fleet
        self._settings = settings
        self._seats: dict[str, Seat] = {}
        self._queues: dict[str, deque[_Place]] = {}
        self._queued_bytes = 0
        self._seated: Snapshot | None = None
        self._groups: dict[str, list[Seat]] = {}

    def loads(self) -> list[Load]:
        """What every engine that was asked so far has to do; for metrics."""
        clock = time.monotonic()
        return [
            Load(
                engine=name,
                in_flight=seat.in_flight,
                queued=len(self._queues.get(seat.engine.replica_of or name, ())),
                breaker=seat.breaker.state(clock),
            )
            for name, seat in self._seats.items()
        ]

    def work(self) -> tuple[Work, ...]:
        """What every engine that was asked so far has to do; for the supervisor."""
        return tuple(Work(name, seat.in_flight, seat.bytes, seat.engine.ready) for name, seat in self._seats.items())

    def check(self, engine: Engine, waiting: int) -> None:
        """Whether a newcomer may wait for ``engine`` behind ``waiting`` others, who are not in any queue here.

        Raises:
            ApiError: 503, as :meth:`lease` does.
        """
        if waiting >= self._settings.max_in_flight + self._settings.max_queue:
            raise overloaded(engine)
        clock = time.monotonic()
        if self._free(engine.replica_of or engine.name, "", clock) is None:
            self._pause(engine, clock, self._settings.queue_timeout, self._settings.queue_timeout, patient=False)

    def at_once(self, engine: Engine, tried: str = "", size: int = 0) -> Lease | None:
        """A lease, as :meth:`lease` gives it, if there is one without waiting: most requests need no more."""
        name = engine.replica_of or engine.name
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = deque()
        if queue or (seat := self._free(name, tried, time.monotonic())) is None:
            return None
        return Lease(self, seat, size)

    async def lease(
        self, engine: Engine, *, deadline: float, patient: bool = False, tried: str = "", size: int = 0
    ) -> Lease:
        """A lease of ``engine`` or of one of its replicas: the one that is fit and has the least in flight.

        Args:
            deadline: on the loop's clock; waiting ends there at the latest.
            patient: wait for an engine that is coming back for as long as the deadline allows, not just for
                ``queue_timeout``: for requests that an engine's death has hit.
            tried: name of the engine that has just failed: another one is preferred.
            size: bytes of the question, which are held while it waits.

        Raises:
            ApiError: 503, none is there, or all are full, and will be for too long.
        """
        if (found := self.at_once(engine, tried, size)) is not None:
            return found
        name = engine.replica_of or engine.name
        queue = self._queues[name]
        loop = asyncio.get_running_loop()
        soon = min(deadline, loop.time() + self._settings.queue_timeout)
        place: _Place | None = None
        try:
            while True:
                # Nobody overtakes: not even into a seat that has just become free for one who waits.
                # One time for both questions: else who is not let in now may be told that nothing keeps it out.
                clock = time.monotonic()
                if (not queue or queue[0] is place) and (seat := self._free(name, tried, clock)):
                    return Lease(self, seat, size)
                pause = self._pause(engine, clock, soon - loop.time(), deadline - loop.time(), patient=patient)
                if place is None:
                    if len(queue) >= self._settings.max_queue or self._queued_bytes + size > _MOST_QUEUED:
                        raise overloaded(engine)
                    place = _Place(loop)
                    queue.append(place)
                    self._queued_bytes += size
                await place.called(pause)
        finally:
            if place is not None:
                queue.remove(place)
                self._queued_bytes -= size
                self._call(queue, 1)  # there may be room for the next one, too

    def release(self, seat: Seat) -> None:
        """One request fewer is in flight: whoever waits first is called."""
        seat.in_flight -= 1
        self._call(self._queues[seat.engine.replica_of or seat.engine.name], 1)

    async def follow(self, gone: Callable[[Engine], None]) -> None:
        """Follow the fleet for as long as the router serves: call those who wait when something changes.

        Args:
            gone: called with an engine whose process is gone, of which answers may still be awaited.
        """
        lives: dict[str, tuple[float, bool]] = {}
        away: set[str] = set()
        async for snapshot in self._fleet.snapshots():
            for engine in snapshot.engines:
                seat = self._seats.get(engine.name)
                if seat is not None:
                    seat.engine = engine
                    if lives.get(engine.name) != (engine.started, engine.ready):
                        seat.breaker.reset()
                        seat.suspect_until = 0.0
                lives[engine.name] = engine.started, engine.ready
                if engine.away and engine.url and engine.name not in away:
                    gone(engine)
                (away.add if engine.away else away.discard)(engine.name)
            for queue in self._queues.values():
                self._call(queue, len(queue))

    def _free(self, name: str, tried: str, clock: float) -> Seat | None:
        most = self._settings.max_in_flight
        found: Seat | None = None
        for seat in self._of(name):
            if not seat.engine.ready or seat.in_flight >= most or seat.wait(clock):
                continue
            if found is None or (seat.engine.name == tried, seat.in_flight) < (
                found.engine.name == tried,
                found.in_flight,
            ):
                found = seat
        return found

    def _of(self, name: str) -> list[Seat]:
        """The seats of ``name`` and its replicas, up to date; worked out once for each snapshot of the fleet."""
        snapshot = self._fleet.now
        if snapshot is not self._seated:
            self._seated = snapshot
            self._groups.clear()
        seats = self._groups.get(name)
        if seats is None:
            seats = self._groups[name] = []
            for engine in snapshot.engines:
                if name in (engine.name, engine.replica_of):
                    seat = self._seats.get(engine.name)
                    if seat is None:
                        seat = self._seats[engine.name] = Seat(engine)
                    seat.engine = engine
                    seats.append(seat)
        return seats

    def _pause(self, engine: Engine, clock: float, soon: float, left: float, *, patient: bool) -> float:
        """Seconds for which it makes sense to wait for something to change.

        Args:
            clock: what time it is.
            soon: seconds left that anybody may wait.
            left: seconds left until the deadline.

        Raises:
            ApiError: it makes no sense: all are away, failing or full for longer than that.
        """
        seats = self._of(engine.replica_of or engine.name)
        if ready := [seat for seat in seats if seat.engine.ready]:
            unfit = min(seat.wait(clock) for seat in ready)
            soon = left if patient else soon
            if unfit and (unfit > soon or not (patient or all(seat.suspect_until > clock for seat in ready))):
                raise _failing(engine, unfit)
            if soon <= 0:
                raise overloaded(engine)
            return min(soon, unfit or soon)
        if self._fleet.now.draining:
            raise draining()
        coming = [seat.engine for seat in seats if seat.engine.state not in {State.FAILED, State.STOPPED}]
        estimate = min((max(0.0, each.expected - now()) for each in coming if each.expected), default=None)
        # One that is away on request comes back, or has failed by then.
        renewed = any(each.renewed for each in coming)
        patient = patient or renewed
        bound = left if patient and (renewed or estimate is not None) else soon
        fits = bool(coming) and (patient or (estimate is not None and estimate < soon))
        if not fits or bound <= 0:
            raise wording.not_ready(engine, _again(_SOON if estimate is None else estimate))
        return bound

    @staticmethod
    def _call(queue: Iterable["_Place"], number: int) -> None:
        """Call the first ``number`` who were not called yet."""
        for place in queue:
            if not number:
                return
            number -= place.call()


class _Place:
    """A place in a queue, kept until its holder leaves."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._called = loop.create_future()

    def call(self) -> bool:
        """Have the holder look again; False if it was called before and has not looked yet."""
        if self._called.done():
            return False
        self._called.set_result(None)
        return True

    async def called(self, timeout: float) -> None:
        """Wait for the next call, or for ``timeout`` seconds."""
        await asyncio.wait({self._called}, timeout=timeout)
        self._called = self._loop.create_future()


def draining() -> ApiError:
    """503 for a service that is on its way out."""
    return ApiError(
        503,
        "The service is shutting down. Please try again later.",
        type="service_unavailable_error",
        code="service_unavailable",
        headers=_again(_SOON) | {"Connection": "close"},
    )


def overloaded(engine: Engine) -> ApiError:
    """503 for an engine before which too many wait, or for too long."""
    return ApiError(
        503,
        f"The engine that serves the model `{engine.model}` is currently overloaded. Please try again later.",
        type="service_unavailable_error",
        code="overloaded",
        headers=_again(_SOON),
    )


def _failing(engine: Engine, pause: float) -> ApiError:
    return ApiError(
        503,
        f"The engine that serves the model `{engine.model}` has failed repeatedly. Please try again later.",
        type="service_unavailable_error",
        code="engine_failing",
        headers=_again(pause),
    )


def _again(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, min(ceil(seconds), int(_LATEST))))}
