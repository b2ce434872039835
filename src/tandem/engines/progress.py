"""Whether an engine moves: pure judgement over samples.

Health is progress. An engine that starts moves while it logs, reads or computes; one that serves moves while it
finishes requests, counts tokens, or its workers compute. A pooling engine's counters stand still through a step of many
seconds, and it computes meanwhile; a deep queue may take long before anything of it is done: so the grace grows with
what is queued.
"""

from dataclasses import dataclass, replace

from tandem.engines.vitals import Processes, Sample
from tandem.settings import SupervisionSettings

# Of a core: waiting processes wake up now and then, and use less.
_COMPUTES = 0.03
# Bytes a second: what processes that wait read of the pipes between them is less.
_READS = 4096
# A request's body has more bytes than its prompt has tokens: about so many to one, and never fewer than one.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Start:
    """A starting engine at one moment.

    Attributes:
        at: seconds on the monotonic clock.
        lines: that it has logged so far.
        processes: what its processes have done so far.
        moved: when it last moved, on the same clock.
    """

    at: float
    lines: int
    processes: Processes
    moved: float

    @property
    def still(self) -> float:
        """Seconds for which it has logged, read and computed nothing."""
        return self.at - self.moved

    def after(self, at: float, lines: int, processes: Processes) -> "Start":
        """The same engine, a moment later."""
        passed = at - self.at
        # A process that ended takes its sums with it: that is a movement, too.
        computed = abs(processes.cpu - self.processes.cpu) > _COMPUTES * passed
        read = abs(processes.read - self.processes.read) > _READS * passed
        moved = lines != self.lines or computed or read
        return Start(at, lines, processes, at if moved else self.moved)


@dataclass(frozen=True)
class Progress:
    """A serving engine at one moment, and since when it has not moved.

    Attributes:
        last: what was seen of it then.
        moved: when it last moved or had nothing to do, on the monotonic clock.
    """

    last: Sample
    moved: float

    @property
    def still(self) -> float:
        """Seconds for which it had work and nothing of it moved."""
        return self.last.at - self.moved

    def after(self, sample: Sample) -> "Progress":
        """The same engine, a moment later."""
        return Progress(sample, sample.at if _moved(self.last, sample) else self.moved)

    def answered(self) -> "Progress":
        """It has just answered a request of ours."""
        return replace(self, moved=self.last.at)

    def grace(self, settings: SupervisionSettings) -> float:
        """Seconds for which it may stand still."""
        return settings.stall_timeout + self.last.bytes / _BYTES_PER_TOKEN / settings.stall_tokens_per_second


def _moved(before: Sample, after: Sample) -> bool:
    if not (before.in_flight and after.in_flight):  # nothing to do is no reason to move
        return True
    if before.counters and after.counters and before.counters != after.counters:
        return True
    # One that is stopped does nothing, though others that wait for it may spin.
    computed = after.processes.workers - before.processes.workers
    return not after.processes.stopped and abs(computed) > _COMPUTES * (after.at - before.at)
