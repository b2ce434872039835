"""Texts are cut into batches, and vectors find their way back."""

import itertools
import random
from typing import Any

import numpy as np
import pytest

from tandem import BadRequestError, DecodingError, DimensionMismatchError
from tandem.client.batching import WINDOW, Batch, Dimension, Rows, batches, checked
from tandem.client.structs import Answer

chance = random.Random(1)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 3 * WINDOW * 3 + 1])
def test_each_text_is_in_one_batch(count: int) -> None:
    """Nothing is lost or doubled, each text stands under its own place, and no batch is too large."""
    texts = ["x" * chance.randrange(1, 50) for _ in range(count)]
    made = list(batches(texts, 3, first=10, number=5))
    assert sorted(itertools.chain.from_iterable(batch.places for batch in made)) == list(range(10, 10 + count))
    assert all(
        texts[place - 10] == text for batch in made for place, text in zip(batch.places, batch.texts, strict=True)
    )
    assert all(1 <= len(batch.texts) <= 3 for batch in made)
    assert [batch.number for batch in made] == list(range(5, 5 + len(made)))


def test_texts_of_a_batch_are_alike_in_length() -> None:
    """Within a window, no text of a batch is shorter than one of the next; windows stay in order."""
    texts = ["x" * chance.randrange(1, 500) for _ in range(4 * WINDOW * 2)]
    made = list(batches(texts, 4))
    for start in (0, WINDOW):
        lengths = [len(text) for batch in made[start : start + WINDOW] for text in batch.texts]
        assert lengths == sorted(lengths, reverse=True)
    assert max(made[WINDOW - 1].places) < 4 * WINDOW <= min(made[WINDOW].places)


def test_a_batch_is_bounded_in_characters() -> None:
    """Long texts go in smaller batches, so that no request outgrows what servers take."""
    made = list(batches(["x" * 400_000] * 5, 64))
    assert [len(batch.texts) for batch in made] == [2, 2, 1]


@pytest.mark.parametrize(
    ("texts", "index", "said"),
    [
        ("a text", None, "not a single text"),
        (b"a text", None, "not bytes"),
        (None, None, "not NoneType"),
        (3, None, "not int"),
        (["a", None], 1, r"input\[1\] is no text but NoneType"),
        (["a", b"b"], 1, "decode it first"),
        ([["a"]], 0, "list"),
        (["a", "b", ""], 2, r"input\[2\] is empty"),
        (["x" * 11], 0, "11 characters"),
        (["a", "\ud800"], 1, "surrogate"),
    ],
)
def test_bad_texts_are_named(texts: Any, index: int | None, said: str) -> None:
    """What is no list of texts, or holds something that is no text to embed, is refused with its place."""
    with pytest.raises(BadRequestError, match=said) as refused:
        checked(texts, first=0, prefix="query: ", longest=10)
    assert refused.value.index == index


def test_prefix_and_place_are_the_callers() -> None:
    """A prefix is put before each text, and counts start where the caller's list does."""
    assert checked(iter(["a", "ä"]), first=0, prefix="q: ", longest=10) == ["q: a", "q: ä"]
    with pytest.raises(BadRequestError, match=r"input\[101\]"):
        checked(["a", ""], first=100, prefix="", longest=10)


@pytest.mark.parametrize(
    ("message", "param", "index", "said"),
    [
        ("input[1] is empty", None, 40, "input[40] is empty"),
        ("it is empty", "input[2]", 20, "it is empty"),
        ("input[7] is empty", None, None, "input[7] is empty"),
        ("one of them is too long", None, None, "one of them is too long"),
        ("dimensions must be 256", "dimensions", None, "dimensions must be 256"),
    ],
)
def test_blame_is_put_on_the_callers_own_index(message: str, param: str | None, index: int | None, said: str) -> None:
    """Where a server names a text of a batch, the error names it as it stands in the caller's list."""
    error = BadRequestError(message, param=param)
    Batch([30, 40, 20], ["a", "b", "c"]).blames(error)
    assert (error.index, error.message) == (index, said)


def test_a_text_alone_is_to_blame() -> None:
    """Where only one text was sent, a refusal without a place is about that one, unless it is about something else."""
    alone = Batch([5], ["a"])
    about_it, about_something_else = BadRequestError("too long"), BadRequestError("no", param="dimensions")
    alone.blames(about_it)
    alone.blames(about_something_else)
    assert (about_it.index, about_something_else.index) == (5, None)


def rows(count: int, dim: int | None = None, *, normalize: bool = False) -> Rows:
    return Rows(count, Dimension(dim, "embedding_dim is"), normalize=normalize)


def vectors(*given: list[float]) -> Answer:
    return Answer([np.array(each, dtype=np.float32) for each in given])


def test_vectors_land_where_their_texts_stood() -> None:
    """The array is float32, contiguous, and in the caller's order."""
    filled = rows(3)
    filled.put(Batch([2, 0], ["c", "a"]), vectors([3, 3], [1, 1]))
    filled.put(Batch([1], ["b"]), vectors([2, 2]))
    assert np.array_equal(filled.array, [[1, 1], [2, 2], [3, 3]])
    assert filled.array.dtype == np.float32
    assert filled.array.flags.c_contiguous


def test_another_size_names_both() -> None:
    """Whether the size was set or learnt from an earlier answer."""
    for known in (rows(2, 3), rows(2)):
        with pytest.raises(DimensionMismatchError) as met:
            known.put(Batch([0, 1], ["a", "b"]), vectors([1, 2], [1, 2, 3]))
        assert {met.value.expected, met.value.found} == {2, 3}
        assert "2" in str(met.value)
        assert "3" in str(met.value)


def test_vectors_without_values_are_refused() -> None:
    """An empty vector teaches no size."""
    with pytest.raises(DecodingError, match="without values"):
        rows(1).put(Batch([0], ["a"]), vectors([]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    """With the place of their text."""
    with pytest.raises(DecodingError, match=r"input\[9\]"):
        Rows(1, Dimension(None, ""), normalize=False, first=9).put(Batch([9], ["a"]), vectors([1.0, bad]))


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 1e38, 1e-38])
def test_vectors_are_normalised(scale: float) -> None:
    """To length 1, also where the square of a length is more or less than float32 holds; large ones pass untouched."""
    filled, plain = rows(1, normalize=True), rows(1)
    for each in (filled, plain):
        each.put(Batch([0], ["a"]), vectors([3 * scale, -scale]))
    assert filled.array[0] == pytest.approx([3 / 10**0.5, -1 / 10**0.5], rel=1e-5)
    assert plain.array[0, 0] == np.float32(3 * scale)


def test_a_zero_vector_stays_zero() -> None:
    """Normalising it makes no NaN."""
    filled = rows(1, normalize=True)
    filled.put(Batch([0], ["a"]), vectors([0.0, 0.0]))
    assert np.array_equal(filled.array, [[0, 0]])
