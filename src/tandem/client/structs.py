"""What goes over the wire, and what comes back: OpenAI's shapes, and vectors made of them without a loop over floats.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import pybase64
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from tandem.errors import DecodingError

Vector = NDArray[np.float32]
"""An array of float32; here, one vector of shape (dim,)."""


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: vectors of ``input``, as base64 of little-endian float32.

    >>> msgspec.json.encode(EmbeddingRequest(model="embedding", input=["a text"]))
    b'{"model":"embedding","input":["a text"],"encoding_format":"base64"}'
    """

    model: str
    input: Sequence[str]
    encoding_format: Literal["base64", "float"] = "base64"
    dimensions: int | UnsetType = UNSET


class EmbeddingData(msgspec.Struct, kw_only=True):
    """One vector: base64, or floats from servers that know no base64; ``index`` is its text's place."""

    index: int
    embedding: str | list[float]
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    """Tokens that the server counted in all texts together."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingResponse(msgspec.Struct, kw_only=True):
    """A server's answer: a vector for each text, in any order.

    >>> body = b'{"data": [{"index": 0, "embedding": [1.0, 2.0]}], "model": "embedding"}'
    >>> msgspec.json.decode(body, type=EmbeddingResponse).data[0].embedding
    [1.0, 2.0]
    """

    data: list[EmbeddingData]
    model: str = ""
    usage: EmbeddingUsage | None = None
    object: str = "list"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a transport brings.

    Attributes:
        vectors: one for each text of the request, in its order: float32, shape (dim,). Taken once: an answer over HTTP
            decodes each as it is taken, and raises :class:`~tandem.errors.DecodingError` where one is unreadable.
        tokens: how many all texts had together; 0 where nobody counted.
    """

    vectors: Iterable[Vector]
    tokens: int = 0


class _Data(msgspec.Struct):
    """:class:`EmbeddingData` with its vector where it lies in the body: most of an answer is vectors, and not to copy
    them saves memory that would have to be asked for, page by page, with every answer."""

    index: int
    embedding: msgspec.Raw


class _Response(msgspec.Struct):
    data: list[_Data]
    usage: EmbeddingUsage | None = None


_QUOTE = ord('"')
_decode = msgspec.json.Decoder(_Response).decode
_decode_vector = msgspec.json.Decoder(str | list[float]).decode


def decoded(body: bytes | bytearray, count: int) -> Answer:
    """The vectors of a server's answer, in the order of the request.

    Args:
        body: JSON.
        count: texts that were asked for.

    Raises:
        DecodingError: it is no such answer, or has not exactly one vector for each text.
    """
    try:
        response = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DecodingError(
            f"The server's answer is no list of vectors: {exc}. It begins {bytes(body[:100])!r}"
        ) from exc
    found: list[msgspec.Raw | None] = [None] * count
    for item in response.data:
        if not 0 <= item.index < count:
            raise DecodingError(f"The server's answer has a vector with index {item.index}; {count} texts were sent")
        if found[item.index] is not None:
            raise DecodingError(f"The server's answer has two vectors with index {item.index}")
        found[item.index] = item.embedding
    whole = [written for written in found if written is not None]
    if len(whole) < count:
        raise DecodingError(
            f"The server's answer has {len(whole)} vectors for {count} texts: no index {found.index(None)}"
        )
    vectors = (_vector(written, index) for index, written in enumerate(whole))
    return Answer(vectors, response.usage.total_tokens if response.usage else 0)


def _vector(written: msgspec.Raw, index: int) -> Vector:
    raw = memoryview(written)
    try:
        if raw[0] == _QUOTE:
            return _unpacked(raw[1:-1])
    except ValueError:
        pass  # JSON may write a slash as two characters: that, and what is no base64, is told apart below
    try:
        found = _decode_vector(written)
        if isinstance(found, str):
            return _unpacked(found)
    except (msgspec.DecodeError, ValueError) as exc:
        raise DecodingError(f"The vector with index {index} is no base64 of float32 values: {exc}") from exc
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return np.array(found, dtype=np.float32)


def _unpacked(base64: str | memoryview) -> Vector:
    # `validate` is the fast way, too: without it, pybase64 first looks for characters to leave out.
    return np.frombuffer(pybase64.b64decode(base64, validate=True), dtype="<f4")
