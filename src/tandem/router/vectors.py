"""Vectors, as engines write them and as callers want them. Pure.

Inside, a vector is the bytes of little-endian float32: a quarter of the size of its digits, and nothing is lost on the
way.
Source: `encoding_format` in https://platform.openai.com/docs/api-reference/embeddings/create
"""

from collections.abc import Sequence

import msgspec
import orjson
import pybase64

from tandem.router import answers
from tandem.router.upstream import UNREADABLE

_BYTES = 4  # of a float32


class _Vector(msgspec.Struct):
    index: int
    embedding: str


class _Counted(msgspec.Struct):
    prompt_tokens: int


class _Answer(msgspec.Struct):
    data: list[_Vector]
    usage: _Counted


_decode = msgspec.json.Decoder(_Answer).decode


def read(body: bytes, number: int) -> tuple[list[bytes], int]:
    """An engine's answer to a request for base64: its vectors, in order, and how many tokens it counted.

    Raises:
        EngineFault: it is not ``number`` vectors of one size.
    """
    try:
        answer = _decode(body)
        vectors = [pybase64.b64decode(item.embedding, validate=True) for item in answer.data]
    except (*UNREADABLE, ValueError) as exc:
        raise answers.nonsense() from exc
    indices = [item.index for item in answer.data]
    if indices != list(range(number)) or len({len(vector) for vector in vectors}) != 1:
        raise answers.nonsense()
    if not vectors[0] or len(vectors[0]) % _BYTES:
        raise answers.nonsense()
    return vectors, answer.usage.prompt_tokens


def size(vector: bytes) -> int:
    """How many dimensions it has."""
    return len(vector) // _BYTES


def items(vectors: Sequence[bytes], first: int, encoding: str) -> list[bytes]:
    """The objects of an answer's ``data`` for ``vectors``, the first of which has the index ``first``.

    Args:
        encoding: ``float`` or ``base64``.
    """
    if encoding == "base64":
        return [
            b'{"object":"embedding","index":%d,"embedding":"%b"}' % (index, pybase64.b64encode(vector))
            for index, vector in enumerate(vectors, first)
        ]
    return [
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, _digits(vector))
        for index, vector in enumerate(vectors, first)
    ]


def answer(data: Sequence[bytes], model: str, tokens: int) -> bytes:
    """A whole answer, of the objects of its ``data``."""
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    name = msgspec.json.encode(model)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (b",".join(data), name, usage)


def load() -> None:
    """Load what rendering needs: numpy takes so long that a router which is replaced should not wait for it."""
    import numpy  # noqa: F401


def _digits(vector: bytes) -> bytes:
    """A vector as JSON: each number with as many digits as tell it from its neighbours in float32."""
    import numpy as np  # see load()

    numbers = np.frombuffer(vector, dtype="<f4")
    return orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)
