"""The client: texts in, one float32 array out.

A call goes one way: texts are checked, cut into batches, and each batch is sent through the layers, which each add one
thing: sending again, then the transport. What comes back is copied to its place in the array that the caller gets.
Threads and tasks share all of it but the waiting.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from tandem.client.batching import WINDOW, Batch, Dimension, Rows, batches, checked, iterable
from tandem.client.config import Kind, VLLMConfig
from tandem.client.flight import AsyncFlight, Flight, Window, Windows
from tandem.client.retry import AsyncRetrying, Retrying
from tandem.client.structs import Answer, EmbeddingRequest
from tandem.client.transports import AsyncHttpTransport, AsyncTransport, Call, HttpTransport, Transport
from tandem.errors import BadRequestError, ClientClosedError, SettingsError
from tandem.telemetry.embedding_logs import Lines
from tandem.telemetry.timeline import Sink, Watch

_log = logging.getLogger("tandem.client")
_PROBE = Batch((0,), ("dimension",))


class VLLMClient:
    """Embeds texts through an OpenAI-compatible service, or with an engine in this process.

    Safe from several threads at once, and usable from one event loop after the other. Whatever goes wrong is a
    :class:`tandem.ClientError`, raised from its cause.

    Args:
        config: what to ask whom for; :class:`VLLMConfig` with its defaults by default.
        on_step: called with each :class:`tandem.Step` of each batch; what it raises is logged and forgotten.
        transport: how requests become answers, in threads; by default as ``config.mode`` says.
        async_transport: likewise, in tasks.

    Raises:
        SetupError: ``config.mode`` is ``inprocess``, and the engine does not start.

    >>> with VLLMClient(VLLMConfig(base_url=BASE_URL, model="embedding")) as client:
    ...     vectors = client.embed_batch(["a text", "another text"])
    >>> vectors.shape, vectors.dtype.name
    ((2, 384), 'float32')
    """

    def __init__(
        self,
        config: VLLMConfig | None = None,
        *,
        on_step: Sink | None = None,
        transport: Transport | None = None,
        async_transport: AsyncTransport | None = None,
    ) -> None:
        self.config = config or VLLMConfig()
        self._dimension = Dimension(self.config.embedding_dim, "embedding_dim is")
        self._probing = threading.Lock()
        self._probing_tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self._sinks, trace = _sinks(on_step)
        if transport is None or async_transport is None:
            own, async_own = _transports(self.config, trace)
            transport, async_transport = transport or own, async_transport or async_own
        self._transport = Retrying(transport, self.config.retries)
        self._async_transport = AsyncRetrying(async_transport, self.config.retries)
        self._closed = False

    @classmethod
    def from_env(cls, *, on_step: Sink | None = None, **given: Any) -> Self:
        """A client as the environment says: see :meth:`VLLMConfig.from_env`; ``given`` wins over it.

        Raises:
            SettingsError: a variable's value, or an argument, is wrong.

        >>> VLLMClient.from_env(base_url=BASE_URL, model="embedding").config.model
        'embedding'
        """
        return cls(VLLMConfig.from_env(**given), on_step=on_step)

    @property
    def dimension(self) -> int | None:
        """How many dimensions vectors have; None before the first answer, if the config does not say."""
        return self._dimension.size

    def embed_batch(self, texts: Iterable[str], *, kind: Kind = "document") -> NDArray[np.float32]:
        """Vectors of ``texts``, asked for in one request.

        Args:
            texts: any number of them, none empty. Servers take so many in a request: Tandem 2,048.
            kind: which of the config's prefixes is put before each.

        Returns:
            Float32, shape (N, dim), C-contiguous, row i for text i. No texts give (0, dim), for which the server is
            asked for one vector if the size is not known yet.

        Raises:
            BadRequestError: ``texts`` is no list of texts, or a text is none, empty or too long (nothing was sent
                then), or the server refused one; ``index`` says which.
            ModelNotFoundError, AuthenticationError: the server has no such model, or wants another key.
            ClientConnectionError, ClientTimeoutError, RateLimitError, ServerError: there is no answer, even after
                ``retries``, or not within ``timeout_s``.
            DimensionMismatchError: vectors are of another size than set, or than before.
            DecodingError: the answer is not what was asked for.
            ClientClosedError: the client was closed.

        >>> client.embed_batch(["def add(a, b): return a + b", "class Stack: ..."]).shape
        (2, 384)
        """
        prepared = self._checked(texts, kind)
        if not prepared:
            return np.empty((0, self._known_dimension()), dtype=np.float32)
        rows = self._rows(len(prepared))
        self._embed(Batch(range(len(prepared)), prepared), rows)
        return rows.array

    def embed_single(self, text: str, *, kind: Kind = "document") -> NDArray[np.float32]:
        """The vector of one text: float32, shape (dim,). Raises as :meth:`embed_batch` does.

        >>> client.embed_single("where are numbers added?", kind="query").shape
        (384,)
        """
        return self.embed_batch([text], kind=kind).reshape(-1)

    def embed_chunks(
        self, texts: Iterable[str], batch_size: int | None = None, *, kind: Kind = "document"
    ) -> NDArray[np.float32]:
        """Vectors of any number of texts, in batches, several of them in flight.

        The first error ends it, and nothing more is sent. ``timeout_s`` counts for each batch.

        Args:
            batch_size: texts in a request; the config's by default.

        Returns:
            Float32, shape (N, dim), C-contiguous, row i for text i.

        Raises:
            SettingsError: ``batch_size`` is no whole number above 0.
            ClientError: as :meth:`embed_batch`; nothing is sent before all texts are found to be good.

        >>> client.embed_chunks([f"text {i}" for i in range(100)], batch_size=32).shape
        (100, 384)
        """
        size = self._size(batch_size)
        prepared = self._checked(texts, kind)
        if not prepared:
            return np.empty((0, self._known_dimension()), dtype=np.float32)
        rows = self._rows(len(prepared))
        waiting = batches(prepared, size)
        flight = Flight(self._embed, self.config.max_concurrent_requests)
        while True:
            for batch in itertools.islice(waiting, flight.room):
                flight.send(batch, rows)
            if not flight.sent:
                return rows.array
            flight.land()

    def embed_iter(
        self, texts: Iterable[str], batch_size: int | None = None, *, kind: Kind = "document"
    ) -> Iterator[NDArray[np.float32]]:
        """The vector of each text, in order, while further texts are read and embedded.

        Takes more texts than memory holds: at most three windows of 16 batches each are held at a time. They are read
        in the caller's own thread, while a vector is asked for.

        Args:
            texts: anything to iterate over, also without an end.
            batch_size: texts in a request; the config's by default.

        Returns:
            An iterator over float32 arrays of shape (dim,), each with memory of its own.

        Raises:
            ClientError: as :meth:`embed_batch`, when a text's window is read or sent; vectors of texts before it that
                were not handed out by then are lost.

        >>> sum(1 for vector in client.embed_iter(f"text {i}" for i in range(100)))
        100
        """
        size = self._size(batch_size)
        self._open()
        return self._stream(iter(iterable(texts)), size, kind)

    async def embed_batch_async(self, texts: Iterable[str], *, kind: Kind = "document") -> NDArray[np.float32]:
        """:meth:`embed_batch` for tasks.

        >>> import asyncio
        >>> asyncio.run(client.embed_batch_async(["a text"])).shape
        (1, 384)
        """
        prepared = self._checked(texts, kind)
        if not prepared:
            return np.empty((0, await self._known_dimension_async()), dtype=np.float32)
        rows = self._rows(len(prepared))
        await self._embed_async(Batch(range(len(prepared)), prepared), rows)
        return rows.array

    async def embed_single_async(self, text: str, *, kind: Kind = "document") -> NDArray[np.float32]:
        """:meth:`embed_single` for tasks.

        >>> asyncio.run(client.embed_single_async("a text")).shape
        (384,)
        """
        return (await self.embed_batch_async([text], kind=kind)).reshape(-1)

    async def embed_chunks_async(
        self, texts: Iterable[str], batch_size: int | None = None, *, kind: Kind = "document"
    ) -> NDArray[np.float32]:
        """:meth:`embed_chunks` for tasks.

        >>> asyncio.run(client.embed_chunks_async([f"text {i}" for i in range(100)])).shape
        (100, 384)
        """
        size = self._size(batch_size)
        prepared = self._checked(texts, kind)
        if not prepared:
            return np.empty((0, await self._known_dimension_async()), dtype=np.float32)
        rows = self._rows(len(prepared))
        waiting = batches(prepared, size)
        async with AsyncFlight(self._embed_async, self.config.max_concurrent_requests) as flight:
            while True:
                for batch in itertools.islice(waiting, flight.room):
                    flight.send(batch, rows)
                if not flight.sent:
                    return rows.array
                await flight.land()

    def close(self) -> None:
        """Close connections, or the engine in this process. Does nothing the second time.

        Connections of tasks close with their event loop, or with :meth:`aclose`.
        """
        self._closed = True
        self._transport.close()

    async def aclose(self) -> None:
        """Close everything, also the running loop's connections. Does nothing the second time."""
        self._closed = True
        await self._async_transport.aclose()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"VLLMClient({self.config!r})"

    def _open(self) -> None:
        if self._closed:
            raise ClientClosedError("This client was closed: make another")

    def _size(self, batch_size: int | None) -> int:
        size = self.config.batch_size if batch_size is None else batch_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise SettingsError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        return size

    def _checked(self, texts: object, kind: Kind, first: int = 0) -> list[str]:
        self._open()
        prefix = self.config.prefix(kind)
        return checked(texts, first=first, prefix=prefix, longest=self.config.max_text_length)

    def _rows(self, count: int, first: int = 0) -> Rows:
        return Rows(count, self._dimension, normalize=self.config.normalize, first=first)

    def _stream(self, texts: Iterator[object], size: int, kind: Kind) -> Iterator[NDArray[np.float32]]:
        flight = Flight(self._embed, self.config.max_concurrent_requests)
        windows = Windows(self._windows(texts, size, kind))
        while True:
            windows.go_on(flight)
            for row in windows.whole():
                yield row
                if flight.landed:  # keep the engine busy while the caller works
                    flight.land()
                    windows.go_on(flight)
            if not flight.sent:
                return
            flight.land()

    def _windows(self, texts: Iterator[object], size: int, kind: Kind) -> Iterator[Window]:
        first = number = 0
        while read := self._checked(list(itertools.islice(texts, size * WINDOW)), kind, first):
            cut = list(batches(read, size, first=first, number=number))
            yield Window(self._rows(len(read), first), cut)
            first, number = first + len(read), number + len(cut)

    def _request(self, batch: Batch) -> tuple[EmbeddingRequest, Call]:
        self._open()
        config = self.config
        watch = Watch(self._sinks, mode=config.mode, model=config.model, n_texts=len(batch.texts), batch=batch.number)
        request = EmbeddingRequest(model=config.model, input=batch.texts, dimensions=config.dimensions or UNSET)
        return request, Call(time.monotonic() + config.timeout_s, watch)

    def _embed(self, batch: Batch, rows: Rows) -> None:
        """One batch's way, from its request to its rows."""
        request, call = self._request(batch)
        with _watched(batch, call) as came:
            came(rows, self._transport.send(request, call))

    async def _embed_async(self, batch: Batch, rows: Rows) -> None:
        request, call = self._request(batch)
        with _watched(batch, call) as came:
            came(rows, await self._async_transport.send(request, call))

    def _known_dimension(self) -> int:
        """The size of vectors; if it is not known, one is asked for, by one thread only."""
        if self._dimension.size is None:
            with self._probing:
                if self._dimension.size is None:
                    self._embed(_PROBE, self._rows(1))
        return self._dimension.size or 0

    async def _known_dimension_async(self) -> int:
        if self._dimension.size is None:
            async with self._probing_tasks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
                if self._dimension.size is None:
                    await self._embed_async(_PROBE, self._rows(1))
        return self._dimension.size or 0


