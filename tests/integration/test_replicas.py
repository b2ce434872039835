"""Two real engines that serve the same model, one of which is always there."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from .conftest import command, engines, running

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

CONFIG = """
[engines.embedding]
model = '{model}'
served_model_name = 'mini'
replicas = 2
"""


def test_a_restart_drops_nothing(minilm: Path) -> None:
    """`tandem restart` takes them in turn, while callers who never pause get answers, each a good one."""
    over = threading.Event()

    def call(address: str, caller: int) -> Counter[int]:
        told: Counter[int] = Counter()
        with httpx2.Client(base_url=address, trust_env=False, timeout=60) as client:
            while not over.is_set():
                body = {"model": "mini", "input": f"text {sum(told.values())} of caller {caller}"}
                told[client.post("/v1/embeddings", json=body).status_code] += 1
        return told

    with running("up", files={"tandem.toml": CONFIG.format(model=minilm)}) as service, ThreadPoolExecutor(4) as threads:
        service.until_said("Ready on")
        before = engines(service)
        calling = [threads.submit(call, service.address, caller) for caller in range(4)]
        try:
            restarted = command("restart", "embedding", "--run-dir", str(service.run_dir.path), timeout=300)
        finally:
            over.set()
        told = sum((each.result() for each in calling), Counter())
        after = engines(service)
        assert restarted.returncode == 0, restarted.stderr
        assert set(told) == {200}
        assert len(after) == 2
        assert all(after[name]["pid"] != before[name]["pid"] for name in before)
        assert [after[name]["state"] for name in before] == ["ready", "ready"]
        assert service.stop() == 0
