"""Without a card: RAM for KV caches, and threads."""

from collections.abc import Sequence
from dataclasses import replace

from tandem.engines.hardware import Hardware
from tandem.engines.planning.needs import USEFUL, Lacking, Need, gib, in_words
from tandem.engines.planning.shares import SPARE, Share, fill, share_of, whole

_GIB = 2**30

# A model as small as this takes less time for a step than OpenMP needs to wake and join its threads.
_TINY = 8 * 2**20
_CPU_CACHE = 8 * _GIB
_CPU_BLOCK = _GIB  # VLLM_CPU_KVCACHE_SPACE counts whole ones


def in_memory(needs: Sequence[Need], judged: Sequence[Need], hardware: Hardware) -> dict[str, Share]:
    """Divide RAM: whole GiB of KV cache for each engine, as asked, else as much as it can use."""
    total = int(hardware.free - SPARE * hardware.memory)
    claims = [_claim_of_memory(need, hardware) for need in needs]
    least = sum(need.parts.beside + low for need, (low, _) in zip(needs, claims, strict=True))
    extra = fill(
        (total - least) / _CPU_BLOCK,
        [((high - low) / _CPU_BLOCK, need.weight) for need, (low, high) in zip(needs, claims, strict=True)],
    )
    caches = [low + more * _CPU_BLOCK for (low, _), more in zip(claims, whole(extra), strict=True)]
    if least > total or sum(need.parts.beside for need in judged) + sum(caches) > total:
        lines = "; ".join(
            in_words(replace(need, least=low), f"as memory = {memory} asks" if (memory := need.asks.memory) else "")
            for need, (low, _) in zip(judged, claims, strict=True)
        )
        raise Lacking(f"{lines}: more than the {gib(total)} of RAM to be had of {gib(hardware.memory)}")
    threads = _threads(needs, hardware.cores)
    result = {}
    for need, cache in zip(judged, caches, strict=True):
        share = share_of(need, cache, gpu_memory=None, cards=(), told=True)
        # An encoder keeps nothing, and vLLM still wants to hear a size: without one it claims nearly all RAM.
        size = max(_CPU_BLOCK, cache)
        result[need.name] = replace(share, threads=threads[need.name], kv_cache=size)
    return result


def _claim_of_memory(need: Need, hardware: Hardware) -> tuple[int, int]:
    """Bytes of KV cache that an engine must have, and that it would have at most; whole blocks."""
    if not need.wanted.facts.keeps:
        return 0, 0
    least = max(_CPU_BLOCK, -(-need.least // _CPU_BLOCK) * _CPU_BLOCK)
    if (asked := need.asked(hardware.memory)) is not None:
        given = max(_CPU_BLOCK, asked // _CPU_BLOCK * _CPU_BLOCK)
        if given < least:
            raise Lacking(
                f"{need.name} needs {gib(need.least)} of KV cache for a context of "
                f"{need.asks.context or USEFUL:,} tokens; its memory setting of {need.asks.memory} gives {gib(given)}"
            )
        return given, given
    most = int(min(_CPU_CACHE, hardware.memory // 4, need.most))
    if need.wanted.settings.kind == "embedding":
        # As much as one text of the longest kind needs: texts are computed one step after the other.
        context = need.asks.context or need.wanted.facts.context
        most = min(most, need.sequence(context) if context and not need.unknown else _CPU_BLOCK)
    return least, max(least, -(-most // _CPU_BLOCK) * _CPU_BLOCK)


def _threads(needs: Sequence[Need], cores: int) -> dict[str, int]:
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
