"""Whether and when an engine that died is started again. Pure.

The pauses grow exponentially and are drawn from their whole range ("full jitter"), so that engines that died of one
cause do not come back at one moment.

Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from collections.abc import Collection, Sequence

from tandem.engines.hardware import Card
from tandem.settings import SupervisionSettings


def recent(deaths: Sequence[float], at: float, settings: SupervisionSettings) -> list[float]:
    """Those of ``deaths`` that count at the time ``at``: within the window that ends then. In seconds of one clock."""
    return [death for death in deaths if at - death < settings.restart_window]


def given_up(deaths: Sequence[float], settings: SupervisionSettings) -> bool:
    """Whether an engine that died that often within the window is left dead."""
    return len(deaths) > settings.max_restarts


def pause(deaths: Sequence[float], settings: SupervisionSettings, chance: float) -> float:
    """Seconds until the next start.

    Args:
        deaths: those that count, at least one.
        chance: between 0 and 1, drawn anew for each pause.
    """
    doublings = min(len(deaths) - 1, 32)  # beyond that, no float holds the product
    return chance * min(settings.longest_pause, settings.first_pause * 2.0**doublings)


def room(cards: Sequence[Card], own: Collection[int], share: float) -> bool:
    """Whether the memory that a dead engine had is free again, as far as the driver tells.

    vLLM ends at once where its share of a card is not free; and the driver takes a while to free what a killed process
    had.

    Args:
        own: the engine's cards by the driver's index; empty where it may see them all.
        share: of each card, what the engine is going to take.
    """
    used = [card for card in cards if card.index in own or not own]
    return all(card.free >= share * card.total for card in used)
