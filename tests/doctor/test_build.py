"""Whether vLLM, torch, cards and driver belong together, from what they say of themselves."""

import json
import platform
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

from tandem.doctor import build, interpreter
from tandem.doctor.build import Driver, Torch
from tandem.doctor.finding import Level
from tandem.engines.hardware import Card, Hardware
from tandem.engines.install import Vllm
from tandem.errors import SetupError

CARD = Card(0, "NVIDIA L4", 24 * 2**30, 23 * 2**30, "570.86.10")
GPU = Hardware((CARD,), 8, 2**36, frozenset())
CPU = Hardware((), 8, 2**36, frozenset({"avx2", "avx512_bf16"}))
CUDA_BUILD = Vllm(Path("/env/bin/python"), (0, 32, 0), "cuda")
CPU_BUILD = Vllm(Path("/env/bin/python"), (0, 32, 0), "cpu")
SMI = """\
Fri Nov 20 09:00:00 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 570.86.10              Driver Version: 570.86.10      CUDA Version: 12.8     |
|-----------------------------------------+------------------------+----------------------+
"""


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the tool cannot reach it, its own words are shown."""
    (tmp_path / "table").write_text(SMI)
    smi(tmp_path, monkeypatch, f"cat {tmp_path}/table")
    assert build.ask_driver() == Driver("570.86.10", (12, 8))
    smi(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed because it could not talk to the driver.'; exit 9")
    with pytest.raises(SetupError, match=r"no working driver: NVIDIA-SMI has failed .*modprobe"):
        build.ask_driver()


def test_without_the_tool_there_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.ask_driver() is None


@pytest.mark.parametrize(
    ("hardware", "driver", "present", "found"),
    [
        (GPU, Driver("570", (12, 8)), True, [(Level.OK, "23.0 of 24.0 GiB free"), (Level.OK, "CUDA up to 12.8")]),
        (CPU, None, False, [(Level.OK, "no NVIDIA card")]),
        (CPU, None, True, [(Level.WARNING, "and no driver for it")]),
        (CPU, Driver("570", (12, 8)), True, [(Level.WARNING, "no card that may be used")]),
    ],
)
def test_cards(hardware: Hardware, driver: Driver | None, present: bool, found: list[tuple[Level, str]]) -> None:
    findings = list(build.cards(hardware, driver, present=present))
    assert [finding.level for finding in findings] == [level for level, _ in found]
    assert all(says in finding.says for finding, (_, says) in zip(findings, found, strict=True))


def test_a_card_that_others_use_is_told() -> None:
    busy = Card(0, "NVIDIA L4", 24 * 2**30, 4 * 2**30, "570")
    (finding, _) = build.cards(Hardware((busy,), 8, 2**36, frozenset()), Driver("570", (12, 8)), present=True)
    assert (finding.level, finding.says) == (Level.WARNING, "NVIDIA L4, 4.0 of 24.0 GiB free")


def built(**differently: object) -> dict[str, object]:
    return {"version": "3.11.7", "optimised": True, "headers": True, "environments": True} | differently


def test_a_python_that_was_built_without_optimisation_is_told() -> None:
    assert build.python(built()).level is Level.OK
    told = build.python(built(optimised=False))
    assert (told.level, told.says.partition(":")[0]) == (Level.WARNING, "3.11.7, built without optimisation")


def test_streams_that_go_the_long_way_are_told() -> None:
    assert build.fast_path().level is Level.OK  # the tests' own environment has a compiler
    told = build.fast_path(compiled=False)
    assert (told.level, told.says.partition(":")[0]) == (Level.WARNING, "the fast path is not compiled")


def test_this_python_is_asked() -> None:
    """As the interpreter of an environment sees itself; headers and optimisation are as they may be."""
    (own, *_) = build.python_of(replace(CPU_BUILD, python=Path(sys.executable)))
    assert own == build.python(interpreter.look(), "engine's Python")
    assert own.says.startswith(platform.python_version())


def test_as_a_script_it_says_whether_this_python_is_a_good_one() -> None:
    """For make, which looks for one."""
    ran = subprocess.run([sys.executable, "-I", interpreter.__file__], capture_output=True, text=True)
    assert json.loads(ran.stdout) == interpreter.look()
    assert ran.returncode == (not all(interpreter.look().values()))


@pytest.mark.parametrize(("vllm", "level"), [(CUDA_BUILD, Level.PROBLEM), (CPU_BUILD, Level.WARNING)])
def test_missing_headers_are_told(vllm: Vllm, level: Level, tmp_path: Path) -> None:
    """Triton needs them before a card does anything, vllm#27890."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{json.dumps(built(headers=False))}'; exit 1\n")
    python.chmod(0o755)
    findings = list(build.python_of(replace(vllm, python=python)))
    assert [(each.subject, each.level) for each in findings] == [("engine's Python", Level.OK), ("headers", level)]


