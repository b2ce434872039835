"""LangChain and LlamaIndex, pointed at Tandem with nothing of ours between; in an environment of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tandem import VLLMClient, VLLMConfig

from ...client.suite import near
from ..conftest import Service, clean_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("libraries.py")
# All of whose ids in OpenAI's vocabulary are ids of other tokens in the model's.
TEXTS = ["a text", "the cat is on the mat", "def add(a, b):\n    return a + b"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has both libraries, as they are pinned."""
    folder = tmp_path_factory.mktemp("libraries")
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--no-deps", "-r", ROOT / "requirements" / "libraries.txt"],
        check=True,
        env={**os.environ, "VIRTUAL_ENV": str(folder)},
    )
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def found(python: Path, demo: Service) -> dict[str, Any]:
    """What each library makes of the texts."""
    ran = subprocess.run(
        [python, SCRIPT, f"{demo.address}/v1"],
        input=json.dumps(TEXTS),
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    vectors: dict[str, Any] = json.loads(ran.stdout)
    return vectors


@pytest.fixture(scope="module")
def ours(demo: Service) -> np.ndarray[Any, Any]:
    with VLLMClient(VLLMConfig(base_url=f"{demo.address}/v1", model="embedding")) as client:
        return client.embed_batch(TEXTS)


@pytest.mark.parametrize("library", ["langchain", "langchain, one", "llama-index", "llama-index, one"])
def test_vectors_are_ours(library: str, found: dict[str, Any], ours: np.ndarray[Any, Any]) -> None:
    """Documents together and queries alone."""
    near(np.array(found[library], dtype=np.float32), ours)


def test_why_langchain_must_not_check_the_length(found: dict[str, Any], ours: np.ndarray[Any, Any]) -> None:
    """Its default sends ids of OpenAI's vocabulary: no error, and vectors of something else."""
    wrong = np.array(found["langchain, ids"], dtype=np.float32)
    cosines = (wrong * ours).sum(axis=1) / np.linalg.norm(wrong, axis=1) / np.linalg.norm(ours, axis=1)
    assert wrong.shape == ours.shape
    assert cosines.max() < 0.8, cosines
