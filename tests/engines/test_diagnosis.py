"""The cause of a failed start, found in what real engines printed."""

from pathlib import Path

import pytest

from tandem.engines import diagnosis
from tandem.engines.diagnosis import diagnose

RECORDED = Path(__file__).parent / "recorded"


@pytest.mark.parametrize(
    ("log", "cause", "mend"),
    [
        ("arch", "this vLLM does not know the model type foo", "Choose another model"),
        ("badarg", "this vLLM does not know the argument --no-such-flag", "Mend the engine's args"),
        ("badvalue", "argument --max-num-seqs: invalid int value: 'many'", "Mend the engine's args"),
        ("cards", "the engine is to use 2 cards, and there are 1", "Lower tensor_parallel_size"),
        ("ctx", "max_model_len 100000 is more than the model's own 256", "Lower or drop max_model_len"),
        ("driver", "the NVIDIA driver is too old for this build of vLLM (it knows CUDA up to 12.8)", "Install a newer"),
        ("gated", "the model org/gated is gated", "Accept its terms"),
        ("gpu-free", "the card has 20.13 of 79.19 GiB free", "Lower its memory setting"),
        ("gpu-memory", "the GPU is out of memory", "Lower the engines' memory settings"),
        ("killed", "one of its processes ended without a word", "Lower memory settings"),
        ("kv", "one sequence of 1024 tokens needs 0.0 GiB of KV cache", "Raise its memory setting"),
        ("nomodel", "the model folder /models/nope does not exist", "Check the path"),
        ("offline", "the model is not in the model cache", "Fetch it"),
        ("port", "its port is taken by another program", "Set another port"),
        ("shard", "weight files are missing, the first is /models/shard/model-00002-of-00002.safetensors", "Download"),
        ("shm", "the engine needs 160 MiB of shared memory, and /dev/shm has 1 MiB free", "Make it larger"),
        ("tokenizer", "the model's tokenizer is missing", "Download the model again"),
        ("torchvision", "a torchvision that was made for another build of torch", "Run `tandem install`"),
        ("tp", "tensor_parallel_size 8 does not divide the model's 12 attention heads", "Choose one"),
        ("trunc", "a weight file is damaged or cut short", "Download the model again"),
        ("trust", "the model needs code of its own", "If you trust it"),
    ],
)
def test_the_cause_of_a_recorded_failure_is_found(log: str, cause: str, mend: str) -> None:
    """Recorded from vLLM 0.32 on a CPU, each brought about as `tests/integration/test_diagnosis.py` does.

    `torchvision` is a start beside the CUDA build of torchvision.
    """
    found = diagnose((RECORDED / f"fail-{log}-0.32.txt").read_text().splitlines(), 1)
    assert cause in found.cause
    assert found.mend.startswith(mend)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "(EngineCore pid=9) ERROR 01-02 03:04:05 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to",
            "the GPU is out of memory",
        ),
        ("RuntimeError: CUDA error: out of memory", "the GPU is out of memory"),
        (
            "ValueError: To serve at least one request with the models's max seq len (40960), (4.38 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (1.0 GiB).",
            "one sequence of 40960 tokens needs 4.38 GiB of KV cache, more than the engine has",
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", "leave no memory for a KV cache"),
        (
            "  Value error, Tensor parallel size (2) cannot be larger than the number of available GPUs (1). [type=…]",
            "the engine is to use 2 cards, and there are 1",
        ),
        ("AssertionError: DP adjusted local rank 1 is out of bounds for 1 devices.", "more cards than the 1 there are"),
        ("AssertionError: Not enough allowed NUMA nodes to bind threads of 2 local CPUWorkers.", "as many NUMA nodes"),
        ("RuntimeError: Found no NVIDIA driver on your system. Please check", "the NVIDIA driver is not installed"),
        ("ImportError: libcuda.so.1: cannot open shared object file: No such", "the NVIDIA driver is not installed"),
        (
            "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
            "has no code for this card",
        ),
        (
            "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
            "made for another build of torch",
        ),
        (
            "ImportError: /env/vllm/_C.abi3.so: undefined symbol: _ZNK3c106SymInt6sym_neERKS0_",
            "made for another build of torch",
        ),
        ("AttributeError: '_OpNamespace' '_C' object has no attribute 'rms_norm'", "made for another build of torch"),
        ("RuntimeError: Failed to infer device type, please set the environment", "is for other hardware than this"),
        ("AssertionError: Torch not compiled with CUDA enabled", "is for other hardware than this"),
        ("Error while creating shared memory segment /dev/shm/nccl-1YsMbG (size 7340384)", "in /dev/shm is too small"),
        ("/env/bin/python: No module named vllm", "its interpreter has no vLLM"),
        ("OSError: [Errno 28] No space left on device", "a disk or /dev/shm is full"),
        (
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the",
            "the hub cannot be reached",
        ),
        ("huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error.", "the hub has no such model"),
        ("/tmp/tmps1rkq3y3/main.c:5:10: fatal error: Python.h: No such file or directory", "Python.h is not there"),
    ],
)
def test_causes_that_were_not_recorded(line: str, cause: str) -> None:
    """Sentences of the sources of vLLM 0.24 to 0.33 and of torch, and as users have reported them.

    vllm#17835, #36099, #5736, #4618, #19185, #27890, pytorch/torchtitan#853, ai-dynamo/dynamo#4934.
    """
    assert cause in diagnose(["noise", line, "RuntimeError: Engine core initialization failed."], 1).cause


