"""Models of the tests: configurations as they are published, and how many elements of each type their weights have.

A file's ``tensors`` counts elements by safetensors' types; ``lm_head.weight`` stands apart, since it is not always
loaded.
"""

import json
from pathlib import Path
from typing import Any, Literal

from tandem.engines.model import Facts, facts

RECORDED = Path(__file__).parent / "recorded" / "models"
BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "vocab_size": 30522,
}


def recorded(name: str, kind: Literal["embedding", "generation"] = "generation") -> Facts:
    """The facts of one model in ``recorded/models``."""
    told = json.loads((RECORDED / f"{name}.json").read_text())
    tensors: dict[str, tuple[str, int]] = {}
    for title, counts in told["tensors"].items():
        if isinstance(counts, dict):
            ((dtype, count),) = counts.items()
            tensors[title] = (dtype, count)
        else:
            tensors[f"model.{title}"] = (title, counts)
    return facts(told["config"], tensors, kind=kind, name=name)


def minilm() -> Facts:
    """all-MiniLM-L6-v2, which keeps nothing from one step to the next."""
    return facts(BERT, {"all": ("F32", 22_713_216)}, kind="embedding", name="minilm")
