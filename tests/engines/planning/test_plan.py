"""Who gets what of the machine, with numbers worked out by hand.

Cards as the driver tells them, in MiB: 16 GB 16,376, 24 GB 24,564, 48 GB 46,068, 80 GB 81,559, 141 GB 143,771, of each
of which 300 MiB are in use.

What is given away unasked is 95 % of a card, less 512 MiB for each engine's CUDA context, in thousandths of the card:

=======  ==========  ==============  ==============
card     95 %        with 1 engine   with 2 engines
=======  ==========  ==============  ==============
16 GB     15,557.2   918 (15,045.2)  887 (14,533.2)
24 GB     23,335.8   929 (22,823.8)  908 (22,311.8)
48 GB     43,764.6   938 (43,252.6)  927 (42,740.6)
80 GB     77,481.1   943 (76,969.1)  937 (76,457.1)
141 GB   136,582.5   946 (136,070)   942 (135,558)
=======  ==========  ==============  ==============
"""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from tandem.engines.footprints import Footprint
from tandem.engines.hardware import Card, Hardware
from tandem.engines.planning.changes import Change
from tandem.engines.planning.needs import Wanted
from tandem.engines.planning.plan import plan
from tandem.engines.planning.shares import Share
from tandem.errors import DoesNotFit
from tandem.settings import EngineSettings

from ..models import minilm, recorded

MIB = 2**20
GIB = 2**30
SIZES = {16: 16376, 24: 24564, 48: 46068, 80: 81559, 141: 143771}


def cards(size: int, count: int = 1, *, used: int = 300) -> Hardware:
    """A machine with ``count`` cards of ``size`` GB, of each of which ``used`` MiB are in use."""
    free = (SIZES[size] - used) * MIB
    listed = tuple(Card(i, f"card of {size} GB", SIZES[size] * MIB, free, "580") for i in range(count))
    return Hardware(listed, 16, 128 * GIB, frozenset())


def cpu(cores: int, memory: int, unused: int | None = None) -> Hardware:
    return Hardware((), cores, memory * GIB, frozenset(), None if unused is None else unused * GIB)


def wanted(model: str, kind: Any = "generation", **asked: Any) -> Wanted:
    return Wanted(EngineSettings(kind=kind, model=model, **asked), recorded(model, kind))


def pair(model: str = "Qwen3-8B-FP8", **asked: Any) -> dict[str, Wanted]:
    """Tandem's default models, by default those for a card; ``asked`` of the language model."""
    return {"embedding": wanted("Qwen3-Embedding-0.6B", "embedding"), "generation": wanted(model, **asked)}


def with_memory(embedding: str | None, generation: str | None) -> dict[str, Wanted]:
    return pair(memory=generation) | {"embedding": wanted("Qwen3-Embedding-0.6B", "embedding", memory=embedding)}


