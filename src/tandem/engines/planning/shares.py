"""What an engine is given, and how what is left over is divided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tandem.engines.planning.needs import Need, Parts

# Of RAM or of a card, what is left to others: vLLM's measuring errs by a little, and other programs come and go.
SPARE = 0.02


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


def share_of(need: Need, cache: int, *, gpu_memory: float | None, cards: tuple[int, ...], told: bool) -> Share:
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


def fill(room: float, glasses: Sequence[tuple[float, int]]) -> list[float]:
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


def whole(parts: Sequence[float]) -> list[int]:
    """``parts`` in whole ones, of no greater sum; what rounding leaves goes to those that lost the most."""
    whole = [math.floor(part + 1e-9) for part in parts]
    left = math.floor(sum(parts) + 1e-9) - sum(whole)
    for i in sorted(range(len(parts)), key=lambda i: whole[i] - parts[i])[:left]:
        whole[i] += 1
    return whole
