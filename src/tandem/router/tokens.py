"""The model's tokenizer, used to count, and its agreement with the engine's.

Counting must be exact: what several callers ask together is one total to the engine. Two libraries count here.
fastokens, which engines may use as well (``VLLM_USE_FASTOKENS``), needs a fraction of the time and knows byte-level
BPE, which most models have; tokenizers, the one that engines use by default, knows all the others. A tokenizer file may
pad and cut by itself (MiniLM's does, to 128 tokens), which the engine does not; so both are switched off here.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from tandem.errors import TandemError
from tandem.fleet import Engine
from tandem.router.connection import UpstreamError
from tandem.router.upstream import UNREADABLE, Upstreams

_log = logging.getLogger("tandem.router")
# Letters for which others have their turn, or another thread has the work: both libraries leave the interpreter's lock.
_MUCH = 20_000
_PATIENCE = 10.0
_PROBES = (
    "Hello, world",
    "  Two  spaces,\ttabs\nand newlines\r\n ",
    "def f(x: int) -> list[int]:\n    return [x ** 2, 0x1F]  # ümläut",
    "Ünïcödé, 你好,世界, привет, 🙂👩‍👩‍👧, e\u0301",
    "http://example.org/a?b=c&d=%20 UPPER lower 1234567890",
    "word " * 40,
)


class Uncountable(TandemError):
    """The quick counter has failed, of which nothing says that it cannot."""


class _Tokenized(msgspec.Struct):
    tokens: list[int]


class Counter(ABC):
    """Counts an engine's tokens, special ones included."""

    @abstractmethod
    async def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has.

        Raises:
            Uncountable: a quick counter has failed.
        """

    @abstractmethod
    def ids(self, text: str) -> list[int]:
        """Those of one text.

        Raises:
            Uncountable: a quick counter has failed.
        """

    async def agrees(self, engine: Engine, upstreams: Upstreams) -> bool | None:
        """Whether ``engine`` makes the same tokens of a few texts; None if it does not tell now."""
        try:
            async with asyncio.timeout(_PATIENCE):
                for text in _PROBES:
                    body = msgspec.json.encode({"model": engine.model, "prompt": text})
                    answer = await upstreams.to(engine.url).request("POST", "/tokenize", body)
                    try:
                        said = await answer.read()
                    finally:
                        answer.close()
                    if answer.status in {429, 503}:
                        return None
                    if answer.status != 200:
                        return False
                    if msgspec.json.decode(said, type=_Tokenized).tokens != self.ids(text):
                        return False
        except (TimeoutError, UpstreamError):
            return None
        except (*UNREADABLE, Uncountable):
            return False
        return True


class QuickCounter(Counter):
    """fastokens."""

    def __init__(self, file: Path) -> None:
        # Threads of its own would take the engines' cores, and each would keep a cache of tens of megabytes.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        from fastokens import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._encode = tokenizer.encode
        self._apart = asyncio.Lock()

    async def count(self, texts: Sequence[str]) -> list[int]:
        counts = []
        since = 0  # letters, since others had their turn
        for text in texts:
            since += len(text)
            if len(text) > _MUCH:
                counts.append(await self._count_apart(text))
            else:
                counts.append(self._count(text))
            if since > _MUCH:
                since = 0
                await asyncio.sleep(0)
        return counts

    def ids(self, text: str) -> list[int]:
        return list(self._encoded(text).ids)

    def _count(self, text: str) -> int:
        return len(self._encoded(text))

    async def _count_apart(self, text: str) -> int:
        """In a thread of its own, whose cache ends with it; in one at a time."""
        async with self._apart:
            thread = ThreadPoolExecutor(1)
            try:
                return await asyncio.get_running_loop().run_in_executor(thread, self._count, text)
            finally:
                thread.shutdown(wait=False)

    def _encoded(self, text: str) -> Any:
        try:
            return self._encode(text, add_special_tokens=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # see counter_of
            raise Uncountable(f"{type(exc).__name__}: {exc}") from exc


class ThoroughCounter(Counter):
    """tokenizers."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    async def count(self, texts: Sequence[str]) -> list[int]:
        if sum(map(len, texts)) < _MUCH:
            return self._count(texts)
        return await asyncio.to_thread(self._count, texts)

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def _count(self, texts: Sequence[str]) -> list[int]:
        return [len(encoded.ids) for encoded in self._tokenizer.encode_batch_fast(texts)]


def counter_of(folder: str, *, quick: bool) -> Counter | None:
    """A counter with the tokenizer in a model's ``folder``: fastokens, if it is to be ``quick``; None where there is
    none of a form that it knows.
    """
    file = Path(folder, "tokenizer.json")
    try:
        counter = QuickCounter(file) if quick else ThoroughCounter(file)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:  # a panic of Rust's is no Exception
        level = logging.DEBUG if quick else logging.WARNING  # then the other one may know it
        _log.log(level, "%s is no tokenizer that can be used here: %s", file, exc)
        return None
    _give_back()
    return counter


def _give_back() -> None:
    """Give back what reading the file took: of a large one more than is kept, and glibc would not."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
