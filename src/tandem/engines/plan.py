"""Who gets what memory and how many threads. Pure: what models need and what the machine has in, shares out.

An engine needs its weights, room for the activations of one step, CUDA graphs, and whatever CUDA and Python take; the
rest of its part is KV cache. The first start on a card is planned with estimates of all that, and vLLM measures; from
then on the plan has what was measured (:mod:`tandem.engines.footprints`), and tells the engine its size. The division
itself never uses what was measured where the estimates allow it, so that it is the same at each start.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tandem.engines.footprints import Footprint
from tandem.engines.hardware import Card, Hardware
from tandem.engines.model import Facts
from tandem.errors import DoesNotFit
from tandem.settings import EngineSettings, Memory

_GIB = 2**30
_MIB = 2**20

# What engines that ask for nothing get of the rest: a language model's cache is the larger part.
_WEIGHT = {"embedding": 1, "generation": 2}
# A card is not promised whole: vLLM's measuring errs by a little, and other programs come and go.
_CARD = 0.95
_SPARE = 0.02
# What CUDA takes of a card for a process before vLLM starts to count: 0.53 GiB of an empty H100.
_CONTEXT = _GIB // 2
# Beside weights, activations and graphs: workspaces of attention and matrix libraries; with several cards, NCCL's.
_WORKSPACE = 3 * _GIB // 10
_WORKSPACE_PARALLEL = _GIB
# vLLM's own guess for CUDA graphs, which it takes off the KV cache, is about this for a layer.
_GRAPHS_LAYER = 16 * _MIB
# Of activations: what lives in the widest moment of a layer, and a quarter for what is freed late.
_LIVE = 1.25
# API server, EngineCore, worker and resource tracker, with Python, torch and vLLM in each: as vLLM 0.32 was seen to.
_PROCESSES = 3 * _GIB // 2
# The shortest context that an engine is started with where nobody asked for one: less is of no use to anyone.
_USEFUL = 2048
# A model as small as this takes less time for a step than OpenMP needs to wake and join its threads.
_TINY = 8 * 2**20
_CPU_CACHE = 8 * _GIB
# Settings that are flags of vLLM, too: args may have them, and would win.
_FLAGS = {
    "max_model_len": "--max-model-len",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "tensor_parallel_size": "--tensor-parallel-size",
    "memory": "--gpu-memory-utilization",
}
_CPU_BLOCK = _GIB  # VLLM_CPU_KVCACHE_SPACE counts whole ones


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


@dataclass(frozen=True)
class Share:
    """One engine's part of the machine.

    Attributes:
        threads: OpenMP threads for the model; 0 leaves it to vLLM (on a GPU).
        cards: the cards it may see, by the driver's index; empty leaves it to the environment.
        gpu_memory: share of each card, for ``--gpu-memory-utilization``; None without a card.
        kv_cache: bytes for the KV cache, told to the engine; None where it measures by itself.
        parts: where its memory goes; None where the card's or the model's size is not known.
        token: bytes of KV cache for one token, where each takes as much; else 0.
        context: tokens of the longest sequence that it holds, up to what the model takes; None likewise.
        measured: whether its parts are what it really used at its last start.
        notes: what people should know of it.
    """

    threads: int = 0
    cards: tuple[int, ...] = ()
    gpu_memory: float | None = None
    kv_cache: int | None = None
    parts: Parts | None = None
    token: int = 0
    context: int | None = None
    measured: bool = False
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int | None:
        """What the KV cache holds; None where that is not known."""
        return self.parts.cache // self.token if self.parts and self.token else None


@dataclass(frozen=True)
class Change:
    """A setting that would make a plan fit that does not."""

    engine: str
    setting: str
    value: Any

    def __str__(self) -> str:
        if self.setting == "args":
            return f"{' '.join(self.value[-2:])} in engines.{self.engine}.args"
        if self.value is None:
            return f"engines.{self.engine}.{self.setting} unset"
        return f"engines.{self.engine}.{self.setting} = {self.value}"

    def apply(self, engines: Mapping[str, Wanted]) -> dict[str, Wanted]:
        """``engines`` with this setting, and without the flag that would win over it."""
        old = engines[self.engine]
        args = _without(old.settings.args, _FLAGS[self.setting]) if self.setting in _FLAGS else old.settings.args
        settings = old.settings.model_copy(update={"args": args, self.setting: self.value})
        return {**engines, self.engine: replace(old, settings=settings)}


def plan(engines: Mapping[str, Wanted], hardware: Hardware) -> dict[str, Share]:
    """Divide the machine between ``engines``.

    Raises:
        DoesNotFit: they need more than there is; names settings with which they would fit.
    """
    try:
        return _divide(engines, hardware)
    except _Lacking as lacking:
        changes = tuple(_fitting(engines, hardware))
        mend = (
            "It fits with " + ", or ".join(map(str, changes))
            if changes
            else "No setting makes it fit: choose a smaller model or a quantized one, serve fewer engines, "
            "or end other programs"
        )
        raise DoesNotFit(str(lacking), mend, changes) from lacking


class _Lacking(Exception):
    """Some engine lacks memory: says which, and the numbers."""


@dataclass(frozen=True)
class _Asks:
    """What one engine's settings ask for, its args included: those win, as they do in vLLM."""

    memory: Memory | None
    context: int | None
    sequences: int | None
    batch: int | None
    cards: int
    narrow: bool  # KV cache of one byte an element
    eager: bool
    quantized: bool  # while it is loaded: how far is not known
    cache: int | None  # the KV cache's size itself
    pinned: frozenset[int]  # the cards it is to have, where its environment says so

    @classmethod
    def of(cls, settings: EngineSettings) -> "_Asks":
        flags = _flags(settings.args)
        share = re.fullmatch(r"0?\.\d+|1(\.0*)?", flags.get("--gpu-memory-utilization", ""))
        cache = flags.get("--kv-cache-memory-bytes")
        visible = settings.env.get("CUDA_VISIBLE_DEVICES", "")
        return cls(
            memory=Memory.parse(share[0].rstrip(".")) if share else settings.memory,
            context=_count(flags.get("--max-model-len")) or settings.max_model_len,
            sequences=_count(flags.get("--max-num-seqs")) or settings.max_num_seqs,
            batch=_count(flags.get("--max-num-batched-tokens")) or settings.max_num_batched_tokens,
            cards=_count(flags.get("--tensor-parallel-size") or flags.get("-tp")) or settings.tensor_parallel_size,
            narrow=flags.get("--kv-cache-dtype", "auto").startswith("fp8"),
            eager="--enforce-eager" in flags,
            quantized="--quantization" in flags or "-q" in flags,
            cache=_count(cache),
            pinned=frozenset(int(each) for each in re.findall(r"\d+", visible))
            if re.fullmatch(r"[\d, ]+", visible)
            else frozenset(),
        )


