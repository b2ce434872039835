"""Who gets what memory and how many threads. Pure: settings and hardware in, shares out."""

from collections.abc import Mapping
from dataclasses import dataclass

from tandem.engines.hardware import Hardware
from tandem.errors import SetupError
from tandem.settings import EngineSettings

_GIB = 2**30
# A card is never promised whole: CUDA contexts and other programs need some.
_CARD = 0.9
# What engines that ask for nothing get of the rest: a language model's cache is the larger part.
_WEIGHT = {"embedding": 1, "generation": 2}


@dataclass(frozen=True)
class Share:
    """One engine's part of the machine.

    Attributes:
        threads: OpenMP threads for the model; 0 leaves it to vLLM (on a GPU).
        gpu_memory: share of the card, for ``--gpu-memory-utilization``; None without a card.
        kv_cache: bytes of RAM for the KV cache; None on a GPU.
    """

    threads: int = 0
    gpu_memory: float | None = None
    kv_cache: int | None = None


def plan(engines: Mapping[str, EngineSettings], hardware: Hardware) -> dict[str, Share]:
    """Divide the machine between ``engines``.

    Raises:
        SetupError: they ask for more than there is.
    """
    return _on_card(engines, hardware) if hardware.gpu else _on_cpu(engines, hardware)


def _on_card(engines: Mapping[str, EngineSettings], hardware: Hardware) -> dict[str, Share]:
    total = hardware.cards[0].total
    asked = {name: _share_of(engine, total) for name, engine in engines.items()}
    given = {name: share for name, share in asked.items() if share is not None}
    rest = _CARD - sum(given.values())
    weights = {name: _WEIGHT[engines[name].kind] for name in engines if name not in given}
    if sum(given.values()) > 1 or (weights and rest < 0.05):
        wanted = ", ".join(f"{name} {share:.2f}" for name, share in given.items())
        raise SetupError(
            f"the engines ask for more than the card has ({wanted})",
            "Lower their memory settings so that the sum leaves room for every engine",
        )
    shares = given | {name: rest * weight / sum(weights.values()) for name, weight in weights.items()}
    return {name: Share(gpu_memory=round(shares[name], 3)) for name in engines}


def _share_of(engine: EngineSettings, total: int) -> float | None:
    if engine.memory is None:
        return None
    return engine.memory.share if engine.memory.bytes is None else engine.memory.bytes / max(total, 1)


def _on_cpu(engines: Mapping[str, EngineSettings], hardware: Hardware) -> dict[str, Share]:
    # Threads are set for every engine: nothing tells vLLM's own binding which cores its neighbour took.
    threads = max(1, hardware.cores // len(engines))
    caches = {name: _cache(engine, hardware) for name, engine in engines.items()}
    if (asked := sum(caches.values())) > hardware.memory:
        raise SetupError(
            f"the engines' KV caches ask for {asked / _GIB:.0f} GiB of {hardware.memory / _GIB:.0f} GiB of memory",
            "Lower their memory settings",
        )
    return {name: Share(threads=threads, kv_cache=cache) for name, cache in caches.items()}


def _cache(engine: EngineSettings, hardware: Hardware) -> int:
    if engine.memory is not None:
        asked = engine.memory.bytes or int((engine.memory.share or 0) * hardware.memory)
    elif engine.kind == "embedding":
        asked = _GIB
    else:
        asked = min(8 * _GIB, hardware.memory // 4)
    return max(_GIB, asked // _GIB * _GIB)  # VLLM_CPU_KVCACHE_SPACE counts whole GiB
