"""Vectors pass through to the bit, in the form that each caller wants; what is none is the engine's fault."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import EngineFault
from tandem.router import vectors

LARGEST = float(np.finfo(np.float32).max)


def bits(numbers: Sequence[float] | np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """A vector as the router keeps it."""
    return np.asarray(numbers, dtype=np.float64).astype("<f4").tobytes()


def written(numbers: Sequence[float]) -> str:
    """A vector as engines write it."""
    return base64.b64encode(bits(numbers)).decode()


def said(*embeddings: object, **more: object) -> bytes:
    """An engine's answer that has these vectors."""
    data = [{"object": "embedding", "index": n, "embedding": each} for n, each in enumerate(embeddings)]
    usage = {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0}
    return json.dumps({"id": "e", "object": "list", "model": "m", "data": data, "usage": usage, **more}).encode()


def rendered(vector: bytes, encoding: str = "float") -> Any:
    """What a caller reads."""
    (item,) = vectors.items([vector], 0, encoding)
    return json.loads(item)["embedding"]


def test_an_engines_answer_is_read() -> None:
    """Its vectors in order, and its count; whatever else it says is no concern here."""
    one, other = written([1, 2]), written([3, 4])
    assert vectors.read(said(one, other), 2) == ([bits([1, 2]), bits([3, 4])], 7)


@pytest.mark.parametrize(
    ("body", "number"),
    [
        pytest.param(said(written([1]), written([2])), 1, id="too many"),
        pytest.param(said(written([1])), 2, id="too few"),
        pytest.param(said(), 0, id="none"),
        pytest.param(said(), 1, id="none of one"),
        pytest.param(said(""), 1, id="empty"),
        pytest.param(said(written([1]), ""), 2, id="one empty"),
        pytest.param(said(written([1]), written([1, 2])), 2, id="of two sizes"),
        pytest.param(said([1.0, 2.0]), 1, id="numbers"),
        pytest.param(said(None), 1, id="null"),
        pytest.param(said(data=[{"index": 1, "embedding": "AAAAAA=="}]), 1, id="begins at one"),
        pytest.param(said(data=[{"index": n, "embedding": "AAAAAA=="} for n in (1, 0)]), 2, id="out of order"),
        pytest.param(said(data=[{"index": 0, "embedding": "AAAAAA=="}] * 2), 2, id="one twice"),
        pytest.param(said(data=[{"index": "0", "embedding": "AAAAAA=="}]), 1, id="index of text"),
        pytest.param(said(data=[{"embedding": "AAAAAA=="}]), 1, id="without index"),
        pytest.param(said(data=None), 1, id="without data"),
        pytest.param(said(written([1]), usage=None), 1, id="without usage"),
        pytest.param(said(written([1]), usage={}), 1, id="without a count"),
        pytest.param(said(written([1]), usage={"prompt_tokens": 1.5}), 1, id="half a token"),
        pytest.param(said(written([1]))[:-1], 1, id="half an answer"),
        pytest.param(said(written([1])) + b"x", 1, id="more than an answer"),
        pytest.param(b"", 1, id="nothing"),
        pytest.param(b"null", 1, id="JSON's null"),
        pytest.param(b"[]", 1, id="an array"),
        pytest.param(b"\xff\xfe", 1, id="no text"),
        pytest.param(b'{"data":[{"index":0,"embedding":"\xff"}],"usage":{"prompt_tokens":1}}', 1, id="no UTF-8"),
        pytest.param(b"<html>", 1, id="a page"),
        pytest.param(b"[" * 100_000, 1, id="too deep"),
    ],
)
def test_what_is_not_as_many_vectors_of_one_size_is_refused(body: bytes, number: int) -> None:
    """As the engine's fault, which asking again does not mend."""
    with pytest.raises(EngineFault) as raised:
        vectors.read(body, number)
    assert (raised.value.status, raised.value.code, raised.value.again) == (502, "bad_gateway", False)


@pytest.mark.parametrize("junk", ['AAAA"AA=', "AAAA\\AA=", "AAAA\nAA=", "!!!!!!==", "ünïcödé", "AAAAAAA=", "AAAAA"])
def test_what_is_no_vector_reaches_no_caller(junk: str) -> None:
    """Quotes in it would even break the form of the answer."""
    with pytest.raises(EngineFault):
        vectors.read(said(junk), 1)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5, 6, 7, 8, 384, 1024, 3584])
def test_its_size_is_told_in_dimensions(dimensions: int) -> None:
    """Whether base64 needs one, two or no signs of padding."""
    (read,), _ = vectors.read(said(written([0.5] * dimensions)), 1)
    assert vectors.size(read) == dimensions


@pytest.mark.parametrize(
    "number",
    [0.0, -0.0, 1.0, -1.0, 0.1, 1 / 3, 1e-45, -1e-45, 1.1754942e-38, 1.1754944e-38, LARGEST, -LARGEST, 2.0**24],
)
def test_odd_numbers_come_through_to_the_bit(number: float) -> None:
    """The smallest, the largest, and the zero below zero."""
    assert bits(rendered(bits([number]))) == bits([number])


def test_random_numbers_come_through_to_the_bit() -> None:
    """200,000 patterns of 32 bits, all but infinities and what is no number."""
    pattern = np.random.default_rng(50).integers(0, 2**32, 200_000, dtype=np.uint32)
    numbers = pattern.view("<f4")
    numbers = numbers[np.isfinite(numbers)]
    assert bits(rendered(numbers.tobytes())) == numbers.tobytes()


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_any_vector_comes_through_to_the_bit(numbers: list[float]) -> None:
    """As numbers and as base64."""
    assert bits(rendered(bits(numbers))) == bits(numbers)
    assert rendered(bits(numbers), "base64") == written(numbers)


def test_numbers_have_as_few_digits_as_tell_them_apart() -> None:
    """Not those of the float64 next to them."""
    (item,) = vectors.items([bits([0.1, 0.2, 1e-45])], 0, "float")
    assert item == b'{"object":"embedding","index":0,"embedding":[0.1,0.2,1e-45]}'


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_json_has_no_number_for_is_null(number: float) -> None:
    """As numbers; as base64 it passes, as everything does."""
    assert rendered(bits([number, 1.0])) == [None, 1.0]
    assert rendered(bits([number, 1.0]), "base64") == written([number, 1.0])


def test_objects_are_numbered_from_where_the_slice_begins() -> None:
    slices = [vectors.items([bits([n]) for n in range(64)], first, "float") for first in (0, 64)]
    assert [json.loads(each)["index"] for each in slices[0] + slices[1]] == list(range(128))


@pytest.mark.parametrize(
    "model", ["org/emb", 'a "quoted" \\ name', "ünïcödé 你好 🙂", "line\nbreak\x00", "</script>", "%b%d"]
)
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_a_whole_answer_has_openais_keys_and_no_others(model: str, encoding: str) -> None:
    """And is JSON, whatever the model is called."""
    given_ = [[1.0, 2.0], [3.0, 4.0]]
    body = vectors.answer(vectors.items([bits(each) for each in given_], 0, encoding), model, 12)
    numbers = given_ if encoding == "float" else [written(each) for each in given_]
    assert json.loads(body) == {
        "object": "list",
        "data": [{"object": "embedding", "index": n, "embedding": each} for n, each in enumerate(numbers)],
        "model": model,
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
    }
