"""All engines of one service: started in order, watched, stopped together."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec

from tandem.engines.engine import EngineRunner, Spec
from tandem.errors import EngineError
from tandem.fleet import Fleet, State


def in_turn(specs: Sequence[Spec]) -> list[list[Spec]]:
    """Which engines start together, and which after those: each as early as it may, in the order they are given.

    Two may start together if they share no card, or if both are told how large their KV cache is.
    """
    turns: list[list[Spec]] = []
    for spec in specs:
        before = [
            number
            for number, turn in enumerate(turns)
            if any(_touches(spec, other) and not (spec.sized and other.sized) for other in turn)
        ]
        first = max(before, default=-1) + 1
        if first == len(turns):
            turns.append([])
        turns[first].append(spec)
    return turns


def _touches(spec: Spec, other: Spec) -> bool:
    """Whether two engines use the same memory; no cards are named where there is but one, or none."""
    return not (spec.cards and other.cards) or bool(set(spec.cards) & set(other.cards))


class Supervisor:
    """Runs the engines of ``specs``. Leaving its context stops them all, and waits until nothing is left."""

    def __init__(self, specs: Sequence[Spec], fleet: Fleet) -> None:
        self._runners = [EngineRunner(spec, fleet) for spec in specs]
        self._fleet = fleet
        self._tasks: list[asyncio.Task[None]] = []
        for spec in specs:
            fleet.put(spec.engine)

    async def start(self) -> None:
        """Start the engines, those together that can be; returns when all are ready.

        One after the other where one of them is yet to measure what it needs: engines that size their memory together
        charge each other's to themselves (vllm#55827, #56830).

        Raises:
            EngineError: one ended or refused before it was ready.
        """
        turns = in_turn([runner.spec for runner in self._runners])
        for engine in self._fleet.now.engines:
            if not any(engine.name == spec.engine.name for spec in turns[0]):
                self._fleet.put(
                    msgspec.structs.replace(engine, state=State.WAITING, reason="it waits for the engine before it")
                )
        runners = {runner.name: runner for runner in self._runners}
        for turn in turns:
            names = [spec.engine.name for spec in turn]
            self._tasks += [asyncio.create_task(runners[name].run(), name=name) for name in names]
            await self._until(*names)
        await self._until(*runners)  # one may have gone down while the next started

    async def broken(self) -> None:
        """Returns never; raises what went wrong in the running of an engine itself, which is a bug."""
        # Not gather: giving that up would give up the engines.
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        await asyncio.Event().wait()

    def kill(self) -> None:
        """End every process of every engine at once."""
        for runner in self._runners:
            runner.kill()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for runner in self._runners:
            runner.stop()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception) and exc is None:
                raise outcome

    async def _until(self, *names: str) -> None:
        """Wait until the engines of these names are ready; raises as :meth:`start` does if any engine fails first."""

        async def settled() -> None:
            async for snapshot in self._fleet.snapshots():
                for runner in self._runners:
                    engine = next(e for e in snapshot.engines if e.name == runner.name)
                    if engine.state is State.FAILED:
                        raise EngineError(
                            engine.name, engine.reason, f"Its log is {runner.log}; `tandem doctor` checks the machine"
                        )
                if all(engine.ready for engine in snapshot.engines if engine.name in names):
                    return

        waiting = asyncio.create_task(settled())
        broken = asyncio.create_task(self.broken())
        try:
            done, _ = await asyncio.wait({waiting, broken}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            waiting.cancel()
            broken.cancel()
