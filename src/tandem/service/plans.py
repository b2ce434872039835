"""What a service is to run: made of settings and the machine, and of what runs already."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from tandem.engines.hardware import Hardware, resident
from tandem.engines.install import Vllm
from tandem.engines.planning.needs import Wanted
from tandem.engines.planning.plan import plan
from tandem.engines.planning.shares import Share
from tandem.engines.spec import Spec
from tandem.engines.weights import Cache, Model
from tandem.errors import SetupError
from tandem.logfile import Rotation
from tandem.router import exposure
from tandem.rundir import RunDir, for_port
from tandem.service import measured, ports, specs
from tandem.settings import ApiSettings, EngineSettings, Loaded, RouterSettings, Settings

# Settings of the router that are given to a socket, or to engines, once.
_FIXED = ("host", "port", "drain_timeout")


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


Again = Callable[[Running], Plan]


def prepare(
    loaded: Loaded,
    hardware: Hardware,
    vllm: Vllm,
    models: Mapping[str, Model],
    cache: Cache,
    *,
    starting: bool = True,
    running: Running | None = None,
) -> Plan:
    """Work out every engine's command line. Starts nothing.

    Args:
        models: each engine's model on disk, by the engine's name.
        starting: whether the plan is to be carried out: then ports that are set must be free.
        running: the service that is to go on with this plan: engines of which nothing changes that they were started
            with keep what they have, and the others share what is left.

    Raises:
        SetupError: this vLLM does not fit the machine, the engines ask for more than it has, or a port is taken.
    """
    hardware = _usable(hardware, vllm)
    settings = loaded.settings
    exposure.check(settings.router)
    fixed = _fixed(settings, running)
    engines, first = specs.replicas(settings.engines)
    if running:
        fixed.run_dir.fits(engines)
    models = {name: models[first.get(name, name)] for name in engines}
    wanted, keys = measured.wanted(engines, models, vllm, hardware)
    maker = specs.Maker(
        engines=engines,
        first=first,
        models=models,
        keys=keys,
        ports=ports.choose(loaded, engines, fixed.router.port, _had(running, engines), starting=starting),
        vllm=vllm,
        hardware=hardware,
        run_dir=fixed.run_dir,
        cache=cache.environment(offline=settings.offline is not False),
        drain_timeout=fixed.router.drain_timeout,
        rotation=fixed.rotation,
        supervision=settings.supervision,
    )
    kept = _kept(running, maker) if running else {}
    shares = _shares(wanted, hardware, running, kept)
    return Plan(
        tuple(kept.get(name) or maker.spec(name, shares[name]) for name in engines),
        fixed.router,
        settings.api,
        fixed.run_dir,
        settings.log_level,
        settings.log_format,
        vllm.python,
        shares=shares,
        rotation=fixed.rotation,
        engines=engines,
        kept=frozenset(kept),
        waiting=_waiting(settings, running.plan) if running else (),
    )


def _usable(hardware: Hardware, vllm: Vllm) -> Hardware:
    """``hardware`` as this build of vLLM uses it."""
    if vllm.build == "cuda" and not hardware.gpu:
        raise SetupError(
            f"{vllm} needs an NVIDIA GPU, and none is to be seen",
            "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or run `tandem install`, which brings the CPU build",
        )
    return replace(hardware, cards=()) if vllm.build == "cpu" else hardware


@dataclass(frozen=True)
class _Fixed:
    """What cannot change while a service runs, and the router's settings with it."""

    router: RouterSettings
    run_dir: RunDir
    rotation: Rotation


def _fixed(settings: Settings, running: Running | None) -> _Fixed:
    """As it is set; of a service that runs, as it is."""
    if running is None:
        return _Fixed(settings.router, _run_dir(settings), Rotation(settings.log_size, settings.log_files))
    before = running.plan
    router = settings.router.model_copy(update={name: getattr(before.router, name) for name in _FIXED})
    return _Fixed(router, before.run_dir, before.rotation)


def _had(running: Running | None, engines: Mapping[str, EngineSettings]) -> ports.Had:
    """The ports of the engines that run."""
    if running is None:
        return ports.Had()
    found = {name: port for name in running.plan.engines if (port := running.port(name)) is not None}
    return ports.Had(
        {name: port for name, port in found.items() if name in engines},
        frozenset(port for name, port in found.items() if name not in engines),
    )


def _kept(running: Running, maker: specs.Maker) -> dict[str, Spec]:
    """The engines that would be started just as they were, were each given the part of the machine that it has."""
    kept = {}
    for name, engine in maker.engines.items():
        if before := running.plan.engines.get(name):
            same = maker.spec(name, running.plan.shares[name])
            if before.memory == engine.memory and same.launch == running.plan.spec(name).launch:
                kept[name] = same
    return kept


def _shares(
    wanted: Mapping[str, Wanted], hardware: Hardware, running: Running | None, kept: Collection[str]
) -> dict[str, Share]:
    """Each engine's part of the machine: what is ``kept`` has its own, and the others share what is left."""
    others = {name: each for name, each in wanted.items() if name not in kept}
    if running is None:
        return plan(others, hardware)
    return {name: running.plan.shares[name] for name in kept} | plan(others, running.left(hardware, kept))


def _run_dir(settings: Settings) -> RunDir:
    return RunDir(settings.run_dir.absolute()) if settings.run_dir else for_port(settings.router.port)


def _waiting(settings: Settings, running: Plan) -> tuple[str, ...]:
    """Names of settings that would be others, did the service start now, and cannot change while it runs."""
    found = [f"router.{name}" for name in _FIXED if getattr(settings.router, name) != getattr(running.router, name)]
    if settings.run_dir is not None and _run_dir(settings).path != running.run_dir.path:
        found.append("run_dir")
    rotation = Rotation(settings.log_size, settings.log_files)
    return (*found, *(["log_size, log_files"] if rotation != running.rotation else []))
