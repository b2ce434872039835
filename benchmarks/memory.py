"""What a gateway keeps in memory: at start, for 1,000 connections, and over 200,000 requests.

Resident memory of the gateway's process and its children, after a second of requests on one connection; with 1,000 more
connections, each of which has had an answer and is kept; while wrk loads it from 1,000 connections, until 200,000
requests are answered. Growth is the straight line through the last three quarters of the samples taken under load.
Usage: ``python benchmarks/memory.py [--quick]``; needs nginx and wrk (``apt install nginx-light wrk``).
"""

import contextlib
import http.client
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import load
import machine
import peers
import report
import static_upstream
from peers import Gateway, Running

CASE = static_upstream.COMPLETIONS
CONNECTIONS = 1000
GATEWAYS = tuple(each for each in peers.gateways() if each != peers.DEFAULTS)  # each program once
HEAD = (
    "",
    "at start, MiB",
    f"{CONNECTIONS:,} kept, MiB",
    "a connection, KiB",
    f"load from {CONNECTIONS:,}, MiB",
    "at its end, MiB",
    "growth, bytes a request",
    "requests",
)
_MIB = 2**20
_SLICE = 2


@dataclass(frozen=True)
class Footprint:
    """Bytes of one gateway; ``samples`` are (requests answered so far, bytes)."""

    start: int
    kept: int
    samples: tuple[tuple[int, int], ...]


def main() -> None:
    """Measure one gateway after the other and print the table."""
    quick = machine.arguments(str(__doc__)).quick
    requests = 5_000 if quick else 200_000
    cores, versions = machine.cores(), peers.versions()
    with (
        machine.neighbours() as others,
        machine.workspace() as folder,
        static_upstream.whole(cores.upstream, folder) as upstream,
    ):
        found: dict[str, Footprint] = {}
        for gateway in GATEWAYS:
            with peers.running(gateway, upstream, cores.router, folder) as running:
                found[gateway.name] = _footprint(running, requests, cores.load, folder)
        taken = others()
    print("Resident memory of the gateway.")
    print(machine.described(versions | {"nginx": machine.nginx_version()}, cores), end="\n\n")
    print(report.table(HEAD, [_row(gateway, found[gateway.name]) for gateway in GATEWAYS]), end="\n\n")
    print(f"Every one of {sum(each.samples[-1][0] for each in found.values()):,} answers under load was a 200. {taken}")


def _footprint(running: Running, requests: int, core: int, folder: Path) -> Footprint:
    assert running.pid is not None
    load.run(CASE, running.url, 1, 1, core, folder)
    start = machine.resident(running.pid)
    with _kept(running.url):
        kept = machine.resident(running.pid)
    samples: list[tuple[int, int]] = []
    answered = 0
    while answered < requests:
        measured, resident = _slice(running, core, folder)
        answered += measured.requests
        samples.append((answered, resident))
    return Footprint(start, kept, tuple(samples))


@contextlib.contextmanager
def _kept(url: str) -> Iterator[None]:
    """So many connections, each of which has had its answer and is kept open."""
    body = json.dumps(CASE.body)
    opened: list[http.client.HTTPConnection] = []
    try:
        for _ in range(CONNECTIONS):
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
            opened.append(connection)
            connection.request("POST", CASE.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise load.Failed(f"{url} answered {answer.status}")
        if closed := sum(connection.sock is None for connection in opened):
            raise load.Failed(f"{url} kept {closed} of {CONNECTIONS} connections not open")
        yield
    finally:
        for connection in opened:
            connection.close()


def _slice(running: Running, core: int, folder: Path) -> tuple[load.Measured, int]:
    """Two seconds of load; what came of it, and the memory three quarters through."""
    assert running.pid is not None
    command = load.command(CASE, running.url, CONNECTIONS, _SLICE, core, folder)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
        try:
            time.sleep(_SLICE * 0.75)
            resident = machine.resident(running.pid)
            said, _ = wrk.communicate(timeout=30)
        except BaseException:
            wrk.kill()
            raise
    try:
        return load.parse(said), resident
    except load.Failed as exc:
        raise load.Failed(f"{running.name}: {exc}") from exc


def _row(gateway: Gateway, found: Footprint) -> list[str]:
    later = [(float(n), float(size)) for n, size in found.samples[len(found.samples) // 4 :]]
    return [
        gateway.name,
        f"{found.start / _MIB:.1f}",
        f"{found.kept / _MIB:.1f}",
        f"{(found.kept - found.start) / CONNECTIONS / 1024:.1f}",
        f"{max(size for _, size in found.samples) / _MIB:.1f}",
        f"{found.samples[-1][1] / _MIB:.1f}",
        f"{report.slope(later):+.2f}",
        f"{found.samples[-1][0]:,}",
    ]


if __name__ == "__main__":
    main()
