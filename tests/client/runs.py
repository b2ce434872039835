"""Runs of files through the service of these tests, whole and cut off, and the vectors that they must give."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tandem import VLLMConfig
from tandem.client.files import Task, embed_file
from tandem.client.partial import Done

from . import service as ways
from .service import DIM, Handler, Service, vector


def put(path: Path, texts: list[str], *, ids: bool = False) -> Path:
    """A JSONL file of these texts."""
    rows = ({"text": text} | ({"id": f"id {i}"} if ids else {}) for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(service: Service, **settings: Any) -> VLLMConfig:
    return VLLMConfig(**{"base_url": service.url, "model": "m", "batch_size": 2, "timeout_s": 20, **settings})


def embed(task: Task, service: Service, **settings: Any) -> Done:
    return embed_file(task, config(service, **settings), lambda _: None)


def expected(texts: list[str]) -> NDArray[np.float32]:
    """What the service says to these texts: float32, shape (N, 8)."""
    return np.array([vector(text) for text in texts]).reshape(len(texts), DIM)


def vectors(out: Path) -> NDArray[np.float32]:
    """Those of a written file, of either format: float32, shape (N, 8)."""
    if out.suffix == ".npy":
        found: NDArray[np.float32] = np.load(out)
        return found
    column = pq.read_table(out).column("vector").combine_chunks()
    assert column.type == pa.list_(pa.float32(), DIM)
    flat: NDArray[np.float32] = column.flatten().to_numpy()
    return flat.reshape(-1, DIM)


def left(folder: Path) -> set[str]:
    """Names of all that lies in a folder."""
    return {path.name for path in folder.iterdir()}


def refusing(bad: set[str], *, named: bool = True) -> ways.Way:
    """A service that refuses these texts: by their place, or without saying which."""

    def way(handler: Handler, asked: dict[str, Any]) -> None:
        at = next((i for i, text in enumerate(asked["input"]) if text in bad), None)
        if at is None:
            ways.well(handler, asked)
            return
        where = {"param": f"input[{at}]"} if named else {}
        name = f"input[{at}]" if named else "It"
        ways.error(400, f"{name} has 9000 tokens, and the model takes 512.", **where)(handler, asked)

    return way


def stopped(task: Task, service: Service, after: int, **settings: Any) -> None:
    """A run whose service is gone after so many requests."""
    service.ways = [ways.well] * after
    service.always = ways.refusing(500, b"gone")
    with pytest.raises(Exception, match="gone"):
        embed(task, service, **{"retries": 0, "max_concurrent_requests": 1, **settings})
    service.always = ways.well
    service.ways.clear()