@dataclass(frozen=True)
class _Need:
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
    asks: _Asks
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


def _divide(engines: Mapping[str, Wanted], hardware: Hardware) -> dict[str, Share]:
    if not hardware.gpu:
        divide = _in_memory
    elif hardware.cards[0].total:
        divide = _on_cards
    else:
        return _unseen(engines)
    estimated = [_need(name, wanted, hardware) for name, wanted in engines.items()]
    measured = [_measured(need) for need in estimated]
    try:
        return divide(estimated, measured, hardware)
    except _Lacking:
        if estimated == measured:
            raise
        return divide(measured, measured, hardware)


def _need(name: str, wanted: Wanted, hardware: Hardware) -> _Need:
    """What ``wanted`` needs, as far as can be told before it has run."""
    asks, facts = _Asks.of(wanted.settings), wanted.facts
    sequences, batch = _steps(wanted.settings.kind, asks, facts, hardware)
    parallel = asks.cards if hardware.gpu else 1
    live = 2 * facts.hidden + 3 * facts.inner // parallel
    parts = Parts(
        weights=facts.weights(wanted.width) // parallel,
        activations=int(_LIVE * batch * live * wanted.width)
        # Logits of each sequence's next token, as float32.
        + (4 * sequences * facts.vocabulary if wanted.settings.kind == "generation" else 0),
        graphs=_GRAPHS_LAYER * facts.layers if hardware.gpu and facts.keeps and not asks.eager else 0,
        other=_PROCESSES if not hardware.gpu else _WORKSPACE_PARALLEL if parallel > 1 else _WORKSPACE,
    )
    unknown = _unknown(asks, facts)
    need = _Need(
        name=name,
        asks=asks if hardware.gpu else replace(asks, cards=1),
        wanted=wanted,
        parts=parts,
        least=0,
        most=math.inf,
        weight=_WEIGHT[wanted.settings.kind],
        batch=batch,
        unknown=unknown,
    )
    if not facts.keeps:
        return replace(need, most=0)
    if unknown:
        return need
    context = asks.context or facts.context or _USEFUL
    least = need.sequence(asks.context or min(context, _USEFUL))
    if asks.cache is not None:
        return replace(need, least=max(least, asks.cache), most=max(least, asks.cache))
    if wanted.settings.kind == "embedding":
        # A text is done with after its step: two full steps, and two texts that are longer than one.
        return replace(need, least=least, most=max(least, 2 * (need.sequence(context) + need.sequence(batch))))
    return replace(need, least=least, most=max(least, sequences * need.sequence(context)))


