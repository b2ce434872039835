"""Who gets what of the machine, with numbers worked out by hand."""

import pytest

from tandem.engines.hardware import Card, Hardware
from tandem.engines.plan import Share, plan
from tandem.errors import SetupError
from tandem.settings import EngineSettings

GIB = 2**30
CARD = Hardware((Card(0, "H100", 80 * GIB, 79 * GIB, "580"),), 16, 128 * GIB, frozenset())


def cpu(cores: int, memory: int) -> Hardware:
    return Hardware((), cores, memory * GIB, frozenset())


def engines(**memory: str | None) -> dict[str, EngineSettings]:
    kinds = {"e": "embedding", "g": "generation", "h": "generation"}
    return {name: EngineSettings(kind=kinds[name], model="m", memory=value) for name, value in memory.items()}


@pytest.mark.parametrize(
    ("asked", "shares"),
    [
        ({"e": None}, [0.9]),
        ({"e": None, "g": None}, [0.3, 0.6]),
        ({"e": None, "g": None, "h": None}, [0.18, 0.36, 0.36]),
        ({"e": "0.2", "g": None}, [0.2, 0.7]),
        ({"e": "8GiB", "g": None}, [0.1, 0.8]),
        ({"e": "0.4", "g": "0.6"}, [0.4, 0.6]),
    ],
)
def test_a_card_is_shared_by_what_is_asked_then_by_kind(asked: dict[str, str | None], shares: list[float]) -> None:
    """Nine tenths of a card are given away: first what is asked for, then one part to two."""
    assert [share.gpu_memory for share in plan(engines(**asked), CARD).values()] == shares


@pytest.mark.parametrize("asked", [{"e": "0.6", "g": "0.6"}, {"e": "0.88", "g": None}])
def test_overcommit_is_refused(asked: dict[str, str | None]) -> None:
    with pytest.raises(SetupError, match="ask for more than the card has"):
        plan(engines(**asked), CARD)


@pytest.mark.parametrize(
    ("cores", "memory", "asked", "shares"),
    [
        (2, 24, {"e": None}, [Share(threads=2, kv_cache=1 * GIB)]),
        (2, 24, {"e": None, "g": None}, [Share(threads=1, kv_cache=1 * GIB), Share(threads=1, kv_cache=6 * GIB)]),
        (1, 8, {"e": None, "g": "0.5"}, [Share(threads=1, kv_cache=1 * GIB), Share(threads=1, kv_cache=4 * GIB)]),
        (16, 256, {"g": None}, [Share(threads=16, kv_cache=8 * GIB)]),
        (4, 16, {"g": "100MiB"}, [Share(threads=4, kv_cache=1 * GIB)]),
    ],
)
def test_a_cpu_is_shared_by_cores_and_whole_gibibytes(
    cores: int, memory: int, asked: dict[str, str | None], shares: list[Share]
) -> None:
    assert list(plan(engines(**asked), cpu(cores, memory)).values()) == shares


def test_more_cache_than_memory_is_refused() -> None:
    with pytest.raises(SetupError, match="ask for 31 GiB of 24 GiB"):
        plan(engines(e=None, g="30GiB"), cpu(2, 24))
