"""The router's own OpenAPI document against the router: schemathesis makes requests from it, good ones and bad ones."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tandem.engines.process import free_port

SCRIPTS = Path(sys.executable).parent
HERE = Path(__file__).parent
# Rules across fields are not in a schema: a request that fits it may still be refused.
EXCLUDED = "positive_data_acceptance"


@pytest.fixture
def address() -> Iterator[str]:
    """A router in front of a child process that answers as vLLM does."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, HERE / "faulty_engine.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        url = f"http://127.0.0.1:{int(engine.stdout.readline())}"
        with subprocess.Popen(
            [SCRIPTS / "tandem", "router", f"--engine=embedding={url}", f"--engine=generation={url}", f"--port={port}"],
            stderr=subprocess.DEVNULL,
        ) as router:
            try:
                transport = httpx2.HTTPTransport(retries=10)
                with httpx2.Client(transport=transport, trust_env=False) as client:
                    while client.get(f"http://127.0.0.1:{port}/health").status_code != 200:
                        assert router.poll() is None
                yield f"http://127.0.0.1:{port}"
            finally:
                router.terminate()
                router.wait()
                engine.terminate()


@pytest.mark.timeout(180)
def test_schemathesis_finds_nothing(address: str, tmp_path: Path) -> None:
    """No 500, and no answer of a status, a content type or a shape that the document does not name; nothing accepted
    that it rules out."""
    ran = subprocess.run(
        [
            *(SCRIPTS / "schemathesis", "run", f"{address}/openapi.json", "--no-color"),
            *("--checks", "all", "--exclude-checks", EXCLUDED, "--max-examples", "40", "--seed", "1"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        | {"SCHEMATHESIS_HOOKS": "schema_hooks"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ran.returncode == 0, ran.stdout[-8000:]
    generated = re.search(r"(\d+) generated", ran.stdout)
    assert generated is not None
    assert int(generated[1]) > 500
    with httpx2.Client(base_url=address, trust_env=False) as client:
        lines = client.get("/metrics").text.splitlines()
    for route in ("/v1/embeddings", "/v1/completions", "/v1/chat/completions"):
        assert any(f'route="{route}",status="200"' in line for line in lines), f"no request to {route} went through"
