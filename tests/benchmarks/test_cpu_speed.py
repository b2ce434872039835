"""What the benchmark of embeddings on a CPU makes of figures and answers."""

import itertools

import cpu_speed
import pytest


def test_no_text_comes_twice() -> None:
    """Equal ones would be computed once. Each has twelve words, and each client has its own."""
    first, second = (list(itertools.islice(cpu_speed.texts(seed), 5_000)) for seed in (1, 2))
    assert len({*first, *second}) == 10_000
    assert {len(text.split()) for text in first} == {12}


def test_ratios_are_to_the_same_way_of_asking() -> None:
    ours, stock = {"one": 400.0, "many": 700.0}, {"one": 50.0, "many": 70.0}
    said = cpu_speed.table(800.0, stock, ours)
    assert [cell.strip() for cell in said.splitlines()[3].split("|")[1:-1]] == ["many", "70", "700", "10.0", "0.88"]
    assert cpu_speed.verdict(800.0, stock, ours).startswith("many: 10.0 times stock vLLM (aim 8), 0.88 of transformers")


@pytest.mark.parametrize(("plain", "stock", "met"), [(800, 70, "met"), (1000, 70, "not met"), (800, 100, "not met")])
def test_both_aims_must_be_met(plain: float, stock: float, met: str) -> None:
    assert cpu_speed.verdict(plain, {"many": stock}, {"many": 700.0}).rpartition(": ")[2] == met


@pytest.mark.parametrize(
    "body", [b"{}", b'{"data": [{"embedding": "AAAA"}]}', b'{"embedding":"' + b"A" * 2048 + b'"}{"embedding":""}']
)
def test_an_answer_without_its_vectors_ends_the_run(body: bytes) -> None:
    with pytest.raises(SystemExit, match="vectors for 1 texts"):
        cpu_speed.check(body, 1)


def test_a_whole_answer_passes() -> None:
    cpu_speed.check(b'{"embedding":"' + b"A" * 2048 + b'"}', 1)
