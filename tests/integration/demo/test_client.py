"""The client against real engines: the demo's over HTTP, and the same model in the engine's own interpreter."""

import doctest
import importlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tandem import BadRequestError, ModelNotFoundError, VLLMClient, VLLMConfig
from tandem.engines import install

from ...client import suite
from ..conftest import Service, clean_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[3]
INPROCESS = 240  # seconds, on a busy machine
DOCUMENTED = ("client.config", "client.structs", "client.client", "telemetry.timeline")


@pytest.fixture
def config(demo: Service) -> VLLMConfig:
    return VLLMConfig(base_url=f"{demo.address}/v1", model="embedding", timeout_s=60)


@pytest.fixture
def client(config: VLLMConfig) -> Iterator[VLLMClient]:
    with VLLMClient(config) as made:
        yield made


@pytest.mark.parametrize("check", [*suite.CHECKS, suite.closed], ids=lambda check: check.__name__)
def test_http(check: object, client: VLLMClient) -> None:
    """The suite of all transports, over HTTP through the router."""
    check(client)  # type: ignore[operator]


def test_in_process_and_over_http_agree(client: VLLMClient, tmp_path: Path) -> None:
    """The same suite passes with an engine in process, as the example in its docstring makes it; its vectors are the
    service's within 1e-3."""
    vllm = install.find(None)
    environment = clean_environment() | {
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is what the docstring's example prints
    }
    ran = subprocess.run(
        [vllm.python, "-m", "tests.client.suite", str(vllm.demo), str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=INPROCESS,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    assert ran.stdout.count("passed: ") == len(suite.CHECKS) + 1
    suite.near(np.load(tmp_path / "vectors.npy"), suite.vectors(client))
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["tokens"], told["empty"]) == (8, [0, suite.DIM])
    first, second = told["warned"]
    assert f"2002 tokens was cut off after {told['most']}" in first
    assert f"the last {2002 - told['most']} of them" in first
    assert "2004 tokens" in second


def test_refusals_of_a_real_service_name_the_text(client: VLLMClient, config: VLLMConfig) -> None:
    """A text that is longer than the model's context is named by the caller's own index."""
    texts = [f"text {i}" for i in range(100)]
    texts[37] = "word " * 5000
    with pytest.raises(BadRequestError) as refused:
        client.embed_chunks(texts, batch_size=10)
    assert refused.value.index == 37
    with (
        VLLMClient(VLLMConfig(base_url=config.base_url, model="no-such-model")) as other,
        pytest.raises(ModelNotFoundError, match="no-such-model"),
    ):
        other.embed_single("a")


@pytest.mark.parametrize("module", DOCUMENTED)
def test_docstrings_are_true(module: str, config: VLLMConfig, client: VLLMClient) -> None:
    """Each example in the client's docstrings does what it says, against the demo."""
    known = {"BASE_URL": config.base_url, "client": client}
    found = doctest.testmod(importlib.import_module(f"tandem.{module}"), extraglobs=known)
    assert (found.failed, bool(found.attempted)) == (0, True)


def test_the_guide_is_true(config: VLLMConfig, client: VLLMClient) -> None:
    """And so does each in docs/client.md."""
    known = {"BASE_URL": config.base_url, "client": client}
    found = doctest.testfile(str(ROOT / "docs" / "client.md"), module_relative=False, globs=known)
    assert found.failed == 0
    assert found.attempted > 10
