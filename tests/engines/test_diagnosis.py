"""The cause of a failed start, found in what real engines printed."""

from pathlib import Path

import pytest

from tandem.engines.diagnosis import diagnose

RECORDED = Path(__file__).parent / "recorded"


@pytest.mark.parametrize(
    ("log", "cause", "mend"),
    [
        ("fail-port", "its port is taken by another program", "Set another port"),
        ("fail-badarg", "this vLLM does not know the argument --no-such-flag", "Mend the engine's args"),
        ("fail-ctx", "max_model_len 100000 is more than the model's own 256", "Lower or drop max_model_len"),
        ("fail-trunc", "a weight file is damaged or cut short", "Download the model again"),
        ("fail-arch", "this vLLM does not know the model type foo", "Choose another model"),
        ("fail-tp", "Total number of attention heads (12) must be divisible by tensor parallel size (8)", ""),
        ("fail-nomodel", "HFValidationError: Repo id must be in the form", ""),
        ("fail-offline", "LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder", ""),
    ],
)
def test_the_cause_of_a_recorded_failure_is_found(log: str, cause: str, mend: str) -> None:
    """Recorded from vLLM 0.32 on a CPU, each failure brought about for real."""
    found = diagnose((RECORDED / f"{log}-0.32.txt").read_text().splitlines(), 1)
    assert cause in found.cause
    assert found.mend.startswith(mend)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "(EngineCore pid=9) ERROR 01-02 03:04:05 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to",
            "the GPU is out of memory",
        ),
        (
            "ValueError: Free memory on device cuda:0 (20.1/79.2 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 71.3 GiB).",
            "the card has 20.1 of 79.2 GiB free",
        ),
        (
            "ValueError: To serve at least one request with the models's max seq len (40960), (4.38 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (1.0 GiB).",
            "one sequence of 40960 tokens needs 4.38 GiB of KV cache",
        ),
        ("/env/bin/python: No module named vllm", "its interpreter has no vLLM"),
        ("OSError: [Errno 28] No space left on device", "a disk or /dev/shm is full"),
    ],
)
def test_causes_that_this_machine_cannot_bring_about(line: str, cause: str) -> None:
    """From the text of vLLM's own sources and issues."""
    assert cause in diagnose(["noise", line, "RuntimeError: Engine core initialization failed."], 1).cause


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


@pytest.mark.parametrize(
    ("returncode", "cause"),
    [(137, "it was killed"), (139, "it ended with signal 11; its last line was: bye"), (3, "exit code 3")],
)
def test_without_an_exception_the_end_itself_is_told(returncode: int, cause: str) -> None:
    assert cause in diagnose(["hello", "bye", ""], returncode).cause
