"""`tandem doctor` on this machine, with the real vLLM."""

import json
import shutil
from pathlib import Path

import pytest

from tandem import demo

from .conftest import command

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def test_what_is_well_and_what_is_not(short_path: Path) -> None:
    """vLLM is importable and fits; a model that is cut short is named, and is the only problem."""
    model = Path(shutil.copytree(demo.GENERATION, short_path / "model"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    config = short_path / "tandem.toml"
    config.write_text(f"[engines.generation]\nmodel = '{model}'\n")
    told = command("doctor", "--json", "--run-dir", str(short_path / "run"), timeout=150, TANDEM_CONFIG=str(config))
    assert told.returncode == 1
    findings = json.loads(told.stdout)
    problems = [finding for finding in findings if finding["level"] == "problem"]
    assert [finding["subject"] for finding in problems] == ["model of generation"]
    assert str(weights) in problems[0]["says"]
    assert {"vLLM", "build", "torch", "import"} <= {f["subject"] for f in findings if f["level"] == "ok"}
    assert not (short_path / "run").exists()