@pytest.mark.parametrize(
    ("size", "shares", "contexts"),
    [
        (16, (0.169, 0.717), (7_504, 10_592)),
        (24, (0.218, 0.689), (31_152, 40_960)),
        (48, (0.208, 0.718), (32_768, 40_960)),
        (80, (0.136, 0.8), (32_768, 40_960)),
        (141, (0.077, 0.864), (32_768, 40_960)),
    ],
)
def test_the_default_models_share_a_card(size: int, shares: tuple[float, float], contexts: tuple[int, int]) -> None:
    """Each gets what it cannot do without; of the rest one part is the embedding model's, as far as it can use that,
    and two are the language model's.

    On 16 GB, in MiB. The embedding model: weights 595,776,512 x 2 bytes = 1,136.35; activations of 2,048 tokens,
    (2 x 1,024 + 3 x 3,072) x 2 bytes x 1.25 each = 55; graphs 28 x 16 = 448; workspaces 307.2; a context of 2,048
    tokens of 112 KiB = 224: together 2,170.55, or 133 thousandths of 16.376 each.

    The language model: weights 8,999.40; activations (2 x 4,096 + 3 x 12,288) x 2 x 1.25 x 2,048 = 220, and logits of
    256 sequences, 151,936 x 4 bytes each, = 148.38; graphs 36 x 16 = 576; workspaces 307.2; 2,048 tokens of 144 KiB =
    288: together 10,538.98, or 644 thousandths. Of the 887 there are 110 left: 36 and 73.

    So the cache of the embedding model has 169 x 16.376 - 1,946.55 = 820.99 MiB, 7,506 tokens, 469 whole blocks; that
    of the other one 717 x 16.376 - 10,250.98 = 1,490.61 MiB, 10,599 tokens, 662 blocks.

    On 24 GB: 89 and 430 of 908 are needed, 129.67 and 259.33 of the rest are 129 and 259. On 80 GB steps are four times
    as large (8,192 tokens, 1,024 sequences): 29 and 143 of 937; the embedding model's cache is of use up to two texts
    of 32,768 and two steps of 8,192 tokens, 8,960 MiB, so of the rest it gets 107, and the other one 657.
    """
    found = plan(pair(), cards(size))
    assert tuple(share.gpu_memory for share in found.values()) == shares
    assert tuple(share.context for share in found.values()) == contexts
    assert all(share.kv_cache is None for share in found.values())  # not before it was measured
    assert all(share.cards == () for share in found.values())  # there is but one


def test_where_the_memory_of_a_card_goes() -> None:
    """The numbers of the docstring above, and a note where the context is shorter than the model's."""
    share = plan(pair(), cards(16))["generation"]
    assert share.parts is not None
    assert share.parts.weights == 6_945_767_424 + 2 * 1_245_391_872
    assert share.parts.activations == 230_686_720 + 155_582_464
    assert share.parts.graphs == 576 * MIB
    assert share.parts.total == int(0.717 * 16376 * MIB)
    assert share.tokens == 10_599
    assert share.notes == ("Its memory allows a context of 10,592 of the model's 40,960 tokens",)


@pytest.mark.parametrize(
    ("size", "count", "share", "context"),
    [
        # In MiB on each card: weights 141,107,412,992 / 2 bytes = 67,285.3; activations (2 x 8,192 + 3 x 14,336) x 2
        # x 1.25 x 8,192 = 1,160, logits 1,024 x 128,256 x 4 = 501; graphs 80 x 16 = 1,280; workspaces 1,024: 71,250.3.
        # Of 943 thousandths, 76,910.1, there are 5,659.9 left: 36,223 tokens of 160 KiB (4 of 8 heads), 2,263 blocks.
        (80, 2, 0.943, 36_208),
        # Of 136,007.4 there are 64,757.1 left: more than three times the model's own context.
        (141, 2, 0.946, 131_072),
        # A quarter on each: 33,642.6; 2,048 tokens and 256 sequences: 185 and 125.25; 1,280; 1,024: 36,256.9. Of
        # 43,211.8 this leaves 6,954.9: 89,022 tokens of 80 KiB.
        (48, 4, 0.938, 89_008),
    ],
)
def test_llama_70b_on_several_cards(size: int, count: int, share: float, context: int) -> None:
    """Tensor parallel divides weights, activations and heads; graphs and workspaces it does not."""
    engines = {"generation": wanted("Llama-3.1-70B", tensor_parallel_size=count)}
    found = plan(engines, cards(size, count))["generation"]
    assert (found.gpu_memory, found.context, found.cards) == (share, context, tuple(range(count)))


@pytest.mark.parametrize(("size", "count"), [(16, 1), (24, 1), (48, 1), (80, 1), (16, 4), (24, 4), (48, 2)])
def test_llama_70b_where_it_does_not_fit(size: int, count: int) -> None:
    """131.4 GiB of weights on cards that have less: refused before anything is loaded, with the numbers."""
    engines = {"generation": wanted("Llama-3.1-70B", tensor_parallel_size=count)}
    weights = 141_107_412_992 / count / GIB
    with pytest.raises(DoesNotFit, match=rf"generation needs .* \(weights {weights:.1f} GiB, activations") as refused:
        plan(engines, cards(size, count))
    assert refused.value.changes == ()
    assert "smaller model or a quantized one" in str(refused.value)


