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
        *(
            (
                f"start-generation-{release}.txt",
                "Qwen3ForCausalLM",
                [(State.WARMING, f"KV cache of {tokens} tokens, warming up")],
            )
            for release, tokens in {
                "0.27": "524,288",
                "0.29": "524,288",
                "0.30": "524,288",
                "0.32": "1,048,576",
            }.items()
        ),
        ("start-embedding-0.32.txt", "BertModel", []),
    ],
)
def test_a_real_start_passes_through_every_phase(log: str, architecture: str, cache: list[tuple[State, str]]) -> None:
    """Recorded on a CPU from those releases whose builds start here: each phase once, in order."""
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
    """What only a GPU's engine prints, as the sources of vLLM 0.24 to 0.33 word it: memory after loading, compiling,
    the measured step, what is left for the KV cache, and graph capture with its percentage."""
    lines = [
        "INFO [gpu_model_runner.py:1] Model loading took 8.35 GiB memory and 5.123456 seconds",
        "INFO [backends.py:1] Dynamo bytecode transform time: 4.46 s",
        "INFO [backends.py:1] Compiling a graph for compile range (1, 8192) takes 12.01 s",
        "INFO [monitor.py:1] torch.compile took 20.52 s in total",
        "INFO [monitor.py:1] Initial profiling/warmup run took 1.20 s",
        "INFO [gpu_worker.py:1] Available KV cache memory: 60.14 GiB",
        "INFO [kv_cache_utils.py:1] GPU KV cache size: 437,936 tokens",
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  40%|████      | 14/35",
        "INFO [core.py:1] init engine (profile, create kv cache, warmup model) took 35.20 seconds",
    ]
    assert [(p.state, p.detail) for p in phases_of(lines)[1:]] == [
        (State.SIZING, "8.35 GiB loaded, sizing memory"),
        (State.SIZING, "compiling the model"),
        (State.SIZING, "compiled in 21 s, measuring a step"),
        (State.SIZING, "step measured, sizing memory"),
        (State.SIZING, "60.14 GiB for the KV cache"),
        (State.WARMING, "KV cache of 437,936 tokens, warming up"),
        (State.WARMING, "capturing CUDA graphs, 40%"),
        (State.WARMING, "starting its server"),
    ]


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
