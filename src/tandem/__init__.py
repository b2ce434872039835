"""Tandem serves an embedding model and a language model side by side, behind one OpenAI-compatible address.

The client's public names are loaded when they are first used::

    from tandem import VLLMClient, VLLMConfig
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.client.client import VLLMClient as VLLMClient
    from tandem.client.config import VLLMConfig as VLLMConfig
    from tandem.client.inprocess import InprocessVLLMEmbedder as InprocessVLLMEmbedder
    from tandem.client.structs import EmbeddingData as EmbeddingData
    from tandem.client.structs import EmbeddingRequest as EmbeddingRequest
    from tandem.client.structs import EmbeddingResponse as EmbeddingResponse
    from tandem.errors import AuthenticationError as AuthenticationError
    from tandem.errors import BadRequestError as BadRequestError
    from tandem.errors import ClientClosedError as ClientClosedError
    from tandem.errors import ClientConnectionError as ClientConnectionError
    from tandem.errors import ClientError as ClientError
    from tandem.errors import ClientTimeoutError as ClientTimeoutError
    from tandem.errors import DecodingError as DecodingError
    from tandem.errors import DimensionMismatchError as DimensionMismatchError
    from tandem.errors import ModelNotFoundError as ModelNotFoundError
    from tandem.errors import RateLimitError as RateLimitError
    from tandem.errors import ServerError as ServerError
    from tandem.errors import SettingsError as SettingsError
    from tandem.errors import SetupError as SetupError
    from tandem.errors import TandemError as TandemError
    from tandem.telemetry.timeline import Step as Step
    from tandem.telemetry.timeline import Timeline as Timeline

__version__ = "0.1.0"

_HOMES = {
    "client.client": ("VLLMClient",),
    "client.config": ("VLLMConfig",),
    "client.inprocess": ("InprocessVLLMEmbedder",),
    "client.structs": ("EmbeddingData", "EmbeddingRequest", "EmbeddingResponse"),
    "errors": (
        "AuthenticationError",
        "BadRequestError",
        "ClientClosedError",
        "ClientConnectionError",
        "ClientError",
        "ClientTimeoutError",
        "DecodingError",
        "DimensionMismatchError",
        "ModelNotFoundError",
        "RateLimitError",
        "ServerError",
        "SettingsError",
        "SetupError",
        "TandemError",
    ),
    "telemetry.timeline": ("Step", "Timeline"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tandem' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"tandem.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
