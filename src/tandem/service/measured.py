"""What earlier starts have shown: what each engine used, and how long its start took."""

from collections.abc import Mapping
from contextlib import suppress

from tandem.engines import footprints, state
from tandem.engines.footprints import Footprint, Seen
from tandem.engines.hardware import Hardware, resident
from tandem.engines.install import Vllm
from tandem.engines.launch import dtype
from tandem.engines.model import read as model_facts
from tandem.engines.planning.needs import Wanted
from tandem.engines.planning.shares import Share
from tandem.engines.weights import Model
from tandem.settings import EngineSettings

_STARTS = "starts.json"  # seconds that the last start of each engine took


def wanted(
    engines: Mapping[str, EngineSettings], models: Mapping[str, Model], vllm: Vllm, hardware: Hardware
) -> tuple[dict[str, Wanted], dict[str, str]]:
    """What the planner must know of each engine, and what its footprint is remembered by."""
    known = footprints.remembered()
    found, keys = {}, {}
    for name, settings in engines.items():
        facts = model_facts(models[name], settings.kind)
        kept = dtype(settings, models[name], vllm, hardware)
        place = f"{hardware.cards[0].name}, {hardware.cards[0].total}" if hardware.gpu else "RAM"
        keys[name] = footprints.key(
            facts.name, facts.revision, vllm=str(vllm), place=place, dtype=kept, settings=settings
        )
        found[name] = Wanted(settings, facts, 4 if kept == "float32" else 2, known.get(keys[name]))
    return found, keys


def remember(key: str, share: Share, pid: int, seen: Seen, took: float) -> None:
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


def took(key: str) -> float:
    """Seconds that the last start took; 0 where nobody remembers."""
    told = state.read(_STARTS).get(key)
    return float(told) if isinstance(told, int | float) and told > 0 else 0.0
