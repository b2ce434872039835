"""Every way to embed, by its name, and texts with the vectors that the service of these tests gives them."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from tandem import VLLMClient

from .service import vector

Connect = Callable[..., VLLMClient]
TEXTS = [f"text {i} " + "x" * (i * 37 % 101) for i in range(50)]
EXPECTED = np.array([vector(text) for text in TEXTS])
ALL = ["embed_batch", "embed_chunks", "embed_iter", "embed_batch_async", "embed_chunks_async"]
ARRAYS = [how for how in ALL if how != "embed_iter"]


def embeds(client: VLLMClient, how: str, texts: Any) -> Any:
    """One of the ways to embed, with its name as the interface has it."""
    if how == "embed_iter":
        return np.array(list(client.embed_iter(texts, batch_size=7)))
    size = {"batch_size": 7} if "chunks" in how else {}
    result = getattr(client, how)(texts, **size)
    return asyncio.run(result) if how.endswith("_async") else result
