"""The command line without engines: what it refuses, and in which words."""

import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tandem import __version__, rundir
from tandem.cli import app, start
from tandem.engines import install, weights
from tandem.engines.install import Vllm

from ..engines.hub import hub
from .shell import run

VLLM = Vllm(Path("/env/bin/python"), (0, 32, 0), "cpu")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the folder's, no services of the user's, no models in the cache; a vLLM that is never run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    monkeypatch.setattr(install, "find", lambda _: VLLM)


def model(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    return str(folder)


COMMANDS = [
    "install",
    "up",
    "serve",
    "router",
    "plan",
    "status",
    "logs",
    "restart",
    "reload",
    "stop",
    "doctor",
    "systemd",
    "compose",
    "embed",
    "bench",
]


def test_help_lists_the_commands() -> None:
    code, said = run("--help")
    assert code == 0
    assert all(f"\n  {command} " in said for command in COMMANDS)
    assert run("--version") == (0, f"{__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    code, said = run(command, "--help")
    assert code == 0
    assert "Usage: tandem " + command in said.replace("root ", "tandem ")


def test_serve_has_every_option_of_the_design() -> None:
    said = run("serve", "--help")[1]
    options = "model base-url host port hf-cache offline no-offline tensor-parallel-size gpu-memory-utilization "
    options += "max-num-batched-tokens served-model-name no-wait print-cmd kind"
    assert all(f"--{option}" in said for option in options.split())


def test_a_model_folder_that_does_not_exist(tmp_path: Path) -> None:
    code, said = run("up", "--embedding", "/no/such/model", "--generation", model(tmp_path / "m"))
    assert (code, said.splitlines()[-1]) == (
        1,
        "error: the model folder /no/such/model does not exist. Check the path",
    )


def test_a_model_that_is_not_on_this_machine(tmp_path: Path) -> None:
    """Without a terminal to ask on, nothing is downloaded; every way out is named."""
    code, said = run("up", "--embedding", "org/name", "--generation", model(tmp_path / "m"))
    assert code == 1
    assert f"error: org/name is neither a folder nor in the model cache ({tmp_path}/hf/hub)" in said
    assert all(way in said for way in ("--download", "--demo"))


def test_all_models_that_are_not_on_this_machine_are_named_at_once(tmp_path: Path) -> None:
    """Whether they are no folders or in no cache; nobody mends one to learn of the next."""
    code, said = run("up", "--embedding", "org/one", "--generation", "org/two")
    assert code == 1
    assert f"error: org/one and org/two are neither folders nor in the model cache ({tmp_path}/hf/hub)" in said
    code, said = run("up", "--embedding", "/no/such/model", "--generation", "org/two")
    assert "error: the model folder /no/such/model does not exist; org/two is neither a folder" in said


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("agreed", [True, False])
def test_one_question_is_asked_for_all_models_that_would_be_downloaded(
    agreed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal; who does not agree is told what is missing, and nothing is fetched."""
    fetched: list[str] = []

    def download(name: str, cache: weights.Cache, say: object) -> weights.Model:
        fetched.append(name)
        return weights.Model(cache.hub / name, name, {})

    monkeypatch.setattr(weights, "download", download)
    monkeypatch.setattr("sys.stdin", Terminal("y\n" if agreed else "n\n"))
    found = weights.find_all(["org/one", model(tmp_path / "here"), "org/two"], weights.Cache.find(tmp_path / "hf", {}))
    after = start._fetched(found, download=False, offline=None)
    question = f"org/one and org/two are not in {tmp_path}/hf/hub. Download them?"
    assert capsys.readouterr().out.count(question) == 1
    assert fetched == (["org/one", "org/two"] if agreed else [])
    if agreed:
        assert set(after.all()) == {"org/one", str(tmp_path / "here"), "org/two"}
    else:
        assert after == found


@pytest.mark.parametrize(
    "arguments", [("up", "--embedding", "org/name", "--generation", "org/name"), ("serve", "org/name")]
)
def test_who_is_offline_asks_no_hub(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that is there and has the model."""
    with hub("org/name", {"config.json": b"{}"}) as (address, asked):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        code, said = run(*arguments, "--offline")
        assert (code, asked) == (1, [])
        assert "error: org/name is neither a folder nor in the model cache" in said


def test_a_missing_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TANDEM_ENGINE_PYTHON", sys.executable)
    code, said = run("up")
    assert code == 1
    assert said.startswith(f"error: vLLM is not installed ({sys.executable} has none). Run `tandem install`")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """The router's, and one that is set for an engine: which, and what to do."""
    folder = model(tmp_path / "m")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = run("up", "--embedding", folder, "--generation", folder, "--port", port)
        assert code == 1
        assert f"error: port {port} on 127.0.0.1 is taken by another program. End that program" in said
        Path("tandem.toml").write_text(f"[engines.embedding]\nmodel = '{folder}'\nport = {port}\n")
        code, said = run("up")
        assert code == 1
        assert f"error: port {port}, which is set for the engine embedding, is taken" in said


def test_a_run_folder_that_is_taken(tmp_path: Path, short_path: Path) -> None:
    folder = model(tmp_path / "m")
    with rundir.RunDir(short_path / "run").claim():
        code, said = run("up", "--embedding", folder, "--generation", folder, "--run-dir", str(short_path / "run"))
    assert code == 1
    assert f"a service is already running on {short_path}/run (pid {os.getpid()})" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("up", "--port", "99999"), "router.port in the command line: input should be less than or equal to 65535"),
        (("serve", "--base-url", "nonsense"), "the base URL nonsense is not of the form http://HOST:PORT/v1"),
        (("serve", "a/b", "--model", "c/d"), "two models are named: a/b and --model c/d"),
        (("router", "--engine", "x"), "--engine x is not NAME=URL"),
        (("router", "--engine", "a=http://h", "--engine", "a=http://i"), "--engine a=http://i: the name a is taken"),
        (("router", "--engine", "a=http://h:81oo"), "--engine a=http://h:81oo: "),
        (("router", "--engine", "router=http://h"), "--engine router=http://h: the name router is taken"),
    ],
)
def test_wrong_settings_have_exit_code_2(arguments: tuple[str, ...], complaint: str) -> None:
    code, said = run(*arguments)
    assert code == 2
    assert f"error: {complaint}" in said


