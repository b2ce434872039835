"""What every transport owes its callers, whatever is behind it: run over HTTP and in process, against one model.

Plain functions of a client, so that the engine's own interpreter, which has no pytest, can run them, too. Run as a
script in there, ``python -m tests.client.suite MODEL FOLDER``, it does so with an engine in its process, and leaves
``vectors.npy`` and ``told.json`` in the folder.
"""

import asyncio
import doctest
import json
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem import BadRequestError, ClientClosedError, InprocessVLLMEmbedder, Timeline, VLLMClient, VLLMConfig
from tandem.client.inprocess import AsyncInprocessTransport, InprocessTransport

DIM = 384
TEXTS = [
    "def add(a, b):\n    return a + b",
    "class Stack:\n    def push(self, item): ...",
    "Die Katze sitzt auf der Matte.",
    "The quick brown fox jumps over the lazy dog. " * 5,
    "naïve café 日本語 🙂",
    "x",
    *(f"text number {i} about {'cats and dogs ' * (i % 7)}" for i in range(60)),
]


def vectors(client: VLLMClient) -> NDArray[np.float32]:
    """Of all texts, in one batch; float32, shape (N, 384)."""
    return client.embed_batch(TEXTS)


def near(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Every vector is its counterpart, but for 1e-3 in cosine distance."""
    assert found.shape == expected.shape
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    distance = 1 - (found * expected).sum(axis=-1) / lengths
    assert distance.max() < 1e-3, distance.max()


def error(kind: type[Exception], call: Callable[..., object], *arguments: object) -> Exception | None:
    """What ``call`` raises, if it is of that kind; None if it raises nothing."""
    try:
        call(*arguments)
    except kind as exc:
        return exc
    return None


def shapes(client: VLLMClient) -> None:
    """Float32, contiguous, (N, dim); one text (dim,), none (0, dim)."""
    found = vectors(client)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((len(TEXTS), DIM), np.float32, True)
    assert np.isfinite(found).all()
    assert client.embed_single("a").shape == (DIM,)
    assert client.embed_batch([]).shape == client.embed_chunks([]).shape == (0, DIM)
    assert client.dimension == DIM


def order(client: VLLMClient) -> None:
    """Every way to embed gives the same vectors, in the same order."""
    expected = vectors(client)
    near(client.embed_chunks(TEXTS, batch_size=5), expected)
    near(np.array(list(client.embed_iter(iter(TEXTS), batch_size=5))), expected)
    near(asyncio.run(client.embed_batch_async(TEXTS)), expected)
    near(asyncio.run(client.embed_chunks_async(TEXTS, batch_size=5)), expected)


def together(client: VLLMClient) -> None:
    """Many tasks, and many threads, each get their own vectors."""
    expected = vectors(client)

    async def tasks() -> list[NDArray[np.float32]]:
        return await asyncio.gather(*(client.embed_single_async(text) for text in TEXTS))

    near(np.array(asyncio.run(tasks())), expected)
    with ThreadPoolExecutor(8) as threads:
        near(np.array(list(threads.map(client.embed_single, TEXTS))), expected)


def refusals(client: VLLMClient) -> None:
    """Bad texts are named, and those who ask meanwhile do not suffer."""
    for wrong, index in ((["a", ""], 1), (["a", None], 1), ([b"a"], 0), ("a", None), (None, None)):
        refused = error(BadRequestError, client.embed_batch, wrong)
        assert getattr(refused, "index", -1) == index, (wrong, refused)
    assert client.embed_single("a").shape == (DIM,)


def steps(client: VLLMClient) -> None:
    """The tokens of a batch are told, and how it ended."""
    with Timeline() as timeline:
        client.embed_batch(["a text", "another text"])
    started, finished = timeline.steps
    assert (started.name, finished.name, finished.outcome) == ("started", "finished", "ok")
    assert (finished.n_texts, finished.dim, finished.tokens) == (2, DIM, 8)  # two words each, [CLS] and [SEP]
    assert finished.mode == client.config.mode


def closed(client: VLLMClient) -> None:
    """A closed client says so, and closing it again is no error."""
    client.close()
    client.close()
    assert error(ClientClosedError, client.embed_single, "a")


CHECKS: tuple[Callable[[VLLMClient], None], ...] = (shapes, order, together, refusals, steps)
"""All but `closed`, after which a client is of no use."""


def _main(model: str, folder: Path) -> None:
    warned: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("tandem.client").addHandler(handler)

    embedder = _documented(model)
    client = VLLMClient(
        VLLMConfig(mode="inprocess", model=model, timeout_s=60),
        transport=InprocessTransport(embedder),
        async_transport=AsyncInprocessTransport(embedder),
    )
    for check in CHECKS:
        check(client)
        print("passed:", check.__name__, flush=True)
    np.save(folder / "vectors.npy", vectors(client))
    (folder / "told.json").write_text(json.dumps(_embedder(client, embedder, warned)))
    closed(client)
    print("passed: closed", flush=True)


def _documented(model: str) -> InprocessVLLMEmbedder:
    """The embedder that its own docstring's example makes, found to be true: one start serves both."""
    known = {"InprocessVLLMEmbedder": InprocessVLLMEmbedder, "MODEL": model}
    (example,) = doctest.DocTestFinder(recurse=False).find(InprocessVLLMEmbedder, globs=known)
    found = doctest.DocTestRunner().run(example, clear_globs=False)
    assert (found.failed, bool(found.attempted)) == (0, True)
    made: InprocessVLLMEmbedder = example.globs["embedder"]
    return made


def _embedder(client: VLLMClient, embedder: InprocessVLLMEmbedder, warned: list[str]) -> dict[str, Any]:
    """What only an engine in process does."""
    found, tokens = embedder.embed_batch_with_stats(["a text", "another text"])
    near(found, client.embed_batch(["a text", "another text"]))
    whole = " ".join(["word"] * 2000)
    cut, most = embedder.embed_batch_with_stats([whole])
    near(cut, embedder.embed_batch([whole + " and more"]))
    return {"tokens": tokens, "most": most, "warned": warned, "empty": embedder.embed_batch([]).shape}


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
