"""The model's tokenizer, used to count, and its agreement with the engine's.

Counting must be exact: what several callers ask together is one total to the engine. A tokenizer file may pad and cut
by itself (MiniLM's does, to 128 tokens), which the engine does not; so both are switched off here.
"""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tandem.fleet import Engine
from tandem.router.connection import UpstreamError
from tandem.router.upstream import UNREADABLE, Upstreams

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_log = logging.getLogger("tandem.router")
# Text for which another thread is worth its while; the tokenizer works outside the interpreter's lock.
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


class _Tokenized(msgspec.Struct):
    tokens: list[int]


class Counter:
    """Counts an engine's tokens."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: str) -> "Counter | None":
        """The tokenizer in a model's ``folder``; None where there is none of that form."""
        from tokenizers import Tokenizer  # here: a router that is replaced should not wait for it

        path = Path(folder, "tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:
            _log.warning("%s is no tokenizer that can be used here: %s", path, exc)
            return None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer)

    async def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, special ones included."""
        if sum(map(len, texts)) < _MUCH:
            return self._count(texts)
        return await asyncio.to_thread(self._count, texts)

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
                    if msgspec.json.decode(said, type=_Tokenized).tokens != self._tokenizer.encode(text).ids:
                        return False
        except (TimeoutError, UpstreamError):
            return None
        except UNREADABLE:
            return False
        return True

    def _count(self, texts: Sequence[str]) -> list[int]:
        return [len(encoded.ids) for encoded in self._tokenizer.encode_batch_fast(texts)]
