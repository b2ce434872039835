"""The supervisor's process: start up, serve, drain, stop. The router is a child of its own."""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tandem import control, notify
from tandem.engines import footprints, restarts, state, weights
from tandem.engines.engine import Spec
from tandem.engines.footprints import Footprint, Seen
from tandem.engines.hardware import Hardware, detect, resident
from tandem.engines.install import Vllm, remove_replaced
from tandem.engines.launch import dtype, launch
from tandem.engines.model import read as model_facts
from tandem.engines.orphans import sweep
from tandem.engines.planning.needs import Wanted
from tandem.engines.planning.plan import plan
from tandem.engines.planning.shares import Share
from tandem.engines.process import free_port
from tandem.engines.supervisor import Supervisor
from tandem.errors import SettingsError, SetupError
from tandem.fleet import Engine, Fleet, Vitals
from tandem.logfile import LogPipe, Rotation
from tandem.notify import Notifier
from tandem.router import exposure
from tandem.router.listener import listen
from tandem.rundir import RunDir, for_port
from tandem.settings import ApiSettings, EngineSettings, Loaded, RouterSettings, Settings, engine_environment

_log = logging.getLogger("tandem")
_STARTS = "starts.json"  # seconds that the last start of each engine took
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, the terminal's end
_ROUTER = ("-X", "faulthandler", "-m", "tandem.router")  # should it crash, its log says where
_ROUTER_DEATHS = 5  # in a row, each within so many seconds of its start: then it is not going to live
_ROUTER_LIFE = 5.0
_ROUTER_SETTLED = 2.0  # seconds that it has served before a spare one is loaded: at the start others need the cores


@dataclass(frozen=True)
class Plan:
    """All that a service needs to know before it starts anything.

    Attributes:
        engines: each engine's settings, replicas among them.
        kept: engines that run already, and go on as they are.
        waiting: names of settings that only a restart of the service would change.
    """

    specs: tuple[Spec, ...]
    router: RouterSettings
    api: ApiSettings
    run_dir: RunDir
    log_level: str
    log_format: str
    engine_python: Path
    shares: Mapping[str, Share] = field(default_factory=dict)
    rotation: Rotation = field(default_factory=Rotation)
    engines: Mapping[str, EngineSettings] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    waiting: tuple[str, ...] = ()

    def spec(self, name: str) -> Spec:
        return next(spec for spec in self.specs if spec.engine.name == name)

    @property
    def address(self) -> str:
        """Where callers on this machine reach the service."""
        return self.router.address


@dataclass(frozen=True)
class Running:
    """A service that runs: what it was started with, and each engine's process, where it has one."""

    plan: Plan
    pids: Mapping[str, int]

    def port(self, name: str) -> int | None:
        """Where the engine listens, or will again; None for one that is new."""
        found = (urlsplit(spec.engine.url).port for spec in self.plan.specs if spec.engine.name == name)
        return next(found, None)

    def left(self, hardware: Hardware, kept: Collection[str]) -> Hardware:
        """``hardware`` as it will be for the others: what is free, and what those give back that are not ``kept``."""
        going = {name: share for name, share in self.plan.shares.items() if name not in kept}
        on_card = {
            card.index: sum(
                share.parts.total
                for share in going.values()
                if share.parts and share.gpu_memory is not None and card.index in (share.cards or (card.index,))
            )
            for card in hardware.cards
        }
        unused = hardware.free + sum(resident(self.pids[name]) for name in going if name in self.pids)
        return replace(
            hardware,
            cards=tuple(
                replace(card, free=min(card.total, card.free + on_card[card.index])) for card in hardware.cards
            ),
            cores=max(1, hardware.cores - sum(self.plan.shares[name].threads for name in kept)),
            unused=min(hardware.memory, unused),
        )