def _measured(need: _Need) -> _Need:
    """The same need, with what the engine really used at its last start."""
    if (footprint := need.wanted.footprint) is None:
        return need
    weights = footprint.weights or min(need.parts.weights, footprint.beside)
    rest = max(0, footprint.beside - weights)
    activations = min(footprint.activations, rest)
    graphs = min(footprint.graphs, rest - activations)
    parts = Parts(weights=weights, activations=activations, graphs=graphs, other=rest - activations - graphs)
    return replace(need, parts=parts, measured=True)


def _steps(kind: str, asks: _Asks, facts: Facts, hardware: Hardware) -> tuple[int, int]:
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


def _unknown(asks: _Asks, facts: Facts) -> str:
    if not facts.weights(2):
        return "the size of its weights is not known"
    if facts.keeps and facts.cache is None:
        return f"how the family {facts.family or 'of its model'} keeps its KV cache is not known here"
    return "how far its weights shrink while they are loaded is not known" if asks.quantized else ""


def _on_cards(needs: Sequence[_Need], judged: Sequence[_Need], hardware: Hardware) -> dict[str, Share]:
    """Place the engines, then divide each card; ``judged`` are the same needs as far as they were measured."""
    placed = _place(needs, hardware)
    really = {need.name: need for need in judged}
    shares: dict[str, float] = {}
    for card in hardware.cards:
        here = [need for need in needs if card in placed[need.name]]
        for name, share in _card(here, card).items():
            shares[name] = min(share, shares.get(name, 1.0))
    result = {}
    for need in needs:
        least = min(placed[need.name], key=lambda card: card.total)
        budget = int(shares[need.name] * least.total)
        actual = really[need.name]
        cache = budget - actual.parts.beside
        if not need.unknown and cache < actual.least:
            raise _Lacking(_too_little(actual, budget, f"a share of {shares[need.name]:g} of {least.name}"))
        result[need.name] = _share(
            actual,
            need.asks.cache or cache if need.wanted.facts.keeps else 0,
            gpu_memory=shares[need.name],
            # A card that nobody else could be meant by needs no naming; and a part of one cannot be named so.
            cards=tuple(card.index for card in placed[need.name]) if len(hardware.cards) > 1 else (),
            told=actual.measured and actual.wanted.facts.keeps and need.asks.cache is None,
        )
    return result


def _share(need: _Need, cache: int, *, gpu_memory: float | None, cards: tuple[int, ...], told: bool) -> Share:
    context = None if need.unknown else need.longest(cache)
    limit = need.asks.context or need.wanted.facts.context
    notes = []
    if need.unknown:
        notes.append(f"{need.unknown[0].upper()}{need.unknown[1:]}: what fits is left to vLLM")
    elif context is not None and limit is not None and context < limit:
        notes.append(f"Its memory allows a context of {context:,} of the model's {limit:,} tokens")
    return Share(
        cards=cards,
        gpu_memory=gpu_memory,
        kv_cache=cache if told else None,
        parts=replace(need.parts, cache=cache) if need.parts.weights or need.measured else None,
        token=need.token,
        context=context,
        measured=need.measured,
        notes=tuple(notes),
    )


def _place(needs: Sequence[_Need], hardware: Hardware) -> dict[str, tuple[Card, ...]]:
    """The cards of each engine: the emptiest ones, the largest engine first."""
    left = {card: _room(card, 0) for card in hardware.cards}
    placed: dict[str, tuple[Card, ...]] = {}
    for need in sorted(needs, key=lambda need: (need.cards, _claim(need, hardware.cards[0])), reverse=True):
        allowed = [card for card in left if card.index in need.asks.pinned] or list(left)
        if need.cards > len(allowed):
            there = "is one" if len(allowed) == 1 else f"are {len(allowed)}"
            raise _Lacking(f"{need.name} asks for {need.cards} cards (tensor_parallel_size), and there {there}")
        emptiest = sorted(allowed, key=lambda card: (-left[card], card.index))[: need.cards]
        for card in emptiest:
            left[card] -= _claim(need, card) + _CONTEXT
        placed[need.name] = tuple(sorted(emptiest, key=lambda card: card.index))
    return placed


