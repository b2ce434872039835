"""Which texts are sent together, and where the vectors that come back belong. Pure but for one lock.

A batch is texts of similar length: they are sorted by it within a window, so that no engine computes a short text at
the pace of a long one, and nobody who waits for the first texts waits for the last.
"""

import math
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tandem.client.structs import Answer, Vector
from tandem.errors import BadRequestError, DecodingError, DimensionMismatchError

WINDOW = 16
"""Batches in a window."""
_MOST_CHARACTERS = 1_000_000  # of a batch: 4 MB at the most, where a router takes bodies of 8 MiB
_ITEM = re.compile(r"\binput\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that are sent together.

    Attributes:
        places: where each text stands in the caller's own list.
        texts: as they are sent, with their prefix.
        number: the batch's own place among those of its call.
    """

    places: Sequence[int]
    texts: Sequence[str]
    number: int = 0

    def blames(self, exc: BadRequestError) -> None:
        """Give ``exc`` the caller's own index of the text that the server blames, if it blames one."""
        named = _ITEM.search(exc.param or "") or _ITEM.search(exc.message)
        if named is None:
            exc.index = self.places[0] if len(self.places) == 1 and exc.param in (None, "input") else None
        elif int(named[1]) < len(self.places):
            exc.index = self.places[int(named[1])]
            exc.message = _ITEM.sub(self._renamed, exc.message)
            exc.param = _ITEM.sub(self._renamed, exc.param) if exc.param else None

    def _renamed(self, item: re.Match[str]) -> str:
        place = int(item[1])
        return f"input[{self.places[place]}]" if place < len(self.places) else item[0]


def checked(texts: object, *, first: int, prefix: str, longest: int) -> list[str]:
    """``texts`` as they are sent.

    Args:
        texts: what the caller gave; anything that can be iterated over.
        first: the index of the first of them in the caller's own list.
        prefix: put before each.
        longest: the most characters that a text may have, without the prefix.

    Raises:
        BadRequestError: it is no list of texts, or a text is empty, too long or no text; names its index.
    """
    return [_checked(text, index, prefix, longest) for index, text in enumerate(iterable(texts), first)]


def iterable(texts: object) -> Iterable[object]:
    """``texts``, if it is a collection of texts and not one.

    Raises:
        BadRequestError: it is not.
    """
    if isinstance(texts, str):
        raise BadRequestError("A list of texts is needed, not a single text: give [text], or use embed_single")
    if isinstance(texts, bytes | bytearray | memoryview) or not isinstance(texts, Iterable):
        raise BadRequestError(f"A list of texts is needed, not {type(texts).__name__}")
    return texts


def _checked(text: object, index: int, prefix: str, longest: int) -> str:
    if not isinstance(text, str):
        hint = ": decode it first" if isinstance(text, bytes | bytearray) else ""
        raise BadRequestError(f"input[{index}] is no text but {type(text).__name__}{hint}", index=index)
    if not text:
        raise BadRequestError(f"input[{index}] is empty: there is nothing to embed", index=index)
    if len(text) > longest:
        raise BadRequestError(
            f"input[{index}] has {len(text):,} characters, and max_text_length is {longest:,}: shorten or split it",
            index=index,
        )
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as exc:
        raise BadRequestError(
            f"input[{index}] cannot be written as UTF-8: it has a lone surrogate at character {exc.start}", index=index
        ) from exc
    return prefix + text


def batches(texts: Sequence[str], size: int, *, first: int = 0, number: int = 0) -> Iterator[Batch]:
    """All texts in batches of at most ``size``, the longest of each window first.

    The longest come first because what is left over at the end should be small.

    Args:
        first: the place of the first text in the caller's own list.
        number: that of the first batch.
    """
    for start in range(0, len(texts), size * WINDOW):
        window = range(start, min(start + size * WINDOW, len(texts)))
        for chosen in _cut(texts, sorted(window, key=lambda i: len(texts[i]), reverse=True), size):
            yield Batch([first + i for i in chosen], [texts[i] for i in chosen], number)
            number += 1


def _cut(texts: Sequence[str], order: Iterable[int], size: int) -> Iterator[list[int]]:
    chosen: list[int] = []
    characters = 0
    for i in order:
        if chosen and (len(chosen) == size or characters + len(texts[i]) > _MOST_CHARACTERS):
            yield chosen
            chosen, characters = [], 0
        chosen.append(i)
        characters += len(texts[i])
    if chosen:
        yield chosen


class Dimension:
    """How many dimensions vectors have: as set, or as the first answer had it. Safe from several threads."""

    def __init__(self, size: int | None, source: str) -> None:
        self._lock = threading.Lock()
        self._source = source
        self.size = size

    def check(self, found: int) -> int:
        """``found``, which becomes the size if there was none.

        Raises:
            DimensionMismatchError: there was another.
            DecodingError: a vector without values.
        """
        if found == self.size:
            return found
        if found == 0:
            raise DecodingError("The answer has a vector without values")
        with self._lock:
            if self.size is None:
                self.size, self._source = found, "earlier answers had"
            if self.size != found:
                raise DimensionMismatchError(
                    self.size, found, f"The answer has {found} dimensions, but {self._source} {self.size}"
                )
        return found


class Rows:
    """An array of vectors that is filled in as answers come; allocated when the size of vectors is known.

    Safe from several threads. Rows that no answer has filled yet hold anything.

    Args:
        count: how many rows.
        first: the place, in the caller's own list, of the first row's text.
    """

    def __init__(self, count: int, dimension: Dimension, *, normalize: bool, first: int = 0) -> None:
        self._count, self._first = count, first
        self._dimension, self._normalize = dimension, normalize
        self._lock = threading.Lock()
        self._array: NDArray[np.float32] | None = None

    def put(self, batch: Batch, answer: Answer) -> None:
        """Copy an answer's vectors to where they belong: the only copy that is made of them.

        Raises:
            DimensionMismatchError: a vector is of another size than expected.
            DecodingError: a vector has no values, or some that are no finite numbers.
        """
        with np.errstate(all="ignore"):
            for place, vector in zip(batch.places, answer.vectors, strict=True):
                row = self._row(place, vector.size)
                square = float(np.dot(vector, vector))
                # One pass in BLAS finds most vectors to be sound; only those it cannot judge are looked at closely.
                if not math.isfinite(square) and not np.isfinite(vector).all():
                    raise DecodingError(f"The vector of input[{place}] holds values that are no finite numbers")
                if self._normalize:
                    _scaled(vector, square, row)
                else:
                    row[:] = vector

    def _row(self, place: int, size: int) -> Vector:
        """Where the vector of a text belongs, if it has the right size."""
        self._dimension.check(size)
        row: Vector = (self._array if self._array is not None else self.array)[place - self._first]
        return row

    @property
    def array(self) -> NDArray[np.float32]:
        """Float32, C-contiguous, shape (count, dim); for whoever knows that the size is known."""
        with self._lock:
            if self._array is None:
                self._array = np.empty((self._count, self._dimension.size or 0), dtype=np.float32)
            return self._array


def _scaled(vector: Vector, square: float, out: Vector) -> None:
    """``vector`` at length 1 into ``out``; of length 0, as it is."""
    if 1e-30 < square < 1e30:
        np.multiply(vector, 1 / math.sqrt(square), out=out)
        return
    exact = vector.astype(np.float64)  # its square is more, or less, than float32 holds
    length = float(np.linalg.norm(exact))
    np.divide(exact, length or 1.0, out=out, casting="same_kind")
