"""What this machine has: cards, cores, memory, and which number formats its processor is fast in."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Card:
    """One NVIDIA GPU. Memory in bytes; 0 where the driver does not tell."""

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
        unused: of ``memory``, bytes that nobody uses now; None counts as all of it.
    """

    cards: tuple[Card, ...]
    cores: int
    memory: int
    cpu_flags: frozenset[str]
    unused: int | None = None

    @property
    def free(self) -> int:
        """Bytes of RAM that engines can have."""
        return self.memory if self.unused is None else min(self.unused, self.memory)

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
    memory = _memory()
    unused = _unused(memory)
    cards = tuple(
        # Its memory is the processor's: what is to be had of it is what RAM there is.
        replace(card, total=memory, free=unused) if card.total == 0 and not _in_parts() else card
        for card in _cards()
    )
    return Hardware(cards=cards, cores=_cores(), memory=memory, cpu_flags=_cpu_flags(), unused=unused)


def supported_platform() -> bool:
    """Whether vLLM has a build for this system at all."""
    return sys.platform == "linux" and os.uname().machine in {"x86_64", "aarch64"}


def parse_cards(listing: str, visible: str | None) -> tuple[Card, ...]:
    """Cards from ``nvidia-smi``'s table; ``visible`` is ``CUDA_VISIBLE_DEVICES``, None where it is not set."""
    part = visible is not None and "MIG-" in visible
    if part:
        visible = None  # a part of a card: which one, and how large, only the driver knows
    cards = []
    for line in listing.strip().splitlines():
        index, name, total, free, driver, uuid = (cell.strip() for cell in line.split(","))
        if visible is not None and not any(v and (v == index or uuid.startswith(v)) for v in visible.split(",")):
            continue
        # A card whose memory is shared with the processor's says "[N/A]": vLLM asks CUDA itself.
        total_bytes, free_bytes = (int(mib) * 2**20 if mib.isdigit() and not part else 0 for mib in (total, free))
        cards.append(Card(int(index), name, total_bytes, free_bytes, driver))
    return tuple(cards)


@dataclass(frozen=True)
class CardUse:
    """What cards are used for.

    Attributes:
        busy: by card's index, how busy it is, from 0 to 1.
        held: by process, bytes that it holds of all cards together.
    """

    busy: Mapping[int, float]
    held: Mapping[int, int]


def card_use() -> CardUse:
    """Ask the driver; nothing where there is none. In a container it may know processes by other numbers."""
    return parse_card_use(_ask_driver("gpu=index,utilization.gpu"), _ask_driver("compute-apps=pid,used_memory"))


def parse_card_use(cards: str, processes: str) -> CardUse:
    """From two tables of ``nvidia-smi``; what it says "[N/A]" to is left out."""
    held: Counter[int] = Counter()
    for pid, mebibytes in _numbers(processes):
        held[pid] += mebibytes * 2**20
    return CardUse({index: percent / 100 for index, percent in _numbers(cards)}, dict(held))


def _numbers(table: str) -> Iterator[tuple[int, int]]:
    for line in table.strip().splitlines():
        first, _, second = (cell.strip() for cell in line.partition(","))
        if first.isdigit() and second.isdigit():
            yield int(first), int(second)


def _cards() -> tuple[Card, ...]:
    listing = _ask_driver("gpu=index,name,memory.total,memory.free,driver_version,uuid")
    return parse_cards(listing, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _ask_driver(query: str) -> str:
    """A table from ``nvidia-smi``; empty without it."""
    if not (smi := shutil.which("nvidia-smi")):
        return ""
    try:
        answer = subprocess.run(
            [smi, f"--query-{query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""  # the tool without a card or a driver
    return answer.stdout


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


def _unused(memory: int) -> int:
    """Of ``memory``, what neither the machine nor this control group uses; files that are only cached do not count."""
    told = {
        key: value.split() for key, _, value in (line.partition(":") for line in _read("/proc/meminfo").splitlines())
    }
    unused = int(told["MemAvailable"][0]) * 2**10 if "MemAvailable" in told else memory
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        cached = dict(line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines()).get("inactive_file", 0)
        unused = min(unused, int(limit) - int(used) + int(cached))
    return max(0, min(unused, memory))


def _in_parts() -> bool:
    return "MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", "")


def resident(root: int) -> int:
    """Bytes of RAM that the process ``root`` and all below it hold; what several share counts once in all."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(f"{entry}/stat")):
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    waiting, total = [root], 0
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        held = (line.split() for line in _read(f"/proc/{pid}/smaps_rollup").splitlines() if line.startswith("Pss:"))
        total += sum(int(words[1]) * 2**10 for words in held)
    return total


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
