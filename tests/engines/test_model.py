"""What a model's files say of its size. Numbers of parameters are those that the models' cards tell."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tandem import demo
from tandem.engines.model import KvCache, facts, read
from tandem.engines.weights import Model
from tandem.errors import SetupError

from .models import minilm, recorded

LATENT = {"model_type": "deepseek_v3", "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_size": 2880,
    "head_dim": 64,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
}
MISTRAL = {
    "model_type": "mistral",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "sliding_window": 4096,
}


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("Qwen3-Embedding-0.6B", "embedding", 595_776_512 * 2),
        # Its file has the output layer, 151,936 x 1,024, a second time: vLLM shares the input layer's.
        ("Qwen3-0.6B", "generation", 596_049_920 * 2),
        # 36 layers of (4096 x 4096) x 2 + (4096 x 1024) x 2 + (4096 x 12288) x 3 in one byte each; in two bytes both
        # embedding matrices, norms, and a scale for each 128 x 128 block: 8.19 thousand million parameters.
        ("Qwen3-8B-FP8", "generation", 36 * 192_937_984 + 2 * (8_190_735_360 - 36 * 192_937_984 + 423_936)),
        # As an embedding model it would have no output layer.
        ("Qwen3-8B-FP8", "embedding", 6_945_767_424 + 2 * (1_245_391_872 - 151_936 * 4096)),
        ("Llama-3.1-70B", "generation", 70_553_706_496 * 2),
        ("Qwen3-30B-A3B", "generation", 30_532_122_624 * 2),
        ("Mixtral-8x7B", "generation", 46_702_792_704 * 2),
    ],
)
def test_weights_are_what_the_engine_holds(name: str, kind: Any, size: int) -> None:
    assert recorded(name, kind).weights(2) == size


def test_float_weights_take_the_width_that_they_run_in() -> None:
    """Those of a model that is stored in float32 take half of it in bfloat16; quantized ones stay as they are."""
    found = facts({"model_type": "bert"}, {"a": ("F32", 1000), "ids": ("I64", 4)}, kind="embedding")
    assert (found.weights(2), found.weights(4)) == (2032, 4032)
    quantized = {"model_type": "qwen3", "quantization_config": {"quant_method": "awq"}}
    assert facts(quantized, {"a": ("I32", 100), "b": ("F16", 10)}, kind="generation").weights(4) == 420


@pytest.mark.parametrize(
    ("name", "token"),
    [
        # Layers x 2 (keys, values) x heads for them x size of a head x 2 bytes.
        ("Qwen3-Embedding-0.6B", 28 * 2 * 8 * 128 * 2),
        ("Qwen3-8B-FP8", 36 * 2 * 8 * 128 * 2),
        ("Llama-3.1-70B", 80 * 2 * 8 * 128 * 2),
        ("Qwen3-30B-A3B", 48 * 2 * 4 * 128 * 2),
        ("Mixtral-8x7B", 32 * 2 * 8 * 128 * 2),
    ],
)
def test_grouped_heads_share_a_cache(name: str, token: int) -> None:
    """Half as much in one byte an element; on several cards each has its heads, but one at least."""
    cache = recorded(name).cache
    assert cache is not None
    assert cache.token(width=2) == token
    assert cache.token(width=1) == token // 2
    assert cache.token(width=2, cards=2) == token // 2
    assert cache.token(width=2, cards=64) == token // cache.heads


def test_latent_attention_keeps_one_vector_for_all_heads() -> None:
    """DeepSeek-V3: 61 layers x (512 + 64) x 2 bytes, and every card keeps all of it."""
    cache = facts(LATENT, {}, kind="generation").cache
    assert cache is not None
    assert cache.token(width=2) == 70_272 == cache.token(width=2, cards=8)


def test_sliding_layers_stop_growing() -> None:
    """gpt-oss-20b: 12 layers keep all, 12 keep 127 tokens, those of the step, and a block for the odd beginning."""
    cache = facts(GPT_OSS, {}, kind="generation").cache
    assert cache == KvCache(full=12, heads=8, head=128, sliding=12, window=128)
    element = 8 * 2 * 64 * 2
    assert cache.token(width=2) == 12 * element
    # 8,192 tokens: 512 blocks of 16. The others: 127 + 2,048 tokens in 136 blocks, and one.
    assert cache.sequence(8192, width=2, batch=2048) == 16 * element * 12 * (512 + 137)
    assert cache.sequence(64, width=2, batch=2048) == 16 * element * 12 * (4 + 4)
    in_all = facts(MISTRAL, {}, kind="generation").cache
    assert in_all is not None
    assert in_all.sequence(131_072, width=2, batch=2048) == in_all.sequence(100_000, width=2, batch=2048)


@pytest.mark.parametrize(
    ("config", "sliding"),
    [
        ({"use_sliding_window": False}, 0),
        ({"model_type": "gemma2"}, 16),
        ({"model_type": "gemma3_text"}, 27),
        ({"sliding_window_pattern": 4}, 24),
        ({"model_type": "llama"}, 0),
        ({"sliding_window": None}, 0),
    ],
)
def test_which_layers_slide_goes_by_family(config: dict[str, Any], sliding: int) -> None:
    """Of 32 layers; of a family that has never had any, none: that is more than it keeps, never less."""
    cache = facts(MISTRAL | config, {}, kind="generation").cache
    assert cache is not None
    assert (cache.full, cache.sliding) == (32 - sliding, sliding)


@pytest.mark.parametrize(
    "config",
    [
        MISTRAL | {"model_type": "unheard_of"},
        MISTRAL | {"layer_types": ["linear_attention", "full_attention"] * 16},
        {"model_type": "llama"},
        {},
    ],
)
def test_what_is_not_known_is_said_not_to_be(config: dict[str, Any]) -> None:
    """Families, kinds of layers and configurations that nobody has taught it: sizes of files, and no more."""
    found = facts(config, {"a": ("BF16", 7)}, kind="generation")
    assert (found.cache, found.known, found.weights(2)) == (None, False, 14)


def test_an_encoder_keeps_nothing() -> None:
    """BERT, and a decoder that was made to look both ways."""
    assert (minilm().keeps, minilm().cache, minilm().known) == (False, None, True)
    assert facts(MISTRAL | {"is_causal": False}, {}, kind="embedding").keeps is False


def test_the_text_part_of_a_model_with_pictures() -> None:
    found = facts({"model_type": "mistral3", "text_config": MISTRAL}, {}, kind="generation")
    assert found.cache is not None


def test_the_longest_sequence_is_the_one_that_still_fits() -> None:
    cache = recorded("Qwen3-0.6B").cache
    assert cache is not None
    size = cache.sequence(1024, width=2, batch=2048)
    assert cache.longest(size, width=2, batch=2048, most=40960) == 1024
    assert cache.longest(size - 1, width=2, batch=2048, most=40960) == 1008
    assert cache.longest(size * 1000, width=2, batch=2048, most=40960) == 40960
    assert cache.longest(0, width=2, batch=2048, most=40960) == 0


def write(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file with this header, and nothing behind it."""
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, (dtype, shape) in tensors.items()
    }
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded)


