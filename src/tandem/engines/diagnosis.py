"""What a failed engine printed -> the cause, and its mend. Pure; an error nobody knows is shown whole.

The useful line stands far above the last one ("Engine core initialization failed. See root cause above"), in the
output of whichever of vLLM's processes failed first. The sentences are those of vLLM 0.24 to 0.33, torch 2.11 to 2.14,
transformers, huggingface_hub and safetensors; ``tests/integration/test_diagnosis.py`` brings about those that can be
had on a CPU with real engines.
"""

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """Why an engine failed, one line, and what to do about it (may be empty)."""

    cause: str
    mend: str = ""


# "(EngineCore pid=12) ERROR 11-21 09:00:00 [core.py:99] " and the like, before each line of a child's traceback.
_PREFIX = re.compile(r"^(\([\w\- ]+ pid=\d+\) )?((ERROR|CRITICAL|WARNING|INFO) [\d\-]+ [\d:]+ \[[^\]]*\] ?)?")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)): ?(.*)$")
# Says that another process failed; never the cause itself.
_ECHOES = ("Engine core initialization failed", "WorkerProc initialization failed", "Failed core proc")
# What Python prints between an exception and the one that was raised while handling it.
_CHAINED = ("The above exception was the direct cause", "During handling of the above exception")
# What follows a message and is no part of it: the next traceback, a log line, a warning, torch's own remarks.
_AFTER = re.compile(r"^(Traceback |Process |\[|/|<|Exception ignored|For further information|terminate called)")
_LONGEST = 2000  # characters of a message nobody knows
# Pydantic's words around a complaint of vLLM's: "1 validation error for X Value error, … [type=value_error, input…]".
_PYDANTIC = re.compile(r"^ValidationError: \d+ validation errors? for \w+ (?:Value error, )?(.*?)(?: \[type=.*)?$")

_Cause = Callable[[re.Match[str]], str]


def _fixed(text: str) -> _Cause:
    return lambda _: text


_ANOTHER_MODEL = "Choose another model, or a newer vLLM (`tandem install --vllm VERSION`)"
_MEND_ARGS = "Mend the engine's args"
_DOWNLOAD = "Download the model again"
_GATED = "Accept its terms on its hub page, set HF_TOKEN, and fetch it with `tandem up --download`"
_MORE_KV = "Raise its memory setting or lower max_model_len"
_LESS_CARD = "Lower its memory setting, or end other programs on the card"
_FEWER_CARDS = "Lower tensor_parallel_size, or show it more cards (CUDA_VISIBLE_DEVICES)"
_MORE_SHM = "Make it larger: `mount -o remount,size=2G /dev/shm`, in a container --shm-size=2g"
_REINSTALL = "Run `tandem install`, which brings a vLLM and a torch that belong together"

