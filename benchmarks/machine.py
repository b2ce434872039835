"""The machine under the benchmarks: its cores, its tools, its processes and what /proc says of them."""

import argparse
import contextlib
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from tandem.doctor import interpreter

_PACKAGES = {"nginx": "nginx-light", "wrk": "wrk", "taskset": "util-linux"}
_TICKS = os.sysconf("SC_CLK_TCK")
_CPU_CLOCK = 2  # CPUCLOCK_SCHED, in the kernel's include/linux/posix-timers_types.h


@dataclass(frozen=True)
class Cores:
    """Which core runs what. The router's is its own; upstream and load share one where there are only two."""

    router: int
    upstream: int
    load: int


def arguments(description: str, *, beside: bool = False) -> argparse.Namespace:
    """The command line that all scripts have, and the machine made ready: tools there, files enough, signals heard.

    Args:
        beside: whether another Tandem can be measured, too.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it works; figures mean nothing"
    )
    if beside:
        parser.add_argument(
            "--beside", type=Path, metavar="TANDEM", help="the bin/tandem of another environment, to measure as well"
        )
    given = parser.parse_args()
    if missing := [tool for tool in _PACKAGES if shutil.which(tool) is None]:
        packages = " ".join(_PACKAGES[tool] for tool in missing)
        raise SystemExit(f"{' and '.join(missing)} not found: apt install {packages}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return given


def cores() -> Cores:
    """Cores of this machine that this process may use."""
    allowed = os.sched_getaffinity(0)
    return pick(allowed, {core: _siblings(core) for core in allowed})


def pick(allowed: Set[int], siblings: Mapping[int, Set[int]]) -> Cores:
    """A core for each, of those ``allowed``; never two threads of the router's physical core."""
    router = min(allowed)
    others = sorted(allowed - siblings[router] - {router})
    if not others:
        raise SystemExit("These benchmarks need two cores: one for the router alone, one for upstream and load")
    apart = [core for core in others if core not in siblings[others[0]]]
    return Cores(router, others[0], next(iter(apart), others[0]))


def described(versions: Mapping[str, str], chosen: Cores | None = None) -> str:
    """One line: processor, cores, who ran where (none: anywhere), versions, Python and whether that is a fast build."""
    with Path("/proc/cpuinfo").open() as lines:
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        model = next(names, platform.machine())
    where = f" (router on core {chosen.router}, upstream on {chosen.upstream}, load on {chosen.load})" if chosen else ""
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    built = interpreter.look()
    python = f"Python {built['version']} ({'optimised' if built['optimised'] else 'built without optimisation'})"
    return f"{model}, {os.cpu_count()} cores{where}; Linux {platform.release()}; {told}; {python}."


def nginx_version() -> str:
    """Of the installed nginx."""
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return said.strip().rpartition("/")[2].partition(" ")[0]


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder for configuration and logs, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tandem-benchmarks-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def started(
    command: Sequence[str], core: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """``command`` on ``core``, in a session of its own, in the folder of its ``log``; ended by its pid afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, of its threads and of its descendants."""
    return sum(map(own_cpu_seconds, tree(pid)))


def own_cpu_seconds(pid: int) -> float:
    """Likewise, of a process and its threads alone.

    Source: clock_getcpuclockid(3), whose number for a process Python does not tell; /proc knows clock ticks only.
    """
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK)


@contextlib.contextmanager
def neighbours() -> Iterator[Callable[[], str]]:
    """What other processes took of the machine meanwhile, in words: the more, the less the figures mean."""
    began, busy, ours = time.monotonic(), _busy(), _ours()
    yield lambda: _taken(_busy() - busy - (_ours() - ours), time.monotonic() - began)


def _taken(seconds: float, wall: float) -> str:
    return f"All else on the machine took {max(seconds, 0) / wall:.2f} cores meanwhile."


def _busy() -> float:
    """Seconds, of all cores, in which processes ran; or in which the host ran something else.

    Not those spent on interrupts, which no process is charged for: most of them carry our own packets.
    """
    with Path("/proc/stat").open() as lines:
        user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(int, lines.readline().split()[1:9])
    return (user + nice + system + steal) / _TICKS


def _ours() -> float:
    """Of that, this process's, and its children's, both ended and alive."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return cpu_seconds(os.getpid()) + ended.ru_utime + ended.ru_stime


def resident(pid: int) -> int:
    """Bytes in memory of a process and its descendants; pages that they share count for each."""
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in tree(pid))
    return pages * resource.getpagesize()


def tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            for child in (thread / "children").read_text().split():
                yield from tree(int(child))


def _siblings(core: int) -> set[int]:
    try:
        said = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except FileNotFoundError:
        return {core}
    return set(expanded(said))


def expanded(ranges: str) -> Iterator[int]:
    """The numbers in a list as the kernel writes it: ``0-2,8`` is 0, 1, 2 and 8."""
    for part in ranges.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
