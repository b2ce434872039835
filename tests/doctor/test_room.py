"""Whether there is room for engines."""

from pathlib import Path

from tandem.doctor import room
from tandem.doctor.finding import Level
from tandem.engines.hardware import Hardware
from tandem.engines.weights import Cache
from tandem.rundir import RunDir

GIB = 2**30


def test_memory_and_disk() -> None:
    """Too little memory slows, too little shared memory or disk stops."""
    assert room.memory(2, 3 * GIB).level is Level.OK
    assert room.memory(2, 3 * GIB - 1).level is Level.WARNING
    assert room.shared_memory(2, GIB).level is Level.OK
    small = room.shared_memory(2, 64 * 2**20)
    assert (small.level, small.says) == (
        Level.PROBLEM,
        "/dev/shm has 64 MiB free; 2 engines need about 400 MiB",
    )
    assert room.disk("run folder", Path("/run"), 2 * GIB).level is Level.OK
    assert room.disk("run folder", Path("/run"), GIB - 1).level is Level.PROBLEM
    assert room.disk("model cache", Path("/cache"), 2 * GIB).level is Level.WARNING


def test_what_the_kernel_tells() -> None:
    """As /proc has it."""
    assert room.available("MemTotal:       24000 kB\nMemAvailable:   12000 kB\n") == 12000 * 1024
    assert room.kills("pgfault 12\noom_kill 3\n") == 3
    assert room.kills("pgfault 12\n") == 0


def test_every_place_is_looked_at(tmp_path: Path) -> None:
    """Also those that are not there yet; of a service that runs, what it has taken is not missing."""
    hardware = Hardware((), 2, 2**36, frozenset())
    cache, run_dir = Cache(tmp_path, tmp_path / "a" / "b"), RunDir(tmp_path / "run")
    subjects = [finding.subject for finding in room.examine(2, hardware, cache, run_dir, running=True)]
    assert subjects.count("disk") == 3
    assert "shared memory" not in subjects
    assert "shared memory" in [finding.subject for finding in room.examine(2, hardware, cache, run_dir, running=False)]
