"""Every setting, where it may come from, and what it must be.

One frozen :class:`Settings` is built once, at the edge, by :func:`load`: flags, then the environment, ``.env``,
``tandem.toml``, and the defaults below, in that order. Each value's source is kept beside it for messages.
"""

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from tandem.errors import SettingsError

EMBEDDING_MODEL = "Qwen/Qwen3-Embedding-0.6B"
GENERATION_MODEL_GPU = "Qwen/Qwen3-8B-FP8"
GENERATION_MODEL_CPU = "Qwen/Qwen3-0.6B"
EMBEDDING_PORT = 8100
GENERATION_PORT = 8101

_UNITS = {"MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Memory:
    """A share of a card (``0.3``) or an amount (``8GiB``); exactly one of the two is set."""

    share: float | None = None
    bytes: int | None = None

    @classmethod
    def parse(cls, value: object) -> "Memory":
        """``0.3``, ``"0.3"``, ``"8GiB"``, ``"8 GB"`` …

        Raises:
            ValueError: it is none of these, or a share outside (0, 1].
        """
        if isinstance(value, Memory):
            return value
        text = str(value).strip()
        if amount := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text):
            if amount[2] in _UNITS:
                return cls(bytes=int(float(amount[1]) * _UNITS[amount[2]]))
        elif re.fullmatch(r"\d*\.?\d+", text) and 0 < float(text) <= 1:
            return cls(share=float(text))
        raise ValueError("must be a share of the card such as 0.3, or an amount such as 8GiB")

    def __str__(self) -> str:
        return f"{self.share:g}" if self.bytes is None else f"{self.bytes / 2**30:g}GiB"


Port = Annotated[int, Field(ge=1, le=65535)]
MemorySetting = Annotated[Memory, BeforeValidator(Memory.parse)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSettings(_Frozen):
    """``[engines.NAME]``: one model and the vLLM server that runs it.

    Attributes:
        model: repository id, folder, or hub cache folder (``models--org--name``).
        served_model_name: the name callers use; the model's own by default.
        aliases: further names callers may use.
        port: on loopback; a free one by default.
        memory: on a GPU the engine's part of the card, without one its KV cache (an amount).
        dtype: vLLM's ``--dtype``; by default what the hardware does fast.
        tool_call_parser: vLLM's parser for tool calls; ``auto`` goes by model family, ``none`` switches it off.
        reasoning_parser: vLLM's parser for reasoning; ``auto`` and ``none`` likewise.
        env: further environment for the engine.
        args: passed to vLLM as they are, last, so they win.
        replicas: how many engines serve this model; each has memory and threads of its own.
    """

    kind: Literal["embedding", "generation"]
    model: str = Field(min_length=1)
    served_model_name: str | None = None
    aliases: tuple[str, ...] = ()
    port: Port | None = None
    memory: MemorySetting | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    env: dict[str, str] = {}
    args: tuple[str, ...] = ()
    replicas: Annotated[int, Field(ge=1, le=64)] = 1


def _hashed(value: object) -> object:
    """A key as it is kept: its SHA-256, so that no setting holds a secret."""
    if not isinstance(value, str):
        return value
    key = value.strip()
    if key.startswith("sha256:"):
        if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", key):
            raise ValueError("must have 64 hexadecimal digits after sha256:")
        return key.lower()
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


class RouterSettings(_Frozen):
    """``[router]``: the address that callers use.

    Attributes:
        timeout: seconds that a whole request may take; a caller may ask for less with ``X-Request-Timeout``.
        connect_timeout: seconds that a connection to an engine may take.
        first_event_timeout: seconds until the first event of a stream.
        event_timeout: seconds from one part of an answer to the next.
        body_timeout: seconds that a caller may take to send a request.
        drain_timeout: seconds that requests in flight get to finish when the service stops.
        max_body_bytes: the largest request body.
        max_inputs: texts that one request for embeddings may have.
        max_in_flight: requests that one engine is given at once.
        max_queue: requests that may wait for an engine beyond that.
        queue_timeout: seconds that a request may wait, there or for an engine that is on its way.
        api_keys_file: a line for each caller, ``NAME:KEY`` or ``NAME:sha256:HEX``; read again when it changes.
        api_key: a single key, kept as its hash.
        insecure: allow an address that others can reach without keys.
        requests_per_minute: for each key (or, without keys, for all callers together); unbounded by default.
        tokens_per_minute: likewise, prompt and answer together.
        log_prompts: log what was asked, too, cut off after 2,000 bytes; never by default.
        cors_origins: origins whose pages may call; ``*`` for all.
        tls_cert: file with the certificate chain, PEM.
        tls_key: file with its private key, PEM.
    """

    host: str = "127.0.0.1"
    port: Port = 8200
    timeout: float = Field(default=600.0, gt=0)
    connect_timeout: float = Field(default=5.0, gt=0)
    first_event_timeout: float = Field(default=300.0, gt=0)
    event_timeout: float = Field(default=120.0, gt=0)
    body_timeout: float = Field(default=30.0, gt=0)
    drain_timeout: float = Field(default=20.0, ge=0)
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024)
    max_inputs: int = Field(default=2048, ge=1)
    max_in_flight: int = Field(default=256, ge=1)
    max_queue: int = Field(default=1024, ge=0)
    queue_timeout: float = Field(default=30.0, ge=0)
    api_keys_file: Path | None = None
    api_key: Annotated[str | None, BeforeValidator(_hashed)] = None
    insecure: bool = False
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    log_prompts: bool = False
    cors_origins: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def keys(self) -> bool:
        """Whether callers need a key."""
        return self.api_key is not None or self.api_keys_file is not None

    @property
    def address(self) -> str:
        """Where callers on this machine reach it."""
        host = self.host
        if host in {"0.0.0.0", "::", ""}:  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        scheme = "https" if self.tls_cert else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: set both or none")
        return self


