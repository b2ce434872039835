"""`tandem compose`: the files for the settings of a folder."""

from functools import partial
from pathlib import Path

import pytest
import yaml

from tandem import demo

from . import shell


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings with a model in a folder and one in the cache, and a secret."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    snapshot = tmp_path / "hf/hub/models--org--embed/snapshots/abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_bytes((demo.GENERATION / name).read_bytes())
    (tmp_path / "tandem.toml").write_text(
        "[router]\nport = 8300\n"
        "[engines.embedding]\nmodel = 'org/embed'\nmemory = 0.3\nenv = { HF_TOKEN = 'hidden', MY_TOKEN = 'hidden' }\n"
        f"[engines.generation]\nmodel = '{demo.GENERATION}'\nmemory = 0.5\n"
    )


run = partial(shell.run, "compose")


def test_the_files_are_written(tmp_path: Path) -> None:
    """With the plan's own command lines, mounts that hold what links lead to, and no secret."""
    code, said = run("out", "--card-memory", "24GiB", "--vllm", "0.32.0")
    assert code == 0, said
    text = (tmp_path / "out/compose.yaml").read_text()
    assert "hidden" not in text
    services = yaml.safe_load(text)["services"]
    embedding, generation, router = services["embedding"], services["generation"], services["router"]
    assert embedding["image"] == "vllm/vllm-openai:v0.32.0"
    assert embedding["volumes"][0]["source"] == str(tmp_path / "hf/hub/models--org--embed")
    assert embedding["command"][0] == "/models/embedding/snapshots/abc"
    assert embedding["environment"]["MY_TOKEN"] == "${MY_TOKEN}"
    assert not {"TMPDIR", "VLLM_RPC_BASE_PATH"} & set(embedding["environment"])
    assert generation["command"][0] == "/models/generation"
    assert "--tokenizer=embedding=/models/embedding/snapshots/abc" in router["command"]
    assert (tmp_path / "out/Dockerfile").read_text().startswith("# Tandem's router")


def test_files_that_are_there_are_kept() -> None:
    """Unless they may be replaced."""
    assert run("--card-memory", "24GiB")[0] == 0
    code, said = run("--card-memory", "24GiB")
    assert (code, "is there already" in said) == (1, True)
    assert run("--card-memory", "24GiB", "--force")[0] == 0


@pytest.mark.parametrize(("size", "says"), [((), "has no NVIDIA GPU"), (("--card-memory", "big"), "is no amount")])
def test_without_a_card_there_is_nothing_to_plan_for(
    size: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, said = run(*size)
    assert (code, says in said) == (2, True)