def test_every_cause_has_its_mend() -> None:
    """And neither ends with a full stop, since messages are put together from them."""
    for _, _, mend in diagnosis._CAUSES:
        assert mend
        assert not mend.endswith(".")


def test_vllm_s_own_settings_are_no_cause() -> None:
    """It logs them at every start, and some are worded like complaints."""
    started = (
        "(EngineCore pid=9) INFO 01-02 03:04:05 [core.py:1] Initializing a V1 LLM engine with trust_remote_code=True"
    )
    assert diagnose([started, "ValueError: no"], 1).cause == "ValueError: no"
    asked = "ValueError: … Please set the option `trust_remote_code=True` to remove this error."
    assert diagnose([started, asked], 1).cause == "the model needs code of its own to be run"


def test_an_unknown_exception_is_shown_whole() -> None:
    """The first one that is no echo, with the lines that belong to it."""
    lines = [
        "(Worker pid=1) ERROR 01-02 03:04:05 [x.py:1] Traceback (most recent call last):",
        "(Worker pid=1) ERROR 01-02 03:04:05 [x.py:1] acme.errors.FluxError: the capacitor",
        "(Worker pid=1) ERROR 01-02 03:04:05 [x.py:1]   is empty",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert diagnose(lines, 1).cause == "FluxError: the capacitor is empty"


def test_of_chained_exceptions_the_last_tells_most() -> None:
    """The first is what was being handled; the other process's echo is neither."""
    lines = [
        "(Worker pid=1) ERROR 01-02 03:04:05 [x.py:1] KeyError: 'flux'",
        "(Worker pid=1) ERROR 01-02 03:04:05 [x.py:1] ",
        "(Worker pid=1) ERROR 01-02 03:04:05 [x.py:1] During handling of the above exception, another occurred:",
        "(Worker pid=1) ERROR 01-02 03:04:05 [x.py:1] ",
        "(Worker pid=1) ERROR 01-02 03:04:05 [x.py:1] Traceback (most recent call last):",
        "(Worker pid=1) ERROR 01-02 03:04:05 [x.py:1] ValueError: no capacitor called flux",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert diagnose(lines, 1).cause == "ValueError: no capacitor called flux"


def test_of_a_refused_setting_only_the_complaint_is_shown() -> None:
    """Not what Pydantic says around it."""
    lines = [
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig",
        "  Value error, max_num_batched_tokens (100) is too small. [type=value_error, input_value=ArgsKwargs((), {})]",
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
    ]
    assert diagnose(lines, 1).cause == "max_num_batched_tokens (100) is too small."


@pytest.mark.parametrize(
    ("returncode", "cause"),
    [(137, "it was killed"), (139, "it ended with signal 11; its last line was: bye"), (3, "exit code 3")],
)
def test_without_an_exception_the_end_itself_is_told(returncode: int, cause: str) -> None:
    assert cause in diagnose(["hello", "bye", ""], returncode).cause
