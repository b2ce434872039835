"""The build of vLLM, the Python and the torch it has, and whether they fit this machine's processor, cards, driver."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.doctor import interpreter
from tandem.doctor.finding import Finding, fine, problem, refused, warning
from tandem.engines import install, launch
from tandem.engines.diagnosis import diagnose
from tandem.engines.hardware import Hardware
from tandem.engines.install import Vllm
from tandem.errors import SetupError
from tandem.router.fastpath import COMPILED

_NVIDIA = "0x10de"  # its number as a maker of PCI devices
_DISPLAYS = ("0x0300", "0x0302")  # PCI classes of graphics cards, with and without outputs
_IMPORT_SECONDS = 180.0
# Run by the engines' interpreter. Importing torch's version alone takes no time; importing vLLM and what it has
# compiled shows whether the two belong together.
_TORCH = """
import importlib.util, json, pathlib, runpy
spec = importlib.util.find_spec("torch")
told = runpy.run_path(pathlib.Path(spec.origin).with_name("version.py")) if spec else {}
print(json.dumps([told.get("__version__"), told.get("cuda")]))
"""
_IMPORT = "from vllm.platforms import current_platform; current_platform.import_kernels(); import vllm.engine.arg_utils"


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver, as ``nvidia-smi`` tells.

    Attributes:
        version: its own, such as ``570.86``.
        cuda: the newest CUDA it knows, such as ``(12, 8)``.
    """

    version: str
    cuda: tuple[int, int]


@dataclass(frozen=True)
class Torch:
    """The torch of the engines' environment; ``cuda`` is the release it was built for, None without."""

    version: str
    cuda: str | None


def examine(engine_python: Path | None, hardware: Hardware) -> Iterator[Finding]:
    """Every finding about vLLM, Python, torch, processor, cards and driver. Importing vLLM takes seconds."""
    driver = None
    try:
        driver = ask_driver()
    except SetupError as exc:
        yield refused("GPU", exc)
    else:
        yield from cards(hardware, driver, present=_cards_present())
    yield from processor(hardware)
    yield python(interpreter.look())
    yield fast_path()
    try:
        vllm = install.find(engine_python)
    except SetupError as exc:
        yield refused("vLLM", exc)
        return
    yield release(vllm)
    yield fitting(vllm, hardware)
    yield from python_of(vllm)
    torch = ask_torch(vllm.python)
    yield from torch_fits(vllm, torch, driver)
    yield imports(vllm.python)