class ApiSettings(_Frozen):
    """``[api]``: the form of requests and answers.

    Attributes:
        strict: OpenAI's keys and no others; otherwise whatever vLLM takes and tells beyond them passes, too.
    """

    strict: bool = True


class SupervisionSettings(_Frozen):
    """``[supervision]``: what is done about engines that die or stand still.

    Attributes:
        max_restarts: how often an engine that dies is started again within ``restart_window``; then it has failed, and
            `tandem restart` brings it back.
        restart_window: seconds.
        first_pause: seconds that the first of these starts waits at most; each further one waits up to twice as long.
            The pause is drawn anew each time, between nothing and that.
        longest_pause: seconds that any of them waits at most.
        start_timeout: seconds after which an engine that starts, and logs, reads and computes nothing, is stalled;
            after twice as long it is ended. How long a start takes does not matter.
        stall_timeout: seconds after which a serving engine that has requests, and of which nothing moves, is started
            anew.
        stall_tokens_per_second: that many tokens in its requests give it a second more.
    """

    max_restarts: int = Field(default=5, ge=0)
    restart_window: float = Field(default=600.0, gt=0)
    first_pause: float = Field(default=2.0, ge=0)
    longest_pause: float = Field(default=60.0, ge=0)
    start_timeout: float = Field(default=300.0, gt=0)
    stall_timeout: float = Field(default=60.0, gt=0)
    stall_tokens_per_second: float = Field(default=500.0, gt=0)


def _bytes(value: object) -> object:
    """``20MiB`` … as bytes; a number is one already."""
    if not isinstance(value, str) or value.isdigit():
        return value
    amount = Memory.parse(value).bytes
    if amount is None:
        raise ValueError("must be an amount such as 20MiB")
    return amount