def _claim(need: _Need, card: Card) -> int:
    asked = _asked(need, card.total)
    return need.whole if asked is None else asked


def _asked(need: _Need, total: int) -> int | None:
    memory = need.asks.memory
    if memory is None:
        return None
    return int(memory.share * total) if memory.bytes is None and memory.share else memory.bytes


def _room(card: Card, engines: int) -> int:
    """Bytes that may be given away where nobody asks for more."""
    return int(min(_CARD * card.total, card.free - _SPARE * card.total)) - engines * _CONTEXT


def _card(needs: Sequence[_Need], card: Card) -> dict[str, float]:
    """Each engine's share of ``card``, in thousandths where it did not ask for one."""
    thousandth = card.total / 1000
    asked = {need.name: size for need in needs if (size := _asked(need, card.total)) is not None}
    others = [need for need in needs if need.name not in asked]
    free = card.free - len(needs) * _CONTEXT
    where = f"{card.name}, of which {_gib(free)} of {_gib(card.total)} are free for engines"
    if sum(asked.values()) > free:
        wanted = ", ".join(f"{name} {_gib(size)}" for name, size in asked.items())
        raise _Lacking(f"the engines ask for {_gib(sum(asked.values()))} ({wanted}) of {where}")
    for need in needs:
        if need.name in asked and need.whole > asked[need.name] and not need.unknown:
            raise _Lacking(_too_little(need, asked[need.name], f"its memory setting of {need.asks.memory}"))
    room = math.floor(max(0, _room(card, len(needs)) - sum(asked.values())) / thousandth)
    least = {need.name: math.ceil(need.whole / thousandth) for need in others}
    if sum(least.values()) > room:
        lines = "; ".join(_words(need) for need in others)
        kept = f" beside what {', '.join(asked)} asked for" if asked else ""
        raise _Lacking(f"{lines}: more than the {_gib(int(room * thousandth))}{kept} to be had on {where}")
    extra = _fill(
        room - sum(least.values()),
        [((need.most - need.least) / thousandth, need.weight) for need in others],
    )
    shares = {name: size / card.total for name, size in asked.items()}
    for need, more in zip(others, extra, strict=True):
        shares[need.name] = (least[need.name] + math.floor(more)) / 1000
    for need in needs:
        if need.name in asked and (memory := need.asks.memory) and memory.share:
            shares[need.name] = memory.share
        elif need.name in asked:
            shares[need.name] = math.floor(shares[need.name] * 10_000) / 10_000
    return shares


def _fill(room: float, glasses: Sequence[tuple[float, int]]) -> list[float]:
    """``room`` poured into ``glasses`` (what each holds, and its weight); what one cannot hold goes to the others."""
    filled = [0.0] * len(glasses)
    open_ = [i for i, (size, _) in enumerate(glasses) if size > 0]
    while open_ and room > 1e-9:
        total = sum(glasses[i][1] for i in open_)
        full = [i for i in open_ if glasses[i][0] - filled[i] <= room * glasses[i][1] / total]
        if not full:
            for i in open_:
                filled[i] += room * glasses[i][1] / total
            break
        for i in full:
            room -= glasses[i][0] - filled[i]
            filled[i] = glasses[i][0]
        open_ = [i for i in open_ if i not in full]
    return filled


def _whole(parts: Sequence[float]) -> list[int]:
    """``parts`` in whole ones, of no greater sum; what rounding leaves goes to those that lost the most."""
    whole = [math.floor(part + 1e-9) for part in parts]
    left = math.floor(sum(parts) + 1e-9) - sum(whole)
    for i in sorted(range(len(parts)), key=lambda i: whole[i] - parts[i])[:left]:
        whole[i] += 1
    return whole


def _unseen(engines: Mapping[str, Wanted]) -> dict[str, Share]:
    """Shares of a card whose size is not told: nine tenths, first what is asked for, the rest by kind."""
    asks = {name: _Asks.of(wanted.settings) for name, wanted in engines.items()}
    given = {name: each.memory.share for name, each in asks.items() if each.memory and each.memory.share}
    rest = 0.9 - sum(given.values())
    weights = {name: _WEIGHT[engines[name].settings.kind] for name in engines if name not in given}
    if sum(given.values()) > 1 or (weights and rest < 0.05):
        wanted = ", ".join(f"{name} {share:.2f}" for name, share in given.items())
        raise _Lacking(f"the engines ask for more than the card has ({wanted})")
    shares = given | {name: rest * weight / sum(weights.values()) for name, weight in weights.items()}
    note = "The card does not tell its size: vLLM sizes its memory by itself"
    return {name: Share(gpu_memory=round(shares[name], 3), notes=(note,)) for name in engines}


