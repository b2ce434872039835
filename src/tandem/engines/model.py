"""What a model's files say of its size: weights, KV cache, layers. Reads configuration and headers, never weights.

Only families whose attention is known here are worked out. Of any other, the size of its files is known and no more:
its KV cache is left to vLLM.
"""

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tandem.engines.weights import Model
from tandem.errors import SetupError

# Elements of one tensor, and how they are stored (safetensors' names of types).
Tensors = Mapping[str, tuple[str, int]]

_WIDTH = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2}
_FLOATS = frozenset({"F64", "F32", "BF16", "F16"})
_STORED_WIDTH = {"float64": 8, "float32": 4}
_BLOCK = 16  # tokens that vLLM gives out at once, on a card

# Every token attends to all before it, in every layer; or, with `sliding_window` or `layer_types`, in some of them.
_DECODERS = frozenset(
    [
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "phi",
        "phi3",
        "phimoe",
        "gpt_oss",
        "granite",
        "granitemoe",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "glm",
        "glm4",
        "glm4_moe",
        "cohere",
        "cohere2",
        "starcoder2",
        "stablelm",
        "gpt2",
        "gpt_neox",
        "opt",
        "seed_oss",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "ernie4_5",
        "ernie4_5_moe",
        "smollm3",
        "exaone4",
        "nemotron",
        "arcee",
    ]
)
# Keys and values are kept as one compressed vector for all heads (multi-head latent attention, arXiv:2405.04434).
_LATENT = frozenset({"deepseek_v2", "deepseek_v3", "kimi_k2"})
# Every token attends to every other: nothing is kept from one step to the next.
_ENCODERS = frozenset(
    ["bert", "roberta", "xlm-roberta", "distilbert", "nomic_bert", "modernbert", "mpnet", "new", "camembert", "electra"]
)
# Families that had sliding windows before `layer_types` said where: every n-th layer keeps all tokens, 0: none does.
_PATTERNS = {"mistral": 0, "phi3": 0, "starcoder2": 0, "gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}


@dataclass(frozen=True)
class KvCache:
    """What an engine keeps of each sequence.

    Attributes:
        full: layers that keep every token.
        sliding: layers that keep the last ``window`` tokens.
        window: tokens.
        heads: heads for keys and values, divided among cards; 1 that every card has whole, where they are latent.
        head: elements of one head and token, keys and values together.
    """

    full: int
    heads: int
    head: int
    sliding: int = 0
    window: int = 0

    def token(self, *, width: int, cards: int = 1) -> int:
        """Bytes on each card for one more token of a long sequence; ``width`` is bytes an element."""
        return self.full * self._element(width, cards)

    def sequence(self, tokens: int, *, width: int, batch: int, cards: int = 1) -> int:
        """Bytes on each card for one sequence of ``tokens``, of which at most ``batch`` are computed at once.

        A sliding layer frees what has left its window after the step (``SlidingWindowSpec`` in vLLM).
        """
        blocks = -(-tokens // _BLOCK)
        slid = min(-(-min(self.window - 1 + batch, tokens) // _BLOCK) + 1, blocks) if self.sliding else 0
        return _BLOCK * self._element(width, cards) * (self.full * blocks + self.sliding * slid)

    def longest(self, size: int, *, width: int, batch: int, most: int, cards: int = 1) -> int:
        """Tokens of the longest sequence, up to ``most``, that ``size`` bytes on each card hold."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.sequence(middle, width=width, batch=batch, cards=cards) <= size:
                low = middle
            else:
                high = middle - 1
        return low

    def _element(self, width: int, cards: int) -> int:
        return max(1, self.heads // cards) * self.head * width


@dataclass(frozen=True)
class Facts:
    """One model, as far as memory goes.

    Attributes:
        name: what callers know it as.
        revision: tells its files from another version's.
        family: ``model_type`` of its configuration.
        stored: bytes of its weights that stay as they are stored: quantized ones and their scales.
        floats: elements of all others, which take the width of the dtype that the engine runs in.
        context: tokens that it takes at most; None where that is not told.
        cache: what it keeps of a sequence; None where that is not known, or nothing is.
        keeps: whether it keeps anything: an encoder does not. True where that is not known.
        layers: transformer layers; hidden, inner and vocabulary their widths; 0 where that is not known.
    """

    name: str
    revision: str = ""
    family: str = ""
    stored: int = 0
    floats: int = 0
    context: int | None = None
    cache: KvCache | None = None
    keeps: bool = True
    layers: int = 0
    hidden: int = 0
    inner: int = 0
    vocabulary: int = 0

    @property
    def known(self) -> bool:
        """Whether what it needs can be worked out."""
        return self.weights(2) > 0 and (self.cache is not None or not self.keeps)

    def weights(self, width: int) -> int:
        """Bytes of its weights in a dtype of ``width`` bytes; 0 where they are not told."""
        return self.stored + self.floats * width


def read(model: Model, kind: Literal["embedding", "generation"]) -> Facts:
    """What the files of ``model`` say.

    Raises:
        SetupError: a file of weights is damaged.
    """
    tensors = _tensors(model.path)
    if not tensors:
        tensors = _other_files(model)
    return facts(model.config, tensors, kind=kind, name=model.name, revision=_revision(model))


def facts(
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    kind: Literal["embedding", "generation"],
    name: str = "",
    revision: str = "",
) -> Facts:
    """What ``config.json`` and the headers of the weights say."""
    text = {**config, **config["text_config"]} if isinstance(config.get("text_config"), Mapping) else config
    family = str(text.get("model_type", ""))
    # The output layer is the input layer's matrix, or is not there at all where no text comes out.
    no_head = kind == "embedding" or bool(text.get("tie_word_embeddings"))
    held = [tensor for title, tensor in tensors.items() if not (no_head and title.startswith("lm_head."))]
    quantized = any(isinstance(c.get("quantization_config"), Mapping) for c in (config, text))
    floats = 0 if quantized else sum(count for dtype, count in held if dtype in _FLOATS)
    stored = sum(_WIDTH.get(dtype, 1) * count for dtype, count in held if quantized or dtype not in _FLOATS)
    encoder = family in _ENCODERS or text.get("is_causal") is False
    dense = _number(text, "intermediate_size", "ffn_hidden_size", "n_inner")
    # A mixture's token goes through several experts at once.
    experts = _number(text, "num_experts_per_tok") * (_number(text, "moe_intermediate_size") or dense)
    hidden = _number(text, "hidden_size", "n_embd", "d_model")
    return Facts(
        name=name,
        revision=revision,
        family=family,
        stored=stored,
        floats=floats,
        context=_number(text, "max_position_embeddings", "n_positions", "seq_length") or None,
        cache=None if encoder else _cache(text, family),
        keeps=not encoder,
        layers=_number(text, "num_hidden_layers", "n_layer"),
        hidden=hidden,
        inner=max(dense, experts) or 4 * hidden,
        vocabulary=_number(text, "vocab_size"),
    )


def _cache(text: Mapping[str, Any], family: str) -> KvCache | None:
    layers = _number(text, "num_hidden_layers", "n_layer")
    if family in _LATENT and layers:
        latent = _number(text, "kv_lora_rank") + _number(text, "qk_rope_head_dim")
        return KvCache(full=layers, heads=1, head=latent) if latent else None
    queries, hidden = _number(text, "num_attention_heads", "n_head"), _number(text, "hidden_size", "n_embd")
    if family not in _DECODERS or not (layers and queries and hidden):
        return None
    kept = _sliding(text, family, layers)
    if kept is None:
        return None
    heads = _number(text, "num_key_value_heads") or queries
    head = 2 * (_number(text, "head_dim") or hidden // queries)
    return KvCache(layers - kept, heads, head, sliding=kept, window=_number(text, "sliding_window") if kept else 0)


def _sliding(text: Mapping[str, Any], family: str, layers: int) -> int | None:
    """How many layers keep only a window; None where some keep something else."""
    if isinstance(types := text.get("layer_types"), list):
        if not set(types) <= {"full_attention", "sliding_attention"}:
            return None
        return types.count("sliding_attention") if _number(text, "sliding_window") else 0
    if not _number(text, "sliding_window") or text.get("use_sliding_window") is False:
        return 0
    every = _number(text, "sliding_window_pattern") or _PATTERNS.get(family)
    if every is None:
        return 0  # more than it keeps, never less
    return layers - layers // every if every else layers


def _tensors(folder: Path) -> dict[str, tuple[str, int]]:
    """Every tensor of the folder's safetensors files, by name.

    Source: https://huggingface.co/docs/safetensors (eight bytes of length, a JSON header, then the data).
    """
    named: set[Path] = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named |= {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, KeyError, AttributeError) as exc:
            raise SetupError(f"{index} cannot be read: {exc}", "Download the model again") from exc
    # Mistral's own form of the same weights lies beside the one that is read.
    files = named or {file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated")}
    found: dict[str, tuple[str, int]] = {}
    for file in sorted(files or folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                if length > file.stat().st_size:
                    raise ValueError("it ends within its header")
                header = json.loads(opened.read(length))
            for name, tensor in header.items():
                if name != "__metadata__":
                    count = 1
                    for size in tensor["shape"]:
                        count *= size
                    found[name] = (tensor["dtype"], count)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as exc:
            raise SetupError(
                f"a weight file is damaged or cut short ({file.name}: {exc})", "Download the model again"
            ) from exc
    return found


def _other_files(model: Model) -> dict[str, tuple[str, int]]:
    """Weights in another form: nothing but their files' sizes is known, and the dtype that the configuration tells."""
    sizes = {
        file.name: file.stat().st_size for pattern in ("*.bin", "*.pt", "*.gguf") for file in model.path.glob(pattern)
    }
    if any(name.endswith(".gguf") for name in sizes):
        largest = max((size for name, size in sizes.items() if name.endswith(".gguf")), default=0)
        return {"gguf": ("U8", largest)}  # the same model, several times quantized
    width = _STORED_WIDTH.get(str(model.config.get("dtype") or model.config.get("torch_dtype") or "float32"), 2)
    return {name: ("F32", size // width) for name, size in sizes.items()}


def _revision(model: Model) -> str:
    """The hub's commit, where the folder's name is one; else a digest of what would change with the model."""
    if re.fullmatch(r"[0-9a-f]{40}", model.path.name):
        return model.path.name
    told = json.dumps(model.config, sort_keys=True)
    files = sorted((file.name, file.stat().st_size) for file in model.path.glob("*.safetensors"))
    return hashlib.sha256(f"{told}{files}".encode()).hexdigest()[:12]


def _number(config: Mapping[str, Any], *names: str) -> int:
    """The first of ``names`` that is set to a number; 0 where none is."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return 0
