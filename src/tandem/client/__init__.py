"""The client: texts in, float32 vectors out, over HTTP or from an engine in this process.

Its public names are those of the package, and are loaded when they are first used::

    from tandem.client import VLLMClient, VLLMConfig
"""

from typing import TYPE_CHECKING

import tandem

if TYPE_CHECKING:
    from tandem import AuthenticationError as AuthenticationError
    from tandem import BadRequestError as BadRequestError
    from tandem import ClientClosedError as ClientClosedError
    from tandem import ClientConnectionError as ClientConnectionError
    from tandem import ClientError as ClientError
    from tandem import ClientTimeoutError as ClientTimeoutError
    from tandem import DecodingError as DecodingError
    from tandem import DimensionMismatchError as DimensionMismatchError
    from tandem import EmbeddingData as EmbeddingData
    from tandem import EmbeddingRequest as EmbeddingRequest
    from tandem import EmbeddingResponse as EmbeddingResponse
    from tandem import InprocessVLLMEmbedder as InprocessVLLMEmbedder
    from tandem import ModelNotFoundError as ModelNotFoundError
    from tandem import RateLimitError as RateLimitError
    from tandem import ServerError as ServerError
    from tandem import SettingsError as SettingsError
    from tandem import SetupError as SetupError
    from tandem import Step as Step
    from tandem import TandemError as TandemError
    from tandem import Timeline as Timeline
    from tandem import VLLMClient as VLLMClient
    from tandem import VLLMConfig as VLLMConfig

__all__ = [name for name in tandem.__all__ if name != "__version__"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(tandem, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
