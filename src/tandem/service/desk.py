"""What the control socket's verbs do, in a service that runs."""

import asyncio
import os
from collections.abc import Iterator, Sequence

import msgspec

from tandem import control
from tandem.engines.supervisor import Supervisor
from tandem.errors import SetupError
from tandem.fleet import Fleet, Vitals
from tandem.service.plans import Again, Plan, Running
from tandem.service.ports import Ports


class Desk:
    """Answers the control socket's verbs; knows what the service runs by now.

    Attributes:
        stopping: set once it is to end.
        router_changed: set when the router is to be replaced by one with other settings.
        router_here: set once the first router is there.
    """

    def __init__(self, plan: Plan, fleet: Fleet, supervisor: Supervisor, ports: Ports, again: Again | None) -> None:
        self.stopping = asyncio.Event()
        self.router_changed = asyncio.Event()
        self.router_here = asyncio.Event()
        self._plan = plan
        self._fleet = fleet
        self._supervisor = supervisor
        self._ports = ports
        self._again = again

    def hello(self) -> control.Hello:
        return control.Hello(
            os.getpid(),
            self._plan.address,
            self._plan.log_level,
            self._plan.log_format,
            msgspec.Raw(self._plan.router.model_dump_json().encode()),
            msgspec.Raw(self._plan.api.model_dump_json().encode()),
        )

    def stop(self) -> None:
        self.stopping.set()

    def routed(self) -> None:
        self.router_here.set()

    async def vitals(self) -> Sequence[Vitals]:
        return await self._supervisor.vitals()

    async def restart(self, engine: str) -> Sequence[str]:
        await self._supervisor.restart(engine)
        return [f"{engine} was started anew and is ready."]

    async def reload(self) -> Sequence[str]:
        if self._again is None:
            raise SetupError("this service has no settings to read anew")
        before = self._plan
        engines = self._fleet.now.engines
        running = Running(before, {engine.name: engine.pid for engine in engines if engine.pid is not None})
        plan = await asyncio.to_thread(self._again, running)
        self._ports.reserve(plan.specs)
        changed = {spec.engine.name for spec in plan.specs} - plan.kept

        def begun() -> None:
            self._plan = plan

        try:
            await self._supervisor.reload(plan.specs, changed, begun)
        finally:
            if _router_of(self._plan) != _router_of(before):
                self.router_changed.set()
        return list(_told(before, plan))


def _router_of(plan: Plan) -> tuple[object, ...]:
    """What a router is started with."""
    return plan.router, plan.api, plan.log_level, plan.log_format


def _told(before: Plan, plan: Plan) -> Iterator[str]:
    """What a reload has done, for people."""
    old, new = ({spec.engine.name for spec in each.specs} for each in (before, plan))
    for what, names in (
        ("Started anew", (new - plan.kept) & old),
        ("Added", new - old),
        ("Removed", old - new),
        ("Left alone", plan.kept),
    ):
        if names:
            yield f"{what}: {', '.join(sorted(names))}."
    if _router_of(plan) != _router_of(before):
        yield "The router has its new settings."
    if plan.waiting:
        yield f"Only a restart of the service changes {', '.join(plan.waiting)} (`tandem stop`, then `tandem up`)."
