"""Percentiles, spreads, ratios, slopes and histograms."""

import itertools
import random

import pytest

from tandem.bench import figures
from tandem.bench.figures import Bucket, Spread


@pytest.mark.parametrize(("share", "value"), [(0, 1), (0.5, 2.5), (0.25, 1.75), (1, 4)])
def test_a_percentile_lies_on_the_line_between_its_neighbours(share: float, value: float) -> None:
    """As numpy's default does."""
    assert figures.percentile([1, 2, 3, 4], share) == pytest.approx(value)


def test_percentiles_of_one_value_are_that_value_and_of_none_nothing() -> None:
    """Short rounds have no special case."""
    assert figures.percentiles([7.0], "x") == {"x_p50": 7, "x_p95": 7, "x_p99": 7}
    assert figures.percentiles([], "x") == {}


def test_a_spread_is_median_lowest_and_highest() -> None:
    """Of an even number of rounds, the median lies between the two in the middle."""
    assert figures.spread([4, 1, 3, 2]) == Spread(2.5, 1, 4)


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that gets slower for both sides changes no ratio."""
    assert figures.ratio([100, 50, 20], [50, 25, 10]) == Spread(2, 2, 2)
    assert figures.ratio([1, 3], [1, 1, 1]) == Spread(2, 1, 3)


def test_a_difference_is_taken_round_by_round() -> None:
    """Of a router and its engine, it is what the router costs."""
    assert figures.difference([5, 7], [3, 6]) == Spread(1.5, 1, 2)
    assert figures.difference([], []) is None


def test_there_is_no_ratio_to_nothing() -> None:
    """A side that answered nothing is not infinitely slower."""
    assert figures.ratio([1], [0]) is None
    assert figures.ratio([], [1]) is None


def test_the_slope_of_a_straight_line_has_no_error() -> None:
    """Least squares finds the line that the points lie on."""
    found = figures.slope([10, 20, 40], [5, 7, 11])
    assert found is not None
    assert (found.per_unit, found.error, found.start) == pytest.approx((0.2, 0, 5))


def test_the_slope_of_noise_is_within_its_error() -> None:
    """Of level noise, the slope's standard error says that it is level; the error's formula is the textbook's."""
    chance = random.Random(7)
    xs = [float(x) for x in range(200)]
    found = figures.slope(xs, [100 + chance.gauss(0, 2) for _ in xs])
    assert found is not None
    assert abs(found.per_unit) < 2 * found.error
    width = sum((x - 99.5) ** 2 for x in xs)
    assert found.error == pytest.approx(2 / width**0.5, rel=0.15)


def test_there_is_no_slope_through_two_points() -> None:
    """It would have no error to tell."""
    assert figures.slope([1, 2], [1, 2]) is None
    assert figures.slope([1, 1, 1], [1, 2, 3]) is None


def test_a_histogram_counts_every_value_once_in_a_bucket_that_holds_it() -> None:
    """Zero included: it goes to the smallest bucket."""
    values = [0.0, 0.001, 0.00101, 0.5, 2, 2]
    found = figures.histogram(values)
    assert sum(bucket.number for bucket in found) == len(values)
    assert found[-1].low <= 2 < found[-1].high
    assert found[-1].number == 2
    assert all(one.high == other.low for one, other in itertools.pairwise(found))
    assert figures.histogram([]) == []


def test_merged_histograms_are_that_of_all_values() -> None:
    """Buckets are the same for every list."""
    one, other = [0.01, 0.02, 5.0], [0.02, 0.3]
    assert figures.merged([figures.histogram(one), figures.histogram(other)]) == figures.histogram(one + other)
    assert figures.merged([[], []]) == []
    assert isinstance(figures.histogram(one)[0], Bucket)
