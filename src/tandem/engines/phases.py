"""vLLM's log lines -> what an engine is doing. Pure; a line nobody knows leaves the phase as it was.

The lines are those of vLLM 0.24 to 0.33; each pattern is one that several of these releases print.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from tandem.fleet import State


@dataclass(frozen=True)
class Phase:
    """A state of a starting engine, and what it is doing there, for people."""

    state: State
    detail: str


STARTED = Phase(State.STARTING, "starting Python and vLLM")

_Detail = Callable[[re.Match[str]], str]


def _fixed(text: str) -> _Detail:
    return lambda _: text


_PATTERNS: tuple[tuple[re.Pattern[str], State, _Detail], ...] = (
    (re.compile(r"non-default args:"), State.STARTING, _fixed("reading the model's configuration")),
    (re.compile(r"Resolved architecture: (\w+)"), State.STARTING, lambda m: f"configuring {m[1]}"),
    (
        re.compile(r"Initializing a V1 LLM engine"),
        State.STARTING,
        _fixed("starting the engine's worker processes"),
    ),
    (re.compile(r"Starting to load model"), State.LOADING, _fixed("loading weights")),
    (
        re.compile(r"Loading \w+ checkpoint shards:\s+(\d+)% Completed \| (\d+)/(\d+)"),
        State.LOADING,
        lambda m: f"loading weights, {m[1]}% ({m[2]} of {m[3]} files)",
    ),
    (
        re.compile(r"Loading weights took ([\d.]+) seconds"),
        State.SIZING,
        lambda m: f"weights loaded in {float(m[1]):.0f} s, sizing memory",
    ),
    (
        re.compile(r"Model loading took ([\d.]+ ?GiB)"),
        State.SIZING,
        lambda m: f"{m[1]} loaded, sizing memory",
    ),
    (re.compile(r"Dynamo bytecode transform time"), State.SIZING, _fixed("compiling the model")),
    (
        re.compile(r"torch\.compile took ([\d.]+) s in total"),
        State.SIZING,
        lambda m: f"compiled in {float(m[1]):.0f} s, measuring a step",
    ),
    (re.compile(r"profiling/warmup run (?:together )?took"), State.SIZING, _fixed("step measured, sizing memory")),
    (
        re.compile(r"Available KV cache memory: ([\d.]+ GiB)"),
        State.SIZING,
        lambda m: f"{m[1]} for the KV cache",
    ),
    (
        re.compile(r"KV cache size: ([\d,]+) tokens"),
        State.WARMING,
        lambda m: f"KV cache of {m[1]} tokens, warming up",
    ),
    (
        re.compile(r"Capturing CUDA graphs?[^:]*:\s+(\d+)%"),
        State.WARMING,
        lambda m: f"capturing CUDA graphs, {m[1]}%",
    ),
    (re.compile(r"Warming up model"), State.WARMING, _fixed("warming up")),
    (re.compile(r"init engine \(.*\) took"), State.WARMING, _fixed("starting its server")),
    (
        re.compile(r"Starting vLLM (?:API )?server"),
        State.WARMING,
        _fixed("its server is starting to listen"),
    ),
)


def phase_after(phase: Phase, line: str) -> Phase:
    """The phase once ``line`` was logged. States only go forward: a late line of an earlier one changes nothing."""
    for pattern, state, detail in _PATTERNS:
        if match := pattern.search(line):
            if _ORDER.index(state) < _ORDER.index(phase.state):
                return phase
            return Phase(state, detail(match))
    return phase


def remark(line: str) -> str | None:
    """What ``line`` says that people should still see once the engine is ready; None for most lines."""
    if match := _SHORTENED.search(line):
        return f"context shortened from {match[1]} to {match[2]} tokens, as its memory allows"
    return None


_SHORTENED = re.compile(r"Auto-fit max_model_len: reduced from (\d+) to (\d+)")
_ORDER = (State.STARTING, State.LOADING, State.SIZING, State.WARMING)
