"""What a failed engine printed -> the cause, and its mend. Pure; an error nobody knows is shown whole.

The useful line stands far above the last one ("Engine core initialization failed. See root cause above"), in the
output of whichever of vLLM's processes failed first.
"""

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """Why an engine failed, one line, and what to do about it (may be empty)."""

    cause: str
    mend: str = ""


# "(EngineCore pid=12) ERROR 11-21 09:00:00 [core.py:99] " and the like, before each line of a child's traceback.
_PREFIX = re.compile(r"^(\([\w\- ]+ pid=\d+\) )?((ERROR|CRITICAL|WARNING|INFO) [\d\-]+ [\d:]+ \[[^\]]*\] ?)?")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)): ?(.*)$")
# Says that another process failed; never the cause itself.
_ECHOES = ("Engine core initialization failed", "WorkerProc initialization failed", "Failed core proc")


def _fixed(text: str) -> Callable[[re.Match[str]], str]:
    return lambda _: text


_CAUSES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str], str], ...] = (
    (
        re.compile(r"error: unrecognized arguments: (.+)"),
        lambda m: f"this vLLM does not know the argument {m[1]}",
        "Mend the engine's args",
    ),
    (re.compile(r"error: (argument .+)"), lambda m: m[1], "Mend the engine's args"),
    (
        re.compile(r"Address already in use"),
        _fixed("its port is taken by another program"),
        "Set another port for it, or end the program that has it",
    ),
    (
        re.compile(r"max_model_len \((\d+)\) is greater than the derived max_model_len \(\D*(\d+)"),
        lambda m: f"max_model_len {m[1]} is more than the model's own {m[2]}",
        "Lower or drop max_model_len",
    ),
    (
        re.compile(r"model type `([^`]+)` but Transformers does not recognize"),
        lambda m: f"this vLLM does not know the model type {m[1]}",
        "Choose another model, or a newer vLLM (`tandem install --vllm VERSION`)",
    ),
    (
        re.compile(r"Model architectures \[(.+?)\] (?:are|is) not supported"),
        lambda m: f"this vLLM does not support the architecture {m[1]}",
        "Choose another model, or a newer vLLM (`tandem install --vllm VERSION`)",
    ),
    (
        re.compile(r"SafetensorError: (.+)"),
        lambda m: f"a weight file is damaged or cut short ({m[1]})",
        "Download the model again",
    ),
    (
        re.compile(r"`trust_remote_code=True`"),
        _fixed("the model needs code of its own to be run"),
        'If you trust it, add "--trust-remote-code" to the engine\'s args',
    ),
    (
        re.compile(r"(?:CUDA out of memory|CUDA error: out of memory|torch\.(?:cuda\.)?OutOfMemoryError)"),
        _fixed("the GPU is out of memory"),
        "Lower the engines' memory settings or max_model_len, or end other programs on the card",
    ),
    (
        re.compile(r"Free memory on device .*?\(([\d.]+)/([\d.]+) GiB\).*less than desired"),
        lambda m: f"the card has {m[1]} of {m[2]} GiB free, less than the engine's memory setting asks for",
        "Lower its memory setting, or end other programs on the card",
    ),
    (
        re.compile(r"max seq len \((\d+)\).*?\(([\d.]+) GiB KV cache is needed"),
        lambda m: f"one sequence of {m[1]} tokens needs {m[2]} GiB of KV cache, more than the engine has",
        "Raise its memory setting or lower max_model_len",
    ),
    (
        re.compile(r"No space left on device"),
        _fixed("a disk or /dev/shm is full"),
        "Free some space there",
    ),
    (
        re.compile(r"No module named '?vllm'?"),
        _fixed("its interpreter has no vLLM"),
        "Run `tandem install`",
    ),
)


def diagnose(lines: Sequence[str], returncode: int) -> Diagnosis:
    """The cause in what an engine printed before it ended.

    Args:
        lines: the last lines of its output, oldest first.
        returncode: its exit code; above 128, the signal that ended it, as shells count.
    """
    plain = [_PREFIX.sub("", line) for line in lines]
    for pattern, cause, mend in _CAUSES:
        for line in plain:
            if match := pattern.search(line):
                return Diagnosis(cause(match), mend)
    if exception := _root_exception(plain):
        return Diagnosis(exception)
    if returncode == 128 + signal.SIGKILL:
        return Diagnosis(
            "it was killed (SIGKILL)",
            "Often the kernel's out-of-memory killer: lower memory settings, or free memory",
        )
    last = next((line.strip() for line in reversed(plain) if line.strip()), "")
    how = f"signal {returncode - 128}" if returncode > 128 else f"exit code {returncode}"
    return Diagnosis(f"it ended with {how}" + (f"; its last line was: {last}" if last else ""))


def _root_exception(lines: Sequence[str]) -> str | None:
    """The first exception that is not an echo of another process's, with the lines that belong to its message."""
    for index, line in enumerate(lines):
        match = _EXCEPTION.match(line)
        if match is None or any(echo in line for echo in _ECHOES):
            continue
        message = [f"{match[1].rpartition('.')[2]}: {match[2]}".strip()]
        for follow in lines[index + 1 : index + 4]:
            if not follow.startswith("  ") or "For further information" in follow:
                break
            message.append(follow.strip())
        return " ".join(message)
    return None
