"""For every test: an environment that sets nothing of Tandem's, and no services of this machine's user."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from tandem import settings


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """asyncio's loop; what is close to the loop runs on both that the router may have."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.stem == "test_fastpath" else loops


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in os.environ:
        if name.startswith(("TANDEM_", "VLLM_", "HF_")):
            monkeypatch.delenv(name)
    for variable in settings.VARIABLES:
        if variable.legacy:
            monkeypatch.delenv(variable.legacy, raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="tandem-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def free_port() -> int:
    """A port on loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
