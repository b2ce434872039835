"""The command line of an engine, from what it is and where it runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tandem.engines.hardware import Card, Hardware
from tandem.engines.install import Build, Vllm, parse_version
from tandem.engines.launch import Launch, launch, warning
from tandem.engines.planning.shares import Share
from tandem.engines.weights import Model
from tandem.errors import SetupError
from tandem.settings import EngineSettings, Memory

BF16 = Hardware((), 2, 24 * 2**30, frozenset({"avx512_bf16"}))
PLAIN = Hardware((), 2, 24 * 2**30, frozenset({"avx2"}))
ONE_CARD = Hardware((Card(0, "H100", 80 * 2**30, 79 * 2**30, "580"),), 16, 128 * 2**30, frozenset())
CPU = Vllm(Path("/env/bin/python"), (0, 32, 0), "cpu", openmp=Path("/env/lib/libiomp5.so"))
CUDA = Vllm(Path("/env/bin/python"), (0, 24, 0), "cuda")
MINILM = Model(Path("/m/minilm"), "minilm", {"model_type": "bert"})
QWEN3 = Model(Path("/m/qwen"), "Qwen/Qwen3-0.6B", {"model_type": "qwen3", "dtype": "bfloat16"}, "… <think> …")
EMBEDDING = EngineSettings(kind="embedding", model="minilm")
GENERATION = EngineSettings(kind="generation", model="Qwen/Qwen3-0.6B")


def launched(
    settings: EngineSettings, model: Model, vllm: Vllm, hardware: Hardware, share: Share | None = None
) -> Launch:
    return launch(
        settings,
        model=model,
        served_name=model.name,
        share=share or Share(threads=1, kv_cache=2**30),
        vllm=vllm,
        hardware=hardware,
        port=8100,
        tmp=Path("/run/tmp"),
        cache={"HF_HUB_OFFLINE": "1"},
        drain_timeout=20.0,
    )


def test_an_embedding_engine_on_a_cpu() -> None:
    """The whole command line and environment: module form, explicit dtype, threads and cache size."""
    found = launched(EMBEDDING, MINILM, CPU, BF16)
    assert " ".join(found.argv) == (
        "/env/bin/python -m vllm.entrypoints.openai.api_server --model /m/minilm --served-model-name minilm "
        "--host 127.0.0.1 --port 8100 --runner pooling --convert embed --dtype bfloat16 --max-model-len auto "
        "--enforce-eager --distributed-executor-backend vllm.v1.executor.uniproc_executor.UniProcExecutor "
        "--shutdown-timeout 20 --disable-uvicorn-access-log"
    )
    assert dict(found.env) == {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "TMPDIR": "/run/tmp",
        "VLLM_RPC_BASE_PATH": "/run/tmp",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "LD_PRELOAD": "/env/lib/libiomp5.so",
    }


def test_a_generation_engine_on_a_card() -> None:
    """`vllm serve`, vLLM's own dtype, a share of the card, and the family's parsers."""
    found = launched(GENERATION, QWEN3, CUDA, ONE_CARD, Share(gpu_memory=0.6))
    assert " ".join(found.argv) == (
        "/env/bin/python -m vllm.entrypoints.cli.main serve /m/qwen --served-model-name Qwen/Qwen3-0.6B "
        "--host 127.0.0.1 --port 8100 --runner generate --dtype auto --max-model-len auto --gpu-memory-utilization 0.6 "
        "--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3 "
        "--shutdown-timeout 20 --disable-uvicorn-access-log"
    )
    assert not {"OMP_NUM_THREADS", "LD_PRELOAD", "VLLM_CPU_KVCACHE_SPACE"} & set(found.env)


@pytest.mark.parametrize(("release", "told"), [((0, 25), None), ((0, 26), "0"), ((0, 33), "0")])
def test_a_size_measured_for_another_share_is_not_used(release: tuple[int, int], told: str | None) -> None:
    """vLLM's own start-up plan stays off where there is one, whatever the environment says, unless the engine's `env`
    does: it does not know of shares."""
    vllm = replace(CUDA, version=release)
    assert (
        launched(GENERATION, QWEN3, vllm, ONE_CARD, Share(gpu_memory=0.6)).env.get("VLLM_ENABLE_STARTUP_PLAN") == told
    )
    asked = GENERATION.model_copy(update={"env": {"VLLM_ENABLE_STARTUP_PLAN": "1"}})
    assert launched(asked, QWEN3, vllm, ONE_CARD, Share(gpu_memory=0.6)).env["VLLM_ENABLE_STARTUP_PLAN"] == "1"


def test_a_measured_engine_is_told_its_size_and_its_cards() -> None:
    """The share stays, since vLLM compares that with what is free; cards are counted as the driver's tools do."""
    share = Share(gpu_memory=0.6, kv_cache=12_345_678, cards=(1, 3))
    found = launched(GENERATION, QWEN3, CUDA, ONE_CARD, share)
    assert "--gpu-memory-utilization 0.6 --kv-cache-memory-bytes 12345678" in " ".join(found.argv)
    assert (found.env["CUDA_DEVICE_ORDER"], found.env["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "1,3")
    alone = launched(GENERATION, QWEN3, CUDA, ONE_CARD, Share(gpu_memory=0.6))
    assert "CUDA_VISIBLE_DEVICES" not in alone.env


@pytest.mark.parametrize(
    ("flags", "stored", "asked", "dtype"),
    [
        ({"avx512_bf16"}, "float32", "auto", "bfloat16"),
        ({"amx_bf16"}, "float16", "auto", "bfloat16"),
        ({"avx512_fp16"}, "float16", "auto", "float16"),
        ({"avx512_fp16"}, "bfloat16", "auto", "float32"),
        ({"avx2"}, "float16", "auto", "float32"),
        ({"avx2"}, "float16", "float16", "float16"),
    ],
)
def test_dtype_is_what_the_processor_does_fast(flags: set[str], stored: str, asked: str, dtype: str) -> None:
    """On a CPU never vLLM's `auto`, unless a dtype is set."""
    model = Model(Path("/m"), "m", {"torch_dtype": stored})
    settings = EngineSettings(kind="embedding", model="m", dtype=asked)
    argv = launched(settings, model, CPU, Hardware((), 2, 2**34, frozenset(flags))).argv
    assert argv[argv.index("--dtype") + 1] == dtype


@pytest.mark.parametrize(
    ("model_type", "template", "settings", "flags"),
    [
        ("qwen3", "<think>", {}, ["hermes", "qwen3"]),
        ("qwen3", "plain", {}, ["hermes"]),
        ("qwen3_moe", "… <function=…", {}, ["qwen3_coder"]),
        ("gpt_oss", "", {}, ["openai", "openai_gptoss"]),
        ("llama", "", {}, ["llama3_json"]),
        ("unheard_of", "<think>", {}, []),
        ("unheard_of", "", {"tool_call_parser": "x", "reasoning_parser": "y"}, ["x", "y"]),
        ("qwen3", "<think>", {"tool_call_parser": "none", "reasoning_parser": "none"}, []),
    ],
)
def test_parsers_go_by_model_family(model_type: str, template: str, settings: dict[str, str], flags: list[str]) -> None:
    """As the family wants them; reasoning only where the chat template thinks; as set, where set."""
    model = Model(Path("/m"), "m", {"model_type": model_type}, template)
    argv = launched(EngineSettings(kind="generation", model="m", **settings), model, CPU, BF16).argv
    named = [argv[i + 1] for i, word in enumerate(argv) if word in {"--tool-call-parser", "--reasoning-parser"}]
    assert named == flags
    assert ("--enable-auto-tool-choice" in argv) == ("--tool-call-parser" in argv)


def test_an_engine_s_own_args_and_env_come_last() -> None:
    """So they win."""
    settings = EngineSettings(
        kind="embedding",
        model="m",
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=65536,
        tensor_parallel_size=2,
        memory=Memory(share=0.3),
        env={"TMPDIR": "/elsewhere"},
        args=("--dtype", "half"),
    )
    found = launched(settings, MINILM, CPU, BF16)
    assert found.argv[-2:] == ("--dtype", "half")
    assert found.env["TMPDIR"] == "/elsewhere"
    words = " ".join(found.argv)
    assert "--max-model-len 512 --max-num-seqs 8 --max-num-batched-tokens 65536 --tensor-parallel-size 2 " in words


RELEASES = json.loads((Path(__file__).parent / "recorded" / "flags.json").read_text())


@pytest.mark.parametrize("release", RELEASES["releases"])
@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_every_release_knows_every_flag(release: str, build: Build) -> None:
    """The flags are those of each release's own parser, dumped from the CPU builds (0.33: from its sources)."""
    known = set(RELEASES["in every release"]) | {
        flag
        for flag, (first, last) in RELEASES["from and to"].items()
        if parse_version(first) <= parse_version(release) <= parse_version(last)
    }
    everything = {"max_model_len": 1, "max_num_seqs": 1, "max_num_batched_tokens": 1, "tensor_parallel_size": 2}
    vllm = Vllm(Path("/p"), parse_version(release), build)
    for kind, model in (("embedding", MINILM), ("generation", QWEN3)):
        settings = EngineSettings(kind=kind, model="m", **everything)
        argv = launched(settings, model, vllm, BF16, Share(gpu_memory=0.5, kv_cache=2**30)).argv
        assert {word for word in argv if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "wanted",
    [{"tensor_parallel_size": 2}, {"args": ("-tp", "2")}, {"args": ("--pipeline_parallel_size=2",)}],
)
def test_several_workers_have_processes_of_their_own(wanted: dict[str, Any]) -> None:
    """The executor that has none is for one worker: who asks for more gets vLLM's own choice."""
    settings = EngineSettings(kind="generation", model="m", **wanted)
    assert "--distributed-executor-backend" not in launched(settings, QWEN3, CPU, BF16).argv


def test_printing_shows_no_secret() -> None:
    """Secrets in arguments and environment are replaced; tokens that are none stay."""
    settings = EngineSettings(
        kind="embedding",
        model="m",
        env={"HF_TOKEN": "hf_1", "MYAPIKEY": "k1", "DB_PASS": "k2", "TOKENIZERS_PARALLELISM": "no"},
        args=(
            *("--api-key", "s1", "s2", "--hf-token=s3", "--max-num-batched-tokens", "7", "--db-password", "s4"),
            *("--additional-config", '{"api_key": "s5", "depth": 3}', "--otlp-traces-endpoint", "http://me:s6@host:1"),
        ),
    )
    shown = str(launched(settings, MINILM, CPU, BF16))
    assert not any(secret in shown for secret in ("hf_1", "k1", "k2", "s1", "s2", "s3", "s4", "s5", "s6"))
    assert '"depth": 3' in shown
    assert "http://***@host:1" in shown
    assert "--api-key '***' '***' '--hf-token=***' --max-num-batched-tokens 7 --db-password '***'" in shown
    assert "TOKENIZERS_PARALLELISM=no" in shown


def test_unknown_releases_degrade_and_old_ones_are_refused() -> None:
    """A newer vLLM gets the newest known flags and one warning; one before 0.24 gets a clear error."""
    newer = Vllm(Path("/p"), (0, 40, 1), "cpu")
    assert "newer than the releases this Tandem knows" in str(warning(newer))
    assert launched(EMBEDDING, MINILM, newer, PLAIN).argv[3:] == launched(EMBEDDING, MINILM, CPU, PLAIN).argv[3:]
    assert warning(CPU) is None
    with pytest.raises(SetupError, match="too old"):
        launched(EMBEDDING, MINILM, Vllm(Path("/p"), (0, 19, 1), "cpu"), PLAIN)
