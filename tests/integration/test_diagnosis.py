"""Each cause of a failed start that can be had on a CPU, brought about for real, and named.

The causes that need a card are real starts, too, in which the place where the card is asked says what it says there.
"""

import http.server
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem import demo
from tandem.engines import install
from tandem.engines.diagnosis import Diagnosis, diagnose

from .conftest import clean_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

MODEL = Path(demo.__file__).parent / "model"
OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of 11.53 GiB of which 187.75 MiB is "
    "free. Including non-PyTorch memory, this process has 11.31 GiB memory in use."
)
DRIVER = (
    "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
CARDS = (
    "World size (2) is larger than the number of available GPUs (1) in this node. If this is intentional and you are "
    "using:\n- ray, set '--distributed-executor-backend ray'.\n- multiprocessing, set '--nnodes' appropriately."
)
FREE = (
    "Free memory on device cuda:0 (20.13/79.19 GiB) on startup is less than desired GPU memory utilization (0.9, 71.27 "
    "GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
WORKER = "vllm.v1.worker.cpu_worker", "CPUWorker"

Fail = Callable[..., Diagnosis]


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """A model hub that answers as Hugging Face's does for a model whose terms nobody has accepted; its address."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def fail(hub: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fail]:
    """Start a real server that is to fail, with these arguments; what it is diagnosed with."""
    folder = tmp_path_factory.mktemp("failing")
    with subprocess.Popen(
        [install.find(None).python, "-P", Path(__file__).with_name("failing_vllm.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=clean_environment()
        | {
            "HF_ENDPOINT": hub,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
        },
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        log = folder / "log"

        def start(model: Path | str, *arguments: str, port: int = 0, **case: Any) -> Diagnosis:
            log.unlink(missing_ok=True)
            server = ("--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--enforce-eager")
            sizes = ("--kv-cache-memory-bytes", str(2**28))
            print(json.dumps({"argv": [*server, *sizes, *arguments], "log": str(log), **case}), file=stdin, flush=True)
            code = int(stdout.readline())
            assert code != 0
            return diagnose(log.read_text().splitlines(), code)

        yield start
        stdin.close()
        assert process.wait(30) == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo's language model, to be spoilt."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def configure(model: Path, **config: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def test_bad_arguments(fail: Fail) -> None:
    assert fail(MODEL, "--no-such-flag").cause == "this vLLM does not know the argument --no-such-flag"
    assert fail(MODEL, "--max-num-seqs", "many") == Diagnosis(
        "argument --max-num-seqs: invalid int value: 'many'", "Mend the engine's args"
    )


def test_the_port_is_taken(fail: Fail) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = fail(MODEL, port=taken.getsockname()[1])
    assert found.cause == "its port is taken by another program"


def test_no_vllm() -> None:
    """With an interpreter that has none: this one."""
    ran = subprocess.run([sys.executable, "-m", "vllm.entrypoints.openai.api_server"], capture_output=True, text=True)
    assert diagnose(ran.stderr.splitlines(), ran.returncode).mend == "Run `tandem install`"


def test_the_model_is_missing(fail: Fail, model: Path) -> None:
    assert fail("/no/such/folder").cause == "the model folder /no/such/folder does not exist"
    (model / "config.json").unlink()
    assert fail(model).cause == f"{model} holds no model: there is no config.json in it"


def test_offline_without_cache(fail: Fail) -> None:
    assert "not in the model cache" in fail("org/absent").cause


def test_gated(fail: Fail) -> None:
    found = fail("org/gated", online=True)
    assert "is gated" in found.cause
    assert "HF_TOKEN" in found.mend


def test_an_architecture_that_is_not_supported(fail: Fail, model: Path) -> None:
    configure(model, architectures=["FooForCausalLM"])
    assert fail(model).cause == "this vLLM does not support the architecture 'FooForCausalLM'"
    configure(model, model_type="foo")
    assert fail(model).cause == "this vLLM does not know the model type foo"


def test_code_of_its_own(fail: Fail, model: Path) -> None:
    configure(model, model_type="foo", auto_map={"AutoConfig": "configuration_foo.FooConfig"})
    (model / "configuration_foo.py").write_text("from transformers import PretrainedConfig as FooConfig\n")
    assert "--trust-remote-code" in fail(model).mend


def test_no_tokenizer(fail: Fail, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert fail(model).cause == "the model's tokenizer is missing or cannot be read"


def test_damaged_weights(fail: Fail, model: Path) -> None:
    """Cut short, one of two files missing, none at all."""
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut short" in fail(model).cause
    weights.rename(model / "model-00001-of-00002.safetensors")
    (model / "model-00001-of-00002.safetensors").write_bytes(whole)
    (length,) = struct.unpack("<Q", whole[:8])
    names = sorted(json.loads(whole[8 : 8 + length]).keys() - {"__metadata__"})
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert fail(model).cause == f"weight files are missing, the first is {model / 'model-00002-of-00002.safetensors'}"
    for path in model.glob("*.safetensors*"):
        path.unlink()
    assert fail(model).cause == f"{model} has no weights in it"


def test_a_context_longer_than_the_model_s(fail: Fail) -> None:
    assert fail(MODEL, "--max-model-len", "100000").cause == "max_model_len 100000 is more than the model's own 1024"


def test_no_room_for_one_sequence(fail: Fail) -> None:
    found = fail(MODEL, "--kv-cache-memory-bytes", "1000000", "--max-model-len", "1024")
    assert "one sequence of 1024 tokens needs" in found.cause
    assert "256 tokens would fit" in found.cause


def test_more_memory_than_there_is(fail: Fail) -> None:
    assert "of memory are free, less than" in fail(MODEL, "--kv-cache-memory-bytes", str(2**50)).cause


def test_heads_that_cards_cannot_share(fail: Fail) -> None:
    found = fail(MODEL, "--tensor-parallel-size", "3")
    assert found.cause == "tensor_parallel_size 3 does not divide the model's 4 attention heads"


def test_small_shared_memory(fail: Fail) -> None:
    found = fail(MODEL, small_shm=True)
    assert found.cause == "the engine needs 160 MiB of shared memory, and /dev/shm has 1 MiB free"
    assert "--shm-size" in found.mend


@pytest.mark.parametrize("process", ["EngineCore", "Worker"])
def test_killed_as_the_kernel_kills(fail: Fail, process: str) -> None:
    """SIGKILL, which is all that is seen of the kernel's out-of-memory killer, of the process that has the memory."""
    found = fail(MODEL, kill=process)
    assert "killed (SIGKILL)" in found.cause
    assert "memory" in found.mend


@pytest.mark.parametrize(
    ("raises", "cause"),
    [
        ([*WORKER, "load_model", "OutOfMemoryError", OUT_OF_MEMORY], "the GPU is out of memory"),
        ([*WORKER, "init_device", "RuntimeError", DRIVER], "the NVIDIA driver is too old"),
        ([*WORKER, "init_device", "ValueError", FREE], "the card has 20.13 of 79.19 GiB free"),
        (
            ["vllm.config.parallel", "ParallelConfig", "__post_init__", "ValueError", CARDS],
            "the engine is to use 2 cards, and there are 1",
        ),
    ],
    ids=["memory", "driver", "free", "cards"],
)
def test_what_only_a_card_says(fail: Fail, raises: list[str], cause: str) -> None:
    """torch's and vLLM's own sentences, raised where a card would have them raised."""
    assert cause in fail(MODEL, raises=raises).cause


def test_an_error_that_nobody_knows(fail: Fail) -> None:
    """Shown whole, from whichever process it came."""
    text = "the capacitor is empty\nand the flux is gone"
    found = fail(MODEL, raises=[*WORKER, "load_model", "RuntimeError", text])
    assert found == Diagnosis("RuntimeError: the capacitor is empty and the flux is gone")
