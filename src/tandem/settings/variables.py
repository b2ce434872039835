"""The environment variables: which there are, which settings they give, and which of them engines must not see."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable: Tandem's name, the name people already have, and the setting it gives."""

    name: str
    path: tuple[str, ...]
    legacy: str | None = None


def _engine_variables(kind: str, short: str) -> tuple[Variable, ...]:
    upper, engine = kind.upper(), ("engines", kind)
    return (
        Variable(f"TANDEM_{upper}_MODEL", (*engine, "model"), f"MODEL_{short}_NAME"),
        Variable(f"TANDEM_{upper}_PORT", (*engine, "port"), f"VLLM_{short}_PORT"),
        Variable(f"TANDEM_{upper}_MEMORY", (*engine, "memory"), f"VLLM_{short}_GPU_MEMORY"),
        Variable(f"TANDEM_{upper}_MAX_NUM_SEQS", (*engine, "max_num_seqs"), f"VLLM_{short}_MAX_NUM_SEQS"),
    )


VARIABLES: tuple[Variable, ...] = (
    *_engine_variables("embedding", "EMBED"),
    *_engine_variables("generation", "GEN"),
    Variable("TANDEM_HOST", ("router", "host")),
    Variable("TANDEM_PORT", ("router", "port"), "ROUTER_PORT"),
    Variable("TANDEM_TIMEOUT", ("router", "timeout"), "HTTP_TIMEOUT"),
    Variable("TANDEM_DRAIN_TIMEOUT", ("router", "drain_timeout")),
    Variable("TANDEM_API_KEY", ("router", "api_key")),
    Variable("TANDEM_API_KEYS_FILE", ("router", "api_keys_file")),
    Variable("TANDEM_RUN_DIR", ("run_dir",)),
    Variable("TANDEM_ENGINE_PYTHON", ("engine_python",)),
    Variable("TANDEM_HF_HOME", ("hf_home",), "HF_HOME"),
    Variable("TANDEM_OFFLINE", ("offline",), "HF_HUB_OFFLINE"),
    Variable("TANDEM_LOG_LEVEL", ("log_level",), "LOG_LEVEL"),
    Variable("TANDEM_LOG_FORMAT", ("log_format",)),
    Variable("TANDEM_LOG_SIZE", ("log_size",)),
    Variable("TANDEM_LOG_FILES", ("log_files",)),
)
# Read outside Settings: where tandem.toml lies.
CONFIG_VARIABLE = "TANDEM_CONFIG"
# The names of the client that begin with VLLM_; like those above, engines must not see them.
CLIENT_VARIABLES = (
    "VLLM_URL",
    "VLLM_MODEL",
    "VLLM_API_KEY",
    "VLLM_BATCH_SIZE",
    "VLLM_TIMEOUT_S",
    "VLLM_EMBED_DIM",
)

# What systemd gives to the process that it starts, and to no other (sd_notify(3)).
SYSTEMD_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what only Tandem and its client read, or is between systemd and Tandem.

    Of ``VLLM_*``, just those names go.
    """
    ours = {v.legacy for v in VARIABLES if (v.legacy or "").startswith("VLLM_")} | {
        *CLIENT_VARIABLES,
        *SYSTEMD_VARIABLES,
    }
    return {name: value for name, value in environ.items() if not name.startswith("TANDEM_") and name not in ours}
