"""Tandem's router and its peers: how each is installed, started and found ready. Run alone, installs the newest peers.

vLLM's router (https://github.com/vllm-project/router) and sglang's gateway
(https://github.com/sgl-project/sglang, sgl-model-gateway) are gateways in Rust, on the package index as ``vllm-router``
and ``sglang-router``. Each is put into an environment of its own below ``$XDG_CACHE_HOME/tandem-benchmarks`` (or
``~/.cache/tandem-benchmarks``), and stays there. What they need here:

- ``--policy round_robin``. Their default, ``cache_aware``, keeps a tree of all prompts seen: time and memory that a
  single worker has no use for.
- ``--log-level warning`` (sglang: ``warn``): they then log next to nothing. Tandem keeps its default, a line a request.
- "vllm-router, defaults" is the same program without these two: as ``pip install vllm-router`` gives it.
- A metrics port of its own: both open 29000 by default, so two of them could not run side by side.
- Of the worker, vllm-router asks ``/health`` alone, at start and then every 60 s. sglang-router tries HTTP/2 and then
  HTTP/1 on ``/health``, and asks ``/server_info``, ``/get_server_info``, ``/model_info`` and ``/get_model_info``; it
  takes a 404 from all of them. Both then know the worker's model as "unknown" and route any name to it, so one worker
  serves both routes.
- vllm-router does not listen before the worker is healthy; sglang-router does, with ``/health`` 200 and ``/readiness``
  503. Ready is, whoever it is, who answers a completion.
- Both are Python processes that become the router (``sglang-router`` and ``smg`` are the same program), with as many
  threads as they may use cores: pinned to one core, one. Both end on SIGTERM.
- Neither refuses 1,000 requests at once by default (vllm-router takes 32,768, sglang-router any number).
"""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import load
import machine
import static_upstream
from static_upstream import Upstream

import tandem


@dataclass(frozen=True)
class Gateway:
    """Attributes:
    name: as the tables say it.
    package: of a peer, its name on the package index, which is its program's, too.
    command: the command line behind the program's name, for an upstream, a port, and a port for metrics.
    program: where its program is, if not in an environment of the benchmarks.
    """

    name: str
    package: str
    command: Callable[[Upstream, int, int], list[str]]
    program: Path | None = None


@dataclass(frozen=True)
class Running:
    """A gateway that is ready, or, without a ``pid``, the upstream itself."""

    name: str
    url: str
    pid: int | None = None


def _tandem(upstream: Upstream, port: int, _: int) -> list[str]:
    flags = ["--engine", f"generation={upstream.generation}"]
    if upstream.embedding:
        flags += ["--engine", f"embedding={upstream.embedding}"]
    return ["router", *flags, "--port", str(port)]


def _vllm(upstream: Upstream, port: int, metrics: int) -> list[str]:
    return [*_tuned(upstream, port, metrics), "--log-level", "warning"]


def _sglang(upstream: Upstream, port: int, metrics: int) -> list[str]:
    return ["launch", *_tuned(upstream, port, metrics), "--log-level", "warn"]


def _rust(upstream: Upstream, port: int, metrics: int) -> list[str]:
    listen = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    return [*listen, "--worker-urls", upstream.generation]


def _tuned(upstream: Upstream, port: int, metrics: int) -> list[str]:
    return [*_rust(upstream, port, metrics), "--policy", "round_robin"]


TANDEM = Gateway("tandem", "vllm-tandem", _tandem, Path(sys.executable).with_name("tandem"))
DEFAULTS = Gateway("vllm-router, defaults", "vllm-router", _rust)
PEERS = (
    DEFAULTS,
    Gateway("vllm-router", "vllm-router", _vllm),
    Gateway("sglang-router", "sglang-router", _sglang),
)


def gateways(beside: Path | None = None) -> tuple[Gateway, ...]:
    """All of them; with another environment's ``tandem``, say one with another Python, that as well."""
    others = (Gateway("tandem, the other", "vllm-tandem", _tandem, beside.absolute()),) if beside else ()
    return (TANDEM, *others, *PEERS)


def direct(upstream: Upstream) -> Running:
    """The upstream with nothing before it."""
    return Running("direct", upstream.generation)


@contextlib.contextmanager
def running(gateway: Gateway, upstream: Upstream, core: int, folder: Path) -> Iterator[Running]:
    """``gateway`` before ``upstream``, ready, on ``core``; its log in ``folder``, where it finds no settings."""
    port, metrics = machine.free_port(), machine.free_port()
    url = f"http://127.0.0.1:{port}"
    log = folder / f"{gateway.name.replace(', ', '-')}.log"
    command = [str(program(gateway)), *gateway.command(upstream, port, metrics)]
    ours = ("TANDEM_", "VLLM_", "MODEL_", "ROUTER_", "OTEL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    with machine.started(command, core, log, environment) as process:
        _until_ready(url, process, log)
        yield Running(gateway.name, url, process.pid)


def program(gateway: Gateway) -> Path:
    """Its program; a peer that is not there yet is installed first."""
    if gateway.program:
        return gateway.program
    found = _environment(gateway) / "bin" / gateway.package
    if not found.exists():
        install(gateway)
    return found


def install(gateway: Gateway) -> None:
    """The newest of a peer, into its own environment.

    Raises:
        SystemExit: that failed.
    """
    uv, into = str(Path(sys.executable).with_name("uv")), _environment(gateway)
    print(f"Installing {gateway.package}", file=sys.stderr)
    if not (into / "bin" / "python").exists():
        _or_exit([uv, "venv", "--quiet", "--python", sys.executable, str(into)])
    _or_exit([uv, "pip", "install", "--quiet", "--upgrade", "--python", str(into / "bin" / "python"), gateway.package])


def versions() -> dict[str, str]:
    """Of Tandem and of the installed peers."""
    found = {TANDEM.name: tandem.__version__}
    for peer in PEERS:
        program(peer)
        pattern = f"lib/python*/site-packages/{peer.package.replace('-', '_')}-*.dist-info"
        names = [path.stem for path in _environment(peer).glob(pattern)]
        found[peer.package] = names[0].partition("-")[2] if names else "?"
    return found


def _environment(gateway: Gateway) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tandem-benchmarks" / gateway.package


def _or_exit(command: list[str]) -> None:
    if subprocess.run(command).returncode:
        raise SystemExit(f"Failed: {' '.join(command)}")


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            load.ask(static_upstream.COMPLETIONS, url)
        except (urllib.error.URLError, ConnectionError, TimeoutError) as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                raise SystemExit(f"{log.stem} does not answer ({exc}):\n{tail}") from exc
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    for each in {peer.package: peer for peer in PEERS}.values():
        install(each)
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
