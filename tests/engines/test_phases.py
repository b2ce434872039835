"""Log lines of real starts -> what people see."""

from pathlib import Path

import pytest

from tandem.engines.phases import STARTED, Phase, phase_after, remark
from tandem.fleet import State

RECORDED = Path(__file__).parent / "recorded"


def phases_of(lines: list[str]) -> list[Phase]:
    phases = [STARTED]
    for line in lines:
        phase = phase_after(phases[-1], line)
        if phase != phases[-1]:
            phases.append(phase)
    return phases


@pytest.mark.parametrize(
    ("log", "architecture", "cache"),
    [
        (
            "start-generation-0.32.txt",
            "Qwen3ForCausalLM",
            [(State.WARMING, "KV cache of 1,048,576 tokens, warming up")],
        ),
        ("start-embedding-0.32.txt", "BertModel", []),
    ],
)
def test_a_real_start_passes_through_every_phase(log: str, architecture: str, cache: list[tuple[State, str]]) -> None:
    """Recorded from vLLM 0.32 on a CPU: each phase once, in order."""
    assert [(p.state, p.detail) for p in phases_of((RECORDED / log).read_text().splitlines())] == [
        (State.STARTING, "starting Python and vLLM"),
        (State.STARTING, "reading the model's configuration"),
        (State.STARTING, f"configuring {architecture}"),
        (State.STARTING, "starting the engine's worker processes"),
        (State.LOADING, "loading weights"),
        (State.LOADING, "loading weights, 0% (0 of 1 files)"),
        (State.LOADING, "loading weights, 100% (1 of 1 files)"),
        (State.SIZING, "weights loaded in 0 s, sizing memory"),
        *cache,
        (State.WARMING, "starting its server"),
        (State.WARMING, "its server is starting to listen"),
    ]


def test_lines_of_a_card_s_start_are_known() -> None:
    """What only a GPU's engine prints: memory after loading, and graph capture with its percentage."""
    lines = [
        "INFO [gpu_model_runner.py:1] Model loading took 8.35 GiB and 5.1 seconds",
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  40%|████      | 14/35",
    ]
    assert [p.detail for p in phases_of(lines)[1:]] == ["8.35 GiB loaded, sizing memory", "capturing CUDA graphs, 40%"]


def test_a_shortened_context_is_remarked_upon() -> None:
    """Recorded from vLLM 0.32 with a model whose context did not fit its cache."""
    line = (
        "(EngineCore pid=24318) INFO 11-21 10:50:12 [kv_cache_utils.py:2477] Auto-fit max_model_len: reduced from "
        "40960 to 9216 to fit in available KV cache memory (0.99 GiB CPU)"
    )
    assert remark(line) == "context shortened from 40960 to 9216 tokens, as its memory allows"
    assert remark("anything else") is None


@pytest.mark.parametrize("line", ["", "anything at all", "INFO: Route: /health"])
def test_an_unknown_line_changes_nothing(line: str) -> None:
    assert phase_after(STARTED, line) is STARTED


def test_phases_never_go_back() -> None:
    """A worker that logs its loading late does not undo the warm-up of the others."""
    warming = Phase(State.WARMING, "warming up")
    assert phase_after(warming, "Loading safetensors checkpoint shards:  50% Completed | 1/2") is warming