@pytest.mark.parametrize(
    ("arguments", "prefix", "optimised"),
    [
        ("'--enable-shared' '--enable-optimizations' '--with-lto'", "/python/3.11", True),
        ("'--enable-shared' '--prefix=/pyenv/versions/3.11.7'", "/pyenv/versions/3.11.7", False),
        ("'--enable-shared' '--prefix=/usr' '--with-system-expat'", "/usr", True),
        (None, "C:\\Python311", True),
    ],
)
def test_how_a_python_was_built(
    arguments: str | None, prefix: str, optimised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pyenv's, Debian's and Windows' builds say it."""
    monkeypatch.setitem(sysconfig.get_config_vars(), "CONFIG_ARGS", arguments)
    monkeypatch.setattr(sys, "base_prefix", prefix)
    assert interpreter.look()["optimised"] is optimised


@pytest.mark.parametrize(
    ("flags", "level"),
    [({"avx2", "avx512_bf16"}, Level.OK), ({"avx2"}, Level.WARNING), ({"sse2"}, Level.PROBLEM), ({"asimd"}, "warning")],
)
def test_processors(flags: set[str], level: Level) -> None:
    (finding,) = build.processor(Hardware((), 8, 2**36, frozenset(flags)))
    assert finding.level == level


@pytest.mark.parametrize(
    ("version", "level"), [((0, 23, 0), Level.PROBLEM), ((0, 32, 0), Level.OK), ((9, 0, 0), Level.WARNING)]
)
def test_releases(version: tuple[int, ...], level: Level) -> None:
    assert build.release(Vllm(Path("/env/bin/python"), version, "cpu")).level is level


def test_a_build_for_other_hardware() -> None:
    """Too much is a problem, too little a waste."""
    assert build.fitting(CUDA_BUILD, CPU).level is Level.PROBLEM
    assert build.fitting(CPU_BUILD, GPU).level is Level.WARNING
    assert build.fitting(CPU_BUILD, CPU).level is build.fitting(CUDA_BUILD, GPU).level is Level.OK


@pytest.mark.parametrize(
    ("vllm", "torch", "driver", "level", "says"),
    [
        (CPU_BUILD, Torch("2.13.0+cpu", None), None, Level.OK, "built for processors alone"),
        (CPU_BUILD, Torch("2.13.0", "13.0"), None, Level.PROBLEM, "built for CUDA 13.0, and vLLM is its cpu build"),
        (CUDA_BUILD, Torch("2.13.0", "12.9"), Driver("570", (12, 8)), Level.OK, "built for CUDA 12.9"),
        (CUDA_BUILD, Torch("2.13.0", "13.0"), Driver("570", (12, 8)), Level.PROBLEM, "knows CUDA up to 12.8"),
        (CUDA_BUILD, None, Driver("570", (12, 8)), Level.PROBLEM, "not installed"),
    ],
)
def test_torch(vllm: Vllm, torch: Torch | None, driver: Driver | None, level: Level, says: str) -> None:
    """A driver runs all CUDA of its own major release, also what is newer than itself."""
    (finding,) = build.torch_fits(vllm, torch, driver)
    assert finding.level is level
    assert says in finding.says


@pytest.mark.process
def test_an_interpreter_without_vllm() -> None:
    """The cause is found as in a failed start."""
    finding = build.imports(Path(sys.executable))
    assert finding.level is Level.PROBLEM
    assert (finding.says, finding.mend) == (
        "vLLM cannot be imported: its interpreter has no vLLM",
        "Run `tandem install`",
    )
    assert build.ask_torch(Path(sys.executable)) is None
