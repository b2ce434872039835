"""Answers become vectors, or errors that say why not."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from tandem import DecodingError
from tandem.client.structs import decoded

VECTORS = np.array([[1.5, -2.0], [0.25, 1e-3]], dtype="<f4")
PACKED = [base64.b64encode(row.tobytes()).decode() for row in VECTORS]


def body(*items: tuple[int, Any], **more: Any) -> bytes:
    data = [{"object": "embedding", "index": index, "embedding": embedding} for index, embedding in items]
    return json.dumps({"object": "list", "data": data, "model": "m", **more}).encode()


@pytest.mark.parametrize("written", [PACKED, VECTORS.tolist()], ids=["base64", "floats"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_vectors_come_in_the_order_of_the_texts(written: list[Any], order: tuple[int, int]) -> None:
    """In whatever order and form a server writes them."""
    answer = decoded(body(*((i, written[i]) for i in order), usage={"prompt_tokens": 5, "total_tokens": 7}), 2)
    vectors = list(answer.vectors)
    assert np.array_equal(np.array(vectors), VECTORS)
    assert all(vector.dtype == np.float32 for vector in vectors)
    assert answer.tokens == 7


def test_escaped_slashes_are_base64_too() -> None:
    """JSON may write a slash as two characters, and some servers do."""
    packed = base64.b64encode(b"\xff" * 8).decode()
    assert "/" in packed
    answer = decoded(body((0, packed)).replace(b"/", b"\\/"), 1)
    assert [vector.tobytes() for vector in answer.vectors] == [b"\xff" * 8]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (body((0, PACKED[0]), (0, PACKED[1])), "two vectors with index 0"),
        (body((0, PACKED[0])), "no index 1"),
        (body((0, PACKED[0]), (2, PACKED[1])), "index 2; 2 texts"),
        (body((0, PACKED[0]), (-1, PACKED[1])), "index -1"),
        (body((0, PACKED[0]), (1, "!!!!")), "index 1 is no base64"),
        (body((0, PACKED[0]), (1, "ÿÿÿÿ")), "index 1 is no base64"),
        (body((0, PACKED[0]), (1, PACKED[1][:-5])), "index 1 is no base64"),
        (body((0, PACKED[0]), (1, "AAAAAAA=")), "index 1 is no base64"),  # 5 bytes
        (body((0, PACKED[0]), (1, None)), "index 1 is no base64"),
        (body((0, PACKED[0]), (1, ["a"])), "index 1 is no base64"),
        (b"<html>", "no list of vectors"),
        (b"", "no list of vectors"),
        (b"{}", "no list of vectors"),
        (b'{"data": [\xff]}', "no list of vectors"),
        (b'{"data": ' + b"[" * 100_000, "no list of vectors"),
        (b'{"data": [{"index": 0, "embedding": ' + b"[" * 100_000, "no list of vectors"),
        (
            body((0, PACKED[0])).replace(b"]", b', {"index": 1, "embedding": "\xff\xff\xff\xff"}]'),
            "index 1 is no base64",
        ),
    ],
)
def test_anything_else_is_refused(wrong: bytes, said: str) -> None:
    """A vector too many, too few, twice, or unreadable is an error, never a guess."""
    with pytest.raises(DecodingError, match=said):
        list(decoded(wrong, 2).vectors)


def test_a_number_is_no_base64() -> None:
    """However much a list of one long number looks like it."""
    answer = decoded(b'{"data": [{"index": 0, "embedding": [1234567890123456]}]}', 1)
    assert [vector.tolist() for vector in answer.vectors] == [[np.float32(1234567890123456)]]