@contextmanager
def _watched(batch: Batch, call: Call) -> Iterator[Callable[[Rows, Answer], None]]:
    """Tells whoever watches how a batch ended; yields what takes its answer."""

    def came(rows: Rows, answer: Answer) -> None:
        rows.put(batch, answer)
        call.watch.finished(dim=rows.array.shape[1], tokens=answer.tokens)

    try:
        yield came
    except BaseException as exc:  # a cancelled task ends its batch, too
        if isinstance(exc, BadRequestError):
            batch.blames(exc)
        call.watch.failed(exc)
        raise


def _transports(config: VLLMConfig, trace: Callable[[], Mapping[str, str]]) -> tuple[Transport, AsyncTransport]:
    if config.mode == "http":
        return HttpTransport(config, trace), AsyncHttpTransport(config, trace)
    from tandem.client.inprocess import AsyncInprocessTransport, InprocessTransport, InprocessVLLMEmbedder

    embedder = InprocessVLLMEmbedder(config.model, **config.engine)
    return InprocessTransport(embedder), AsyncInprocessTransport(embedder)


def _sinks(on_step: Sink | None) -> tuple[Sequence[Sink], Callable[[], Mapping[str, str]]]:
    """Who is told of steps, and what ties requests to the caller's trace: as far as the packages for it are there."""
    sinks: list[Sink] = [Lines()]
    trace: Callable[[], Mapping[str, str]] = dict
    if metrics := _optional("tandem.telemetry.embedding_metrics"):
        sinks.append(metrics.count)
    if spans := _optional("tandem.telemetry.embedding_spans"):
        sinks.append(spans.Spans())
        trace = spans.headers
    return [*sinks, on_step] if on_step else sinks, trace


def _optional(module: str) -> Any:
    """``module``; None where what it needs is not installed, or does not let itself be used."""
    try:
        return import_module(module)
    except ImportError as exc:
        _log.debug("%s is not used: %s", module, exc)
    except ValueError as exc:  # somebody else has registered a metric of that name
        _log.warning("%s is not used: %s", module, exc)
    return None
