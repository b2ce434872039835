"""The supervisor's process: start up, serve, drain, stop. The router is a child of its own."""

import asyncio
import errno
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
from tandem.engines import footprints, weights
from tandem.engines.engine import Spec
from tandem.engines.footprints import Footprint, Seen
from tandem.engines.hardware import Hardware, resident
from tandem.engines.install import Vllm, remove_replaced
from tandem.engines.launch import dtype, launch
from tandem.engines.model import read as model_facts
from tandem.engines.plan import Share, Wanted, plan
from tandem.engines.process import free_port
from tandem.engines.supervisor import Supervisor
from tandem.errors import SettingsError, SetupError
from tandem.fleet import Engine, Fleet
from tandem.logfile import LogPipe, Rotation
from tandem.notify import Notifier
from tandem.router import exposure
from tandem.router.listener import listen
from tandem.rundir import RunDir, for_port
from tandem.settings import ApiSettings, EngineSettings, Loaded, RouterSettings, engine_environment

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, the terminal's end
_ROUTER = ("-X", "faulthandler", "-m", "tandem.router")  # should it crash, its log says where
_ROUTER_DEATHS = 5  # in a row, each within so many seconds of its start: then it is not going to live
_ROUTER_LIFE = 5.0
_ROUTER_SETTLED = 2.0  # seconds that it has served before a spare one is loaded: at the start others need the cores


@dataclass(frozen=True)
class Plan:
    """All that a service needs to know before it starts anything."""

    specs: tuple[Spec, ...]
    router: RouterSettings
    api: ApiSettings
    run_dir: RunDir
    log_level: str
    log_format: str
    engine_python: Path
    shares: Mapping[str, Share] = field(default_factory=dict)
    rotation: Rotation = field(default_factory=Rotation)

    @property
    def address(self) -> str:
        """Where callers on this machine reach the service."""
        return self.router.address


def prepare(
    loaded: Loaded,
    hardware: Hardware,
    vllm: Vllm,
    models: Mapping[str, weights.Model],
    cache: weights.Cache,
    *,
    starting: bool = True,
) -> Plan:
    """Work out every engine's command line. Starts nothing.

    Args:
        models: each engine's model on disk, by the engine's name.
        starting: whether the plan is to be carried out: then ports that are set must be free.

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
    run_dir = RunDir(settings.run_dir.absolute()) if settings.run_dir else for_port(settings.router.port)
    exposure.check(settings.router)
    engines, first = _replicas(settings.engines)
    wanted, keys = _wanted(engines, {name: models[first.get(name, name)] for name in engines}, vllm, hardware)
    shares = plan(wanted, hardware)
    specs = []
    ports = {settings.router.port}
    for name, engine in engines.items():
        model = models[first.get(name, name)]
        asked = ("engines", name, "port") in loaded.origins
        port = _port(engine.port, name, ports, asked=asked) if starting or not engine.port else engine.port
        ports.add(port)
        served = engine.served_model_name or model.name
        specs.append(
            Spec(
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
                    share=shares[name],
                    vllm=vllm,
                    hardware=hardware,
                    port=port,
                    tmp=run_dir.tmp(name),
                    cache=cache.environment(offline=settings.offline is not False),
                    drain_timeout=settings.router.drain_timeout,
                ),
                inherited=engine_environment(os.environ),
                log=run_dir.log(name),
                tmp=run_dir.tmp(name),
                drain_timeout=settings.router.drain_timeout,
                cards=shares[name].cards,
                sized=shares[name].kv_cache is not None,
                remember=partial(_remember, keys[name], shares[name]),
                rotation=Rotation(settings.log_size, settings.log_files),
            )
        )
    return Plan(
        tuple(specs),
        settings.router,
        settings.api,
        run_dir,
        settings.log_level,
        settings.log_format,
        vllm.python,
        shares=shares,
        rotation=Rotation(settings.log_size, settings.log_files),
    )


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


def _remember(key: str, share: Share, pid: int, seen: Seen) -> None:
    """Keep what an engine that is ready really uses, for the next plan."""
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


async def run(plan: Plan, fleet: Fleet, on_ready: Callable[[], Awaitable[None]]) -> None:
    """Serve until SIGINT, SIGTERM or `tandem stop`. Whatever happens, nothing that was started outlives this.

    Args:
        fleet: filled and kept current here; the caller may watch it.
        on_ready: awaited once all engines are ready.

    Raises:
        SetupError: the run folder or the port is taken, or an engine or the router did not start.
    """
    stop = asyncio.Event()
    with (
        plan.run_dir.claim(spec.engine.name for spec in plan.specs),
        listen(plan.router.host, plan.router.port) as listener,
    ):
        supervisor = Supervisor(plan.specs, fleet)
        hello = control.Hello(
            os.getpid(),
            plan.address,
            plan.log_level,
            plan.log_format,
            msgspec.Raw(plan.router.model_dump_json().encode()),
            msgspec.Raw(plan.api.model_dump_json().encode()),
        )
        with _signals(stop.set, supervisor.kill), _reserved(plan.specs):
            async with (
                notify.telling(Notifier.find(os.environ), fleet),
                control.serve(plan.run_dir, fleet, hello, stop.set),
                supervisor,
                _router(plan, listener) as router_ended,
            ):
                await _first(supervisor.start(), stop.wait(), asyncio.shield(router_ended))
                if not stop.is_set():
                    await _first(on_ready(), stop.wait(), asyncio.shield(router_ended))
                    await _first(asyncio.to_thread(remove_replaced, plan.engine_python), stop.wait())
                await _first(stop.wait(), supervisor.broken(), asyncio.shield(router_ended))
                fleet.drain()


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


@contextmanager
def _reserved(specs: Sequence[Spec]) -> Iterator[None]:
    """Hold the engines' ports against other services until the block ends: an engine listens only after it has loaded.

    A socket that is bound, and never listens, hinders none that is bound with ``SO_REUSEADDR``, as vLLM's is; but it
    makes :func:`_port` of another service choose another port.
    """
    with ExitStack() as stack:
        for spec in specs:
            port = urlsplit(spec.engine.url).port
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind(("127.0.0.1", port))
            except OSError as exc:
                raise SetupError(
                    f"port {port} for the engine {spec.engine.name} was taken just now", "Try again"
                ) from exc
        yield


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
async def _router(plan: Plan, listener: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """Keep a router process on ``listener`` until the block ends; the task that is yielded ends if it cannot."""
    stopping = asyncio.Event()
    with LogPipe(plan.run_dir.log("router"), plan.rotation) as output:
        keeping = asyncio.create_task(_keep_router(plan, listener, stopping, output))
        try:
            yield keeping
        finally:
            listener.close()  # callers are refused from here on, and do not wait in a queue that nobody reads
            stopping.set()
            await asyncio.wait({keeping})


async def _keep_router(plan: Plan, listener: socket.socket, stopping: asyncio.Event, output: LogPipe) -> None:
    log = plan.run_dir.log("router")
    clock = asyncio.get_running_loop().time
    told = asyncio.create_task(stopping.wait())
    deaths = 0
    spare: asyncio.subprocess.Process | None = None
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
            await asyncio.wait({ended, told}, timeout=_ROUTER_SETTLED, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and not told.done():
                spare = await _load_router(plan, listener, output)
                await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                await _end_router(process, ended, plan.router.drain_timeout)
                return
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
        if spare is not None and spare.returncode is None:
            spare.kill()
            await spare.wait()


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
