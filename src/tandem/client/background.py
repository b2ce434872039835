"""The client in the background: texts are embedded while the caller waits for something else, and those that the server
refuses are found out."""

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tandem.client.batching import Batch, batches
from tandem.client.client import VLLMClient
from tandem.client.config import Kind, VLLMConfig
from tandem.errors import BadRequestError

_PROBE = "The same text gives the same vector."
_OF_A_TEXT = frozenset({400, 413, 422})  # statuses with which servers refuse a text


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of a block's rows, shape (N, dim), but for those that the server refused, by their place."""

    vectors: NDArray[np.float32]
    refused: Mapping[int, str]


class Embedder:
    """The client, on an event loop in a thread of its own.

    The caller's thread may wait for standard input or for the disk, and Ctrl-C ends it at once: what is on its way is
    cancelled then, which threads that wait for an answer are not.
    """

    def __init__(self, config: VLLMConfig, kind: Kind) -> None:
        self._config, self._kind = config, kind
        self._client = VLLMClient(config)
        self._room = asyncio.Semaphore(config.max_concurrent_requests)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tandem-embed", daemon=True)

    def probe(self) -> NDArray[np.float32]:
        """The vector of a text that is always the same, shape (dim,): asked for first, it shows what is wrong."""
        try:
            found: NDArray[np.float32] = self._run(self._client.embed_single_async(_PROBE, kind=self._kind)).result()
        except BadRequestError as exc:
            exc.index = None  # it is none of the caller's texts that is wrong
            raise
        return found

    def start(self, texts: Sequence[str]) -> Future[Embedded]:
        """Embed texts, which have been checked."""
        return self._run(self._block(texts))

    async def _block(self, texts: Sequence[str]) -> Embedded:
        vectors = np.empty((len(texts), self._client.dimension or 0), dtype=np.float32)
        refused: dict[int, str] = {}
        cut = batches(texts, self._config.batch_size)
        await asyncio.gather(*(self._batch(batch, vectors, refused) for batch in cut))
        return Embedded(vectors, refused)

    async def _batch(self, batch: Batch, vectors: NDArray[np.float32], refused: dict[int, str]) -> None:
        """Embed a batch; without the texts that the server refuses, or in halves where it does not say which."""
        waiting = [[*range(len(batch.texts))]]
        while waiting:
            chosen = waiting.pop()
            try:
                async with self._room:
                    found = await self._client.embed_batch_async([batch.texts[i] for i in chosen], kind=self._kind)
            except BadRequestError as exc:
                if type(exc) is not BadRequestError or exc.status not in _OF_A_TEXT:
                    raise
                if exc.index is not None:
                    refused[batch.places[chosen.pop(exc.index)]] = exc.message
                    waiting += [chosen] if chosen else []
                elif len(chosen) > 1 and exc.param in (None, "input"):
                    waiting += [chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]]
                else:
                    raise
            else:
                vectors[[batch.places[i] for i in chosen]] = found

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