def test_a_card_that_is_just_large_enough_must_be_asked_for() -> None:
    """136.0 GiB of 139.6 that are free: more than is given away unasked, so the refusal names the share."""
    engines = {"generation": wanted("Llama-3.1-70B")}
    with pytest.raises(DoesNotFit, match=r"It fits with engines\.generation\.memory = 0\.97"):
        plan(engines, cards(141))


@pytest.mark.parametrize(
    ("size", "share", "tokens"),
    [
        # In MiB: weights 30,532,122,624 x 2 bytes = 58,235.4; activations of 8,192 tokens (2 x 2,048 + 3 x 6,144, eight
        # experts of 768) x 2 x 1.25 = 440, logits 593.5; graphs 48 x 16 = 768; workspaces 307.2: 60,344.1. Of 943
        # thousandths, 76,910.1, there are 16,566 left: 176,704 tokens of 96 KiB.
        (80, 0.943, 176_704),
        (141, 0.946, 807_074),
        (16, None, None),
        (24, None, None),
        (48, None, None),
    ],
)
def test_a_mixture_of_experts_has_all_of_them_in_memory(size: int, share: float | None, tokens: int | None) -> None:
    """Of Qwen3-30B-A3B, 3 thousand million parameters work at once, and 30.5 must be there."""
    engines = {"generation": wanted("Qwen3-30B-A3B")}
    if share is None:
        with pytest.raises(DoesNotFit, match=r"weights 56\.9 GiB"):
            plan(engines, cards(size))
    else:
        found = plan(engines, cards(size))["generation"]
        assert (found.gpu_memory, found.tokens, found.context) == (share, tokens, 40_960)


@pytest.mark.parametrize(
    ("embedding", "generation", "shares"),
    [
        ("0.3", "0.6", (0.3, 0.6)),
        # 927 - 300 of 46.068 MiB for what is left; it needs 229 and can use all.
        ("0.3", None, (0.3, 0.627)),
        # 8,192 MiB = 177.8 thousandths; 749 are left, and the language model is the only one to have them.
        ("8GiB", None, (0.1778, 0.749)),
    ],
)
def test_what_is_asked_for_comes_first(embedding: str, generation: str | None, shares: tuple[float, float]) -> None:
    found = plan(with_memory(embedding, generation), cards(48))
    assert tuple(share.gpu_memory for share in found.values()) == shares


def test_args_ask_for_memory_and_context_as_settings_do() -> None:
    """They win in vLLM, so they do here; in each of the forms that vLLM takes."""
    args = ("--gpu-memory-utilization=0.5", "--max_model_len", "4k", "--kv-cache-dtype", "fp8", "--enforce-eager")
    share = plan(pair(memory="0.3", max_model_len=10**6, args=args), cards(48))["generation"]
    assert share.parts is not None
    assert (share.gpu_memory, share.context, share.parts.graphs, share.token) == (0.5, 4000, 0, 36 * 2 * 8 * 128)


