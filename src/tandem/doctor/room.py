"""Whether there is room: memory, shared memory, disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from tandem.doctor.finding import Finding, fine, problem, warning
from tandem.engines.hardware import Hardware
from tandem.engines.install import data_dir
from tandem.engines.planning.needs import PROCESSES
from tandem.engines.weights import Cache
from tandem.rundir import RunDir

_GIB = 2**30
_SHARED = 200 * 2**20  # bytes an engine takes of /dev/shm; vLLM asks for a ring of 160 MiB
_LITTLE = 10 * _GIB  # of disk: a model of middling size
_LEAST = _GIB
_SHM = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies, shm_overview(7)


def examine(engines: int, hardware: Hardware, cache: Cache, run_dir: RunDir, *, running: bool) -> Iterator[Finding]:
    """Every finding about room for so many engines.

    Args:
        running: whether they run already: then what they have is not missing.
    """
    if not running:
        yield memory(engines, min(available(_read("/proc/meminfo")), hardware.memory))
        if _SHM.is_dir():
            yield shared_memory(engines, shutil.disk_usage(_SHM).free)
    if killed := kills(_read("/proc/vmstat")):
        says = f"the kernel has killed {killed} processes for want of memory since it started"
        yield warning("memory", says, "`dmesg` names them; lower memory settings, or end other programs")
    places = {"model cache": cache.hub, "engines' environments": data_dir(), "run folder": run_dir.path}
    for name, path in places.items():
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        yield disk(name, path, shutil.disk_usage(existing).free)


def memory(engines: int, free: int) -> Finding:
    """Whether ``free`` bytes are enough for so many engines beside their models."""
    says = (
        f"{free / _GIB:.1f} GiB free; each of {engines} engines takes about {PROCESSES / _GIB:.1f} GiB beside its model"
    )
    if free < engines * PROCESSES:
        return warning("memory", says, "End other programs, or serve fewer engines (`tandem serve` runs one)")
    return fine("memory", says)


def shared_memory(engines: int, free: int) -> Finding:
    """Whether ``free`` bytes in /dev/shm are enough for so many engines."""
    says = f"{_SHM} has {free / 2**20:.0f} MiB free; {engines} engines need about {engines * _SHARED / 2**20:.0f} MiB"
    if free < engines * _SHARED:
        return problem("shared memory", says, f"`mount -o remount,size=2G {_SHM}`, in a container --shm-size=2g")
    return fine("shared memory", says)


def disk(name: str, path: Path, free: int) -> Finding:
    """Whether there is room on the disk where ``path`` lies."""
    says = f"{free / _GIB:.1f} GiB free for the {name} ({path})"
    if free < _LEAST:
        return problem("disk", says, "Free some")
    if free < _LITTLE and name == "model cache":
        return warning("disk", says, "Free some, or point HF_HOME at another disk, before you download a model")
    return fine("disk", says)


def available(meminfo: str) -> int:
    """Bytes of memory that programs can still have, from /proc/meminfo."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def kills(vmstat: str) -> int:
    """How many processes the kernel has killed for want of memory, from /proc/vmstat."""
    return next((int(line.split()[1]) for line in vmstat.splitlines() if line.startswith("oom_kill ")), 0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
