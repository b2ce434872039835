"""What engines really used, from vLLM's own log, remembered between starts.

The lines are those of vLLM 0.24 to 0.33: a card's engine measures what it needs beside its KV cache, and says so once.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace

from tandem.engines import state
from tandem.settings import EngineSettings

_GIB = 2**30
_FILE = "footprints.json"


@dataclass(frozen=True)
class Seen:
    """What one start has said of its memory so far; in bytes, None where it has not said.

    Attributes:
        weights: what the model took when it was loaded.
        activations: the peak of one step beyond what stays.
        graphs: CUDA graphs, once they were captured.
        cache: the KV cache.
        tokens: what the KV cache holds.
        told: whether the size of the KV cache was given to the engine, and not measured by it.
    """

    weights: int | None = None
    activations: int | None = None
    graphs: int | None = None
    cache: int | None = None
    tokens: int | None = None
    told: bool = False


@dataclass(frozen=True)
class Footprint:
    """What one engine used at its last start; in bytes, on each of its cards.

    Attributes:
        beside: all that it needs beside its KV cache: weights, activations, graphs, whatever CUDA takes.
        weights: of that, the weights; 0 where it did not say.
        activations: likewise.
        graphs: likewise.
        cache: the KV cache that it had.
        tokens: what that held; 0 where it did not say.
    """

    beside: int
    weights: int = 0
    activations: int = 0
    graphs: int = 0
    cache: int = 0
    tokens: int = 0


def seen_after(seen: Seen, line: str) -> Seen:
    """What is known once ``line`` was logged. Of several workers, the one that needs the most and has the least."""
    if match := _LOADED.search(line):
        return replace(seen, weights=max(_bytes(match[1]), seen.weights or 0))
    if match := _MEASURED.search(line):
        return replace(seen, cache=min(_bytes(match[1]), seen.cache or _bytes(match[1])))
    if match := _TOLD.search(line):
        return replace(seen, cache=_bytes(match[1] or match[2]), told=True)
    if match := _TOKENS.search(line):
        return replace(seen, tokens=int(match[1].replace(",", "")))
    if match := _CAPTURED.search(line):
        return replace(seen, graphs=max(_bytes(match[1]), seen.graphs or 0))
    if match := _PEAK.search(line):
        return replace(seen, activations=max(_bytes(match[1]), seen.activations or 0))
    return seen


def on_card(seen: Seen, *, budget: int, token: int, before: Footprint | None) -> Footprint | None:
    """What to remember of a start on a card; None where it said nothing that the next one could use.

    Args:
        budget: bytes of the card that the engine was allowed.
        token: bytes of KV cache for each token, where every token takes as much; else 0. With it, the size is known to
            the byte: the log rounds it to hundredths of a GiB, and the next start is to have just as many tokens.
        before: what was remembered so far. An engine that is told its size does not measure.
    """
    if seen.cache is None or seen.told:
        return before
    exact = token * (seen.tokens or 0)
    cache = exact if abs(exact - seen.cache) <= _ROUNDING else seen.cache - _ROUNDING
    return Footprint(
        beside=budget - cache,
        weights=seen.weights or 0,
        activations=seen.activations or 0,
        graphs=seen.graphs or 0,
        cache=cache,
        tokens=seen.tokens or 0,
    )


def in_memory(seen: Seen, *, resident: int, planned: int, before: Footprint | None) -> Footprint:
    """What to remember of a start without a card.

    Args:
        resident: bytes that the engine's processes hold once it is ready; its KV cache, filled with zeros, among them.
        planned: bytes of KV cache that it was told to have; what it says itself counts more.
        before: what was remembered so far. A size that differs little stays: the next plan is then the same.
    """
    cache = planned if seen.cache is None else seen.cache
    resident -= cache
    if before and abs(resident - before.beside) < _DRIFT * before.beside:
        resident = before.beside
    return Footprint(beside=resident, cache=cache, tokens=seen.tokens or 0)


def key(model: str, revision: str, *, vllm: str, place: str, dtype: str, settings: EngineSettings) -> str:
    """What a footprint holds for: this model in this vLLM on this card, in steps of this size."""
    sizing = (settings.kind, settings.max_num_seqs, settings.max_num_batched_tokens, settings.tensor_parallel_size)
    told = hashlib.sha256(json.dumps([sizing, settings.args, sorted(settings.env.items())]).encode()).hexdigest()[:12]
    return " | ".join((model, revision, vllm, place, dtype, told))


def remembered() -> dict[str, Footprint]:
    """All footprints, by key."""
    try:
        return {key: Footprint(**each) for key, each in state.read(_FILE).items()}
    except TypeError:  # of another form
        return {}


def remember(key: str, found: Footprint) -> None:
    """Keep ``found`` for the next start.

    Raises:
        OSError: the state folder cannot be written.
    """
    state.write(_FILE, key, asdict(found))


def _bytes(gibibytes: str) -> int:
    return round(float(gibibytes) * _GIB)


_LOADED = re.compile(r"Model loading took ([\d.]+) ?GiB")
_MEASURED = re.compile(r"Available KV cache memory: ([\d.]+) GiB")
_TOLD = re.compile(
    r"reserved ([\d.]+) GiB memory for KV Cache as specified|Explicitly set \(([\d.]+)/[\d.]+\) GiB for KV"
)
_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_CAPTURED = re.compile(r"Graph capturing finished in .* took ([\d.]+) GiB")
_PEAK = re.compile(r"([\d.]+) GiB for peak activation")
# Sizes are logged with two digits after the point; and a cache is whole blocks, of up to 16 tokens or a few MiB.
_ROUNDING = round(0.01 * _GIB)
_DRIFT = 0.1