class Settings(_Frozen):
    """All settings of one service.

    Attributes:
        engines: by name; names are lower case.
        run_dir: where socket, pid file and logs lie; by default one for the port.
        engine_python: the interpreter that has vLLM; by default the one ``tandem install`` recorded.
        hf_home: the root of Hugging Face's cache (its ``hub`` folder holds the models).
        offline: true: never ask a model hub for anything; false: the engines may ask it too; unset: only Tandem
            does, to fetch missing weights, and the engines find them in the cache.
        log_size: how large a log becomes before it is rotated, such as ``20MiB``; one log for each engine and router.
        log_files: rotated files that are kept of each.
    """

    engines: dict[str, EngineSettings]
    router: RouterSettings = RouterSettings()
    api: ApiSettings = ApiSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    run_dir: Path | None = None
    engine_python: Path | None = None
    hf_home: Path | None = None
    offline: bool | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    log_size: Annotated[int, BeforeValidator(_bytes), Field(ge=2**16)] = 20 * 2**20
    log_files: int = Field(default=5, ge=0, le=1000)

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("engines")
    @classmethod
    def _names(cls, engines: dict[str, EngineSettings]) -> dict[str, EngineSettings]:
        if not engines:
            raise ValueError("at least one engine is needed")
        for name in engines:
            if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name) or name == "router":
                raise ValueError(
                    f"{name!r} is no name for an engine: use up to 32 of a-z, 0-9, - and _, and not 'router'"
                )
        return engines


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


@dataclass(frozen=True)
class Source:
    """Settings from one place: a nested mapping, and how to name where a path of it came from."""

    label: str
    values: Mapping[str, Any]
    names: Mapping[tuple[str, ...], str]

    def name(self, path: tuple[str, ...]) -> str:
        """Where ``path`` was set, such as ``ROUTER_PORT in .env`` or ``router.port in tandem.toml``."""
        within = "" if self.label == "the environment" else f" in {self.label}"
        return f"{self.names.get(path, '.'.join(path))}{within}"


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each value that is not a default came from, by its path."""

    settings: Settings
    origins: Mapping[tuple[str, ...], str]

    @property
    def models_configured(self) -> bool:
        """Whether anyone chose a model."""
        return any(path[0] == "engines" and path[-1] == "model" for path in self.origins)

    def with_engines(self, engines: Mapping[str, EngineSettings]) -> "Loaded":
        """The same, with other engines."""
        return replace(self, settings=self.settings.model_copy(update={"engines": dict(engines)}))


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    gpu: bool,
    only: Collection[str] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Loaded:
    """Build the settings from every source.

    Args:
        flags: nested as :class:`Settings` is, without the values nobody gave (None counts as not given).
        gpu: whether this machine has a GPU; it decides the default generation model.
        only: leave out all engines but these.
        environ: the environment; the process's own by default.
        folder: where ``.env`` and ``tandem.toml`` are looked for; the working folder by default.

    Raises:
        SettingsError: a source cannot be read, has a name nobody knows, or a value that does not fit.
    """
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    dotenv = folder / ".env"
    in_file = _read_dotenv(dotenv) if dotenv.is_file() else {}
    sources = (
        Source("the command line", _without_none(flags or {}), {}),
        _from_environment("the environment", environ),
        _from_environment(".env", in_file),
        _from_toml(folder, {**in_file, **environ}),
    )
    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    for source in reversed(sources):
        for path, value in _leaves(source.values):
            _put(merged, path, value)
            origins[path] = source.name(path)
    engines = _with_defaults(merged.get("engines", {}), sources[-1], gpu=gpu)
    merged["engines"] = {name: engine for name, engine in engines.items() if only is None or name in only}
    try:
        return Loaded(Settings.model_validate(merged), origins)
    except ValidationError as exc:
        raise _complaint(exc, origins) from exc


def defaults(*, gpu: bool) -> Loaded:
    """The settings of someone who has set nothing."""
    engines = _with_defaults({}, Source("tandem.toml", {}, {}), gpu=gpu)
    return Loaded(Settings.model_validate({"engines": engines}), {})


def config_file(environ: Mapping[str, str] | None = None, folder: Path | None = None) -> Path | None:
    """The tandem.toml that :func:`load` reads; None where there is none."""
    named = (os.environ if environ is None else environ).get(CONFIG_VARIABLE)
    path = (Path.cwd() if folder is None else folder) / (named or "tandem.toml")
    return path.absolute() if path.is_file() else None


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what only Tandem and its client read, or is between systemd and Tandem.

    Of ``VLLM_*``, just those names go.
    """
    ours = {v.legacy for v in VARIABLES if (v.legacy or "").startswith("VLLM_")} | {
        *CLIENT_VARIABLES,
        *SYSTEMD_VARIABLES,
    }
    return {name: value for name, value in environ.items() if not name.startswith("TANDEM_") and name not in ours}


