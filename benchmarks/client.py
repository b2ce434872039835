"""What the client costs beside others, and how fast it feeds an engine through the router.

First: CPU seconds of a client's process for 1,000 vectors of 3,584 dimensions in batches of 64, against a service that
costs next to nothing, on a core of its own; Tandem's client beside the official ``openai`` SDK and LangChain's
``OpenAIEmbeddings``, which are put into an environment of their own below ``$XDG_CACHE_HOME/tandem-benchmarks``. Each
keeps its defaults (all of them then ask for base64), and each round asks all of them in turn.

Second, with ``--engine``: 20,000 short texts to the demo's small Qwen3 as an embedding model, under ``tandem serve``:
one ``embed_chunks`` through the router, and two clients in processes of their own with batches of 64, one after the
other, straight to the engine.

Usage: ``python benchmarks/client.py [--quick] [--engine]``.
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import embedding_clients
import machine
import report

from tandem import VLLMClient, VLLMConfig, __version__, demo
from tandem.engines.process import free_port

PEERS = ("openai", "langchain-openai")
SCRIPT = Path(embedding_clients.__file__)
TANDEM = Path(sys.executable).with_name("tandem")
MODEL = "tiny"
ROUNDS = 5
PATIENCE = 300.0  # seconds for the engine's start


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="to see that it works; figures mean nothing")
    parser.add_argument("--engine", action="store_true", help="the second part, too: takes minutes")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ended from outside, it ends its service
    cores = machine.cores()
    with machine.neighbours() as others:
        print(table(cpu(cores, 1 if given.quick else ROUNDS, 640 if given.quick else 6400)))
        print(f"\n{machine.described(versions(), cores)} {others()}\n")
    if given.engine:
        with machine.neighbours() as others:
            print(throughput(1 if given.quick else 3, 2_000 if given.quick else 20_000))
            print(f"\n{others()}")


def cpu(cores: machine.Cores, rounds: int, vectors: int) -> dict[str, list[float]]:
    """Milliseconds of CPU for 1,000 vectors, by client, one a round."""
    found: dict[str, list[float]] = {name: [] for name in embedding_clients.CLIENTS}
    port = machine.free_port()
    with machine.workspace() as folder:
        service = [sys.executable, str(SCRIPT), "serve", str(port)]
        with machine.started(service, cores.upstream, folder / "service.log"):
            _until(f"http://127.0.0.1:{port}/", 20)
            for _ in range(rounds):
                for name, taken in found.items():
                    taken.append(1e6 * _measured(name, f"http://127.0.0.1:{port}/v1", vectors, cores.router) / vectors)
    return found


def table(found: dict[str, list[float]]) -> str:
    """Each client's milliseconds, and how often Tandem's fit into them, round by round."""
    rows = []
    for name, taken in found.items():
        ours = found["tandem, async" if name.endswith("async") else "tandem"]
        ratios = [theirs / own for theirs, own in zip(taken, ours, strict=True)]
        rows.append([name, report.spread(taken, ",.1f"), report.spread(ratios, ".2f")])
    return report.table(["", "CPU ms for 1,000 vectors", "times Tandem's"], rows)


def throughput(rounds: int, count: int) -> str:
    """Texts a second through the router and straight to the engine, in turn."""
    texts = [f"text {i} about the number {i * 7919 % count} and little else" for i in range(count)]
    through: list[float] = []
    direct: list[float] = []
    with tempfile.TemporaryDirectory(prefix="tandem-", dir="/tmp") as folder:
        port = free_port()
        options = ["--base-url", f"http://127.0.0.1:{port}/v1", "--served-model-name", MODEL, "--run-dir", folder]
        with (Path(folder) / "output.txt").open("wb") as output:
            service = subprocess.Popen(
                [TANDEM, "serve", str(demo.GENERATION), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            _until(f"http://127.0.0.1:{port}/health", PATIENCE)
            told = subprocess.run(
                [TANDEM, "status", "--json", "--run-dir", folder], capture_output=True, text=True, check=True
            )
            engine = f"{json.loads(told.stdout)['engines'][0]['url']}/v1"
            _straight(engine, texts[:2000])
            _chunks(f"http://127.0.0.1:{port}/v1", texts[:2000])
            for _ in range(rounds):
                direct.append(_straight(engine, texts))
                through.append(_chunks(f"http://127.0.0.1:{port}/v1", texts))
        finally:
            service.terminate()
            service.wait(60)
    ratios = [ours / theirs for ours, theirs in zip(through, direct, strict=True)]
    rows = [
        ["embed_chunks, through the router", report.spread(through), report.spread(ratios, ".2f")],
        ["two clients, straight to the engine", report.spread(direct), ""],
    ]
    return report.table([f"{count:,} short texts, {os.cpu_count()} cores", "texts/s", "ratio"], rows)


def _chunks(url: str, texts: Sequence[str]) -> float:
    with VLLMClient(VLLMConfig(base_url=url, model=MODEL)) as client:
        began = time.monotonic()
        found = client.embed_chunks(texts)
        taken = time.monotonic() - began
    assert len(found) == len(texts)
    return len(texts) / taken


def _straight(url: str, texts: Sequence[str]) -> float:
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as clients:
        clients.starmap(_one_by_one, [(url, texts[:64])] * 2)  # imports, connections
        began = time.monotonic()
        clients.starmap(_one_by_one, [(url, texts[0::2]), (url, texts[1::2])])
        return len(texts) / (time.monotonic() - began)


def _one_by_one(url: str, texts: Sequence[str]) -> None:
    with VLLMClient(VLLMConfig(base_url=url, model=MODEL)) as client:
        for start in range(0, len(texts), 64):
            client.embed_batch(texts[start : start + 64])


def versions() -> dict[str, str]:
    """Of Tandem and of the peers."""
    ask = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    told = subprocess.run([_environment(), "-c", ask, *PEERS], capture_output=True, text=True, check=True)
    return {"tandem": __version__, **dict(zip(PEERS, told.stdout.split(), strict=True))}


def _measured(name: str, url: str, vectors: int, core: int) -> float:
    python = sys.executable if name.startswith("tandem") else _environment()
    command = ["taskset", "-c", str(core), python, str(SCRIPT), name, url, str(vectors)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _environment() -> str:
    """The interpreter of an environment that has the peers; made the first time."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(cache) / "tandem-benchmarks" / "embedding-clients"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"Installing {' and '.join(PEERS)}", file=sys.stderr)
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), "numpy", *PEERS], check=True)
        (folder / "installed").touch()
    return str(python)


def _until(url: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()  # noqa: S310 - a loopback address
        except (urllib.error.URLError, ConnectionError, TimeoutError) as exc:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url} does not answer: {exc}") from exc
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
