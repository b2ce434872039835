"""NVIDIA cards: which engine goes where, and what it gets there."""

import math
from collections.abc import Mapping, Sequence

from tandem.engines.hardware import Card, Hardware
from tandem.engines.planning.asks import Asks
from tandem.engines.planning.needs import WEIGHT, Lacking, Need, Wanted, gib, in_words, too_little
from tandem.engines.planning.shares import SPARE, Share, fill, share_of

_GIB = 2**30

# A card is not promised whole.
CARD = 0.95
# What CUDA takes of a card for a process before vLLM starts to count: 0.53 GiB of an empty H100.
_CONTEXT = _GIB // 2


def on_cards(needs: Sequence[Need], judged: Sequence[Need], hardware: Hardware) -> dict[str, Share]:
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
            raise Lacking(too_little(actual, budget, f"a share of {shares[need.name]:g} of {least.name}"))
        result[need.name] = share_of(
            actual,
            need.asks.cache or cache if need.wanted.facts.keeps else 0,
            gpu_memory=shares[need.name],
            # A card that nobody else could be meant by needs no naming; and a part of one cannot be named so.
            cards=tuple(card.index for card in placed[need.name]) if len(hardware.cards) > 1 else (),
            told=actual.measured and actual.wanted.facts.keeps and need.asks.cache is None,
        )
    return result


def _place(needs: Sequence[Need], hardware: Hardware) -> dict[str, tuple[Card, ...]]:
    """The cards of each engine: the emptiest ones, the largest engine first."""
    left = {card: _room(card, 0) for card in hardware.cards}
    placed: dict[str, tuple[Card, ...]] = {}
    for need in sorted(needs, key=lambda need: (need.cards, _claim(need, hardware.cards[0])), reverse=True):
        allowed = [card for card in left if card.index in need.asks.pinned] or list(left)
        if need.cards > len(allowed):
            there = "is one" if len(allowed) == 1 else f"are {len(allowed)}"
            raise Lacking(f"{need.name} asks for {need.cards} cards (tensor_parallel_size), and there {there}")
        emptiest = sorted(allowed, key=lambda card: (-left[card], card.index))[: need.cards]
        for card in emptiest:
            left[card] -= _claim(need, card) + _CONTEXT
        placed[need.name] = tuple(sorted(emptiest, key=lambda card: card.index))
    return placed


def _claim(need: Need, card: Card) -> int:
    asked = need.asked(card.total)
    return need.whole if asked is None else asked


def _room(card: Card, engines: int) -> int:
    """Bytes that may be given away where nobody asks for more."""
    return int(min(CARD * card.total, card.free - SPARE * card.total)) - engines * _CONTEXT


def _card(needs: Sequence[Need], card: Card) -> dict[str, float]:
    """Each engine's share of ``card``, in thousandths where it did not ask for one."""
    thousandth = card.total / 1000
    asked = {need.name: size for need in needs if (size := need.asked(card.total)) is not None}
    others = [need for need in needs if need.name not in asked]
    free = card.free - len(needs) * _CONTEXT
    where = f"{card.name}, of which {gib(free)} of {gib(card.total)} are free for engines"
    if sum(asked.values()) > free:
        wanted = ", ".join(f"{name} {gib(size)}" for name, size in asked.items())
        raise Lacking(f"the engines ask for {gib(sum(asked.values()))} ({wanted}) of {where}")
    for need in needs:
        if need.name in asked and need.whole > asked[need.name] and not need.unknown:
            raise Lacking(too_little(need, asked[need.name], f"its memory setting of {need.asks.memory}"))
    room = math.floor(max(0, _room(card, len(needs)) - sum(asked.values())) / thousandth)
    least = {need.name: math.ceil(need.whole / thousandth) for need in others}
    if sum(least.values()) > room:
        lines = "; ".join(in_words(need) for need in others)
        kept = f" beside what {', '.join(asked)} asked for" if asked else ""
        raise Lacking(f"{lines}: more than the {gib(int(room * thousandth))}{kept} to be had on {where}")
    extra = fill(
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


def unseen(engines: Mapping[str, Wanted]) -> dict[str, Share]:
    """Shares of a card whose size is not told: nine tenths, first what is asked for, the rest by kind."""
    asks = {name: Asks.of(wanted.settings) for name, wanted in engines.items()}
    given = {name: each.memory.share for name, each in asks.items() if each.memory and each.memory.share}
    rest = 0.9 - sum(given.values())
    weights = {name: WEIGHT[engines[name].settings.kind] for name in engines if name not in given}
    if sum(given.values()) > 1 or (weights and rest < 0.05):
        wanted = ", ".join(f"{name} {share:.2f}" for name, share in given.items())
        raise Lacking(f"the engines ask for more than the card has ({wanted})")
    shares = given | {name: rest * weight / sum(weights.values()) for name, weight in weights.items()}
    note = "The card does not tell its size: vLLM sizes its memory by itself"
    return {name: Share(gpu_memory=round(shares[name], 3), notes=(note,)) for name in engines}
