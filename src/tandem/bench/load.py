"""Load on a service: users who ask again once they are answered, or requests that come whether it keeps up or not.

Closed loop: each of so many clients has one request in flight. A slow service is then asked less often, so its latency
looks better than what callers meet who do not wait for each other. Open loop: requests come at random times (a Poisson
process) at a given rate, and latency counts from the time at which a request was due, not from when there was room to
send it: what waiting costs is not left out ("coordinated omission").
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tandem.bench.connection import Failure, now

# Seconds that a client of a closed loop rests after an error: users do, and refusals would else come by the thousand.
_REST = 0.1


@dataclass(frozen=True)
class Load:
    """How hard to ask, and for how long.

    Args:
        clients: users of a closed loop; with ``rate``, not used.
        rate: requests/s of an open loop; None for a closed one.
        seconds: how long is measured.
        warm_up: seconds of the same load before that, which do not count.
        timeout: seconds after which a request without a whole answer counts as an error.
    """

    clients: int
    rate: float | None
    seconds: float
    warm_up: float
    timeout: float


class Reply(NamedTuple):
    """What one request came to; times are those of :func:`~tandem.bench.connection.now`, in seconds."""

    ended: float
    events: list[float]
    """When each event of a stream came."""
    texts: int
    tokens: int
    failure: Failure | None


Ask = Callable[[], Awaitable[Reply]]


class Record(Protocol):
    """Who is told of the load as it goes."""

    def begun(self, late: float) -> None:
        """A request is sent, so many seconds after it was due."""

    def ended(self, due: float, reply: Reply) -> None:
        """A request that was due at ``due`` is over."""


def arrivals(rate: float, seconds: float, chance: random.Random) -> Iterator[float]:
    """Times from 0 to ``seconds`` at which requests are due: a Poisson process of ``rate`` requests/s."""
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)


async def drive(load: Load, ask: Ask, record: Record, chance: random.Random) -> None:
    """Ask until ``warm_up`` and ``seconds`` are over and every request has ended. Cancelling breaks them all off."""
    if load.rate is None:
        await _closed(load, ask, record)
    else:
        await _open(load, load.rate, ask, record, chance)


async def _closed(load: Load, ask: Ask, record: Record) -> None:
    end = now() + load.warm_up + load.seconds

    async def client(after: float) -> None:
        await asyncio.sleep(after)
        while (due := now()) < end:
            record.begun(0)
            reply = await ask()
            record.ended(due, reply)
            if reply.failure is not None:
                await asyncio.sleep(_REST)

    async with asyncio.TaskGroup() as clients:
        for number in range(load.clients):
            # Spread over the warm-up: all at once, they would be answered at once, batch by batch, ever after.
            clients.create_task(client(load.warm_up * number / load.clients))


async def _open(load: Load, rate: float, ask: Ask, record: Record, chance: random.Random) -> None:
    start = now()

    async def request(due: float) -> None:
        sent = now()
        record.begun(max(0.0, sent - due))
        # A timer may ring up to a millisecond early (uvloop's count in them): that is no time that anybody waited.
        record.ended(min(due, sent), await ask())

    async with asyncio.TaskGroup() as requests:
        for at in arrivals(rate, load.warm_up + load.seconds, chance):
            if (wait := start + at - now()) > 0:
                await asyncio.sleep(wait)
            requests.create_task(request(start + at))
