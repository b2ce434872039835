"""Embeddings through the router against the same engine asked directly, by the same clients, in turn.

Engines under `tandem serve`: a Qwen3 that costs next to nothing (see tiny_qwen3.py), with 128 and with 3,584
dimensions, where vLLM's API server is the limit, as on a GPU; and the demo's MiniLM, where the model is. With many
dimensions a second time without orjson, which `tandem install` brings and `pip install vllm` does not. wrk sends one
text a request, never the same twice, on so many connections, straight to the engine and through the router, in rounds
that take both; everything shares the machine's cores. A second table has the CPU that a text took of the engine's two
processes and of the router: where each has a core of its own, the one that takes most is the limit. Then a client that
waits for each answer and asks both in turn, text by text, so that what is added is not lost in what an engine's own
time varies by from one second to the next. Last, a client that sends 2,048 texts at a time, beside one that sends
single texts. Usage: ``python benchmarks/embeddings.py [--quick]``; needs wrk (``apt install wrk``).
"""

import contextlib
import http.client
import itertools
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import load
import machine
import report
from bring_up import TANDEM, end, start, until_healthy

from tandem import __version__
from tandem.engines import install
from tandem.engines.process import free_port

PATH = "/v1/embeddings"
MODEL = "measured"
MANY = 2048
_SETTLE = 0.5  # seconds in which an engine ends what the round before left with it
_PROCESSES = {"API server": "vllm.entrypoints", "EngineCore": "EngineCore", "router": "tandem.router"}
_SCRIPT = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local words = {"the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "engines", "serve", "texts"}
local number = 0
math.randomseed(%d)
request = function()
  number = number + 1
  local text = {"%d", number}
  for i = 3, %d do text[i] = words[math.random(#words)] end
  return wrk.format("POST", nil, nil, string.format(
    '{"model":"%s","encoding_format":"%s","input":"%%s"}', table.concat(text, " ")))
end
"""


@dataclass(frozen=True)
class Case:
    """A load: so many clients, each with one text in flight."""

    clients: int
    words: int
    encoding: str

    def __str__(self) -> str:
        return f"{self.clients} clients, {self.words} words, {self.encoding}"


FEW, LONG, MANY_CLIENTS = Case(64, 12, "float"), Case(64, 100, "float"), Case(256, 12, "float")
BASE64 = Case(64, 12, "base64")


@dataclass(frozen=True)
class Served:
    """An engine and the router before it: their addresses, and their processes by what they are."""

    engine: str
    router: str
    processes: Mapping[str, int]


@dataclass(frozen=True)
class Round:
    """What wrk measured, p95 for p99, and the CPU that a text took of each process, in microseconds."""

    measured: load.Measured
    cpu: Mapping[str, float]


def main() -> None:
    """Measure all and print the tables."""
    quick = machine.arguments(str(__doc__)).quick
    rounds, seconds = (1, 1) if quick else (7, 2)
    vllm = install.find(None)
    rows: list[list[str]] = []
    spent: list[list[str]] = []
    alone: list[list[str]] = []
    with machine.neighbours() as others, machine.workspace() as folder:
        for name, dimensions, orjson, cases in (
            ("Qwen3, 128 dimensions", 128, True, (FEW, LONG, MANY_CLIENTS)),
            ("Qwen3, 3,584 dimensions", 3584, True, (FEW, BASE64)),
            ("the same without orjson", 3584, False, (FEW,)),
            ("MiniLM, 384 dimensions", 0, True, (FEW,)),
        ):
            with _serving(vllm, folder, dimensions, orjson=orjson) as served:
                for case in cases:
                    direct, through = _compared(case, served, rounds, seconds, folder)
                    rows.append([name, str(case), *_speeds(direct, through)])
                    spent.append([name, str(case), *_spent(direct, through)])
                if dimensions in (0, 128):
                    alone.append([name, *_alone(served, rounds, 2.0 if quick else 5.0)])
                if dimensions == 128:
                    fairness = _fairness(served.router, 3.0 if quick else 20.0)
        taken = others()
    versions = {"vLLM": ".".join(map(str, vllm.version)), "tandem": __version__}
    print(f"Embeddings, {'one round' if rounds == 1 else f'median of {rounds} rounds (least to most)'}.")
    print(f"{machine.described(versions)}\n")
    print(report.table(("", "", "direct, texts/s", "through the router", "ratio", "p50, ms", "p95 to direct's"), rows))
    print("\nCPU a text, µs, straight to the engine → through the router.\n")
    print(report.table(("", "", *_PROCESSES), spent))
    print("\nOne client, one text after the other, straight to the engine and through the router in turn.\n")
    head = ("", "direct, p50, ms", "through the router", "added, ms", "p95 to direct's", "router's CPU, µs")
    print(report.table(head, alone))
    print(f"\n{fairness}\n{taken}")


@contextlib.contextmanager
def _serving(vllm: install.Vllm, folder: Path, dimensions: int, *, orjson: bool) -> Iterator[Served]:
    """An engine and the router before it; without ``dimensions``, the demo's model."""
    model = str(vllm.demo)
    environment = os.environ | ({} if orjson else {"TANDEM_CONFIG": str(_without_orjson(folder))})
    if dimensions:
        model = str(folder / f"qwen3-{dimensions}")
        script = Path(__file__).with_name("tiny_qwen3.py")
        if not Path(model).exists():
            subprocess.run([vllm.python, script, model, str(dimensions)], check=True, capture_output=True)
    with tempfile.TemporaryDirectory(prefix="tandem-") as run_dir:
        port = free_port()
        flags = ["--port", str(port), "--served-model-name", MODEL, "--run-dir", run_dir]
        service = start([str(TANDEM), "serve", model, *flags], environment)
        try:
            until_healthy(f"http://127.0.0.1:{port}/health", service)
            said = subprocess.run(
                [TANDEM, "status", "--json", "--run-dir", run_dir], check=True, capture_output=True, text=True
            )
            engine = json.loads(said.stdout)["engines"][0]["url"]
            yield Served(engine, f"http://127.0.0.1:{port}", _processes(service.pid))
        finally:
            end([service])


def _without_orjson(folder: Path) -> Path:
    """A tandem.toml with which the engine does not find orjson; the router does."""
    (folder / "sitecustomize.py").write_text('import sys\n\nsys.modules["orjson"] = None\n')
    path = folder / "tandem.toml"
    path.write_text(f"[engines.embedding]\nenv = {{ PYTHONPATH = {json.dumps(str(folder))} }}\n")
    return path


def _processes(service: int) -> dict[str, int]:
    """Of a service's processes, those that have a part in each request: not those that just watch over them."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in machine.tree(service)}
    return {
        name: max((pid for pid in commands if part.encode() in commands[pid]), key=machine.own_cpu_seconds)
        for name, part in _PROCESSES.items()
    }


def _compared(case: Case, served: Served, rounds: int, seconds: int, folder: Path) -> tuple[list[Round], list[Round]]:
    direct: list[Round] = []
    through: list[Round] = []
    turns = [(direct, served.engine), (through, served.router)]
    for lasts in (1, *[seconds] * rounds):
        for seen, url in turns:
            seen.append(_round(case, served, url, lasts, folder))
        turns.reverse()  # neither is always the one that comes after the other
    return direct[1:], through[1:]  # the first was to warm up


def _round(case: Case, served: Served, url: str, seconds: int, folder: Path) -> Round:
    time.sleep(_SETTLE)
    before = {name: machine.own_cpu_seconds(pid) for name, pid in served.processes.items()}
    measured = _asked(case, url, seconds, folder)
    spent = {name: machine.own_cpu_seconds(pid) - before[name] for name, pid in served.processes.items()}
    return Round(measured, {name: each / measured.requests * 1e6 for name, each in spent.items()})


def _spent(direct: list[Round], through: list[Round]) -> list[str]:
    def by(name: str, rounds: list[Round]) -> str:
        return report.spread([each.cpu[name] for each in rounds])

    return [
        by(name, through) if name == "router" else f"{by(name, direct)} → {by(name, through)}" for name in _PROCESSES
    ]


def _speeds(direct_rounds: list[Round], through_rounds: list[Round]) -> list[str]:
    direct, through = [each.measured for each in direct_rounds], [each.measured for each in through_rounds]
    pairs = list(zip(direct, through, strict=True))
    return [
        report.spread([each.rate for each in direct]),
        report.spread([each.rate for each in through]),
        report.spread([ours.rate / theirs.rate for theirs, ours in pairs], ".2f"),
        f"{report.spread([each.p50 / 1000 for each in direct], ',.1f')} → "
        f"{report.spread([each.p50 / 1000 for each in through], ',.1f')}",
        report.spread([ours.p99 / theirs.p99 for theirs, ours in pairs], ".2f"),
    ]


_runs = itertools.count(int(time.time()))


def _asked(case: Case, url: str, seconds: int, folder: Path) -> load.Measured:
    """One round; what :class:`load.Measured` calls p99 is p95 here."""
    run = next(_runs)
    script = folder / "embeddings.lua"
    script.write_text(_SCRIPT % (run, run, case.words, MODEL, case.encoding) + load.HOOK % 95)
    flags = ["-t1", f"-c{case.clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    said = subprocess.run(["wrk", *flags, url + PATH], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return load.parse(said.stdout)


def _alone(served: Served, rounds: int, seconds: float) -> list[str]:
    """Of a client alone: its times straight to the engine and through the router, and the difference of the two."""
    both: tuple[list[list[float]], list[list[float]]] = ([], [])
    router: list[float] = []
    with _connected(served.engine) as engine, _connected(served.router) as through:
        for turn in range(rounds + 1):
            direct, routed = [], []
            before, ends = machine.own_cpu_seconds(served.processes["router"]), time.monotonic() + seconds
            while time.monotonic() < ends:
                direct.append(_ask(engine, _single(), "float"))
                routed.append(_ask(through, _single(), "float"))
            if turn:  # the first was to warm up
                both[0].append(direct)
                both[1].append(routed)
                router.append((machine.own_cpu_seconds(served.processes["router"]) - before) / len(routed) * 1e6)
    medians = [[report.quantile(each, 0.5) * 1000 for each in side] for side in both]
    pairs = list(zip(*both, strict=True))
    added = [report.quantile([ours - theirs for theirs, ours in zip(*pair, strict=True)], 0.5) * 1000 for pair in pairs]
    late = [report.quantile(ours, 0.95) / report.quantile(theirs, 0.95) for theirs, ours in pairs]
    shown = [report.spread(each, ".2f") for each in (*medians, added, late)]
    return [*shown, report.spread(router)]


def _fairness(router: str, seconds: float) -> str:
    """How long single texts take, alone and beside a client that sends many at a time."""
    alone = _singles(router, seconds)
    ended = threading.Event()
    sent: list[float] = []

    def many() -> None:
        with _connected(router) as connection:
            for run in itertools.count():
                if ended.is_set():
                    return
                texts = [f"text {number} of {run} and a few words more" for number in range(MANY)]
                sent.append(_ask(connection, texts, "base64"))

    other = threading.Thread(target=many)
    other.start()
    try:
        time.sleep(1.0)
        beside = _singles(router, seconds)
    finally:
        ended.set()
        other.join()
    p95 = [report.quantile(each, 0.95) * 1000 for each in (alone, beside)]
    return (
        f"Single texts, one at a time: p95 {p95[0]:.1f} ms alone ({len(alone)} of them), {p95[1]:.1f} ms "
        f"({len(beside)}) beside a client that sends {MANY:,} at a time (median {report.quantile(sent, 0.5):.2f} s)."
    )


def _singles(router: str, seconds: float) -> list[float]:
    taken = []
    ends = time.monotonic() + seconds
    with _connected(router) as connection:
        while time.monotonic() < ends:
            taken.append(_ask(connection, _single(), "base64"))
    return taken


def _single() -> str:
    """A text of twelve words that nobody has sent before."""
    return f"{next(_runs)} is a single text of twelve words that nobody has sent"


@contextlib.contextmanager
def _connected(url: str) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
        yield connection


def _ask(connection: http.client.HTTPConnection, given: object, encoding: str) -> float:
    """One request; how many seconds its answer took."""
    body = json.dumps({"model": MODEL, "input": given, "encoding_format": encoding})
    began = time.perf_counter()
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    taken = time.perf_counter() - began
    if answer.status != 200:
        raise load.Failed(f"{connection.host}:{connection.port} answered {answer.status}: {said[:200]!r}")
    return taken


if __name__ == "__main__":
    main()