def _in_memory(needs: Sequence[_Need], judged: Sequence[_Need], hardware: Hardware) -> dict[str, Share]:
    """Divide RAM: whole GiB of KV cache for each engine, as asked, else as much as it can use."""
    total = int(hardware.free - _SPARE * hardware.memory)
    claims = [_claim_of_memory(need, hardware) for need in needs]
    least = sum(need.parts.beside + low for need, (low, _) in zip(needs, claims, strict=True))
    extra = _fill(
        (total - least) / _CPU_BLOCK,
        [((high - low) / _CPU_BLOCK, need.weight) for need, (low, high) in zip(needs, claims, strict=True)],
    )
    caches = [low + more * _CPU_BLOCK for (low, _), more in zip(claims, _whole(extra), strict=True)]
    if least > total or sum(need.parts.beside for need in judged) + sum(caches) > total:
        lines = "; ".join(_words(replace(need, least=low)) for need, (low, _) in zip(judged, claims, strict=True))
        raise _Lacking(f"{lines}: more than the {_gib(total)} of RAM to be had of {_gib(hardware.memory)}")
    threads = _threads(needs, hardware.cores)
    result = {}
    for need, cache in zip(judged, caches, strict=True):
        share = _share(need, cache, gpu_memory=None, cards=(), told=True)
        # An encoder keeps nothing, and vLLM still wants to hear a size: without one it claims nearly all RAM.
        size = max(_CPU_BLOCK, cache)
        result[need.name] = replace(share, threads=threads[need.name], kv_cache=size)
    return result


