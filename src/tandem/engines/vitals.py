"""What an engine's processes do, as the kernel and the engine's own metrics tell it."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from tandem.engines.keeper import descendants

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_LINE = re.compile(
    r"^vllm:(prompt_tokens_total|generation_tokens_total|request_success_total)(\{[^}]*\})? ([-+.\deE]+)$", re.MULTILINE
)


@dataclass(frozen=True)
class Processes:
    """What an engine's processes have done so far.

    Attributes:
        cpu: seconds of CPU time, of all of them.
        workers: seconds of it, of those below the API server, which do the model's work.
        read: bytes that they have read, from files or elsewhere.
        stopped: whether one of them is stopped, as by SIGSTOP or a debugger.
    """

    cpu: float = 0.0
    workers: float = 0.0
    read: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class Counters:
    """What an engine has counted since it started: requests that it has finished, and tokens, read and written."""

    requests: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Sample:
    """An engine at one moment.

    Attributes:
        at: seconds on the monotonic clock.
        in_flight: requests that it has, by what the routers say.
        bytes: of their bodies.
        processes: what its processes have done.
        counters: what it has counted; None where it was not asked or did not answer.
    """

    at: float
    in_flight: int = 0
    bytes: int = 0
    processes: Processes = Processes()
    counters: Counters | None = None


def processes(server: int) -> Processes:
    """The API server ``server`` and all below it; processes that are gone count no more."""
    cpu = workers = 0.0
    read, stopped = 0, False
    for pid in (server, *descendants(server)):
        try:
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            told = (_PROC / str(pid) / "io").read_text()
        except OSError:  # it has ended, or is another's by now
            continue
        used = (int(fields[11]) + int(fields[12])) / _TICKS
        cpu += used
        workers += used if pid != server else 0.0
        words = told.split()
        read += int(words[1]) + int(words[9])  # by calls, and what mapping a file has brought from the disk
        stopped = stopped or fields[0] in "Tt"
    return Processes(cpu, workers, read, stopped)


def counters(text: str) -> Counters:
    """From the engine's own metrics. What its callers gave up does not count: that is no work of its."""
    requests = tokens = 0.0
    for name, labels, value in _LINE.findall(text):
        if name != "request_success_total":
            tokens += float(value)
        elif 'finished_reason="abort"' not in labels:
            requests += float(value)
    return Counters(int(requests), int(tokens))


def tokens_per_second(before: Sample, after: Sample) -> float | None:
    """Between two samples; None where the engine did not tell at one of them."""
    if before.counters is None or after.counters is None or after.at <= before.at:
        return None
    return max(0.0, (after.counters.tokens - before.counters.tokens) / (after.at - before.at))


def cores(before: Sample, after: Sample) -> float | None:
    """How many cores the engine kept busy between two samples."""
    if after.at <= before.at:
        return None
    return max(0.0, (after.processes.cpu - before.processes.cpu) / (after.at - before.at))


def now() -> float:
    """The clock of samples."""
    return time.monotonic()