def prepare(
    loaded: Loaded,
    hardware: Hardware,
    vllm: Vllm,
    models: Mapping[str, weights.Model],
    cache: weights.Cache,
    *,
    starting: bool = True,
    running: "Running | None" = None,
) -> Plan:
    """Work out every engine's command line. Starts nothing.

    Args:
        models: each engine's model on disk, by the engine's name.
        starting: whether the plan is to be carried out: then ports that are set must be free.
        running: the service that is to go on with this plan: engines of which nothing changes that they were started
            with keep what they have, and the others share what is left.

    Raises:
        SetupError: this vLLM does not fit the machine, the engines ask for more than that has, or a port that is set
            is taken.
    """
    settings = loaded.settings
    if vllm.build == "cuda" and not hardware.gpu:
        raise SetupError(
            f"{vllm} needs an NVIDIA GPU, and none is to be seen",
            "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or run `tandem install`, which brings the CPU build",
        )
    if vllm.build == "cpu":
        hardware = replace(hardware, cards=())
    exposure.check(settings.router)
    router, run_dir = settings.router, _run_dir(settings)
    rotation = Rotation(settings.log_size, settings.log_files)
    if running:
        running.plan.run_dir.fits(_replicas(settings.engines)[0])
        router, run_dir, rotation = _as_it_is(router, running.plan.router), running.plan.run_dir, running.plan.rotation
    engines, first = _replicas(settings.engines)
    starts = state.read(_STARTS)
    cache_environment = cache.environment(offline=settings.offline is not False)

    def spec(name: str, share: Share, port: int, key: str) -> Spec:
        engine, model = engines[name], models[first.get(name, name)]
        served = engine.served_model_name or model.name
        return Spec(
            engine=Engine(
                name=name,
                kind=engine.kind,
                model=served,
                aliases=tuple(alias for alias in dict.fromkeys([*engine.aliases, engine.model]) if alias != served),
                url=f"http://127.0.0.1:{port}",
                reason="it has not started yet",
                created=int((model.path / "config.json").stat().st_mtime),
                replica_of=first.get(name, ""),
                tokenizer=str(model.path),
            ),
            launch=launch(
                engine,
                model=model,
                served_name=served,
                share=share,
                vllm=vllm,
                hardware=hardware,
                port=port,
                tmp=run_dir.tmp(name),
                cache=cache_environment,
                drain_timeout=router.drain_timeout,
            ),
            inherited=engine_environment(os.environ),
            log=run_dir.log(name),
            tmp=run_dir.tmp(name),
            drain_timeout=router.drain_timeout,
            cards=share.cards,
            sized=share.kv_cache is not None,
            memory=share.parts.total if share.parts else 0,
            remember=partial(_remember, key, share),
            took=_took(starts.get(key)),
            rotation=rotation,
            supervision=settings.supervision,
            room=None if share.gpu_memory is None else partial(_room, share.cards, share.gpu_memory),
        )

    wanted, keys = _wanted(engines, {name: models[first.get(name, name)] for name in engines}, vllm, hardware)
    ports = _ports(loaded, engines, router.port, running, starting=starting)
    kept: dict[str, Spec] = {}
    shares: dict[str, Share] = {}
    if running:
        for name, engine in engines.items():
            if before := running.plan.engines.get(name):
                share = running.plan.shares[name]
                same = spec(name, share, ports[name], keys[name])
                if before.memory == engine.memory and same.launch == running.plan.spec(name).launch:
                    kept[name], shares[name] = same, share
        hardware = running.left(hardware, kept)
    shares |= plan({name: each for name, each in wanted.items() if name not in kept}, hardware)
    return Plan(
        tuple(kept.get(name) or spec(name, shares[name], ports[name], keys[name]) for name in engines),
        router,
        settings.api,
        run_dir,
        settings.log_level,
        settings.log_format,
        vllm.python,
        shares=shares,
        rotation=rotation,
        engines=engines,
        kept=frozenset(kept),
        waiting=_waiting(settings, running.plan) if running else (),
    )


