"""What an engine's settings ask of the machine, its args included: those win, as they do in vLLM."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tandem.settings import EngineSettings, Memory

# Settings that are flags of vLLM, too: args may have them, and would win.
FLAGS = {
    "max_model_len": "--max-model-len",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "tensor_parallel_size": "--tensor-parallel-size",
    "memory": "--gpu-memory-utilization",
}


@dataclass(frozen=True)
class Asks:
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
    def of(cls, settings: EngineSettings) -> "Asks":
        flags = flags_of(settings.args)
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


def flags_of(args: Sequence[str]) -> dict[str, str]:
    """vLLM's flags in ``args``, each with its value, the last where there are several; empty where it has none."""
    flags: dict[str, str] = {}
    for number, word in enumerate(args):
        if not word.startswith("-"):
            continue
        flag, equals, value = word.partition("=")
        following = args[number + 1] if number + 1 < len(args) and not equals else ""
        flags[flag.replace("_", "-")] = value or ("" if following.startswith("--") else following)
    return flags


def without(args: Sequence[str], unwanted: str) -> tuple[str, ...]:
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
