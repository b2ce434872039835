"""How long both demo models take until they serve: by hand, one engine after the other, and with `tandem up --demo`.

By hand means vLLM's own server with its defaults, the next when the one before is healthy. Taken in turn, each after a
first start that only warms the file cache. Then, of a service that runs, the router's process is killed several times:
how long until its address answers again. Usage: ``python benchmarks/bring_up.py [ROUNDS]``.
"""

import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tandem import demo
from tandem.engines import install
from tandem.engines.keeper import descendants
from tandem.engines.process import free_port

TANDEM = Path(sys.executable).with_name("tandem")
PATIENCE = 600.0
KILLS = 3  # of the router, in each round
PAUSE = 5.0  # seconds between them: something that happens once, not a router that cannot live


def main() -> None:
    """Time both ways in turn and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    vllm = install.find(None)
    seconds: dict[str, list[float]] = {"by hand": [], "tandem up --demo": []}
    away: list[float] = []
    by_hand(vllm)
    for _ in range(rounds):
        seconds["by hand"].append(by_hand(vllm))
        seconds["tandem up --demo"].append(with_tandem(away))
    print(f"{vllm} on {os.cpu_count()} cores, {platform.machine()}; median of {rounds} (min to max)")
    for name, taken in seconds.items():
        print(f"{name:18} {statistics.median(taken):6.1f} s  ({min(taken):.1f} to {max(taken):.1f})")
    ratios = [ours / theirs for theirs, ours in zip(*seconds.values(), strict=True)]
    print(f"{'ratio':18} {statistics.median(ratios):6.2f}    ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"{'router killed':18} {statistics.median(away):6.2f} s  ({min(away):.2f} to {max(away):.2f}) without")


def by_hand(vllm: install.Vllm) -> float:
    """Seconds until the second of two engines is healthy."""
    command = [str(vllm.python), "-m", "vllm.entrypoints.openai.api_server"]
    if vllm.build == "cuda":
        command = [str(vllm.python.with_name("vllm")), "serve"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    models = [
        ["--model", str(vllm.demo), "--runner", "pooling", "--convert", "embed"],
        ["--model", str(demo.GENERATION)],
    ]
    running: list[subprocess.Popen[bytes]] = []
    began = time.monotonic()
    try:
        for flags in models:
            port = free_port()
            running.append(start([*command, *flags, "--host", "127.0.0.1", "--port", str(port)], environment))
            until_healthy(f"http://127.0.0.1:{port}/health", running[-1])
        return time.monotonic() - began
    finally:
        end(running)


def with_tandem(away: list[float]) -> float:
    """Seconds until the service says that both are healthy; to ``away`` go those that it is without a router."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        began = time.monotonic()
        running = start([str(TANDEM), "up", "--demo", "--port", str(port), "--run-dir", folder], dict(os.environ))
        try:
            until_healthy(f"http://127.0.0.1:{port}/health", running)
            taken = time.monotonic() - began
            for _ in range(KILLS):
                time.sleep(PAUSE)
                away.append(_without_router(f"http://127.0.0.1:{port}/livez", running))
            return taken
        finally:
            end([running])


def _without_router(url: str, service: subprocess.Popen[bytes]) -> float:
    """Seconds from the death of the service's router, by SIGKILL, until ``url`` answers."""
    routers = [pid for pid in descendants(service.pid) if b"tandem.router" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    serving = min(routers, key=lambda pid: Path(f"/proc/{pid}").stat().st_mtime)
    os.kill(serving, signal.SIGKILL)
    killed = time.monotonic()
    until_healthy(url, service)
    return time.monotonic() - killed


def start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """``command`` in a session of its own, silent; whoever ends this run, ends it, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until ``url`` answers 200; ends the run if ``process`` has ended, or after ten minutes."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with (
            suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(url, timeout=10) as answer,  # noqa: S310 - a loopback address
        ):
            if answer.status == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{url} did not become healthy")
        time.sleep(0.1)


def end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt all of ``running`` and wait; kill what does not end."""
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    main()