def _ports(
    loaded: Loaded, engines: Mapping[str, EngineSettings], router: int, running: "Running | None", *, starting: bool
) -> dict[str, int]:
    """Where each engine listens: where it does now, if that may be, or where the settings say, or on a free port.

    Raises:
        SetupError: a port that is set is taken.
    """
    ports: dict[str, int] = {}
    given_back = {running.port(name) for name in running.plan.engines if name not in engines} if running else set()
    for name, engine in engines.items():
        asked = ("engines", name, "port") in loaded.origins
        had = running.port(name) if running else None
        if had and (engine.port == had or not asked):
            ports[name] = had
        elif engine.port and engine.port in given_back and engine.port not in ports.values():
            ports[name] = engine.port  # by then, the engine that listens there has ended
        elif starting or not engine.port:
            ports[name] = _port(engine.port, name, {router, *ports.values()}, asked=asked)
        else:
            ports[name] = engine.port
    return ports


def _run_dir(settings: Settings) -> RunDir:
    return RunDir(settings.run_dir.absolute()) if settings.run_dir else for_port(settings.router.port)


# Settings of the router that are given to a socket, or to engines, once.
_FIXED = ("host", "port", "drain_timeout")


def _as_it_is(router: RouterSettings, running: RouterSettings) -> RouterSettings:
    """``router``, but for what cannot change while the service runs."""
    return router.model_copy(update={name: getattr(running, name) for name in _FIXED})


def _waiting(settings: Settings, running: Plan) -> tuple[str, ...]:
    """Names of settings that would be others, did the service start now, and cannot change while it runs."""
    found = [f"router.{name}" for name in _FIXED if getattr(settings.router, name) != getattr(running.router, name)]
    if settings.run_dir is not None and _run_dir(settings).path != running.run_dir.path:
        found.append("run_dir")
    rotation = Rotation(settings.log_size, settings.log_files)
    return (*found, *(["log_size, log_files"] if rotation != running.rotation else []))


def _wanted(
    engines: Mapping[str, EngineSettings], models: Mapping[str, weights.Model], vllm: Vllm, hardware: Hardware
) -> tuple[dict[str, Wanted], dict[str, str]]:
    """What the planner must know of each engine, and what its footprint is remembered by."""
    known = footprints.remembered()
    wanted, keys = {}, {}
    for name, settings in engines.items():
        facts = model_facts(models[name], settings.kind)
        kept = dtype(settings, models[name], vllm, hardware)
        place = f"{hardware.cards[0].name}, {hardware.cards[0].total}" if hardware.gpu else "RAM"
        keys[name] = footprints.key(
            facts.name, facts.revision, vllm=str(vllm), place=place, dtype=kept, settings=settings
        )
        wanted[name] = Wanted(settings, facts, 4 if kept == "float32" else 2, known.get(keys[name]))
    return wanted, keys


def _remember(key: str, share: Share, pid: int, seen: Seen, took: float) -> None:
    """Keep what an engine that is ready really uses, for the next plan, and how long its start took."""
    with suppress(OSError):
        state.write(_STARTS, key, took)
    before = footprints.remembered().get(key)
    found: Footprint | None = before
    if share.gpu_memory is None:
        planned = share.parts.cache if share.parts else 0
        found = footprints.in_memory(seen, resident=resident(pid), planned=planned, before=before)
    elif share.parts:
        found = footprints.on_card(seen, budget=share.parts.total, token=share.token, before=before)
    if found and found != before:
        with suppress(OSError):  # a service that runs well does not end over this
            footprints.remember(key, found)


def _took(told: object) -> float:
    """Seconds of the last start, as they were remembered; 0 where they were not."""
    return float(told) if isinstance(told, int | float) and told > 0 else 0.0


def _room(cards: tuple[int, ...], share: float) -> bool:
    return restarts.room(detect().cards, cards, share)


def _replicas(engines: Mapping[str, EngineSettings]) -> tuple[dict[str, EngineSettings], dict[str, str]]:
    """One engine for each replica, the first under its own name; and of the others, whose replica they are."""
    expanded: dict[str, EngineSettings] = dict(engines)
    first: dict[str, str] = {}
    for name, engine in engines.items():
        for number in range(2, engine.replicas + 1):
            other = f"{name}-{number}"
            if other in expanded:
                raise SettingsError(f"engines.{other} has the name of a replica of engines.{name}", "Give it another")
            expanded[other] = engine.model_copy(update={"port": None})
            first[other] = name
    return expanded, first


