"""`tandem plan`: what it shows, and that it starts nothing and shows no secret."""

import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tandem import demo
from tandem.cli import drawing, start
from tandem.engines import hardware, install
from tandem.engines.hardware import Card, Hardware
from tandem.engines.install import Vllm
from tandem.engines.process import EngineProcess

from . import shell

MIB = 2**20
CUDA = Vllm(Path("/env/bin/python"), (0, 32, 0), "cuda")
CPU = Vllm(Path("/env/bin/python"), (0, 32, 0), "cpu")
CARDS = Hardware(
    (Card(0, "NVIDIA L4", 24564 * MIB, 24264 * MIB, "580"), Card(1, "NVIDIA L4", 24564 * MIB, 12000 * MIB, "580")),
    16,
    128 * 2**30,
    frozenset(),
)
PLAIN = Hardware((), 2, 24 * 2**30, frozenset({"avx512_bf16"}), 20 * 2**30)
TOML = f"""
[router]
api_key = "sk-hushed-1"
[engines.embedding]
model = "small"
memory = 0.3
[engines.generation]
model = "{demo.GENERATION}"
aliases = ["demo"]
args = ["--api-key", "sk-hushed-2"]
env = {{ HF_TOKEN = "hf_hushed3", OTEL_ENDPOINT = "http://me:hushed4@host" }}
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards, one of them half full; models that are configured; and no engine that could be started."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    monkeypatch.setattr(install, "find", lambda _: CUDA)
    monkeypatch.setattr(hardware, "detect", lambda: CARDS)
    monkeypatch.setattr(EngineProcess, "start", never)
    (tmp_path / "small").mkdir()
    config = json.loads((Path(__file__).parents[1] / "engines/recorded/models/Qwen3-0.6B.json").read_text())["config"]
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    (tmp_path / "small" / "pytorch_model.bin").write_bytes(bytes(1000))
    (tmp_path / "tandem.toml").write_text(TOML)


run = partial(shell.run, "plan")


def told(*arguments: str) -> Any:
    code, said = run(*arguments, "--json")
    assert code == 0
    return json.loads(said)


def test_it_says_where_the_memory_goes() -> None:
    """A place for each card: its size, what others use, each engine's part, what is left."""
    first, second = told()["memory"]
    total = 24564 * MIB
    # The demo's model needs 396 of 24,564 MiB, 17 thousandths; and has use for 256 sequences of 1,024 tokens of 2 KiB,
    # 510 MiB more than for one, 20 thousandths.
    engines = {"embedding": int(0.3 * total), "generation": int(0.037 * total)}
    assert first == {
        "name": "card 0, NVIDIA L4",
        "total": total,
        "others": 300 * MIB,
        "engines": engines,
        "left": total - 300 * MIB - sum(engines.values()),
    }
    assert (second["others"], second["engines"]) == (12564 * MIB, {})


def test_it_says_what_would_be_started() -> None:
    """Exact command lines, in the order of their start."""
    found = told("--port", "9000")
    engines = {engine["name"]: engine for engine in found["engines"]}
    command = engines["embedding"]["command"]
    assert "--gpu-memory-utilization 0.3 " in command
    assert "CUDA_VISIBLE_DEVICES=0" in command
    assert "--runner pooling --convert embed" in command
    assert found["address"] == "http://127.0.0.1:9000"
    assert sorted(name for turn in found["start"] for name in turn) == ["embedding", "generation"]


