"""An engine in this very process: vLLM's ``LLM`` as a pooling runner. vLLM is imported when an engine is made.

The engine lives in one thread, and all who want vectors stand in one queue before it. What waits there while it works
is its next step, together: so many small callers cost no more than one large one.
"""

import asyncio
import importlib
import logging
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from tandem.client.batching import Batch, Dimension, Rows, checked
from tandem.client.structs import Answer, EmbeddingRequest
from tandem.client.transports import Call
from tandem.errors import (
    BadRequestError,
    ClientClosedError,
    ClientError,
    ClientTimeoutError,
    ServerError,
    SettingsError,
    SetupError,
)

_log = logging.getLogger("tandem.client")
_MOST = 1024  # texts in one step of the queue
_ENDING = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One caller's texts, and where their vectors go."""

    texts: Sequence[str]
    dimensions: int | None
    answer: Future[Answer] = field(default_factory=Future)


class InprocessVLLMEmbedder:
    """An embedding model in this process.

    Loads the model when it is made, which takes from seconds to minutes. Safe from several threads and tasks.

    Args:
        model: folder or repository id.
        pooling_type: how token vectors become a text's: ``CLS``, ``LAST`` or ``MEAN``; the model's own by default.
        engine_normalize: whether the engine scales vectors to length 1; the model's own way by default.
        normalize: whether this object does, whatever the engine did.
        dimensions: shorter vectors, where the model was trained for that.
        max_text_length: characters of the longest text that is taken.
        engine: arguments of ``vllm.LLM``, such as ``dtype="bfloat16"`` or ``max_model_len=512``.

    Raises:
        SetupError: vLLM is not in this environment, or the engine does not start.
        SettingsError: an argument is wrong.

    With vLLM in the environment, and ``MODEL`` a folder or repository id; ``close``, or a ``with`` statement, ends it:

    >>> embedder = InprocessVLLMEmbedder(MODEL, dtype="float32", enforce_eager=True)
    >>> vectors, tokens = embedder.embed_batch_with_stats(["a text", "another text"])
    >>> vectors.shape, tokens
    ((2, 384), 8)
    """

    def __init__(
        self,
        model: str,
        *,
        pooling_type: str | None = None,
        engine_normalize: bool | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        max_text_length: int = 1_000_000,
        **engine: Any,
    ) -> None:
        self._normalize, self._dimensions, self._longest = normalize, dimensions, max_text_length
        self._dimension = Dimension(dimensions, "dimensions is")
        self._engine = _Engine(model, pooling_type, engine_normalize, engine)
        self._queue: queue.SimpleQueue[_Wanted | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="tandem-engine", daemon=True)
        self._thread.start()

    @property
    def dimension(self) -> int:
        """How many dimensions its vectors have; asks the engine for one, the first time."""
        if self._dimension.size is None:
            (vector,) = self.submit(["dimension"], None).result().vectors
            self._dimension.check(vector.size)
        return self._dimension.size or 0

    def embed_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of ``texts``: float32, shape (N, dim), C-contiguous; no texts give (0, dim).

        Texts of more tokens than the model takes are cut off, with a warning that says by how much.

        Raises:
            BadRequestError: an item is no text, empty, or too long.
            ServerError: the engine failed.
            ClientClosedError: it was closed.
        """
        return self.embed_batch_with_stats(texts)[0]

    def embed_batch_with_stats(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """The same, and how many tokens all texts had together, as far as the model read them."""
        prepared = checked(texts, first=0, prefix="", longest=self._longest)
        if not prepared:
            return np.empty((0, self.dimension), dtype=np.float32), 0
        batch = Batch(range(len(prepared)), prepared)
        try:
            answer = self.submit(prepared, self._dimensions).result()
        except BadRequestError as exc:
            batch.blames(exc)
            raise
        rows = Rows(len(prepared), self._dimension, normalize=self._normalize)
        rows.put(batch, answer)
        return rows.array, answer.tokens

    def submit(self, texts: Sequence[str], dimensions: int | None) -> Future[Answer]:
        """Put ``texts``, none of them empty, into the queue.

        Raises:
            ClientClosedError: it was closed.
        """
        wanted = _Wanted(texts, dimensions)
        with self._lock:
            if self._closed:
                raise ClientClosedError("This embedder was closed: make another")
            self._queue.put(wanted)
        return wanted.answer

    def close(self) -> None:
        """Answer what is in the queue, then end the engine. Does nothing the second time."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        """The engine's thread: one step after the other."""
        while (first := self._queue.get()) is not None:
            step, last = self._waiting(first)
            self._answer(step)
            if last:
                break
        self._engine.close()

    def _waiting(self, first: _Wanted) -> tuple[list[_Wanted], bool]:
        """All that waits and fits into a step with ``first``; and whether the queue has ended."""
        step, count = [first], len(first.texts)
        while count < _MOST and not self._queue.empty():
            wanted = self._queue.get()
            if wanted is None:
                return step, True
            step.append(wanted)
            count += len(wanted.texts)
        return step, False

    def _answer(self, step: Sequence[_Wanted]) -> None:
        step = [wanted for wanted in step if wanted.answer.set_running_or_notify_cancel()]
        for dimensions in {wanted.dimensions for wanted in step}:
            alike = [wanted for wanted in step if wanted.dimensions == dimensions]
            try:
                found = self._engine.embed([text for wanted in alike for text in wanted.texts], dimensions)
            except BadRequestError:
                self._one_by_one(alike)  # only whose texts are bad should hear of it
            except ClientError as exc:
                for wanted in alike:
                    wanted.answer.set_exception(exc)
            else:
                self._hand_out(alike, found)

    def _one_by_one(self, step: Sequence[_Wanted]) -> None:
        for wanted in step:
            try:
                self._hand_out([wanted], self._engine.embed(wanted.texts, wanted.dimensions))
            except ClientError as exc:
                wanted.answer.set_exception(exc)

    def _hand_out(self, step: Sequence[_Wanted], found: Sequence[tuple[NDArray[np.float32], int]]) -> None:
        at = 0
        for wanted in step:
            mine = found[at : at + len(wanted.texts)]
            at += len(mine)
            wanted.answer.set_result(Answer([vector for vector, _ in mine], sum(tokens for _, tokens in mine)))