Again = Callable[[Running], Plan]


async def run(plan: Plan, fleet: Fleet, on_ready: Callable[[], Awaitable[None]], again: Again | None = None) -> None:
    """Serve until SIGINT, SIGTERM or `tandem stop`. Whatever happens, nothing that was started outlives this.

    Args:
        fleet: filled and kept current here; the caller may watch it.
        on_ready: awaited once all engines are ready.
        again: makes the plan anew from the same sources, for `tandem reload`; called in a thread.

    Raises:
        SetupError: the run folder or the port is taken, or an engine or the router did not start.
    """
    with (
        plan.run_dir.claim(spec.engine.name for spec in plan.specs),
        listen(plan.router.host, plan.router.port) as listener,
        _Ports() as ports,
    ):
        if killed := await asyncio.to_thread(sweep, plan.run_dir):
            _log.warning(
                "cleared %d processes that an earlier service on %s left behind", len(killed), plan.run_dir.path
            )
        supervisor = Supervisor(plan.specs, fleet)
        desk = _Desk(plan, fleet, supervisor, ports, again)
        stop = desk.stopping
        ports.reserve(plan.specs)
        with _signals(stop.set, supervisor.kill):
            async with (
                notify.telling(Notifier.find(os.environ), fleet),
                control.serve(plan.run_dir, fleet, desk),
                supervisor,
                _router(plan, listener, desk.router_changed) as router_ended,
            ):
                await _first(supervisor.start(), stop.wait(), asyncio.shield(router_ended))
                if not stop.is_set():
                    await _first(on_ready(), stop.wait(), asyncio.shield(router_ended))
                    await _first(asyncio.to_thread(remove_replaced, plan.engine_python), stop.wait())
                await _first(stop.wait(), supervisor.broken(), asyncio.shield(router_ended))
                fleet.drain()


class _Desk:
    """Answers the control socket's verbs; knows what the service runs by now.

    Attributes:
        stopping: set once it is to end.
        router_changed: set when the router is to be replaced by one with other settings.
    """

    def __init__(self, plan: Plan, fleet: Fleet, supervisor: Supervisor, ports: "_Ports", again: Again | None) -> None:
        self.stopping = asyncio.Event()
        self.router_changed = asyncio.Event()
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


async def _first(*waits: Awaitable[object]) -> None:
    """Wait for whichever comes first, raise what it raised, and give up the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in tasks:
            task.cancel()


def _port(port: int | None, engine: str, given: Collection[int], *, asked: bool) -> int:
    """The engine's port, if it is free; where nobody asked for that one, any other will do.

    Args:
        given: the ports that the router and the engines before it have.
    """
    if port is None:
        return free_port()
    with socket.socket() as probe:
        if asked:  # else a port that was used a moment ago counts as taken, as one that is only reserved must
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if port in given:
                raise OSError(errno.EADDRINUSE, "given")
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            if not asked:
                return free_port()
            whom = "the router or another engine" if port in given else "another program"
            raise SetupError(
                f"port {port}, which is set for the engine {engine}, is taken by {whom}",
                f"Set another port for it (`ss -ltnp 'sport = :{port}'` names the program that has one)",
            ) from exc
    return port


class _Ports(ExitStack):
    """Holds the engines' ports against other services until the block ends: an engine listens only after it has loaded.

    A socket that is bound, and never listens, hinders none that is bound with ``SO_REUSEADDR``, as vLLM's is; but it
    makes :func:`_port` of another service choose another port.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: set[int] = set()

    def reserve(self, specs: Sequence[Spec]) -> None:
        """Hold those of ``specs``, too.

        Raises:
            SetupError: one was taken since it was chosen.
        """
        for spec in specs:
            port = urlsplit(spec.engine.url).port
            if port is None or port in self._held:
                continue
            holder = self.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind(("127.0.0.1", port))
            except OSError as exc:
                raise SetupError(
                    f"port {port} for the engine {spec.engine.name} was taken just now", "Try again"
                ) from exc
            self._held.add(port)