def ask_driver() -> Driver | None:
    """What ``nvidia-smi`` says of the driver; None where there is no such tool.

    Raises:
        SetupError: the tool is there, and cannot reach a driver.
    """
    if not (smi := shutil.which("nvidia-smi")):
        return None
    mend = "Install NVIDIA's driver anew, or load its module (`modprobe nvidia`); in a container, give it the GPUs"
    try:
        ran = subprocess.run([smi], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SetupError(f"nvidia-smi cannot be run: {exc}", mend) from exc
    found = parse_driver(ran.stdout)
    if ran.returncode or found is None:
        said = (ran.stdout + ran.stderr).strip().splitlines()
        raise SetupError(f"nvidia-smi finds no working driver: {said[0] if said else 'it says nothing'}", mend)
    return found


def parse_driver(table: str) -> Driver | None:
    """The driver from the head of ``nvidia-smi``'s table; None where that does not tell."""
    version = re.search(r"Driver Version: ([\d.]+)", table)
    cuda = re.search(r"CUDA Version: (\d+)\.(\d+)", table)
    return Driver(version[1], (int(cuda[1]), int(cuda[2]))) if version and cuda else None


def cards(hardware: Hardware, driver: Driver | None, *, present: bool) -> Iterator[Finding]:
    """Each card that can be used, or why none can.

    Args:
        present: whether the machine has an NVIDIA card at all.
    """
    for card in hardware.cards:
        says = f"{card.name}, {card.free / 2**30:.1f} of {card.total / 2**30:.1f} GiB free"
        if card.total and card.free < card.total / 2:
            mend = "End other programs on it (`nvidia-smi` lists them), or lower the engines' memory settings"
            yield warning(f"GPU {card.index}", says, mend)
        else:
            yield fine(f"GPU {card.index}", says)
    if hardware.cards and driver:
        yield fine("driver", f"{driver.version}, knows CUDA up to {driver.cuda[0]}.{driver.cuda[1]}")
    elif driver:
        yield warning("GPU", "there is a driver, and no card that may be used", "Check CUDA_VISIBLE_DEVICES")
    elif present:
        mend = "Install NVIDIA's driver, and nvidia-smi with it, to use the card"
        yield warning("GPU", "there is an NVIDIA card, and no driver for it: engines run on the processor", mend)
    elif not hardware.cards:
        yield fine("GPU", "no NVIDIA card: engines run on the processor")


def processor(hardware: Hardware) -> Iterator[Finding]:
    """Whether the processor can run vLLM's CPU build, and how fast."""
    if hardware.gpu or not hardware.cpu_flags:
        return
    arm = "asimd" in hardware.cpu_flags
    if not arm and "avx2" not in hardware.cpu_flags:
        mend = "Use another machine: vLLM's CPU build needs AVX2 at least"
        yield problem("processor", f"{hardware.cores} cores without AVX2", mend)
    elif hardware.fast_cpu_dtype == "float32":
        says = f"{hardware.cores} cores, fast in float32 alone: models run at a fraction of the speed of bfloat16"
        yield warning("processor", says, "A processor with AVX512-BF16, AMX or Arm's BF16 is several times as fast")
    else:
        yield fine("processor", f"{hardware.cores} cores, fast in {hardware.fast_cpu_dtype}")


def python(built: Mapping[str, object], whose: str = "Python") -> Finding:
    """Whether a Python, as :func:`interpreter.look` tells of it, was built to be fast."""
    if built["optimised"]:
        return fine(whose, f"{built['version']}, optimised")
    says = f"{built['version']}, built without optimisation: each request takes more of the processor than it need"
    mend = (
        "Make Tandem's environment anew with the distribution's Python or uv's (pyenv builds an optimised one with "
        "PYTHON_CONFIGURE_OPTS=--enable-optimizations), then run `tandem install`"
    )
    return warning(whose, says, mend)


def fast_path(*, compiled: bool = COMPILED) -> Finding:
    """Whether streams are sent on without Python, which takes a compiler where Tandem was installed from source."""
    if compiled:
        return fine("streams", "the fast path is compiled")
    says = "the fast path is not compiled: each event of a stream takes more of the processor than it need"
    mend = (
        "Install a C compiler and Python's headers (`apt install gcc python3-dev`, `dnf install gcc python3-devel`), "
        "then Tandem again (`pip install --force-reinstall --no-cache-dir …`)"
    )
    return warning("streams", says, mend)


def python_of(vllm: Vllm) -> Iterator[Finding]:
    """The same of the engines' Python, and whether what compiles against it can do so."""
    ran = subprocess.run([vllm.python, "-I", interpreter.__file__], capture_output=True, text=True, timeout=60)
    built = json.loads(ran.stdout)
    yield python(built, "engine's Python")
    if not built["headers"]:
        # vllm#27890: with a card, Triton compiles against it before anything runs.
        tell = problem if vllm.build == "cuda" else warning
        mend = "Install Python's headers (`apt install python3-dev`, `dnf install python3-devel`)"
        yield tell("headers", "Python.h is not there: what torch and Triton compile cannot be", mend)


def release(vllm: Vllm) -> Finding:
    """Whether Tandem knows this release of vLLM."""
    if vllm.version < launch.OLDEST:
        oldest = ".".join(map(str, launch.OLDEST))
        return problem("vLLM", f"{vllm} is too old: {oldest} and newer are known", "Run `tandem install`")
    if warned := launch.warning(vllm):
        return warning("vLLM", warned, "Run `tandem install`, which brings a release that Tandem is tested with")
    return fine("vLLM", f"{vllm} in {vllm.python}")


def fitting(vllm: Vllm, hardware: Hardware) -> Finding:
    """Whether the build is the one for this machine."""
    if vllm.build == "cuda" and not hardware.gpu:
        mend = "Run `tandem install`, which brings the CPU build, or make the card usable"
        return problem("build", "the CUDA build needs an NVIDIA GPU, and none is to be seen", mend)
    if vllm.build == "cpu" and hardware.gpu:
        mend = "Run `tandem install`, which brings the CUDA build"
        return warning("build", "the CPU build leaves the GPU unused", mend)
    return fine("build", f"the {vllm.build.upper()} build fits this machine")


def ask_torch(python: Path) -> Torch | None:
    """The torch beside vLLM, without importing it; None where there is none."""
    ran = subprocess.run([python, "-I", "-c", _TORCH], capture_output=True, text=True, timeout=60)
    version, cuda = json.loads(ran.stdout) if ran.returncode == 0 else (None, None)
    return Torch(version, cuda) if version else None


def torch_fits(vllm: Vllm, torch: Torch | None, driver: Driver | None) -> Iterator[Finding]:
    """Whether torch is built for what vLLM is built for, and its CUDA for the driver.

    A driver runs every CUDA of its own major release, and all older ones
    (https://docs.nvidia.com/deploy/cuda-compatibility/).
    """
    again = "Run `tandem install`, which brings a vLLM and a torch that belong together"
    if torch is None:
        yield problem("torch", "it is not installed beside vLLM", again)
        return
    built = f"CUDA {torch.cuda}" if torch.cuda else "processors alone"
    if (torch.cuda is not None) != (vllm.build == "cuda"):
        yield problem("torch", f"torch {torch.version} is built for {built}, and vLLM is its {vllm.build} build", again)
    elif torch.cuda and driver and int(torch.cuda.partition(".")[0]) > driver.cuda[0]:
        knows = f"{driver.cuda[0]}.{driver.cuda[1]}"
        mend = "Install a newer driver, or an older vLLM (`tandem install --vllm VERSION`)"
        says = f"torch {torch.version} is built for {built}, and driver {driver.version} knows CUDA up to {knows}"
        yield problem("torch", says, mend)
    else:
        yield fine("torch", f"{torch.version}, built for {built}")


def imports(python: Path) -> Finding:
    """Whether vLLM can be imported, with all that it has compiled."""
    try:
        ran = subprocess.run(
            [python, "-I", "-c", _IMPORT],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        says = f"importing vLLM takes more than {_IMPORT_SECONDS:.0f} s"
        return warning("import", says, "Look whether the disk or the processor is busy")
    if ran.returncode == 0:
        return fine("import", "vLLM can be imported")
    found = diagnose(ran.stdout.splitlines(), ran.returncode if ran.returncode > 0 else 128 - ran.returncode)
    return problem("import", f"vLLM cannot be imported: {found.cause}", found.mend or "Run `tandem install`")


def _cards_present() -> bool:
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            maker, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if maker == _NVIDIA and kind.startswith(_DISPLAYS):
            return True
    return False
