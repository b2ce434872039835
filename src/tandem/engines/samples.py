"""The samples that are taken of a running engine, and what they tell of how it fares."""

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import replace

import httpx2

from tandem.engines import keeper, probes, vitals
from tandem.engines.hardware import CardUse, resident
from tandem.engines.vitals import Sample
from tandem.fleet import Fleet, Vitals

_KEPT = 6  # samples of a ready engine: the last ten seconds
_MOMENT = 0.5  # seconds between two samples of which a rate is made


class Samples:
    """Samples of one engine, of which the latest of its present life are kept.

    Args:
        engine: its name.
        fleet: where the routers say what it has to do.
    """

    def __init__(self, engine: str, fleet: Fleet) -> None:
        self._engine = engine
        self._fleet = fleet
        self._kept: deque[Sample] = deque(maxlen=_KEPT)

    def forget(self) -> None:
        """Those of a life that is over."""
        self._kept.clear()

    async def take(self, pid: int, client: httpx2.AsyncClient | None) -> Sample:
        """The engine at this moment; its counters only where ``client`` is there to ask."""
        work = self._fleet.work(self._engine)
        counters = await probes.counted(client) if client else None
        processes = await asyncio.to_thread(vitals.processes, pid)
        return Sample(vitals.now(), work.in_flight, work.bytes, processes, counters)

    async def keep(self, pid: int, client: httpx2.AsyncClient) -> Sample:
        """Sample a ready engine, and keep that; one that had nothing to do since is not asked what it has counted."""
        last = self._kept[-1] if self._kept else None
        if last and last.counters and not last.in_flight and not self._fleet.work(self._engine).in_flight:
            sample = replace(await self.take(pid, None), counters=last.counters)
        else:
            sample = await self.take(pid, client)
        self._kept.append(sample)
        return sample

    async def vitals(self, pid: int, client: httpx2.AsyncClient | None, use: CardUse, cards: Collection[int]) -> Vitals:
        """How the engine fares now; rates since the oldest sample that is kept, or over half a second.

        Args:
            pid: its API server.
            client: to ask it what it has counted; None where it is not ready to tell.
            use: what the machine's cards are used for.
            cards: those that it may use, by index; empty where it runs without.
        """
        in_flight = self._fleet.work(self._engine).in_flight
        before = self._kept[0] if self._kept else await self.take(pid, client)
        if vitals.now() - before.at < _MOMENT:
            await asyncio.sleep(_MOMENT)
        after = await self.take(pid, client)
        held = [use.held[each] for each in (pid, *keeper.descendants(pid)) if each in use.held]
        return Vitals(
            engine=self._engine,
            memory=await asyncio.to_thread(resident, pid),
            card_memory=sum(held) if held else None,
            in_flight=in_flight,
            requests=after.counters.requests if after.counters else None,
            tokens_per_second=vitals.tokens_per_second(before, after),
            cores=vitals.cores(before, after),
            card_use=max((use.busy[card] for card in cards if card in use.busy), default=None),
        )
