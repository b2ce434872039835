"""What is known of the engines: frozen snapshots, and waiting for a change.

This is all that engines and router share. The supervisor (or, in front of engines that run elsewhere, the router's
prober) is the only writer; everyone else reads the current snapshot or waits for the next one.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Hashable, Iterable
from enum import StrEnum
from typing import Literal

import msgspec

Kind = Literal["embedding", "generation"]


class State(StrEnum):
    """An engine's states, in the order of its life."""

    PLANNED = "planned"
    WAITING = "waiting"  # for the engine before it to size its memory
    STARTING = "starting"
    LOADING = "loading"
    SIZING = "sizing"
    WARMING = "warming"
    READY = "ready"
    STALLED = "stalled"
    RESTARTING = "restarting"
    FAILED = "failed"
    DRAINING = "draining"
    STOPPED = "stopped"


_AWAY = frozenset({State.PLANNED, State.WAITING, State.STARTING, State.RESTARTING, State.FAILED, State.STOPPED})


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, as it is now.

    Attributes:
        model: the name that the engine itself serves its model under.
        aliases: further names that callers may use for the model; the engine's own name is always one.
        url: where it listens, such as ``http://127.0.0.1:8100``; empty until that is known.
        detail: what it is doing within its state, for people.
        reason: why it is not ready, for people; empty when it is.
        since: when it entered its state, in seconds since the epoch.
        started: when its present start began, in seconds since the epoch.
        created: when the model was first served, in whole seconds since the epoch (``created`` in ``/v1/models``).
        pid: the API server's process, where it runs on this machine.
        restarts: how often it had to be started again.
        replica_of: the engine it does the same as, by name; empty for the first of them.
        tokenizer: the folder that holds its model's tokenizer, where the router can read it; else empty.
        context: tokens that its model takes at most, prompt and answer together; 0 while that is not known.
        expected: while it starts, when it will be ready by the time its last start took, in seconds since the epoch;
            0 when nobody knows.
        estimate: seconds that its last start took; 0 when nobody knows.
        line: the last line that it logged while it starts.
        error: why it ended the last time that it did so by itself; empty if it never did.
        renewed: it is away because somebody asked for that (`tandem restart`, `tandem reload`): its requests wait.
    """

    name: str
    kind: Kind
    model: str
    aliases: tuple[str, ...] = ()
    url: str = ""
    state: State = State.PLANNED
    detail: str = ""
    reason: str = ""
    since: float = 0.0
    started: float = 0.0
    created: int = 0
    pid: int | None = None
    restarts: int = 0
    replica_of: str = ""
    tokenizer: str = ""
    context: int = 0
    expected: float = 0.0
    renewed: bool = False
    error: str = ""
    estimate: float = 0.0
    line: str = ""

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    @property
    def names(self) -> tuple[str, ...]:
        """Every name a caller may ask for this engine's model by; the first is the one it is listed under."""
        return (self.model, *self.aliases, self.replica_of or self.name)

    @property
    def away(self) -> bool:
        """Whether its process is gone or about to be started: what it was asked is not going to be answered."""
        return self.state in _AWAY


class Snapshot(msgspec.Struct, frozen=True):
    """All engines, and whether the service is on its way out, at one moment."""

    engines: tuple[Engine, ...] = ()
    draining: bool = False

    def find(self, model: str) -> Engine | None:
        """The engine that answers to ``model``; served names win over aliases, aliases over engine names."""
        for name_of in (lambda e: (e.model,), lambda e: e.aliases, lambda e: (e.name,)):
            for engine in self.engines:
                if model in name_of(engine):
                    return engine
        return None

    def replicas(self, engine: Engine) -> tuple[Engine, ...]:
        """All engines that serve what ``engine`` serves, itself among them."""
        first = engine.replica_of or engine.name
        return tuple(each for each in self.engines if first in (each.name, each.replica_of))

    @property
    def ready(self) -> bool:
        return bool(self.engines) and all(engine.ready for engine in self.engines)


class Work(msgspec.Struct, frozen=True):
    """What one engine has to do, as a router tells it.

    Attributes:
        engine: its name.
        in_flight: requests that it has.
        bytes: of these requests' bodies, all together.
        open: whether it is given more.
    """

    engine: str
    in_flight: int = 0
    bytes: int = 0
    open: bool = False


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine fares at one moment. None where nobody can tell.

    Attributes:
        engine: its name.
        memory: bytes of RAM that its processes hold; what several share counts once.
        card_memory: bytes that they hold of cards.
        in_flight: requests that it has.
        requests: that it has answered since it started; texts, for an embedding engine.
        tokens_per_second: read and written, over the last seconds.
        cores: that it kept busy over the last seconds.
        card_use: how busy its cards are, from 0 to 1; others may use them, too.
    """

    engine: str
    memory: int | None = None
    card_memory: int | None = None
    in_flight: int = 0
    requests: int | None = None
    tokens_per_second: float | None = None
    cores: float | None = None
    card_use: float | None = None


class Fleet:
    """The current snapshot, and a way to wait for the next. Lives on one event loop.

    Beside the supervisor it also keeps what the routers tell of the engines' work.
    """

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self._snapshot = snapshot or Snapshot()
        self._changed = asyncio.Event()
        self._work: dict[Hashable, tuple[Work, ...]] = {}
        self._worked = asyncio.Event()

    @property
    def now(self) -> Snapshot:
        return self._snapshot

    def replace(self, snapshot: Snapshot) -> None:
        """Publish ``snapshot`` if it differs from the current one."""
        if snapshot != self._snapshot:
            self._snapshot = snapshot
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def put(self, engine: Engine) -> None:
        """Publish one engine's new snapshot in the place of its old one, or as the last."""
        engines = {e.name: e for e in self._snapshot.engines} | {engine.name: engine}
        self.replace(msgspec.structs.replace(self._snapshot, engines=tuple(engines.values())))

    def remove(self, name: str) -> None:
        """Forget an engine."""
        left = tuple(engine for engine in self._snapshot.engines if engine.name != name)
        self.replace(msgspec.structs.replace(self._snapshot, engines=left))

    def report(self, router: Hashable, work: Iterable[Work]) -> None:
        """Note what ``router`` says; nothing at all, once it is gone: its requests went with it."""
        self._work[router] = tuple(work)
        if not self._work[router]:
            del self._work[router]
        worked, self._worked = self._worked, asyncio.Event()
        worked.set()

    def work(self, name: str) -> Work:
        """What the engine has to do, of all routers together."""
        told = [work for each in self._work.values() for work in each if work.engine == name]
        return Work(
            name,
            sum(work.in_flight for work in told),
            sum(work.bytes for work in told),
            any(work.open for work in told),
        )

    async def idle(self, name: str) -> None:
        """Wait until no router has anything in flight with the engine, or would give it more."""
        while (work := self.work(name)).in_flight or work.open:
            await self._worked.wait()

    def drain(self) -> None:
        """Say that the service is on its way out."""
        self.replace(msgspec.structs.replace(self._snapshot, draining=True))

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """The current snapshot at once, then each newer one. A slow reader skips those in between."""
        while True:
            changed, snapshot = self._changed, self._snapshot
            yield snapshot
            await changed.wait()


def now() -> float:
    """Seconds since the epoch, as snapshots carry them: they are read by other processes."""
    return time.time()
