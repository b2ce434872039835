"""From an engine's settings, its model and its part of the machine to how it is started."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from tandem.engines import restarts
from tandem.engines.hardware import Hardware, detect
from tandem.engines.install import Vllm
from tandem.engines.launch import launch
from tandem.engines.planning.shares import Share
from tandem.engines.spec import Spec
from tandem.engines.weights import Model
from tandem.errors import SettingsError
from tandem.fleet import Engine
from tandem.logfile import Rotation
from tandem.rundir import RunDir
from tandem.service import measured
from tandem.settings import EngineSettings, SupervisionSettings, engine_environment


def replicas(engines: Mapping[str, EngineSettings]) -> tuple[dict[str, EngineSettings], dict[str, str]]:
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


@dataclass(frozen=True)
class Maker:
    """Makes the engines' specs of one plan.

    Attributes:
        engines: each engine's settings, replicas among them.
        first: of replicas, whose they are.
        models: each engine's model on disk.
        keys: what each engine's footprint is remembered by.
        ports: where each listens.
        cache: the environment that leads engines to the model cache.
        drain_timeout: seconds that requests in flight get when an engine is told to stop.
    """

    engines: Mapping[str, EngineSettings]
    first: Mapping[str, str]
    models: Mapping[str, Model]
    keys: Mapping[str, str]
    ports: Mapping[str, int]
    vllm: Vllm
    hardware: Hardware
    run_dir: RunDir
    cache: Mapping[str, str]
    drain_timeout: float
    rotation: Rotation
    supervision: SupervisionSettings

    def spec(self, name: str, share: Share) -> Spec:
        """How the engine is started with this part of the machine."""
        settings, model = self.engines[name], self.models[name]
        served = settings.served_model_name or model.name
        return Spec(
            engine=self._engine(name, served),
            launch=launch(
                settings,
                model=model,
                served_name=served,
                share=share,
                vllm=self.vllm,
                hardware=self.hardware,
                port=self.ports[name],
                tmp=self.run_dir.tmp(name),
                cache=self.cache,
                drain_timeout=self.drain_timeout,
            ),
            inherited=engine_environment(os.environ),
            log=self.run_dir.log(name),
            tmp=self.run_dir.tmp(name),
            drain_timeout=self.drain_timeout,
            cards=share.cards,
            sized=share.kv_cache is not None,
            memory=share.parts.total if share.parts else 0,
            remember=partial(measured.remember, self.keys[name], share),
            took=measured.took(self.keys[name]),
            rotation=self.rotation,
            supervision=self.supervision,
            room=None if share.gpu_memory is None else partial(_room, share.cards, share.gpu_memory),
        )

    def _engine(self, name: str, served: str) -> Engine:
        settings, model = self.engines[name], self.models[name]
        return Engine(
            name=name,
            kind=settings.kind,
            model=served,
            aliases=tuple(alias for alias in dict.fromkeys([*settings.aliases, settings.model]) if alias != served),
            url=f"http://127.0.0.1:{self.ports[name]}",
            reason="it has not started yet",
            created=int((model.path / "config.json").stat().st_mtime),
            replica_of=self.first.get(name, ""),
            tokenizer=str(model.path),
        )


def _room(cards: tuple[int, ...], share: float) -> bool:
    return restarts.room(detect().cards, cards, share)