def _claim_of_memory(need: _Need, hardware: Hardware) -> tuple[int, int]:
    """Bytes of KV cache that an engine must have, and that it would have at most; whole blocks."""
    if not need.wanted.facts.keeps:
        return 0, 0
    least = max(_CPU_BLOCK, -(-need.least // _CPU_BLOCK) * _CPU_BLOCK)
    if (asked := _asked(need, hardware.memory)) is not None:
        given = max(_CPU_BLOCK, asked // _CPU_BLOCK * _CPU_BLOCK)
        if given < least:
            raise _Lacking(
                f"{need.name} needs {_gib(need.least)} of KV cache for a context of "
                f"{need.asks.context or _USEFUL:,} tokens; its memory setting of {need.asks.memory} gives {_gib(given)}"
            )
        return given, given
    most = int(min(_CPU_CACHE, hardware.memory // 4, need.most))
    if need.wanted.settings.kind == "embedding":
        # As much as one text of the longest kind needs: texts are computed one step after the other.
        context = need.asks.context or need.wanted.facts.context
        most = min(most, need.sequence(context) if context and not need.unknown else _CPU_BLOCK)
    return least, max(least, -(-most // _CPU_BLOCK) * _CPU_BLOCK)


def _threads(needs: Sequence[_Need], cores: int) -> dict[str, int]:
    """OpenMP threads of each engine.

    One core is left to the API servers, as vLLM's own binding does, where that is not half of the machine. A tiny
    model is slower with two threads than with one; the others share the rest, embedding first: it computes, while
    generating a token mostly reads weights.
    """
    threads = {need.name: 1 for need in needs}
    rest = max(1, cores - 1 if cores > 2 else cores) - len(needs)
    growing = [need for need in needs if need.wanted.facts.weights(1) > _TINY or need.unknown]
    growing.sort(key=lambda need: need.wanted.settings.kind)
    for turn in range(rest if growing else 0):
        threads[growing[turn % len(growing)].name] += 1
    return threads


def _fitting(engines: Mapping[str, Wanted], hardware: Hardware) -> Iterator[Change]:
    """Settings that would each make the plan fit, the nearest of each sort, three at most."""
    found = 0
    for change in _changes(engines, hardware):
        try:
            _divide(change.apply(engines), hardware)
        except _Lacking:
            continue
        yield change
        found += 1
        if found == 3:
            return


def _changes(engines: Mapping[str, Wanted], hardware: Hardware) -> Iterator[Change]:
    asks = {name: _Asks.of(wanted.settings) for name, wanted in engines.items()}
    for name in engines:
        if asks[name].context:
            yield from _shorter(name, asks[name].context or 0, engines, hardware)
    for name in engines:
        if asks[name].memory is not None:
            yield from _other_memory(name, engines, hardware)
    for name, wanted in engines.items():
        if hardware.gpu and wanted.facts.cache and not asks[name].narrow:
            yield Change(name, "args", (*wanted.settings.args, "--kv-cache-dtype", "fp8"))
    for name in engines:
        for setting, now, smaller in (
            ("max_num_batched_tokens", asks[name].batch, 2048),
            ("max_num_seqs", asks[name].sequences or (256 if hardware.gpu else None), 64),
        ):
            if now and now > smaller:
                yield Change(name, setting, smaller)
    for name in engines:
        for cards in (1, 2, 4, 8):
            if cards != asks[name].cards and cards <= len(hardware.cards):
                yield Change(name, "tensor_parallel_size", cards)
    for name in engines:
        if asks[name].memory is not None:
            yield Change(name, "memory", None)
        elif hardware.gpu:
            # What is asked for may be more than what is given away unasked.
            yield from _other_memory(name, engines, hardware)


def _shorter(name: str, context: int, engines: Mapping[str, Wanted], hardware: Hardware) -> Iterator[Change]:
    """The longest context of ``name`` that fits, in whole blocks."""
    low, high = 0, context // 16
    while low < high:
        middle = (low + high + 1) // 2
        try:
            _divide(Change(name, "max_model_len", middle * 16).apply(engines), hardware)
            low = middle
        except _Lacking:
            high = middle - 1
    if low:
        yield Change(name, "max_model_len", low * 16)


def _other_memory(name: str, engines: Mapping[str, Wanted], hardware: Hardware) -> Iterator[Change]:
    """The memory setting of ``name`` next to its own that fits: in hundredths of the card, or in whole GiB."""
    memory = _Asks.of(engines[name].settings).memory or Memory(share=_CARD)
    total = hardware.cards[0].total if hardware.gpu else hardware.memory
    shares = memory.bytes is None
    steps = range(1, 100) if shares else range(1, total // _GIB + 1)
    now = (memory.share or 0) * 100 if shares else (memory.bytes or 0) / _GIB
    for step in sorted(steps, key=lambda step: abs(step - now)):
        value = Memory(share=step / 100) if shares else Memory(bytes=step * _GIB)
        change = Change(name, "memory", value)
        try:
            _divide(change.apply(engines), hardware)
        except _Lacking:
            continue
        yield change
        return


def _too_little(need: _Need, budget: int, whose: str) -> str:
    return f"{_words(need)}; {whose} gives it {_gib(budget)}"


def _words(need: _Need) -> str:
    """What an engine needs, in numbers: ``generation needs 12.3 GiB (weights 8.8, …)``."""
    parts = need.parts
    named = {
        "weights": parts.weights,
        "activations": parts.activations,
        "CUDA graphs": parts.graphs,
        "other": parts.other,
    }
    listed = [f"{name} {_gib(size)}" for name, size in named.items() if size]
    if need.least:
        context = need.asks.context or min(need.wanted.facts.context or _USEFUL, _USEFUL)
        listed.append(f"KV cache of {context:,} tokens {_gib(need.least)}")
    return f"{need.name} needs {_gib(need.whole)} ({', '.join(listed)})"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def _flags(args: Sequence[str]) -> dict[str, str]:
    """vLLM's flags in ``args``, each with its value, the last where there are several; empty where it has none."""
    flags: dict[str, str] = {}
    for number, word in enumerate(args):
        if not word.startswith("-"):
            continue
        flag, equals, value = word.partition("=")
        following = args[number + 1] if number + 1 < len(args) and not equals else ""
        flags[flag.replace("_", "-")] = value or ("" if following.startswith("--") else following)
    return flags


def _without(args: Sequence[str], unwanted: str) -> tuple[str, ...]:
    kept: list[str] = []
    skip = False
    for word in args:
        flag, equals, _ = word.partition("=")
        if skip and not word.startswith("--"):
            skip = False
        elif flag.replace("_", "-") == unwanted:
            skip = not equals
        else:
            kept.append(word)
            skip = False
    return tuple(kept)


def _count(text: str | None) -> int | None:
    """A number as vLLM reads it (``16384``, ``16k``, ``16K``, ``1.5M``); None for ``auto``, and for none."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text or ""):
        scale = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}
        return int(float(match[1]) * scale[match[2]])
    return None