@pytest.mark.parametrize(
    ("engines", "size", "words", "changes"),
    [
        (
            with_memory("0.6", "0.6"),
            24,
            r"the engines ask for 28\.8 GiB \(embedding 14\.4 GiB, generation 14\.4 GiB\) of card of 24 GB, of which "
            r"22\.7 GiB of 24\.0 GiB are free",
            # 22.7 - 14.4 = 8.3 GiB of 23.99; the language model cannot do with that, and must stay.
            (Change("embedding", "memory", "0.34"), Change("embedding", "memory", None)),
        ),
        (
            with_memory(None, "8GiB"),
            24,
            r"generation needs 10\.3 GiB \(weights 8\.8 GiB, .*\); its memory setting of 8GiB gives it 8\.0 GiB",
            (Change("generation", "memory", "11GiB"), Change("generation", "memory", None)),
        ),
        (
            # Of 887 thousandths, 133 are the embedding model's: 754 x 16.376 - 10,250.98 = 2,096.5 MiB, 931 blocks.
            pair(max_model_len=40_960),
            16,
            r"generation needs 15\.6 GiB .*KV cache of 40,960 tokens 5\.6 GiB\): more than the 14\.2 GiB",
            (Change("generation", "max_model_len", "14896"),),
        ),
        (
            # 40,960 tokens of 144 KiB are 5,760 MiB, of 72 KiB 2,880: with 10,250.98 beside them 13,131 of 13,763.
            {"generation": wanted("Qwen3-8B-FP8", memory="13.44GiB", max_model_len=40_960)},
            16,
            r"its memory setting of 13\.44GiB gives it 13\.4 GiB",
            (
                Change("generation", "max_model_len", "24960"),
                Change("generation", "args", "('--kv-cache-dtype', 'fp8')"),
            ),
        ),
        (
            # 65,536 tokens a step: 7,040 MiB of activations.
            pair(max_num_batched_tokens=65_536),
            16,
            r"activations 7\.0 GiB",
            (Change("generation", "max_num_batched_tokens", "2048"),),
        ),
    ],
)
def test_a_refusal_has_the_numbers_and_the_nearest_settings(
    engines: dict[str, Wanted], size: int, words: str, changes: tuple[Change, ...]
) -> None:
    with pytest.raises(DoesNotFit, match=words) as refused:
        plan(engines, cards(size))
    said = [replace(c, value=None if c.value is None else str(c.value)) for c in refused.value.changes]
    assert tuple(said) == changes
    assert all(str(change) in refused.value.mend for change in refused.value.changes)
    assert refused.value.exit_code == 2


def test_a_change_takes_the_place_of_the_flag_that_would_win() -> None:
    """A context in args is shortened there, too."""
    engines = pair(args=("--max-model-len", "40960", "--seed", "1"))
    with pytest.raises(DoesNotFit) as refused:
        plan(engines, cards(16))
    (change,) = refused.value.changes
    assert change.apply(engines)["generation"].settings.args == ("--seed", "1")
    assert plan(change.apply(engines), cards(16))["generation"].context == 14_896


def test_other_programs_on_the_card_are_counted() -> None:
    """With 10,000 of 24,564 MiB in use, nine tenths of the card are not to be had."""
    assert plan({"generation": wanted("Qwen3-8B-FP8", memory="0.9")}, cards(24))
    with pytest.raises(DoesNotFit, match=r"13\.7 GiB of 24\.0 GiB are free") as refused:
        plan({"generation": wanted("Qwen3-8B-FP8", memory="0.9")}, cards(24, used=10_000))
    # (24,564 - 10,000 - 512) / 245.64 = 57.2.
    assert str(refused.value.changes[0]) == "engines.generation.memory = 0.57"


def test_engines_go_to_the_emptiest_card() -> None:
    """The largest first; then whoever finds most left. One that asks for two cards gets two."""
    engines = {
        "small": wanted("Qwen3-Embedding-0.6B", "embedding"),
        "large": wanted("Qwen3-8B-FP8"),
        "other": wanted("Qwen3-0.6B"),
    }
    found = plan(engines, cards(24, 2))
    assert {name: share.cards for name, share in found.items()} == {"small": (1,), "large": (0,), "other": (1,)}
    found = plan(engines | {"wide": wanted("Qwen3-30B-A3B", tensor_parallel_size=2)}, cards(80, 3))
    assert {name: share.cards for name, share in found.items()} == {
        "wide": (0, 1),
        "large": (2,),
        "other": (2,),
        "small": (2,),
    }


def test_an_engine_is_planned_where_its_environment_puts_it() -> None:
    engines = {"large": wanted("Qwen3-8B-FP8", env={"CUDA_VISIBLE_DEVICES": "1"}), "other": wanted("Qwen3-8B-FP8")}
    assert [share.cards for share in plan(engines, cards(24, 2)).values()] == [(1,), (0,)]


def test_a_busy_card_is_not_the_emptiest() -> None:
    machine = cards(24, 2)
    busy = replace(machine.cards[0], free=12_000 * MIB)
    found = plan({"large": wanted("Qwen3-8B-FP8")}, replace(machine, cards=(busy, machine.cards[1])))
    assert found["large"].cards == (1,)


