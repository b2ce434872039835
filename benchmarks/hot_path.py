"""Where the router's time goes: a sampling profile (py-spy) while wrk asks for whole answers on 50 connections.

Prints, for each function on the way of a request, its share of all samples: by itself, and with all that it calls.
py-spy is put into an environment of its own below ``$XDG_CACHE_HOME/tandem-benchmarks``; it needs the right to look
into a process of the same user (``ptrace``). Usage: ``python benchmarks/hot_path.py [--quick]``; needs nginx and wrk.
"""

import collections
import contextlib
import re
import subprocess
from pathlib import Path

import load
import machine
import peers
import report
import static_upstream

CONNECTIONS = 50
RATE = 500  # samples a second
SHOWN = 40
_SPY = peers.Gateway("py-spy", "py-spy", lambda *_: [])
# What stands below everything on the way of a request, and says nothing of it.
_FRAME = re.compile(
    r"Typer|typer|<module>|_Commands|_main \(|main \(tandem/cli|router \(tandem/cli|Context\.invoke|Command"
)


def main() -> None:
    """Record and print the table."""
    seconds = 2 if machine.arguments(str(__doc__)).quick else 10
    cores = machine.cores()
    with contextlib.ExitStack() as stack:
        others = stack.enter_context(machine.neighbours())
        folder = stack.enter_context(machine.workspace())
        upstream = stack.enter_context(static_upstream.whole(cores.upstream, folder))
        router = stack.enter_context(peers.running(peers.TANDEM, upstream, cores.router, folder))
        case = static_upstream.COMPLETIONS
        load.run(case, router.url, CONNECTIONS, 1, cores.load, folder)
        loading = subprocess.Popen(
            load.command(case, router.url, CONNECTIONS, seconds + 2, cores.load, folder), stdout=subprocess.DEVNULL
        )
        stacks = _recorded(router.pid, seconds, folder)
        loading.wait()
        taken = others()
    print(f"{machine.described(peers.versions(), cores)} {taken}\n")
    print(report.table(("of all samples, %", "by itself", "function"), rows(stacks)))


def _recorded(pid: int | None, seconds: int, folder: Path) -> str:
    found = folder / "stacks.txt"
    asked = ["record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(RATE), "--format", "raw"]
    subprocess.run([peers.program(_SPY), *asked, "--output", str(found)], check=True, capture_output=True)
    return found.read_text()


def rows(stacks: str) -> list[list[str]]:
    """Of py-spy's raw stacks (``frame;frame;frame COUNT``, a line each), the functions most often seen."""
    inside: collections.Counter[str] = collections.Counter()
    alone: collections.Counter[str] = collections.Counter()
    total = 0
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        names = [re.sub(r":\d+\)$", ")", frame) for frame in frames.split(";")]
        total += int(count)
        alone[names[-1]] += int(count)
        for name in set(names):
            inside[name] += int(count)
    seen = [name for name, _ in inside.most_common() if not _FRAME.search(name)]
    return [[f"{inside[n] / total:.1%}"[:-1], f"{alone[n] / total:.1%}"[:-1], n] for n in seen[:SHOWN]]


if __name__ == "__main__":
    main()