@pytest.mark.parametrize("command", ["status", "stop", "reload", "restart embedding"])
def test_no_service(command: str, short_path: Path) -> None:
    code, said = run(*command.split())
    assert (code, said.startswith(f"error: no service runs on {short_path}/tandem-8200")) == (1, True)


def test_or_demo_says_what_it_chose_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configured models, else the defaults where they are cached, else the demo's."""
    chosen: list[Any] = []
    monkeypatch.setattr("tandem.service.plans.prepare", lambda loaded, *_, **__: chosen.append(loaded) or 1 / 0)

    def said() -> str:
        with pytest.raises(ZeroDivisionError):
            run("up", "--or-demo")
        return CliRunner().invoke(app, ["up", "--or-demo"]).output

    assert "Serving the demo's models: none are configured" in said()
    assert chosen[-1].settings.engines["generation"].served_model_name == "tandem-demo"
    for name in ("Qwen--Qwen3-Embedding-0.6B", "Qwen--Qwen3-0.6B"):
        snapshot = tmp_path / "hf" / "hub" / f"models--{name}" / "snapshots" / "x"
        snapshot.mkdir(parents=True)
        model(snapshot)
        (snapshot / "model.safetensors").touch()
    assert "they are in the model cache" in said()
    assert chosen[-1].settings.engines["generation"].model == "Qwen/Qwen3-0.6B"
    monkeypatch.setenv("MODEL_EMBED_NAME", model(tmp_path / "m"))
    monkeypatch.setenv("MODEL_GEN_NAME", model(tmp_path / "m"))
    assert "Serving the models that are configured" in said()
    assert chosen[-1].settings.engines["generation"].model == str(tmp_path / "m")


@pytest.mark.process
def test_without_the_server_extra_the_way_to_it_is_named() -> None:
    """A base install has the command; what it lacks is one line, not a traceback."""
    code = "import sys; sys.modules['httpx2'] = None\nfrom tandem.cli import main\nsys.argv = ['tandem', 'up']\nmain()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "the server extra brings" in ran.stderr
    assert 'pip install "vllm-tandem[server]"' in ran.stderr


def test_the_app_can_be_mounted_in_another() -> None:
    """`from tandem.cli import app` is a Typer app, and its errors stay one line there."""
    import typer

    outer = typer.Typer()
    outer.add_typer(app, name="serving")
    outer.command("other")(lambda: None)
    ran = CliRunner().invoke(outer, ["serving", "status"])
    assert ran.exit_code == 1
    assert ran.output.startswith("error: no service runs on")
