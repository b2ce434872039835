"""What the machine is."""

import os

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
    assert found.cpu_flags