def test_it_says_where_each_setting_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line, environment, .env, tandem.toml, or nowhere."""
    (tmp_path / ".env").write_text("VLLM_GEN_MAX_NUM_SEQS=7\n")
    monkeypatch.setenv("TANDEM_EMBEDDING_PORT", "8111")
    found = told("--port", "9000", "--generation", str(demo.GENERATION))
    sources = {setting["name"]: (setting["value"], setting["source"]) for setting in found["settings"]}
    assert sources["router.port"] == ("9000", "router.port in the command line")
    assert sources["engines.generation.model"] == (
        str(demo.GENERATION),
        "engines.generation.model in the command line",
    )
    assert sources["engines.embedding.port"] == ("8111", "TANDEM_EMBEDDING_PORT")
    assert sources["engines.generation.max_num_seqs"] == ("7", "VLLM_GEN_MAX_NUM_SEQS in .env")
    assert sources["engines.embedding.memory"] == ("0.3", "engines.embedding.memory in tandem.toml")
    assert sources["engines.generation.aliases"] == ("demo", "engines.generation.aliases in tandem.toml")
    assert sources["engines.embedding.dtype"] == ("auto", "default")


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_it_shows_no_secret(arguments: list[str]) -> None:
    """Neither keys nor what is in arguments, environment and addresses."""
    code, said = run(*arguments)
    assert code == 0
    assert "hushed" not in said
    assert "HF_TOKEN=***" in said
    assert "--api-key" in said


def test_it_is_drawn_on_a_terminal() -> None:
    """A bar for each card that engines are on, and a row for each engine."""
    ready = start.prepare({}, start.Models.CONFIGURED, starting=False)
    console = Console(force_terminal=True, width=110, highlight=False)
    with console.capture() as captured:
        drawing.show(ready, console)
    lines = captured.get().splitlines()
    assert ["█" in line for line in lines if "░" in line] == [True, False]
    assert any("ENGINE" in line and "CONTEXT" in line for line in lines)
    assert any(line.startswith("Sizes are in GiB") for line in lines)


def test_plain_lines_have_the_same_numbers() -> None:
    """A row for each engine, without bars."""
    code, said = run()
    assert code == 0
    assert "█" not in said
    assert "generation: model model, weights 0.01, step " in said
    assert "sizes estimated" in said


def test_a_plan_that_does_not_fit_says_so(tmp_path: Path) -> None:
    """With exit code 2, as for any setting that is wrong."""
    (tmp_path / "tandem.toml").write_text(TOML.replace("memory = 0.3", "memory = 0.99"))
    code, said = run()
    assert code == 2
    assert "error: the engines ask for 23.7 GiB (embedding 23.7 GiB)" in said
    assert "It fits with engines.embedding.memory = 0.9" in said


def test_nothing_is_downloaded_or_asked(tmp_path: Path) -> None:
    """A model that is not on this machine is named, with what would bring it."""
    code, said = run("--generation", "org/name")
    assert code == 1
    assert "org/name is neither a folder nor in the model cache" in said


def test_all_models_that_are_not_here_are_named_at_once() -> None:
    code, said = run("--embedding", "org/one", "--generation", "org/two")
    assert (code, said.count("error: ")) == (1, 1)
    assert "org/one and org/two are neither folders nor in the model cache" in said
    code, said = run("--embedding", "/no/such/model", "--generation", "org/two")
    assert (code, said.count("error: ")) == (1, 1)
    assert "the model folder /no/such/model does not exist; org/two is neither a folder" in said


def test_a_port_that_is_taken_does_not_matter(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service may be running."""
    monkeypatch.setenv("TANDEM_EMBEDDING_PORT", str(free_port))
    with socket.create_server(("127.0.0.1", free_port)):
        assert f"--port {free_port} " in told()["engines"][0]["command"]


def test_ram_is_a_place_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a card, threads and whole GiB; what is in use counts as others'."""
    monkeypatch.setattr(install, "find", lambda _: CPU)
    monkeypatch.setattr(hardware, "detect", lambda: PLAIN)
    found = told()
    (place,) = found["memory"]
    assert (place["name"], place["total"], place["others"]) == ("RAM", 24 * 2**30, 4 * 2**30)
    assert [engine["threads"] for engine in found["engines"]] == [1, 1]
    assert found["start"] == [["embedding", "generation"]]
    assert "VLLM_CPU_KVCACHE_SPACE=" in found["engines"][0]["command"]


def test_what_cannot_be_worked_out_is_said(tmp_path: Path) -> None:
    """An architecture that nobody here knows is left to vLLM, with a note."""
    (tmp_path / "small" / "config.json").write_text('{"model_type": "unheard_of"}')
    engine = next(engine for engine in told()["engines"] if engine["name"] == "embedding")
    assert (engine["context"], engine["kv_cache"]) == (None, None)
    assert engine["notes"] == [
        "How the family unheard_of keeps its KV cache is not known here: what fits is left to vLLM"
    ]
