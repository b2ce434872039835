"""Pure statistics over lists of numbers: percentiles, spread, ratio, slope, histogram."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_STEPS = 8  # buckets of a histogram for each doubling: 9 % wide


class Spread(NamedTuple):
    """What several rounds gave."""

    median: float
    low: float
    high: float


class Slope(NamedTuple):
    """A straight line through points, by least squares."""

    per_unit: float
    error: float
    """The standard error of ``per_unit``."""
    start: float
    """The line's value at the first point."""


class Bucket(NamedTuple):
    """How many values (``number``) lie from ``low`` to below ``high``."""

    low: float
    high: float
    number: int


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of all lie, between neighbours by straight line (numpy's default).

    Args:
        ordered: at least one value, smallest first.
        share: from 0 to 1.
    """
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def percentiles(values: Iterable[float], name: str) -> dict[str, float]:
    """``{name}_p50``, ``_p95`` and ``_p99``, exact; nothing of no values."""
    ordered = sorted(values)
    return {f"{name}_{label}": percentile(ordered, share) for label, share in SHARES.items()} if ordered else {}


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest and largest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(these: Sequence[float], those: Sequence[float]) -> Spread | None:
    """How many times ``those`` each of ``these`` is, pair by pair: neighbours in time share the machine's mood.

    None where there is no pair, or a pair with 0.
    """
    pairs = list(zip(these, those, strict=False))
    return spread([this / that for this, that in pairs]) if pairs and all(that for _, that in pairs) else None


def difference(these: Sequence[float], those: Sequence[float]) -> Spread | None:
    """How far ``these`` lie above ``those``, pair by pair; None where there is no pair."""
    pairs = list(zip(these, those, strict=False))
    return spread([this - that for this, that in pairs]) if pairs else None


def slope(xs: Sequence[float], ys: Sequence[float]) -> Slope | None:
    """The least-squares line through three points or more; None through fewer, or without a width."""
    if len(xs) < 3 or min(xs) == max(xs):
        return None
    found = statistics.linear_regression(xs, ys)
    middle = statistics.fmean(xs)
    width = sum((x - middle) ** 2 for x in xs)
    rest = sum((y - found.slope * x - found.intercept) ** 2 for x, y in zip(xs, ys, strict=True))
    return Slope(found.slope, math.sqrt(rest / (len(xs) - 2) / width), found.intercept + found.slope * xs[0])


def histogram(values: Iterable[float]) -> list[Bucket]:
    """Counts in buckets that are 9 % wide, the same for every list, from the first with a value to the last."""
    return _buckets(Counter(math.floor(math.log2(max(value, 1e-6)) * _STEPS) for value in values))


def merged(histograms: Iterable[Sequence[Bucket]]) -> list[Bucket]:
    """One histogram of several."""
    counts = Counter[int]()
    for buckets in histograms:
        for bucket in buckets:
            counts[round(math.log2(bucket.low) * _STEPS)] += bucket.number
    return _buckets(counts)


def _buckets(counts: Counter[int]) -> list[Bucket]:
    """By the place of each bucket with a value, those and all between them."""
    if not counts:
        return []
    return [
        Bucket(2 ** (at / _STEPS), 2 ** ((at + 1) / _STEPS), counts[at]) for at in range(min(counts), max(counts) + 1)
    ]
