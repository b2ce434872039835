"""What the settings are, and what each must be."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

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


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSettings(Frozen):
    """``[engines.NAME]``: one model and the vLLM server that runs it.

    Attributes:
        model: repository id, folder, or hub cache folder (``models--org--name``).
        served_model_name: the name callers use; the model's own by default.
        aliases: further names callers may use.
        port: on loopback; by default 8100 for ``embedding``, 8101 for ``generation``, for others a free one.
        memory: on a GPU the engine's part of the card, without one its KV cache, an amount or a share of RAM.
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


class RouterSettings(Frozen):
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


class ApiSettings(Frozen):
    """``[api]``: the form of requests and answers.

    Attributes:
        strict: OpenAI's keys and no others; otherwise whatever vLLM takes and tells beyond them passes, too.
    """

    strict: bool = True


class SupervisionSettings(Frozen):
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


class Settings(Frozen):
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
