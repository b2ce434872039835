"""All engines of one service: started in order, watched, stopped together."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import msgspec

from tandem.engines.engine import EngineRunner
from tandem.engines.hardware import card_use
from tandem.engines.spec import Spec
from tandem.errors import EngineError, SetupError
from tandem.fleet import Fleet, State, Vitals, now


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
        self._runners = {spec.engine.name: EngineRunner(spec, fleet) for spec in specs}
        self._fleet = fleet
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started = False
        self._changing = asyncio.Lock()
        self._bug = asyncio.Event()
        for spec in specs:
            fleet.put(spec.engine)

    async def start(self) -> None:
        """Start the engines, those together that can be; returns when all are ready.

        One after the other where one of them is yet to measure what it needs: engines that size their memory together
        charge each other's to themselves (vllm#55827, #56830).

        Raises:
            EngineError: one ended or refused before it was ready.
        """
        turns = in_turn([runner.spec for runner in self._runners.values()])
        before = max(spec.took for spec in turns[0])
        for turn in turns[1:]:
            for spec in turn:
                waiting = msgspec.structs.replace(
                    spec.engine,
                    state=State.WAITING,
                    reason="it waits for the engine before it",
                    estimate=spec.took,
                    expected=now() + before + spec.took if before and spec.took else 0.0,
                )
                self._fleet.put(waiting)
            before = before and max(spec.took for spec in turn) and before + max(spec.took for spec in turn)
        for turn in turns:
            names = [spec.engine.name for spec in turn]
            for name in names:
                self._run(name)
            await self._until(*names)
        await self._until(*self._runners)  # one may have gone down while the next started
        self._started = True

    async def restart(self, name: str) -> None:
        """Start an engine and its replicas anew, each once the one before it is ready; a replica by its name, alone.

        Raises:
            SetupError: there is no such engine, or it is no time for it.
            EngineError: one did not come back; those after it are left as they are.
        """
        if name not in self._runners:
            raise SetupError(f"there is no engine {name}", f"There are: {', '.join(self._runners)}")
        async with self._change():
            for each, runner in list(self._runners.items()):
                if name in (each, runner.spec.engine.replica_of):
                    await self._renew(each)

    async def reload(
        self, specs: Sequence[Spec], changed: Collection[str], begun: Callable[[], None] = lambda: None
    ) -> None:
        """Run ``specs`` from now on: what is not among them ends, ``changed`` ones and failed ones start anew, and new
        ones start; the others run on.

        One after the other, those first that give memory back: so there is at no time less room than at the end.

        Args:
            changed: names of engines that are to be other processes than they are.
            begun: called when it begins: from then on, ``specs`` is what there is.

        Raises:
            SetupError: it is no time for it; or some did not come back, and all others are as they are to be.
        """
        async with self._change():
            begun()
            wanted = {spec.engine.name: spec for spec in specs}
            for name in [name for name in self._runners if name not in wanted]:
                await self._remove(name)
            failed = {engine.name for engine in self._fleet.now.engines if engine.state is State.FAILED}
            growth = {}
            for name, spec in wanted.items():
                runner = self._runners.get(name)
                if runner is None:
                    growth[name] = spec.memory
                elif name in changed or name in failed:
                    growth[name] = spec.memory - runner.spec.memory
                else:
                    runner.adopt(spec)
            lost = []
            for name in sorted(growth, key=growth.__getitem__):
                if name not in self._runners:
                    self._runners[name] = EngineRunner(wanted[name], self._fleet)
                try:
                    await self._renew(name, wanted[name])
                except EngineError as exc:
                    lost.append(exc)
            if lost:
                causes = "; ".join(each.cause for each in lost)
                raise SetupError(causes, "`tandem logs` tells more; mend the settings, and `tandem reload` again")

    async def vitals(self) -> list[Vitals]:
        """How every engine fares now; takes a moment."""
        use = await asyncio.to_thread(card_use)
        return list(await asyncio.gather(*(runner.vitals(use) for runner in list(self._runners.values()))))

    async def broken(self) -> None:
        """Returns never; raises what went wrong in the running of an engine itself, which is a bug."""
        await self._bug.wait()
        for task in self._tasks.values():
            if task.done():
                task.result()
        await asyncio.Event().wait()

    def kill(self) -> None:
        """End every process of every engine at once."""
        for runner in self._runners.values():
            runner.kill()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for runner in self._runners.values():
            runner.stop()
        for outcome in await asyncio.gather(*self._tasks.values(), return_exceptions=True):
            if isinstance(outcome, Exception) and exc is None:
                raise outcome

    def _run(self, name: str) -> None:
        task = self._tasks[name] = asyncio.create_task(self._runners[name].run(), name=name)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception():
            self._bug.set()

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """One change at a time, and none while the service starts."""
        if not self._started:
            raise SetupError("the service is still starting", "Ask again once `tandem status` shows it ready")
        if self._changing.locked():
            raise SetupError("another restart or reload is under way", "Ask again once it is done")
        async with self._changing:
            yield

    async def _renew(self, name: str, spec: Spec | None = None) -> None:
        runner = self._runners[name]
        renewed = runner.renew(spec)
        if name not in self._tasks or self._tasks[name].done():
            self._run(name)
        waits: set[asyncio.Future[Any]] = {renewed, self._tasks[name]}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not renewed.done():  # a bug ended it
            self._tasks[name].result()
        if reason := await renewed:
            raise EngineError(name, reason, f"Its log is {runner.log}; once that is mended, `tandem restart {name}`")

    async def _remove(self, name: str) -> None:
        self._runners[name].stop()
        await asyncio.wait({self._tasks[name]})
        del self._runners[name], self._tasks[name]
        self._fleet.remove(name)

    async def _until(self, *names: str) -> None:
        """Wait until these engines are ready; any engine that has failed ends the wait."""

        async def settled() -> None:
            async for snapshot in self._fleet.snapshots():
                for name, runner in self._runners.items():
                    engine = next(e for e in snapshot.engines if e.name == name)
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
