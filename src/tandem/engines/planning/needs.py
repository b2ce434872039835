"""What one engine needs: estimated from its model until it has run, then as it was measured."""

import math
from dataclasses import dataclass, replace

from tandem.engines.footprints import Footprint
from tandem.engines.hardware import Hardware
from tandem.engines.model import Facts
from tandem.engines.planning.asks import Asks
from tandem.settings import EngineSettings

_GIB = 2**30
_MIB = 2**20

# What engines that ask for nothing get of the rest: a language model's cache is the larger part.
WEIGHT = {"embedding": 1, "generation": 2}
# Beside weights, activations and graphs: workspaces of attention and matrix libraries; with several cards, NCCL's.
_WORKSPACE = 3 * _GIB // 10
_WORKSPACE_PARALLEL = _GIB
# vLLM's own guess for CUDA graphs, which it takes off the KV cache, is about this for a layer.
_GRAPHS_LAYER = 16 * _MIB
# Of activations: what lives in the widest moment of a layer, and a quarter for what is freed late.
_LIVE = 1.25
# API server, EngineCore and resource tracker (and several cards' workers), with Python, torch and vLLM in each: as vLLM
# 0.32 was seen to take.
PROCESSES = 3 * _GIB // 2
# The shortest context that an engine is started with where nobody asked for one: less is of no use to anyone.
USEFUL = 2048


@dataclass(frozen=True)
class Wanted:
    """One engine that is to run.

    Attributes:
        width: bytes of an element in the dtype that it runs in.
        footprint: what it used at its last start; None before the first.
    """

    settings: EngineSettings
    facts: Facts
    width: int = 2
    footprint: Footprint | None = None