# In this order: what is sure comes before what may be a mere symptom.
_CAUSES: tuple[tuple[re.Pattern[str], _Cause, str], ...] = (
    (
        re.compile(r"error: unrecognized arguments: (.+)"),
        lambda m: f"this vLLM does not know the argument {m[1]}",
        _MEND_ARGS,
    ),
    (re.compile(r"error: (argument .+)"), lambda m: m[1], _MEND_ARGS),
    (
        re.compile(r"Address already in use"),
        _fixed("its port is taken by another program"),
        "Set another port for it, or end the program that has it",
    ),
    (
        re.compile(r"No module named '?vllm'?"),
        _fixed("its interpreter has no vLLM"),
        "Run `tandem install`",
    ),
    (
        re.compile(r"Repo id must be in the form .*: '([^']+)'"),
        lambda m: f"the model folder {m[1]} does not exist",
        "Check the path",
    ),
    (
        re.compile(r"Invalid repository ID or local directory specified: '([^']+)'"),
        lambda m: f"{m[1]} holds no model: there is no config.json in it",
        f"Check the path. {_DOWNLOAD}",
    ),
    (
        re.compile(r"gated repo (?:for url|at) https?://[^/\s]+/(?:api/models/)?([\w.-]+/[\w.-]+)"),
        lambda m: f"the model {m[1]} is gated, and this account has no access to it",
        _GATED,
    ),
    (
        re.compile(r"GatedRepoError|gated repo"),
        _fixed("the model is gated, and this account has no access to it"),
        _GATED,
    ),
    (
        re.compile(r"An error happened while trying to locate the file on the Hub|couldn't connect to '?http"),
        _fixed("the model is not in the model cache, or not wholly, and the hub cannot be reached"),
        "Check the network, or fetch the model elsewhere and name its folder",
    ),
    (
        re.compile(
            r"LocalEntryNotFoundError|Cannot find an appropriate cached snapshot"
            r"|OfflineModeIsEnabled|outgoing traffic has been disabled"
        ),
        _fixed("the model is not in the model cache, or not wholly, and the engine may not ask the hub"),
        "Fetch it with `tandem up --download`, or name a folder",
    ),
    (
        re.compile(r"RepositoryNotFoundError|is not a valid model identifier"),
        _fixed("the hub has no such model, or shows it only to accounts with access"),
        "Check the name; for a private model set HF_TOKEN",
    ),
    (
        re.compile(r"Weight files referenced in index but missing: \{'([^']+)'(.*)\}"),
        lambda m: f"weight files are missing, the first is {m[1]}",
        _DOWNLOAD,
    ),
    (
        re.compile(r"Cannot find any model weights with `([^`]+)`"),
        lambda m: f"{m[1]} has no weights in it",
        _DOWNLOAD,
    ),
    (
        re.compile(r"SafetensorError: (.+)"),
        lambda m: f"a weight file is damaged or cut short ({m[1]})",
        _DOWNLOAD,
    ),
    (
        re.compile(r"PytorchStreamReader failed|Ran out of input|unexpected EOF, expected \d+ more bytes"),
        _fixed("a weight file is damaged or cut short"),
        _DOWNLOAD,
    ),
    (
        re.compile(r"`trust_remote_code=True`"),
        _fixed("the model needs code of its own to be run"),
        'If you trust it, add "--trust-remote-code" to the engine\'s args',
    ),
    (
        re.compile(r"model type `([^`]+)` but Transformers does not recognize"),
        lambda m: f"this vLLM does not know the model type {m[1]}",
        _ANOTHER_MODEL,
    ),
    (
        re.compile(r"Model architectures \[(.+?)\] (?:are|is) not supported"),
        lambda m: f"this vLLM does not support the architecture {m[1]}",
        _ANOTHER_MODEL,
    ),
    (
        re.compile(r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for|Failed to load the tokenizer"),
        _fixed("the model's tokenizer is missing or cannot be read"),
        f"{_DOWNLOAD}, with its tokenizer.json",
    ),
    (
        re.compile(r"max_model_len \((\d+)\) is greater than the derived max_model_len \(\D*(\d+)"),
        lambda m: f"max_model_len {m[1]} is more than the model's own {m[2]}",
        "Lower or drop max_model_len",
    ),
    (
        re.compile(r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)"),
        lambda m: f"tensor_parallel_size {m[2]} does not divide the model's {m[1]} attention heads",
        "Choose one that does",
    ),
    (
        re.compile(
            r"(?:World size|Tensor parallel size) \((\d+)\) (?:is|cannot be) larger than the number of "
            r"available GPUs \((\d+)\)"
        ),
        lambda m: f"the engine is to use {m[1]} cards, and there are {m[2]}",
        _FEWER_CARDS,
    ),
    (
        re.compile(r"DP adjusted local rank \d+ is out of bounds for (\d+) devices|CUDA error: invalid device ordinal"),
        lambda m: f"the engine is to use more cards than the {m[1]} there are" if m[1] else "it lacks a card",
        _FEWER_CARDS,
    ),
    (
        re.compile(r"Not enough allowed NUMA nodes to bind threads of (\d+)"),
        lambda m: f"without a GPU, tensor_parallel_size {m[1]} needs as many NUMA nodes",
        "Lower tensor_parallel_size",
    ),
    (
        re.compile(r"max seq len \((\d+)\).*?\(([\d.]+) GiB KV cache is needed(?:.*?model length is (\d+))?"),
        lambda m: (
            f"one sequence of {m[1]} tokens needs {m[2]} GiB of KV cache, more than the engine has"
            + (f"; {m[3]} tokens would fit" if m[3] else "")
        ),
        _MORE_KV,
    ),
    (
        re.compile(r"No available memory for the cache blocks"),
        _fixed("the weights leave no memory for a KV cache"),
        _MORE_KV,
    ),
    (
        re.compile(r"Free memory on device .*?\(([\d.]+)/([\d.]+) GiB\).*less than desired"),
        lambda m: f"the card has {m[1]} of {m[2]} GiB free, less than the engine's memory setting asks for",
        _LESS_CARD,
    ),
    (
        re.compile(r"Available memory on node \S+ \(([\d.]+)/([\d.]+) GiB\).*less than (?:desired|requested)"),
        lambda m: f"{m[1]} of {m[2]} GiB of memory are free, less than the engine's memory setting asks for",
        "Lower its memory setting, or end other programs",
    ),
    (
        re.compile(r"CUDA out of memory|CUDA error: out of memory|torch\.(?:cuda\.)?OutOfMemoryError"),
        _fixed("the GPU is out of memory"),
        "Lower the engines' memory settings or max_model_len, or end other programs on the card",
    ),
    (
        re.compile(r"NVIDIA driver on your system is too old(?: \(found version (\d+)\))?"),
        lambda m: "the NVIDIA driver is too old for this build of vLLM" + (f" ({_cuda(m[1])})" if m[1] else ""),
        "Install a newer driver, or an older vLLM (`tandem install --vllm VERSION`)",
    ),
    (
        re.compile(r"Found no NVIDIA driver on your system|libcuda\.so\.1: cannot open shared object file"),
        _fixed("the NVIDIA driver is not installed, or cannot be seen from here"),
        "Install the driver; in a container, give it the GPUs",
    ),
    (
        re.compile(r"no kernel image is available for execution on the device"),
        _fixed("this build of vLLM has no code for this card, which is older or newer than those it was made for"),
        "Choose another vLLM (`tandem install --vllm VERSION`)",
    ),
    (
        re.compile(r"Insufficient space in /dev/shm[^:]*: (\d+) MiB required, (\d+) MiB free"),
        lambda m: f"the engine needs {m[1]} MiB of shared memory, and /dev/shm has {m[2]} MiB free",
        _MORE_SHM,
    ),
    (
        re.compile(r"Error while creating shared memory segment|Bus error.*insufficient shared memory|unable to mmap"),
        _fixed("the shared memory in /dev/shm is too small"),
        _MORE_SHM,
    ),
    (
        re.compile(r"No space left on device"),
        _fixed("a disk or /dev/shm is full"),
        "Free some space there",
    ),
    (
        re.compile(r"operator torchvision::nms does not exist"),
        _fixed("its environment has a torchvision that was made for another build of torch"),
        _REINSTALL,
    ),
    (
        re.compile(r"Torch not compiled with CUDA enabled|Failed to infer device type"),
        _fixed("its build of vLLM and torch is for other hardware than this"),
        "Run `tandem install`, which brings the build for this machine",
    ),
    (
        re.compile(
            r"ImportError: .*(?:undefined symbol|lib(?:torch|cu|nv|nccl)\S*: cannot open shared object file)"
            r"|'_OpNamespace' '_C\w*' object has no attribute"
        ),
        _fixed("its vLLM was made for another build of torch than the one beside it"),
        _REINSTALL,
    ),
    (
        re.compile(r"fatal error: Python\.h: No such file or directory"),
        _fixed("Python.h is not there, which torch and Triton compile against"),
        "Install Python's headers (`apt install python3-dev`, `dnf install python3-devel`)",
    ),
)


def diagnose(lines: Sequence[str], returncode: int) -> Diagnosis:
    """The cause in what an engine printed before it ended.

    Args:
        lines: the last lines of its output, oldest first.
        returncode: its exit code; above 128, the signal that ended it, as shells count.
    """
    plain = [_PREFIX.sub("", line) for line in lines]
    for pattern, cause, mend in _CAUSES:
        for line in plain:
            if match := pattern.search(line):
                return Diagnosis(cause(match), mend)
    if exception := _root_exception(plain):
        return Diagnosis(exception)
    if returncode == 128 + signal.SIGKILL:
        return _killed("it was killed (SIGKILL)")
    if any(echo in line for line in plain for echo in _ECHOES):
        return _killed("one of its processes ended without a word, as one does that is killed (SIGKILL)")
    last = next((line.strip() for line in reversed(plain) if line.strip()), "")
    how = f"signal {returncode - 128}" if returncode > 128 else f"exit code {returncode}"
    return Diagnosis(f"it ended with {how}" + (f"; its last line was: {last}" if last else ""))


def _killed(how: str) -> Diagnosis:
    return Diagnosis(
        f"{how}, most often by the kernel for want of memory",
        "Lower memory settings, or free memory; `dmesg` names what the kernel has killed",
    )


def _cuda(version: str) -> str:
    """What the driver can do, as torch counts it: ``12080`` is CUDA 12.8."""
    return f"it knows CUDA up to {int(version) // 1000}.{int(version) % 1000 // 10}"


def _root_exception(lines: Sequence[str]) -> str | None:
    """The exception that ended the process that failed first, its message whole; None without one.

    Of exceptions that were raised while another was handled, the last tells more.
    """
    found = None
    for index, line in enumerate(lines):
        match = _EXCEPTION.match(line)
        if match is None or any(echo in line for echo in _ECHOES):
            continue
        message, after = _message(lines, index + 1)
        found = " ".join([f"{match[1].rpartition('.')[2]}: {match[2]}".strip(), *message])
        if not any(follow.startswith(_CHAINED) for follow in after):
            break
    return None if found is None else _PYDANTIC.sub(r"\1", found)[:_LONGEST].strip()


def _message(lines: Sequence[str], start: int) -> tuple[list[str], Sequence[str]]:
    """The lines of an exception's message after its first, and the few that come after it."""
    message: list[str] = []
    for index in range(start, len(lines)):
        line = lines[index]
        if _AFTER.match(line.strip()) or _EXCEPTION.match(line) or line.startswith(_CHAINED):
            return message, lines[index : index + 2]
        if not line.strip():
            return message, lines[index : index + 2]
        message.append(line.strip())
    return message, ()