def test_more_cards_than_there_are_is_refused() -> None:
    with pytest.raises(DoesNotFit, match=r"asks for 4 cards \(tensor_parallel_size\), and there are 2") as refused:
        plan({"generation": wanted("Qwen3-8B-FP8", tensor_parallel_size=4)}, cards(80, 2))
    assert [change.value for change in refused.value.changes] == [1, 2]


def test_an_encoder_needs_no_cache() -> None:
    """So all that is left is the language model's."""
    engines = {
        "embedding": Wanted(EngineSettings(kind="embedding", model="m"), minilm()),
        "generation": wanted("Qwen3-8B-FP8"),
    }
    found = plan(engines, cards(24))
    # Weights 43.3 MiB, activations of 2,048 tokens 26.25, workspaces 307.2: 376.8 MiB, or 16 thousandths.
    assert (found["embedding"].gpu_memory, found["embedding"].context) == (0.016, 512)
    assert found["generation"].gpu_memory == pytest.approx(0.908 - 0.016)


@pytest.mark.parametrize("facts", [{"cache": None, "family": "unheard_of"}, {"floats": 0, "stored": 0}])
def test_what_is_not_known_is_left_to_vllm(facts: dict[str, Any]) -> None:
    """Its part of the card is what kind and settings say; neither context nor size is promised or refused."""
    unknown = Wanted(
        EngineSettings(kind="generation", model="m", max_model_len=10**9),
        replace(recorded("Qwen3-8B-FP8"), **facts),
    )
    share = plan({"generation": unknown}, cards(24))["generation"]
    assert (share.gpu_memory, share.context, share.kv_cache) == (0.929, None, None)
    assert share.notes[0].endswith("what fits is left to vLLM")


@pytest.mark.parametrize(
    ("asked", "shares"),
    [
        ({"embedding": None}, [0.9]),
        ({"embedding": None, "generation": None}, [0.3, 0.6]),
        ({"embedding": "0.2", "generation": None}, [0.2, 0.7]),
        ({"embedding": "0.4", "generation": "0.6"}, [0.4, 0.6]),
    ],
)
def test_a_card_that_does_not_tell_its_size_is_shared_by_parts(
    asked: dict[str, str | None], shares: list[float]
) -> None:
    """Nine tenths: first what is asked for, then one part to two."""
    machine = Hardware((Card(0, "part", 0, 0, "580"),), 16, 128 * GIB, frozenset())
    engines = {
        name: Wanted(EngineSettings(kind=name, model="m", memory=memory), recorded("Qwen3-0.6B"))
        for name, memory in asked.items()
    }
    assert [share.gpu_memory for share in plan(engines, machine).values()] == shares
    with pytest.raises(DoesNotFit, match=r"more than the card has \(embedding 0\.88\)"):
        plan(with_memory("0.88", None), machine)


def measured(engines: dict[str, Wanted], shares: dict[str, Share], beside: dict[str, int]) -> dict[str, Wanted]:
    """``engines`` after a start in which each needed ``beside`` bytes, and the rest of its share was its cache."""
    found = {}
    for name, share in shares.items():
        assert share.parts is not None
        footprint = Footprint(beside=beside[name], cache=share.parts.total - beside[name])
        found[name] = replace(engines[name], footprint=footprint)
    return found


def test_five_starts_in_a_row_give_the_same_cache() -> None:
    """The first measures; the others are told just that, to the byte, though estimates had been wrong, and though other
    programs take a little more or less of the card each time."""
    beside = {"embedding": 1_700 * MIB, "generation": 10_900 * MIB}
    first = plan(pair(), cards(24))
    engines = measured(pair(), first, beside)
    for used in (300, 410, 150, 0):
        again = plan(engines, cards(24, used=used))
        for name, share in again.items():
            assert share.gpu_memory == first[name].gpu_memory
            assert share.kv_cache == engines[name].footprint.cache  # type: ignore[union-attr]
            assert share.measured