@dataclass(frozen=True)
class Parts:
    """Where one engine's memory goes, in bytes: on each of its cards, or of RAM."""

    weights: int = 0
    activations: int = 0
    graphs: int = 0
    other: int = 0
    cache: int = 0

    @property
    def beside(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.graphs + self.other

    @property
    def total(self) -> int:
        return self.beside + self.cache


class Lacking(Exception):
    """Some engine lacks memory: says which, and the numbers."""


@dataclass(frozen=True)
class Need:
    """What one engine needs on each of its cards, or of RAM.

    Attributes:
        parts: without a KV cache.
        least: bytes of KV cache for the context that it must have.
        most: bytes of KV cache that it can make use of.
        weight: its part of what is left.
        batch: tokens of its largest step.
        unknown: why its sizes are not known; empty where they are.
        measured: whether its parts are what it really used.
    """

    name: str
    asks: Asks
    wanted: Wanted
    parts: Parts
    least: int
    most: float
    weight: int
    batch: int
    unknown: str = ""
    measured: bool = False

    @property
    def cards(self) -> int:
        return self.asks.cards

    @property
    def element(self) -> int:
        return 1 if self.asks.narrow else self.wanted.width

    @property
    def whole(self) -> int:
        """Bytes that it cannot do without."""
        return self.parts.beside + self.least

    def asked(self, total: int) -> int | None:
        """Bytes of ``total`` that its settings ask for; None where they do not."""
        memory = self.asks.memory
        if memory is None:
            return None
        return int(memory.share * total) if memory.bytes is None and memory.share else memory.bytes

    def sequence(self, tokens: int) -> int:
        cache = self.wanted.facts.cache
        return cache.sequence(tokens, width=self.element, batch=self.batch, cards=self.cards) if cache else 0

    def longest(self, size: int) -> int | None:
        cache, most = self.wanted.facts.cache, self.asks.context or self.wanted.facts.context
        if not self.wanted.facts.keeps:
            return most
        if cache is None or most is None:
            return None
        return cache.longest(size, width=self.element, batch=self.batch, most=most, cards=self.cards)

    @property
    def token(self) -> int:
        cache = self.wanted.facts.cache
        return cache.token(width=self.element, cards=self.cards) if cache and not cache.sliding else 0


def needed(name: str, wanted: Wanted, hardware: Hardware) -> Need:
    """What ``wanted`` needs, as far as can be told before it has run."""
    asks, facts = Asks.of(wanted.settings), wanted.facts
    sequences, batch = _steps(wanted.settings.kind, asks, facts, hardware)
    parallel = asks.cards if hardware.gpu else 1
    live = 2 * facts.hidden + 3 * facts.inner // parallel
    parts = Parts(
        weights=facts.weights(wanted.width) // parallel,
        activations=int(_LIVE * batch * live * wanted.width)
        # Logits of each sequence's next token, as float32.
        + (4 * sequences * facts.vocabulary if wanted.settings.kind == "generation" else 0),
        graphs=_GRAPHS_LAYER * facts.layers if hardware.gpu and facts.keeps and not asks.eager else 0,
        other=PROCESSES if not hardware.gpu else _WORKSPACE_PARALLEL if parallel > 1 else _WORKSPACE,
    )
    unknown = _unknown(asks, facts)
    need = Need(
        name=name,
        asks=asks if hardware.gpu else replace(asks, cards=1),
        wanted=wanted,
        parts=parts,
        least=0,
        most=math.inf,
        weight=WEIGHT[wanted.settings.kind],
        batch=batch,
        unknown=unknown,
    )
    if not facts.keeps:
        return replace(need, most=0)
    if unknown:
        return need
    context = asks.context or facts.context or USEFUL
    least = need.sequence(asks.context or min(context, USEFUL))
    if asks.cache is not None:
        return replace(need, least=max(least, asks.cache), most=max(least, asks.cache))
    if wanted.settings.kind == "embedding":
        # A text is done with after its step: two full steps, and two texts that are longer than one.
        return replace(need, least=least, most=max(least, 2 * (need.sequence(context) + need.sequence(batch))))
    return replace(need, least=least, most=max(least, sequences * need.sequence(context)))


def measured(need: Need) -> Need:
    """The same need, with what the engine really used at its last start."""
    if (footprint := need.wanted.footprint) is None:
        return need
    weights = footprint.weights or min(need.parts.weights, footprint.beside)
    rest = max(0, footprint.beside - weights)
    activations = min(footprint.activations, rest)
    graphs = min(footprint.graphs, rest - activations)
    parts = Parts(weights=weights, activations=activations, graphs=graphs, other=rest - activations - graphs)
    return replace(need, parts=parts, measured=True)


def _steps(kind: str, asks: Asks, facts: Facts, hardware: Hardware) -> tuple[int, int]:
    """Sequences and tokens of the largest step: as asked, else vLLM's defaults (``EngineArgs.get_batch_defaults``)."""
    if not hardware.gpu:
        sequences, batch = 128, 2048
    elif hardware.cards[0].total >= 160 * _GIB:
        sequences, batch = 1024, 16384
    elif hardware.cards[0].total >= 70 * _GIB and "a100" not in hardware.cards[0].name.lower():
        sequences, batch = 1024, 8192
    else:
        sequences, batch = 256, 2048
    if not facts.keeps:
        batch = max(batch, facts.context or 0)  # its texts are not cut into pieces
    if asks.batch is None and facts.context:
        batch = min(batch, sequences * facts.context)
    batch = asks.batch or batch
    return asks.sequences or min(sequences, batch), batch


def _unknown(asks: Asks, facts: Facts) -> str:
    if not facts.weights(2):
        return "the size of its weights is not known"
    if facts.keeps and facts.cache is None:
        return f"how the family {facts.family or 'of its model'} keeps its KV cache is not known here"
    return "how far its weights shrink while they are loaded is not known" if asks.quantized else ""


def too_little(need: Need, budget: int, whose: str) -> str:
    return f"{in_words(need)}; {whose} gives it {gib(budget)}"


def in_words(need: Need, cache: str = "") -> str:
    """What an engine needs, in numbers: ``generation needs 12.3 GiB (weights 8.8, …)``.

    Args:
        cache: what its KV cache is for; by default the context that it must have.
    """
    parts = need.parts
    named = {
        "weights": parts.weights,
        "activations": parts.activations,
        "CUDA graphs": parts.graphs,
        "other": parts.other,
    }
    listed = [f"{name} {gib(size)}" for name, size in named.items() if size]
    if need.least:
        context = need.asks.context or min(need.wanted.facts.context or USEFUL, USEFUL)
        listed.append(f"KV cache {cache or f'of {context:,} tokens'} {gib(need.least)}")
    return f"{need.name} needs {gib(need.whole)} ({', '.join(listed)})"


def gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
