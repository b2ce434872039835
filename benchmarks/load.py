"""wrk: requests over and over on so many connections, and what it says of the answers."""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# wrk's own report rounds and changes units; this hook, for a percentile, gives whole microseconds.
HOOK = """\
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests":%%d,"duration":%%d,"p50":%%d,"p99":%%d,"connect":%%d,"read":%%d,"write":%%d,"timeout":%%d,"status":%%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(%d),
    e.connect, e.read, e.write, e.timeout, e.status))
end
"""
_SCRIPT = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[%s]==]
"""
_FAULTS = ("connect", "read", "write", "timeout", "status")


class Failed(SystemExit):
    """An answer was not the expected one: the run says nothing, so it ends."""


@dataclass(frozen=True)
class Case:
    """One kind of request, by the name that tables call it."""

    name: str
    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What wrk saw; times in microseconds."""

    requests: int
    seconds: float
    p50: int
    p99: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def script(case: Case) -> str:
    """wrk's script for ``case``."""
    return _SCRIPT % json.dumps(case.body) + HOOK % 99


def parse(output: str) -> Measured:
    """What wrk said, with :func:`script`.

    Raises:
        Failed: not every answer was a 2xx or 3xx, or wrk said nothing.
    """
    found = [line for line in output.splitlines() if line.startswith("{")]
    if not found:
        raise Failed(f"wrk said nothing: {output.strip()}")
    said = json.loads(found[-1])
    if faults := {name: said[name] for name in _FAULTS if said[name]}:
        raise Failed(f"of {said['requests']} answers, not all were good: {faults}")
    if not said["requests"]:
        raise Failed(f"no answer came within {said['duration'] / 1e6:.1f} s: is the machine busy?")
    return Measured(said["requests"], said["duration"] / 1e6, said["p50"], said["p99"])


def command(case: Case, url: str, connections: int, seconds: int, core: int, folder: Path) -> list[str]:
    """wrk's command line, which takes whole seconds only; its script is written into ``folder``."""
    path = folder / f"{case.name.replace(', ', '-')}.lua"
    path.write_text(script(case))
    flags = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(path)]
    return ["taskset", "-c", str(core), "wrk", *flags, url + case.path]


def run(case: Case, url: str, connections: int, seconds: int, core: int, folder: Path) -> Measured:
    """Load ``url`` for so long.

    Raises:
        Failed: not every answer was good.
    """
    asked = command(case, url, connections, seconds, core, folder)
    return parse(subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout)


def ask(case: Case, url: str) -> Any:
    """One request: the JSON of its answer.

    Raises:
        OSError: it could not be had, or (HTTPError) its status is 4xx or 5xx.
    """
    request = urllib.request.Request(  # noqa: S310 - a loopback address
        url + case.path, json.dumps(case.body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        if answer.status != 200:
            raise urllib.error.HTTPError(request.full_url, answer.status, "not a 200", answer.headers, None)
        return json.load(answer)
