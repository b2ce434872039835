"""`tandem compose`: the files for the settings of a folder."""

from functools import partial
from pathlib import Path

import pytest
import yaml

from tandem import demo, settings
from tandem.settings import RouterSettings

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
        "log_format = 'json'\n[router]\nport = 8300\ncors_origins = ['https://ä.example']\nmax_queue = 5\n"
        "[api]\nstrict = false\n"
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


def test_the_router_s_settings_go_with_it(tmp_path: Path) -> None:
    """All that the Compose file does not say, in the form that they are read in."""
    assert run("out", "--card-memory", "24GiB")[0] == 0
    loaded = settings.load(gpu=False, environ={"TANDEM_CONFIG": "router.toml"}, folder=tmp_path / "out").settings
    assert loaded.router == RouterSettings(cors_origins=("https://ä.example",), max_queue=5)
    assert (loaded.api.strict, loaded.log_format) == (False, "json")
    router = yaml.safe_load((tmp_path / "out/compose.yaml").read_text())["services"]["router"]
    mounted = {each["target"]: each["source"] for each in router["volumes"]}
    assert mounted[router["environment"]["TANDEM_CONFIG"]] == "./router.toml"


def test_tls_is_refused(tmp_path: Path) -> None:
    """Rather than left out without a word."""
    config = tmp_path / "tandem.toml"
    config.write_text(config.read_text().replace("max_queue = 5", "tls_cert = 'c'\ntls_key = 'k'"))
    code, said = run("out", "--card-memory", "24GiB")
    assert code == 2
    assert "end TLS" in said, said
    assert not (tmp_path / "out").exists()


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
