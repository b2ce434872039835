"""A service to measure: a child process that speaks OpenAI's API, and misbehaves on command."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "router" / "faulty_engine.py"


class Service:
    """The child, and how to tell it what to do."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self.process = process
        self.port = int(process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def tell(self, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", path, None if body is None else json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The last few it was asked."""
        found: list[dict[str, Any]] = self.tell("/counters")["bodies"]
        return found

    def misbehave(self, how: str, *, after: int, **options: Any) -> None:
        """Be well ``after`` requests long, those by which it is met, then misbehave until told otherwise."""
        well = [{"how": "good", "times": after}] if after else []
        self.tell("/misbehave", [*well, {"how": how, "times": -1, **options}])


@pytest.fixture(scope="session")
def _service() -> Iterator[Service]:
    command = [sys.executable, SCRIPT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Service(process)


@pytest.fixture
def service(_service: Service) -> Service:
    """One that is well."""
    _service.tell("/forget")
    return _service