def _with_defaults(engines: Mapping[str, Any], toml: Source, *, gpu: bool) -> dict[str, Any]:
    """The two default engines beneath what is set, unless tandem.toml lists engines: then just those it lists."""
    if not isinstance(engines, Mapping):
        raise SettingsError(f"engines must be tables ([engines.NAME]), not {engines!r}", "See tandem.example.toml")
    defaults: dict[str, dict[str, Any]] = {
        "embedding": {"kind": "embedding", "model": EMBEDDING_MODEL, "port": EMBEDDING_PORT},
        "generation": {
            "kind": "generation",
            "model": GENERATION_MODEL_GPU if gpu else GENERATION_MODEL_CPU,
            "port": GENERATION_PORT,
        },
    }
    listed = toml.values.get("engines")
    result: dict[str, Any] = {}
    for name in dict.fromkeys([*(() if listed else defaults), *engines]):
        given = engines.get(name, {})
        if not isinstance(given, Mapping):
            raise SettingsError(f"engines.{name} must be a table ([engines.{name}]), not {given!r}")
        if listed and name in listed:
            result[name] = {"port": defaults.get(name, {}).get("port"), **given}
            if name in defaults:
                result[name].setdefault("kind", name)
        else:
            result[name] = {**defaults.get(name, {}), **given}
    return result


def _from_environment(label: str, environ: Mapping[str, str]) -> Source:
    known = {v.name for v in VARIABLES} | {CONFIG_VARIABLE}
    for name in environ:
        if name.startswith("TANDEM_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise SettingsError(
                f"{name} in {label} is no setting of Tandem's",
                f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(sorted(known))}",
            )
    values: dict[str, Any] = {}
    names: dict[tuple[str, ...], str] = {}
    for variable in VARIABLES:
        spellings = [variable.name, variable.legacy] if variable.legacy else [variable.name]
        if spelling := next((name for name in spellings if environ.get(name)), None):
            _put(values, variable.path, environ[spelling])
            names[variable.path] = spelling
    return Source(label, values, names)


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}") from exc


def _from_toml(folder: Path, environ: Mapping[str, str]) -> Source:
    named = environ.get(CONFIG_VARIABLE)
    path = folder / (named or "tandem.toml")
    if not named and not path.is_file():
        return Source("tandem.toml", {}, {})
    try:
        with path.open("rb") as file:
            return Source(path.name, tomllib.load(file), {})
    except OSError as exc:
        raise SettingsError(f"{path} cannot be read: {exc.strerror}", f"Mend {CONFIG_VARIABLE}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not valid TOML: {exc}") from exc


def _complaint(exc: ValidationError, origins: Mapping[tuple[str, ...], str]) -> SettingsError:
    """Pydantic's first complaint, with the place where the value was set."""
    error = exc.errors(include_url=False)[0]
    path = tuple(str(part) for part in error["loc"])
    where = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), ".".join(path))
    if error["type"] == "extra_forbidden":
        field = path[-1]
        tables: dict[str, type[_Frozen]] = {
            "engines": EngineSettings,
            "router": RouterSettings,
            "api": ApiSettings,
            "supervision": SupervisionSettings,
        }
        known = tables.get(path[0], Settings) if len(path) > 1 else Settings
        near = difflib.get_close_matches(field, known.model_fields, n=1)
        mend = f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(known.model_fields)}"
        return SettingsError(f"{where}: no such setting", mend)
    message = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict) or path[-1:] == ("api_key",) else f", not {error['input']!r}"
    return SettingsError(f"{where}: {message[0].lower()}{message[1:]}{given}")


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and (*path, key)[-1] != "env":
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _put(values: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    *parents, last = path
    for key in parents:
        child = values.setdefault(key, {})
        if not isinstance(child, dict):
            child = values[key] = {}
        values = child
    values[last] = value
