"""A service that answers as told, and clients of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem import VLLMClient, VLLMConfig

from .calls import TEXTS
from .runs import put
from .service import Service


@pytest.fixture(autouse=True)
def _no_proxies_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Well, until told otherwise; whom it fails comes again at once."""
    monkeypatch.setattr("tandem.client.retry._FIRST", 0.001)
    made = Service()
    yield made
    made.close()


@pytest.fixture
def unix_service(short_path: Path) -> Iterator[Service]:
    """The same on a Unix socket."""
    made = Service(short_path / "api.sock")
    yield made
    made.close()


@pytest.fixture
def connect(service: Service) -> Iterator[Callable[..., VLLMClient]]:
    """Makes clients of the service, with settings of their own; closed at the end."""
    made: list[VLLMClient] = []

    def build(on_step: Any = None, **settings: Any) -> VLLMClient:
        config = VLLMConfig(**{"base_url": service.url, "model": "m", "timeout_s": 20, **settings})
        made.append(VLLMClient(config, on_step=on_step))
        return made[-1]

    yield build
    for client in made:
        client.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of fifty texts."""
    return put(tmp_path / "in.jsonl", TEXTS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the vectors of a file are to go."""
    return tmp_path / "out.parquet"
