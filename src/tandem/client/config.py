"""Everything a client is told: one frozen object, checked when it is made."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from urllib.parse import urlsplit

from tandem.errors import SettingsError

BASE_URL = "http://127.0.0.1:8001/v1"
MODEL = "nomic-ai/nomic-embed-code"
# By a part of the model's name: its dimensions, and what its makers put before a query.
# https://huggingface.co/nomic-ai/nomic-embed-code
_NOMIC_EMBED_CODE = ("nomic-embed-code", 3584, "Represent this query for searching relevant code: ")

Kind = Literal["document", "query"]


@dataclass(frozen=True, kw_only=True)
class VLLMConfig:
    """What a :class:`tandem.VLLMClient` is told.

    Args:
        base_url: of an OpenAI-compatible service, such as ``http://127.0.0.1:8200/v1`` (without a path, ``/v1`` is
            meant), or of its Unix socket, such as ``unix:///run/tandem/api.sock``.
        model: the name that the service knows it by; in process, the model's folder or repository id.
        mode: ``http``, or ``inprocess`` for an engine in this very process, which needs vLLM in its environment.
        batch_size: texts in one request of ``embed_chunks`` and ``embed_iter``.
        timeout_s: seconds that one request may take, with all its repetitions and the pauses between them.
        embedding_dim: the size that vectors must have; by default ``dimensions``, else 3584 for nomic-embed-code,
            else whatever the first answer has.
        max_concurrent_requests: requests that one call of ``embed_chunks`` or ``embed_iter`` has in flight.
        normalize: scale vectors to length 1; those of length 0 stay as they are.
        dimensions: ask the server for shorter vectors, where the model was trained for that.
        query_prefix: put before each text that is embedded with ``kind="query"``; by default what nomic-embed-code
            wants for it, and nothing for other models.
        document_prefix: put before each text that is embedded with ``kind="document"``.
        api_key: sent as a bearer token; not part of the object's ``repr``.
        retries: how often a request is sent again.
        max_text_length: characters of the longest text that is sent; no model's context holds a million.
        engine: in process, further arguments for :class:`tandem.InprocessVLLMEmbedder`.

    Raises:
        SettingsError: a value is of the wrong type or out of range; names it.

    >>> VLLMConfig(model="nomic-ai/nomic-embed-code").embedding_dim
    3584
    >>> VLLMConfig(base_url="http://gpu-server:8200").base_url
    'http://gpu-server:8200/v1'
    """

    base_url: str = BASE_URL
    model: str = MODEL
    mode: Literal["http", "inprocess"] = "http"
    batch_size: int = 64
    timeout_s: float = 120.0
    embedding_dim: int | None = None
    max_concurrent_requests: int = 4
    normalize: bool = False
    dimensions: int | None = None
    query_prefix: str | None = None
    document_prefix: str = ""
    api_key: str | None = field(default=None, repr=False)
    retries: int = 3
    max_text_length: int = 1_000_000
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in ("http", "inprocess"):
            raise SettingsError(f"mode must be 'http' or 'inprocess', not {self.mode!r}")
        for name in ("base_url", "model"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise SettingsError(f"{name} must be a text that is not empty, not {getattr(self, name)!r}")
        for name in ("batch_size", "max_concurrent_requests", "max_text_length"):
            _whole(name, getattr(self, name), 1)
        for name in ("embedding_dim", "dimensions"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        _whole("retries", self.retries, 0)
        if not _number(self.timeout_s) or not 0 < self.timeout_s < math.inf:
            raise SettingsError(f"timeout_s must be a number of seconds above 0, not {self.timeout_s!r}")
        if not isinstance(self.normalize, bool):
            raise SettingsError(f"normalize must be True or False, not {self.normalize!r}")
        for name in ("query_prefix", "document_prefix", "api_key"):
            if not isinstance(getattr(self, name), str | None):
                raise SettingsError(f"{name} must be a text")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise SettingsError("api_key has characters that no HTTP header can carry", "Look for a line break in it")
        self._fill_in()

    def _fill_in(self) -> None:
        name, dim, prefix = _NOMIC_EMBED_CODE
        nomic = name in self.model.lower()
        if self.dimensions and self.embedding_dim not in (None, self.dimensions):
            raise SettingsError(f"dimensions is {self.dimensions}, but embedding_dim {self.embedding_dim}")
        object.__setattr__(self, "base_url", _address(self.base_url))
        if self.embedding_dim is None:
            object.__setattr__(self, "embedding_dim", self.dimensions or (dim if nomic else None))
        if self.query_prefix is None:
            object.__setattr__(self, "query_prefix", prefix if nomic else "")

    @property
    def socket(self) -> str | None:
        """The path of the Unix socket; None where ``base_url`` is no such address."""
        return self.base_url.removeprefix("unix://") if self.base_url.startswith("unix://") else None

    def prefix(self, kind: Kind) -> str:
        """What is put before texts of that kind.

        Raises:
            SettingsError: there is no such kind.
        """
        if kind == "document":
            return self.document_prefix
        if kind == "query":
            return self.query_prefix or ""
        raise SettingsError(f"kind must be 'document' or 'query', not {kind!r}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **given: Any) -> "VLLMConfig":
        """From ``VLLM_URL``, ``VLLM_MODEL``, ``VLLM_API_KEY`` (else ``OPENAI_API_KEY``), ``VLLM_BATCH_SIZE``,
        ``VLLM_TIMEOUT_S`` and ``VLLM_EMBED_DIM``; what is empty counts as not set.

        Args:
            environ: the environment; the process's own by default.
            given: arguments of :class:`VLLMConfig`, which win over the environment.

        Raises:
            SettingsError: a variable's value is wrong; names it.

        >>> VLLMConfig.from_env({"VLLM_MODEL": "embedding", "VLLM_BATCH_SIZE": "32"}, retries=0).batch_size
        32
        """
        environ = os.environ if environ is None else environ
        unknown = given.keys() - {each.name for each in fields(cls)}
        if unknown:
            raise SettingsError(f"VLLMConfig has no {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {}
        for variable, name, read in _VARIABLES:
            if name not in given and name not in values and (text := environ.get(variable, "").strip()):
                try:
                    values[name] = read(text)
                except ValueError as exc:
                    raise SettingsError(f"{variable} must be a number, not {text!r}") from exc
        return cls(**values, **given)


_VARIABLES = (
    ("VLLM_URL", "base_url", str),
    ("VLLM_MODEL", "model", str),
    ("VLLM_API_KEY", "api_key", str),
    ("OPENAI_API_KEY", "api_key", str),
    ("VLLM_BATCH_SIZE", "batch_size", int),
    ("VLLM_TIMEOUT_S", "timeout_s", float),
    ("VLLM_EMBED_DIM", "embedding_dim", int),
)


def _address(url: str) -> str:
    """``url`` as requests need it: without a slash at its end, with ``/v1`` where it had no path."""
    parts = urlsplit(url.strip())
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return f"unix://{parts.path}"
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or too large
        valid = False
    if not valid or parts.query or parts.fragment:
        raise SettingsError(
            f"base_url {url!r} is no address of a service",
            "Give one like http://127.0.0.1:8200/v1, or unix:///path/of/its.sock",
        )
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