def test_headers_are_read_from_the_files_that_the_index_names(tmp_path: Path) -> None:
    """And of two forms of the same weights, one."""
    write(tmp_path / "model-00001-of-00002.safetensors", {"a": ("BF16", [10, 20])})
    write(tmp_path / "model-00002-of-00002.safetensors", {"b": ("BF16", [5])})
    write(tmp_path / "consolidated.safetensors", {"c": ("BF16", [205])})
    model = Model(tmp_path, "m", {"model_type": "llama"})
    assert read(model, "generation").weights(2) == 410
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read(model, "generation").weights(2) == 400


def test_other_forms_of_weights_count_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(400))
    assert read(Model(tmp_path, "m", {"torch_dtype": "float32"}), "generation").weights(2) == 200
    (tmp_path / "small.gguf").write_bytes(bytes(50))
    (tmp_path / "large.gguf").write_bytes(bytes(90))
    assert read(Model(tmp_path, "m", {}), "generation").weights(2) == 90


def test_a_folder_without_weights_has_no_size(tmp_path: Path) -> None:
    """They may be made up (``--load-format dummy``)."""
    assert read(Model(tmp_path, "m", {"model_type": "llama"}), "generation").weights(2) == 0


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{", b"\x02\0\0\0\0\0\0\0[]", struct.pack("<Q", 2**60)])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SetupError, match=r"damaged or cut short \(model.safetensors: .+\)\. Download the model again"):
        read(Model(tmp_path, "m", {}), "generation")


def test_the_demo_s_own_model() -> None:
    """3.8 million parameters, 4 layers, 2 heads of 64 for keys and values."""
    config = json.loads((demo.GENERATION / "config.json").read_text())
    found = read(Model(demo.GENERATION, "demo", config), "generation")
    assert found.cache == KvCache(full=4, heads=2, head=128)
    assert found.weights(2) == pytest.approx((demo.GENERATION / "model.safetensors").stat().st_size, rel=0.01)
    assert len(found.revision) == 12


def test_a_hub_s_snapshot_is_known_by_its_commit(tmp_path: Path) -> None:
    """A plain folder by what lies in it, so that it counts as another once its files have changed."""
    snapshot = tmp_path / ("0" * 40)
    snapshot.mkdir()
    assert read(Model(snapshot, "m", {}), "generation").revision == "0" * 40
    before = read(Model(tmp_path, "m", {}), "generation").revision
    write(tmp_path / "model.safetensors", {"a": ("BF16", [1])})
    assert read(Model(tmp_path, "m", {}), "generation").revision != before
