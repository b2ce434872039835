"""Whether and when an engine that died is started again."""

import pytest

from tandem.engines.hardware import Card
from tandem.engines.restarts import given_up, pause, recent, room
from tandem.settings import SupervisionSettings

SETTINGS = SupervisionSettings(max_restarts=3, restart_window=100, first_pause=2, longest_pause=10)


def test_only_deaths_within_the_window_count() -> None:
    assert recent([0, 50, 100, 149], 150, SETTINGS) == [100, 149]


def test_it_is_given_up_after_so_many_restarts_within_the_window() -> None:
    """Three restarts are allowed: the fourth death is the last."""
    assert [given_up([0.0] * deaths, SETTINGS) for deaths in (1, 3, 4)] == [False, False, True]
    assert given_up([0.0], SupervisionSettings(max_restarts=0))


@pytest.mark.parametrize(("deaths", "most"), [(1, 2), (2, 4), (3, 8), (4, 10), (10_000, 10)])
def test_pauses_double_up_to_the_longest_and_are_drawn_from_all_of_it(deaths: int, most: float) -> None:
    drawn = [pause([0.0] * deaths, SETTINGS, chance) for chance in (0, 0.5, 1)]
    assert drawn == [0, most / 2, most]


GIB = 2**30
CARDS = (Card(0, "L4", 24 * GIB, 3 * GIB, "580"), Card(1, "L4", 24 * GIB, 20 * GIB, "580"))


@pytest.mark.parametrize(
    ("own", "share", "there"),
    [((1,), 0.8, True), ((0,), 0.8, False), ((0, 1), 0.8, False), ((), 0.8, False), ((), 0.1, True), ((0,), 0.1, True)],
)
def test_there_is_room_once_its_share_of_each_card_is_free(own: tuple[int, ...], share: float, there: bool) -> None:
    assert room(CARDS, own, share) is there


def test_a_driver_that_does_not_tell_is_no_hindrance() -> None:
    """It says neither how large the card is nor what is free; or it says nothing at all."""
    assert room((Card(0, "GB10", 0, 0, "580"),), (0,), 0.9)
    assert room((), (0,), 0.9)