def test_a_new_neighbour_takes_from_what_was_measured() -> None:
    """The next plan has another share for it, and the same need."""
    first = plan(pair(), cards(48))
    engines = measured(pair(), first, {"embedding": 2_000 * MIB, "generation": 11_000 * MIB})
    more = plan(engines | {"another": wanted("Qwen3-0.6B")}, cards(48))["generation"]
    assert more.gpu_memory is not None
    assert first["generation"].gpu_memory is not None
    assert more.gpu_memory < first["generation"].gpu_memory
    assert more.kv_cache == int(more.gpu_memory * 46068 * MIB) - 11_000 * MIB


def test_what_was_measured_decides_whether_a_context_fits() -> None:
    """An estimate that was too high does not stand in the way of what is known to fit; one that was too low does not
    let through what is known not to. Estimated are 10,251 MiB beside the cache: of 918 thousandths, 34,080 tokens."""
    asked = {"generation": wanted("Qwen3-8B-FP8", max_model_len=36_000)}
    with pytest.raises(DoesNotFit):
        plan(asked, cards(16))
    small = {"generation": replace(asked["generation"], footprint=Footprint(beside=9_500 * MIB))}
    assert plan(small, cards(16))["generation"].context == 36_000
    fits = {"generation": wanted("Qwen3-8B-FP8", max_model_len=30_000)}
    assert plan(fits, cards(16))
    with pytest.raises(DoesNotFit):
        plan({"generation": replace(fits["generation"], footprint=Footprint(beside=12_000 * MIB))}, cards(16))


