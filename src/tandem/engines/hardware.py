"""What this machine has: cards, cores, memory, and which number formats its processor is fast in."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Card:
    """One NVIDIA GPU. Memory in bytes."""

    index: int
    name: str
    total: int
    free: int
    driver: str


@dataclass(frozen=True)
class Hardware:
    """The machine, as far as engines care.

    Attributes:
        cards: NVIDIA GPUs that this process may use.
        cores: CPU cores that this process may use, whole ones.
        memory: bytes of RAM that this process may use.
        cpu_flags: instruction sets, as ``/proc/cpuinfo`` names them.
    """

    cards: tuple[Card, ...]
    cores: int
    memory: int
    cpu_flags: frozenset[str]

    @property
    def gpu(self) -> bool:
        return bool(self.cards)

    @property
    def fast_cpu_dtype(self) -> str:
        """The narrowest dtype in which this processor has matrix instructions of its own."""
        if self.cpu_flags & {"avx512_bf16", "amx_bf16", "bf16"}:
            return "bfloat16"
        if self.cpu_flags & {"avx512_fp16", "amx_fp16", "asimdhp"}:
            return "float16"
        return "float32"

    def __str__(self) -> str:
        if self.cards:
            cards = ", ".join(f"{card.name} ({card.total / 2**30:.0f} GiB)" for card in self.cards)
            return f"{cards}; {self.cores} cores, {self.memory / 2**30:.0f} GiB"
        return f"no NVIDIA GPU; {self.cores} cores, {self.memory / 2**30:.0f} GiB, fast in {self.fast_cpu_dtype}"


def detect() -> Hardware:
    """Look at this machine; asks ``nvidia-smi`` where there is one."""
    return Hardware(cards=_cards(), cores=_cores(), memory=_memory(), cpu_flags=_cpu_flags())


def supported_platform() -> bool:
    """Whether vLLM has a build for this system at all."""
    return sys.platform == "linux" and os.uname().machine in {"x86_64", "aarch64"}


def parse_cards(listing: str, visible: str | None) -> tuple[Card, ...]:
    """Cards from ``nvidia-smi``'s table; ``visible`` is ``CUDA_VISIBLE_DEVICES``, None where it is not set."""
    if visible is not None and "MIG-" in visible:
        visible = None  # a part of a card: which one, only the driver knows
    cards = []
    for line in listing.strip().splitlines():
        index, name, total, free, driver, uuid = (cell.strip() for cell in line.split(","))
        if visible is not None and not any(v and (v == index or uuid.startswith(v)) for v in visible.split(",")):
            continue
        # A card whose memory is shared with the processor's says "[N/A]": vLLM asks CUDA itself.
        total_bytes, free_bytes = (int(size) * 2**20 if size.isdigit() else 0 for size in (total, free))
        cards.append(Card(int(index), name, total_bytes, free_bytes, driver))
    return tuple(cards)


def _cards() -> tuple[Card, ...]:
    if not (smi := shutil.which("nvidia-smi")):
        return ()
    query = "--query-gpu=index,name,memory.total,memory.free,driver_version,uuid"
    try:
        answer = subprocess.run(
            [smi, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()  # the tool without a card or a driver
    return parse_cards(answer.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def _memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _cpu_flags() -> frozenset[str]:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