class _Engine:
    """vLLM's ``LLM`` and its tokenizer; used by one thread. The one place where vLLM's errors become ours."""

    def __init__(
        self, model: str, pooling_type: str | None, normalize: bool | None, arguments: Mapping[str, Any]
    ) -> None:
        # It would otherwise report its use to its makers.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            self._vllm = importlib.import_module("vllm")
            config = importlib.import_module("vllm.config")
        except ImportError as exc:
            raise SetupError(
                f"an engine in this process needs vLLM, and `import vllm` fails: {exc}",
                "Use the interpreter that `tandem install` names, with vllm-tandem installed into it, or mode='http'",
            ) from exc
        if pooling_type is not None and pooling_type not in ("CLS", "LAST", "MEAN"):
            raise SettingsError(f"pooling_type must be CLS, LAST or MEAN, not {pooling_type!r}")
        pooler = config.PoolerConfig(pooling_type=pooling_type, use_activation=normalize)
        chosen = {"runner": "pooling", "convert": "embed", "disable_log_stats": True}
        try:
            self._llm = self._vllm.LLM(model=model, pooler_config=pooler, **{**chosen, **arguments})
        except (OSError, RuntimeError, ValueError, TypeError, NotImplementedError) as exc:
            raise SetupError(f"vLLM does not start {model}: {exc}") from exc
        self._tokenizer = self._llm.get_tokenizer()
        self._limit: int = self._llm.model_config.max_model_len

    def embed(self, texts: Sequence[str], dimensions: int | None) -> list[tuple[NDArray[np.float32], int]]:
        """A vector for each text, float32 of shape (dim,), and how many tokens it was made of.

        Raises:
            BadRequestError: the engine refuses a text, or ``dimensions``.
            ServerError: the engine failed.
        """
        parameters = self._vllm.PoolingParams(dimensions=dimensions)
        try:
            prompts = [{"prompt_token_ids": ids} for ids in self._tokens(texts)]
            found = self._llm.encode(prompts, parameters, pooling_task="embed", use_tqdm=False)
        except Exception as exc:  # vLLM raises anything; a caller waits for each text, and must hear of it
            raise self._translated(exc) from exc
        return [(each.outputs.data.float().numpy(), len(each.prompt_token_ids)) for each in found]

    def close(self) -> None:
        """End its processes; they are given time to give their shared memory back, which 5 s (vLLM's) are not."""
        self._llm.llm_engine.engine_core.shutdown(timeout=_ENDING)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(list(texts), truncation=False, padding=False)["input_ids"]
        for place, text in enumerate(texts):
            if len(ids[place]) > self._limit:
                found = len(ids[place])
                # Anew, since what the tokenizer puts at a text's end must stand there.
                ids[place] = self._tokenizer(text, truncation=True, max_length=self._limit)["input_ids"]
                _log.warning(
                    "A text of %d tokens was cut off after %d, the model's limit: the last %d of them (%.0f%%) are not"
                    " in its vector",
                    found,
                    self._limit,
                    found - self._limit,
                    100 * (found - self._limit) / found,
                )
        return ids

    def _translated(self, exc: Exception) -> ClientError:
        errors = importlib.import_module("vllm.exceptions")
        if isinstance(exc, ValueError | TypeError | errors.VLLMClientError):
            return BadRequestError(f"The engine refused it: {exc}")
        return ServerError(f"The engine in this process failed: {exc or type(exc).__name__}")


class InprocessTransport:
    """Asks an engine in this process, for threads."""

    def __init__(self, embedder: InprocessVLLMEmbedder) -> None:
        self._embedder = embedder

    def send(self, request: EmbeddingRequest, call: Call) -> Answer:
        """Wait for the engine; until the deadline only."""
        wanted = self._embedder.submit(request.input, _dimensions(request))
        try:
            return wanted.result(max(call.remaining(), 0))
        except TimeoutError as exc:
            wanted.cancel()  # nobody wants it any more, if it is not being worked on
            raise _late() from exc

    def close(self) -> None:
        """End the engine."""
        self._embedder.close()


class AsyncInprocessTransport:
    """The same engine, for tasks."""

    def __init__(self, embedder: InprocessVLLMEmbedder) -> None:
        self._embedder = embedder

    async def send(self, request: EmbeddingRequest, call: Call) -> Answer:
        """Wait for the engine; until the deadline only."""
        wanted = self._embedder.submit(request.input, _dimensions(request))
        try:
            async with asyncio.timeout(max(call.remaining(), 0)):
                return await asyncio.wrap_future(wanted)
        except TimeoutError as exc:
            raise _late() from exc

    async def aclose(self) -> None:
        """End the engine; other tasks go on meanwhile."""
        await asyncio.to_thread(self._embedder.close)


def _late() -> ClientTimeoutError:
    return ClientTimeoutError("The engine in this process did not answer in time: the deadline is over")


def _dimensions(request: EmbeddingRequest) -> int | None:
    return None if request.dimensions is UNSET else request.dimensions