def test_ram_is_divided_as_before_once_it_was_measured() -> None:
    """As on a card, the division goes by estimates as long as what was measured fits into it."""
    engines = pair("Qwen3-0.6B")
    first = plan(engines, cpu(4, 14, 13))
    for beside in (2 * GIB, 14 * GIB // 5):
        seen = {name: replace(engine, footprint=Footprint(beside=beside)) for name, engine in engines.items()}
        again = plan(seen, cpu(4, 14, 13))
        assert [share.kv_cache for share in again.values()] == [share.kv_cache for share in first.values()]
    # Too much for that division, so there is another one: 12.72 GiB less 9 leaves one GiB for each, and one more.
    seen = {name: replace(engine, footprint=Footprint(beside=9 * GIB // 2)) for name, engine in engines.items()}
    assert sum(share.kv_cache or 0 for share in plan(seen, cpu(4, 14, 13)).values()) == 3 * GIB


@pytest.mark.parametrize(
    ("cores", "kinds", "threads"),
    [
        (1, "e", [1]),
        (2, "e", [2]),  # half of the machine is too much to leave to the API server
        (2, "eg", [1, 1]),
        (4, "e", [3]),
        (4, "eg", [2, 1]),
        (16, "eg", [8, 7]),
        (16, "ge", [7, 8]),
        (16, "gg", [8, 7]),
        (2, "t", [1]),
        (8, "et", [6, 1]),  # a tiny model is slower with more than one
        (2, "egg", [1, 1, 1]),
    ],
)
def test_threads_go_where_they_are_of_use(cores: int, kinds: str, threads: list[int]) -> None:
    """One core is left to the API servers; embedding comes first."""
    tiny = replace(recorded("Qwen3-0.6B"), floats=3_800_000)
    made = {
        "e": lambda: wanted("Qwen3-Embedding-0.6B", "embedding"),
        "g": lambda: wanted("Qwen3-0.6B"),
        "t": lambda: Wanted(EngineSettings(kind="generation", model="tiny"), tiny),
    }
    engines = {f"{kind}{number}": made[kind]() for number, kind in enumerate(kinds)}
    assert [share.threads for share in plan(engines, cpu(cores, 64)).values()] == threads


@pytest.mark.parametrize(
    ("memory", "asked", "caches"),
    [
        # One text of 32,768 tokens of 112 KiB: 3.5 GiB, so 4. A quarter of the RAM, but no more than 8.
        (24, {}, [4, 6]),
        (128, {}, [4, 8]),
        (24, {"memory": "3.7GiB"}, [4, 3]),
        (24, {"memory": "0.5"}, [4, 12]),
        # 40,960 tokens of 112 KiB are 4.375 GiB: whether that is much of the RAM or not, it was asked for.
        (16, {"max_model_len": 40_960}, [4, 5]),
    ],
)
def test_ram_is_shared_in_whole_gibibytes(memory: int, asked: dict[str, Any], caches: list[int]) -> None:
    found = plan(pair("Qwen3-0.6B", **asked), cpu(4, memory))
    assert [share.kv_cache for share in found.values()] == [n * GIB for n in caches]


def test_a_small_model_is_not_given_more_than_it_can_use() -> None:
    """8 sequences of 2,048 tokens of 112 KiB: 1.75 GiB, in whole ones 2; on a card 1,792 MiB of cache, give or take the
    thousandth of a card (82 MiB) to which shares are rounded."""
    facts = replace(recorded("Qwen3-0.6B"), context=2048)
    engines = {"g": Wanted(EngineSettings(kind="generation", model="m", max_num_seqs=8), facts)}
    assert plan(engines, cpu(4, 64))["g"].kv_cache == 2 * GIB
    parts = plan(engines, cards(80))["g"].parts
    assert parts is not None
    assert abs(parts.cache - 1792 * MIB) <= 82 * MIB


def test_little_ram_is_shared_by_kind() -> None:
    """Both models with their processes and activations take 4.9 GiB, and one GiB of cache each is the least. Of 8 GiB,
    7 of them unused, 6.8 are to be had; of 10 GiB 9.8. What is left of those, 2.9, would be 0.97 and 1.93; in whole GiB
    one for each."""
    engines = pair("Qwen3-0.6B")
    with pytest.raises(DoesNotFit, match=r"more than the 6\.8 GiB of RAM to be had of 8\.0 GiB"):
        plan(engines, cpu(2, 8, 7))
    found = plan(engines, cpu(2, 10, 10))
    assert [share.kv_cache for share in found.values()] == [2 * GIB, 2 * GIB]


def test_an_encoder_on_a_cpu_is_told_a_size_that_it_does_not_use() -> None:
    """Without one vLLM would claim nearly all RAM."""
    share = plan({"embedding": Wanted(EngineSettings(kind="embedding", model="m"), minilm())}, cpu(2, 3))["embedding"]
    assert share.parts is not None
    assert (share.kv_cache, share.parts.cache) == (GIB, 0)


def test_a_context_that_its_cache_cannot_hold_is_refused_on_a_cpu() -> None:
    """40,960 tokens of 112 KiB in 2 GiB; 18,720 are the most that fit, in whole blocks of 16."""
    engines = {"generation": wanted("Qwen3-0.6B", max_model_len=40_960, memory="2GiB")}
    with pytest.raises(DoesNotFit, match=r"needs 4\.4 GiB of KV cache for a context of 40,960 tokens") as refused:
        plan(engines, cpu(2, 24))
    assert [str(change) for change in refused.value.changes] == [
        "engines.generation.max_model_len = 18720",
        "engines.generation.memory = 5GiB",
        "engines.generation.memory unset",
    ]


def test_a_cache_that_was_asked_for_is_named_as_that() -> None:
    """And not as what its context needs."""
    engines = {"generation": wanted("Qwen3-0.6B", memory="200GiB")}
    with pytest.raises(DoesNotFit, match=r"KV cache as memory = 200GiB asks 200\.0 GiB\): more than the 23\.5 GiB"):
        plan(engines, cpu(2, 24))


def test_what_processes_really_held_is_used_on_a_cpu() -> None:
    """A model whose processes were seen to hold 20 GiB leaves no room for a cache in 21."""
    engine = wanted("Qwen3-0.6B")
    assert plan({"generation": engine}, cpu(2, 21))
    with pytest.raises(DoesNotFit, match=r"generation needs 21\.0 GiB"):
        plan({"generation": replace(engine, footprint=Footprint(beside=20 * GIB))}, cpu(2, 21))


MODELS = {
    "embedding": ["Qwen3-Embedding-0.6B", "Qwen3-8B-FP8"],
    "generation": ["Qwen3-0.6B", "Qwen3-8B-FP8", "Qwen3-30B-A3B", "Llama-3.1-70B", "Mixtral-8x7B"],
}
asks = strategies.fixed_dictionaries(
    {},
    optional={
        "memory": strategies.sampled_from(["0.05", "0.3", "0.5", "0.9", "4GiB", "20GiB"]),
        "max_model_len": strategies.sampled_from([512, 8192, 30_000, 131_072]),
        "max_num_seqs": strategies.sampled_from([8, 512]),
        "max_num_batched_tokens": strategies.sampled_from([512, 65_536]),
        "tensor_parallel_size": strategies.sampled_from([1, 2]),
    },
)
engine = strategies.sampled_from(["embedding", "generation"]).flatmap(
    lambda kind: strategies.builds(
        lambda model, asked: wanted(model, kind, **asked), strategies.sampled_from(MODELS[kind]), asks
    )
)
fleets = strategies.dictionaries(strategies.sampled_from("abcd"), engine, min_size=1, max_size=3)
machines = strategies.builds(cards, strategies.sampled_from(sorted(SIZES)), strategies.integers(1, 3))


def plan_or_mends(engines: dict[str, Wanted], machine: Hardware) -> dict[str, Share]:
    """The plan; none where it is refused, but then each setting that the refusal names has one."""
    try:
        return plan(engines, machine)
    except DoesNotFit as refused:
        for change in refused.changes:
            assert isinstance(change, Change)
            assert plan(change.apply(engines), machine)
        return {}


@settings(max_examples=200, deadline=None)
@given(engines=fleets, machine=machines, used=strategies.integers(0, 16_000))
def test_no_card_is_promised_twice(engines: dict[str, Wanted], machine: Hardware, used: int) -> None:
    """What engines get on a card, and their CUDA contexts, is never more than what is free of it; each has at least the
    context that it asked for. A plan that is refused names settings with which there is one."""
    busy = replace(machine, cards=tuple(replace(card, free=card.total - used * MIB) for card in machine.cards))
    found = plan_or_mends(engines, busy)
    for card in busy.cards:
        here = [share for share in found.values() if card.index in share.cards or not share.cards]
        assert sum((share.gpu_memory or 0) * card.total + GIB // 2 for share in here) <= card.free
    for name, share in found.items():
        assert share.context is not None
        assert share.context >= min(engines[name].settings.max_model_len or 2048, 2048)
        assert engines[name].settings.max_model_len in (None, share.context)


@settings(max_examples=200, deadline=None)
@given(engines=fleets, machine=machines, used=strategies.integers(0, 16_000), less=strategies.integers(0, 16_000))
def test_more_memory_never_gives_less(engines: dict[str, Wanted], machine: Hardware, used: int, less: int) -> None:
    """On one card: with less in use, all that fitted still does, and no engine has a smaller cache."""
    card = replace(machine.cards[0], free=machine.cards[0].total - used * MIB)
    freer = replace(card, free=min(card.total, card.free + less * MIB))
    engines = {name: Change(name, "tensor_parallel_size", 1).apply(engines)[name] for name in engines}
    try:
        before = plan(engines, replace(machine, cards=(card,)))
    except DoesNotFit:
        return
    after = plan(engines, replace(machine, cards=(freer,)))
    for name, share in before.items():
        assert share.parts is not None
        grown = after[name].parts
        assert grown is not None
        assert grown.cache >= share.parts.cache


@settings(max_examples=200, deadline=None)
@given(engines=fleets, memory=strategies.integers(2, 400), unused=strategies.integers(1, 400))
def test_ram_is_not_promised_twice_either(engines: dict[str, Wanted], memory: int, unused: int) -> None:
    machine = cpu(8, memory, min(memory, unused))
    found = plan_or_mends(engines, machine)
    assert sum(share.parts.total for share in found.values() if share.parts) <= machine.free
    assert sum(share.threads for share in found.values()) <= max(8, len(engines))
