"""Settings that would make a plan fit that does not: each candidate is put through the planner itself."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from tandem.engines.hardware import Hardware
from tandem.engines.planning.asks import FLAGS, Asks, without
from tandem.engines.planning.cards import CARD
from tandem.engines.planning.needs import Wanted
from tandem.settings import Memory

_GIB = 2**30

Fits = Callable[[Mapping[str, Wanted]], bool]


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
        args = without(old.settings.args, FLAGS[self.setting]) if self.setting in FLAGS else old.settings.args
        settings = old.settings.model_copy(update={"args": args, self.setting: self.value})
        return {**engines, self.engine: replace(old, settings=settings)}


def fitting(engines: Mapping[str, Wanted], hardware: Hardware, fits: Fits) -> Iterator[Change]:
    """Settings that would each make the plan fit, the nearest of each sort, three at most.

    Args:
        fits: whether the planner accepts engines on this hardware.
    """
    candidates = _changes(engines, hardware, fits)
    return islice((change for change in candidates if fits(change.apply(engines))), 3)


def _changes(engines: Mapping[str, Wanted], hardware: Hardware, fits: Fits) -> Iterator[Change]:
    asks = {name: Asks.of(wanted.settings) for name, wanted in engines.items()}
    for name in engines:
        if asks[name].context:
            yield from _shorter(name, asks[name].context or 0, engines, fits)
    for name in engines:
        if asks[name].memory is not None:
            yield from _other_memory(name, engines, hardware, fits)
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
            yield from _other_memory(name, engines, hardware, fits)


def _shorter(name: str, context: int, engines: Mapping[str, Wanted], fits: Fits) -> Iterator[Change]:
    """The longest context of ``name`` that fits, in whole blocks."""
    low, high = 0, context // 16
    while low < high:
        middle = (low + high + 1) // 2
        if fits(Change(name, "max_model_len", middle * 16).apply(engines)):
            low = middle
        else:
            high = middle - 1
    if low:
        yield Change(name, "max_model_len", low * 16)


def _other_memory(name: str, engines: Mapping[str, Wanted], hardware: Hardware, fits: Fits) -> Iterator[Change]:
    """The memory setting of ``name`` next to its own that fits: in hundredths of the card, or in whole GiB."""
    memory = Asks.of(engines[name].settings).memory or Memory(share=CARD)
    total = hardware.cards[0].total if hardware.gpu else hardware.memory
    shares = memory.bytes is None
    steps = range(1, 100) if shares else range(1, total // _GIB + 1)
    now = (memory.share or 0) * 100 if shares else (memory.bytes or 0) / _GIB
    for step in sorted(steps, key=lambda step: abs(step - now)):
        value = Memory(share=step / 100) if shares else Memory(bytes=step * _GIB)
        change = Change(name, "memory", value)
        if fits(change.apply(engines)):
            yield change
            return
