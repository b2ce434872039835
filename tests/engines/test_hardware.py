"""What the machine is."""

import os
from pathlib import Path

import pytest

from tandem.engines import hardware
from tandem.engines.hardware import Card, Hardware, parse_cards

LISTING = """\
0, NVIDIA H100 80GB HBM3, 81559, 80994, 580.65.06, GPU-aaa
1, NVIDIA GB10, [N/A], [N/A], 580.65.06, GPU-bbb
"""


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1]), ("1", [1]), ("GPU-aaa", [0]), ("0,1", [0, 1]), ("", []), ("-1", []), ("MIG-x", [0, 1])],
)
def test_cards_are_those_that_may_be_used(visible: str | None, indices: list[int]) -> None:
    """CUDA_VISIBLE_DEVICES by index or by the start of the UUID."""
    assert [card.index for card in parse_cards(LISTING, visible)] == indices


def test_a_card_s_memory_is_in_bytes() -> None:
    """And 0 where the driver does not tell, as for memory shared with the processor."""
    assert parse_cards(LISTING, None) == (
        Card(0, "NVIDIA H100 80GB HBM3", 81559 * 2**20, 80994 * 2**20, "580.65.06"),
        Card(1, "NVIDIA GB10", 0, 0, "580.65.06"),
    )


def test_a_part_of_a_card_does_not_tell_its_size() -> None:
    """What the driver tells is the whole card's."""
    assert {(card.total, card.free) for card in parse_cards(LISTING, "MIG-x")} == {(0, 0)}


@pytest.mark.parametrize(
    ("files", "unused"),
    [
        ({"/proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 40 kB\n"}, 40 * 1024),
        ({}, 100 * 1024),
        (
            {
                "/proc/meminfo": "MemAvailable: 90 kB",
                "/sys/fs/cgroup/memory.max": "81920\n",
                "/sys/fs/cgroup/memory.current": "71680\n",
                "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 20480\n",
            },
            30 * 1024,
        ),
        ({"/proc/meminfo": "MemAvailable: 90 kB", "/sys/fs/cgroup/memory.max": "max\n"}, 90 * 1024),
    ],
)
def test_unused_memory_is_the_machine_s_and_the_control_group_s(
    files: dict[str, str], unused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is less; files that are only cached can go."""
    monkeypatch.setattr(hardware, "_read", lambda path: files.get(path, ""))
    assert hardware._unused(100 * 1024) == unused


def test_memory_that_nobody_uses_is_what_engines_can_have() -> None:
    assert Hardware((), 2, 100, frozenset()).free == 100
    assert Hardware((), 2, 100, frozenset(), 40).free == 40


def test_memory_that_a_process_holds_is_counted_with_its_children_s() -> None:
    """At least what this one was seen to hold by itself; none where there is no such process."""
    alone = Path("/proc/self/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in alone.splitlines() if line.startswith("Pss:"))
    assert hardware.resident(os.getpid()) > pss * 1024 // 2
    assert hardware.resident(2**22 + 1) == 0


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx512f", "avx512_bf16"}, "bfloat16"),
        ({"amx_bf16", "avx512_fp16"}, "bfloat16"),
        ({"avx512_fp16"}, "float16"),
        ({"avx2"}, "float32"),
    ],
)
def test_the_fast_dtype_follows_the_instruction_set(flags: set[str], dtype: str) -> None:
    assert Hardware((), 2, 2**30, frozenset(flags)).fast_cpu_dtype == dtype


def test_this_machine_is_seen() -> None:
    """As many cores as this process may use, some memory, and the processor's flags."""
    found = hardware.detect()
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))
    assert found.memory > 2**28
    assert 0 < found.free <= found.memory
    assert found.cpu_flags