@contextmanager
def _signals(first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """The first of these signals asks for an orderly end, the next one for an immediate one."""
    loop = asyncio.get_running_loop()
    seen = False

    def heard() -> None:
        nonlocal seen
        (second if seen else first)()
        seen = True

    for number in _SIGNALS:
        loop.add_signal_handler(number, heard)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _router(plan: Plan, listener: socket.socket, changed: asyncio.Event) -> AsyncIterator[asyncio.Task[None]]:
    """Keep a router process on ``listener`` until the block ends; the task that is yielded ends if it cannot.

    Args:
        changed: set when another one is to take the place of the one that serves.
    """
    stopping = asyncio.Event()
    with LogPipe(plan.run_dir.log("router"), plan.rotation) as output:
        keeping = asyncio.create_task(_keep_router(plan, listener, stopping, changed, output))
        try:
            yield keeping
        finally:
            listener.close()  # callers are refused from here on, and do not wait in a queue that nobody reads
            stopping.set()
            await asyncio.wait({keeping})


async def _keep_router(
    plan: Plan, listener: socket.socket, stopping: asyncio.Event, changed: asyncio.Event, output: LogPipe
) -> None:
    log = plan.run_dir.log("router")
    clock = asyncio.get_running_loop().time
    told = asyncio.create_task(stopping.wait())
    renewed = asyncio.create_task(changed.wait())
    deaths = 0
    spare: asyncio.subprocess.Process | None = None
    leaving: set[asyncio.Task[None]] = set()  # routers that finish what they have
    try:
        while deaths < _ROUTER_DEATHS:
            process, spare = spare or await _load_router(plan, listener, output), None
            if told.done():
                process.kill()
                await process.wait()
                return
            started = clock()
            _let_serve(process)
            ended = asyncio.create_task(process.wait())
            news = {ended, told, renewed}
            await asyncio.wait(news, timeout=_ROUTER_SETTLED, return_when=asyncio.FIRST_COMPLETED)
            if not any(each.done() for each in news):
                spare = await _load_router(plan, listener, output)
                await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                await _end_router(process, ended, plan.router.drain_timeout)
                return
            if renewed.done() and not ended.done():
                changed.clear()
                renewed = asyncio.create_task(changed.wait())
                # Callers wait in the socket's queue until the next one serves.
                leaving.add(asyncio.create_task(_end_router(process, ended, plan.router.drain_timeout)))
                continue
            deaths = deaths + 1 if clock() - started < _ROUTER_LIFE else 1
            if deaths > 1:
                await asyncio.sleep(0.1)
        output.carry()
        raise SetupError(
            f"the router ended {_ROUTER_DEATHS} times in a row; its last words: {_last_line(log)}",
            f"Its log is {log}",
        )
    finally:
        told.cancel()
        renewed.cancel()
        if spare is not None and spare.returncode is None:
            spare.kill()
            await spare.wait()
        if leaving:
            await asyncio.wait(leaving)


async def _load_router(plan: Plan, listener: socket.socket, output: LogPipe) -> asyncio.subprocess.Process:
    """A router that loads all it needs and then waits to be told to serve: loading takes most of a second."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", *_ROUTER, str(plan.run_dir.path), str(listener.fileno())),
        pass_fds=[listener.fileno()],
        stdin=asyncio.subprocess.PIPE,
        stdout=output.fd,
        stderr=output.fd,
        start_new_session=True,
    )


def _let_serve(router: asyncio.subprocess.Process) -> None:
    """Should it be dead by now, that is noticed as any other death is."""
    assert router.stdin is not None  # noqa: S101 - it was started with a pipe
    router.stdin.write(b"serve\n")


async def _end_router(router: asyncio.subprocess.Process, ended: asyncio.Task[int], drain_timeout: float) -> None:
    if router.returncode is None:
        router.terminate()
    # uvicorn cancels what is left after the same time; a little more, and it is killed.
    done, _ = await asyncio.wait({ended}, timeout=drain_timeout + 5)
    if not done:
        router.kill()
        await ended


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "none"
