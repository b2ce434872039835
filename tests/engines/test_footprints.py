"""What engines really used: from their logs, into the state folder, and back."""

import json
from functools import reduce
from pathlib import Path

import pytest

from tandem.engines import footprints
from tandem.engines import state as state_files
from tandem.engines.footprints import Footprint, Seen, in_memory, on_card, seen_after
from tandem.settings import EngineSettings

from .models import recorded

RECORDED = Path(__file__).parent / "recorded"
GIB = 2**30
TOKEN = 114_688  # Qwen3-0.6B's, in bfloat16
# In the words of vLLM 0.32's sources; numbers as for Qwen3-0.6B with 0.9 of a card of 24 GB: 11,702 blocks of 16.
CARD = """\
(Worker pid=1) INFO [model_runner.py:425] Model loading took 1.12 GiB memory and 1.502311 seconds
(Worker pid=1) INFO [gpu_worker.py:759] Available KV cache memory: 20.0 GiB
(EngineCore pid=1) INFO [kv_cache_utils.py:2327] GPU KV cache size: 187,232 tokens, Maximum concurrency for 40,960 \
tokens per request: 4.57x
(Worker pid=1) INFO [model_runner.py:1128] Graph capturing finished in 3 secs, took 0.41 GiB
(Worker pid=1) INFO [gpu_worker.py:1034] Free memory on device (23.4/23.99 GiB) on startup. Desired GPU memory \
utilization is (0.9, 21.59 GiB). Actual usage is 1.2 GiB for consumed memory (weights + non-torch), 0.31 GiB for peak \
activation, and 0.41 GiB for CUDAGraph memory. Current kv cache memory in use is 20.0 GiB.
"""
TOLD = """\
(Worker pid=1) INFO [model_runner.py:425] Model loading took 1.12 GiB memory and 1.502311 seconds
(Worker pid=1) INFO [gpu_worker.py:669] Initial free memory 23.4 GiB, reserved 20.0 GiB memory for KV Cache as \
specified by kv_cache_memory_bytes config and skipped memory profiling.
(EngineCore pid=1) INFO [kv_cache_utils.py:2327] GPU KV cache size: 187,232 tokens, Maximum concurrency for 40,960 \
tokens per request: 4.57x
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder, of this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "tandem"


def seen(log: str) -> Seen:
    return reduce(seen_after, log.splitlines(), Seen())


def test_a_card_s_engine_says_what_it_measured() -> None:
    found = seen(CARD)
    assert (found.weights, found.cache, found.tokens) == (round(1.12 * GIB), 20 * GIB, 187_232)
    assert (found.activations, found.graphs, found.told) == (round(0.31 * GIB), round(0.41 * GIB), False)


def test_of_several_workers_the_one_that_needs_most_counts() -> None:
    """And the one that has the smallest cache: all get as much as that."""
    lines = "\n".join(
        f"(Worker_TP{n} pid=1) INFO [x.py:1] {line}"
        for n, line in enumerate(
            [
                "Model loading took 2.5 GiB memory and 1.0 seconds",
                "Model loading took 2.6 GiB memory and 1.0 seconds",
                "Available KV cache memory: 7.25 GiB",
                "Available KV cache memory: 7.5 GiB",
            ]
        )
    )
    assert (seen(lines).weights, seen(lines).cache) == (round(2.6 * GIB), round(7.25 * GIB))


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("start-generation-0.32.txt", Seen(cache=GIB, tokens=1_048_576, told=True)),
        ("start-embedding-0.32.txt", Seen()),  # BERT keeps nothing
    ],
)
def test_a_real_start_on_a_cpu_says_what_it_was_told(log: str, found: Seen) -> None:
    assert seen((RECORDED / log).read_text()) == found


def test_five_real_starts_in_a_row_had_the_same_cache() -> None:
    """Recorded from five starts of the demo's language model with vLLM 0.32 on a CPU, planned each time anew."""
    starts = (RECORDED / "five-starts-0.32.txt").read_text().split("Explicitly set")[1:]
    found = [seen(f"Explicitly set{start}") for start in starts]
    assert len(found) == 5
    assert len(set(found)) == 1
    assert found[0].tokens


