"""Builds the demo's language model: a Qwen3 of two layers with random weights. Run by the engines' interpreter.

The same on every machine with the same Python: the weights come from a seeded generator, the tokenizer from the
documentation that ships with Python. Usage: ``python tiny.py FOLDER``.
"""

import json
import sys
from pathlib import Path

VOCABULARY = 2048
HIDDEN = 128
FEED_FORWARD = 256
LAYERS = 2
HEADS = 2
HEAD = 64  # the smallest that vLLM's attention on the CPU takes
CONTEXT = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path) -> None:
    """Write configuration, tokenizer and weights (float32) into ``folder``."""
    size = _tokenizer(folder)
    _write(
        folder / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": size,
            "hidden_size": HIDDEN,
            "intermediate_size": FEED_FORWARD,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": HEAD,
            "max_position_embeddings": CONTEXT,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "eos_token_id": SPECIAL.index("<|im_end|>"),
        },
    )
    _write(
        folder / "generation_config.json",
        {"eos_token_id": [SPECIAL.index("<|im_end|>"), SPECIAL.index("<|endoftext|>")]},
    )
    _weights(folder / "model.safetensors", size)


def _tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer; the size of its vocabulary."""
    import pydoc_data.topics

    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    corpus = list(pydoc_data.topics.topics.values())
    tokenizer.train_from_iterator(corpus, vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": CONTEXT,
        },
    )
    return int(tokenizer.get_vocab_size())


def _weights(path: Path, vocabulary: int) -> None:
    import numpy
    from safetensors.numpy import save_file

    random = numpy.random.default_rng(0)

    def matrix(rows: int, columns: int) -> "numpy.ndarray":
        return (random.standard_normal((rows, columns)) * 0.05).astype(numpy.float32)

    attention = HEADS * HEAD
    tensors = {
        "model.embed_tokens.weight": matrix(vocabulary, HIDDEN),
        "model.norm.weight": numpy.ones(HIDDEN, numpy.float32),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = matrix(attention, HIDDEN)
        tensors[f"{prefix}.self_attn.o_proj.weight"] = matrix(HIDDEN, attention)
        for name in ("q_norm", "k_norm"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = numpy.ones(HEAD, numpy.float32)
        for name in ("gate_proj", "up_proj"):
            tensors[f"{prefix}.mlp.{name}.weight"] = matrix(FEED_FORWARD, HIDDEN)
        tensors[f"{prefix}.mlp.down_proj.weight"] = matrix(HIDDEN, FEED_FORWARD)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = numpy.ones(HIDDEN, numpy.float32)
    save_file(tensors, str(path), metadata={"format": "pt"})


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