def test_the_cache_is_known_to_the_byte() -> None:
    """187,232 tokens of 112 KiB: the log's 20.0 GiB are 1.6 MiB more, and with those the next start might have another
    block."""
    budget = int(0.9 * 24 * GIB)
    found = on_card(seen(CARD), budget=budget, token=TOKEN, before=None)
    assert found is not None
    assert found.cache == 187_232 * TOKEN
    assert found.beside == budget - 187_232 * TOKEN
    assert recorded("Qwen3-0.6B").cache.token(width=2) == TOKEN  # type: ignore[union-attr]


def test_where_tokens_take_different_sizes_the_log_s_rounding_is_allowed_for() -> None:
    found = on_card(seen(CARD), budget=24 * GIB, token=0, before=None)
    assert found is not None
    assert 20 * GIB - 0.011 * GIB < found.cache < 20 * GIB


def test_an_engine_that_was_told_its_size_changes_nothing() -> None:
    """It has not measured; neither has one that said nothing."""
    before = Footprint(beside=2 * GIB, cache=20 * GIB)
    assert on_card(seen(TOLD), budget=24 * GIB, token=TOKEN, before=before) is before
    assert on_card(Seen(), budget=24 * GIB, token=TOKEN, before=None) is None


def test_ram_that_differs_little_counts_as_the_same() -> None:
    """Processes never hold just the same; a plan that is made of it should stay. What differs much counts."""
    told = Seen(cache=GIB, tokens=5)
    before = in_memory(told, resident=3 * GIB, planned=0, before=None)
    assert before == Footprint(beside=2 * GIB, cache=GIB, tokens=5)
    assert in_memory(told, resident=int(3.1 * GIB), planned=0, before=before) == before
    assert in_memory(told, resident=4 * GIB, planned=0, before=before).beside == 3 * GIB


def test_an_engine_that_says_nothing_has_what_it_was_told_to_have() -> None:
    """As releases may whose words nobody here knows."""
    assert in_memory(Seen(), resident=5 * GIB, planned=2 * GIB, before=None).beside == 3 * GIB


def test_what_is_remembered_is_found_again(state: Path) -> None:
    """Under its key, and beside the others."""
    footprints.remember("a", Footprint(beside=1, cache=2))
    footprints.remember("b", Footprint(beside=3))
    footprints.remember("a", Footprint(beside=4))
    assert footprints.remembered() == {"a": Footprint(beside=4), "b": Footprint(beside=3)}
    assert {path.name for path in state.iterdir()} == {"footprints.json", "footprints.lock"}


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_files, "_MOST", 2)
    for name in "abac":
        footprints.remember(name, Footprint(beside=1))
    assert list(footprints.remembered()) == ["a", "c"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": {"unheard_of": 1}}', '{"a": {}}'])
def test_a_file_of_another_form_counts_as_none(state: Path, content: str) -> None:
    """As one that another release wrote; the next start writes it anew."""
    state.mkdir()
    (state / "footprints.json").write_text(content)
    assert footprints.remembered() == {}
    footprints.remember("a", Footprint(beside=1))
    assert json.loads((state / "footprints.json").read_text())["a"]["beside"] == 1


def test_a_footprint_holds_for_what_would_change_it() -> None:
    """Another model, revision, vLLM, card, dtype, or size of a step has another one; another port has not."""
    settings = EngineSettings(kind="generation", model="m")
    place = {"vllm": "vLLM 0.32.0", "place": "H100, 80", "dtype": "auto"}
    key = footprints.key("m", "1", **place, settings=settings)
    assert key == footprints.key("m", "1", **place, settings=settings.model_copy(update={"port": 9000}))
    others = [
        footprints.key("n", "1", **place, settings=settings),
        footprints.key("m", "2", **place, settings=settings),
        *(footprints.key("m", "1", **{**place, name: "other"}, settings=settings) for name in place),
        *(
            footprints.key("m", "1", **place, settings=settings.model_copy(update=change))
            for change in ({"max_num_batched_tokens": 4096}, {"max_num_seqs": 7}, {"args": ("--enforce-eager",)})
        ),
    ]
    assert len({key, *others}) == len(others) + 1


def test_no_secret_gets_into_the_key() -> None:
    settings = EngineSettings(kind="generation", model="m", env={"HF_TOKEN": "hf_1"}, args=("--api-key", "s1"))
    key = footprints.key("m", "1", vllm="v", place="p", dtype="auto", settings=settings)
    assert not any(secret in key for secret in ("hf_1", "s1"))
