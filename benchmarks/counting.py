"""What it costs to count a text's tokens, and what the router then keeps in memory, with 151,000 tokens to know.

The tokenizer is of Qwen's kind (byte-level BPE), trained on Python's standard library and filled up with pairs of its
tokens; the texts are pieces of that library, each used once. First both of the router's counters in turn, one text at
a time. Then a router before an engine that does nothing but count, which is sent texts of random letters, and with them
some that are so long that they are counted in a thread of their own.
Usage: ``python benchmarks/counting.py [--quick]``.
"""

import asyncio
import contextlib
import http.server
import json
import os
import random
import string
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import load
import machine
import report
from bring_up import TANDEM, end, start, until_healthy
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from tandem import __version__
from tandem.engines.process import free_port
from tandem.router.tokens import Counter, counter_of

ENTRIES = 151_000
LENGTHS = (12, 100, 500)  # words
ROUNDS, TEXTS = 5, 100
REQUESTS, INPUTS, WORDS = 6, 2048, 100
LONG = 40_000  # letters of a long text
# Source: `pre_tokenizer` in the tokenizer.json of Qwen/Qwen3-Embedding-0.6B.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LETTERS = bytes.maketrans(bytes(range(256)), ((string.ascii_lowercase + " " * 4) * 9)[:256].encode())
_MIB = 2**20


def main() -> None:
    """Measure both and print the tables."""
    quick = machine.arguments(str(__doc__)).quick
    library = Path(sysconfig.get_path("stdlib"))
    sources = [path for path in sorted(library.rglob("*.py")) if "-packages" not in str(path)]
    with machine.neighbours() as others, machine.workspace() as folder:
        tokenizer = _large(sources, folder)
        words = " ".join(path.read_text(encoding="utf-8", errors="replace") for path in sources).split()
        rows = asyncio.run(_compared(folder, words, 1 if quick else ROUNDS))
        sizes, texts = _resident(tokenizer, folder, 1 if quick else REQUESTS)
        taken = others()
    print(f"Counting, {'one round' if quick else f'median of {ROUNDS} rounds (least to most)'}.")
    print(f"{machine.described({'tandem': __version__})}\n")
    print(report.table(("CPU a text, µs", "tokenizers", "fastokens", "ratio"), rows))
    print(f"\nThe router with these {ENTRIES:,} tokens, and after texts of some {WORDS} words of random letters:\n")
    head = ("resident, MiB", "at start", "with the tokenizer", f"{texts // 2:,} texts later", f"{texts:,} texts later")
    print(report.table(head, [["", *(f"{size / _MIB:.0f}" for size in sizes)]]))
    print(f"\n{taken}")


def _large(sources: list[Path], folder: Path) -> Tokenizer:
    """A tokenizer of Qwen's kind and size, saved in ``folder``."""
    made = Tokenizer(BPE())
    pieces = Split(Regex(_PIECES), "isolated")
    made.pre_tokenizer = Sequence([pieces, ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=ENTRIES, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    made.train([str(path) for path in sources], trainer)
    said = json.loads(made.to_str())
    vocabulary, merges = said["model"]["vocab"], said["model"]["merges"]
    tokens = list(vocabulary)
    chance = random.Random(0)  # noqa: S311 - tokens of some form
    while len(tokens) < ENTRIES:
        pair = chance.sample(tokens, 2)
        if (token := "".join(pair)) not in vocabulary:
            vocabulary[token] = len(tokens)
            merges.append(pair)
            tokens.append(token)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(said))
    return Tokenizer.from_file(str(path))


async def _compared(folder: Path, words: list[str], rounds: int) -> list[list[str]]:
    counters = [counter_of(str(folder), quick=quick) for quick in (False, True)]
    thorough, quick = (each for each in counters if each is not None)
    rows = []
    for length in LENGTHS:
        spent: dict[Counter, list[float]] = {thorough: [], quick: []}
        apart = len(words) // (TEXTS * (rounds + 1))
        for turn in range(rounds + 1):
            starts = range(turn * apart * TEXTS, (turn + 1) * apart * TEXTS, apart)
            texts = [" ".join(words[first : first + length]) for first in starts]
            found = []
            for counter, taken in spent.items():
                began = time.process_time()
                found.append([await counter.count([text]) for text in texts])
                if turn:  # the first was to warm up
                    taken.append((time.process_time() - began) / len(texts) * 1e6)
            if found[0] != found[1]:
                raise load.Failed("the two count differently")
        ratios = [one / other for one, other in zip(*spent.values(), strict=True)]
        figures = [report.spread(taken) for taken in spent.values()]
        rows.append([f"{length} words", *figures, report.spread(ratios, ".1f")])
    return rows


def _resident(tokenizer: Tokenizer, folder: Path, requests: int) -> tuple[list[int], int]:
    """Memory of the router before it has the tokenizer, with it, and after so many requests of many texts."""
    chance = random.Random(1)  # noqa: S311 - words of some form
    with _serving(tokenizer) as engine, _router(engine, folder) as (router, pid):
        sizes = [machine.resident(pid)]
        deadline = time.monotonic() + 30
        while not engine.merged:
            if time.monotonic() > deadline:
                raise load.Failed("the router does not merge")
            _ask(router, ["float"], "float")
            time.sleep(0.1)
        sizes.append(machine.resident(pid))
        for _ in range(2):
            for _ in range(requests):
                letters = [LONG, *[WORDS * 8] * (INPUTS - 1)]
                _ask(router, [chance.randbytes(each).translate(_LETTERS).decode() for each in letters], "base64")
            sizes.append(machine.resident(pid))
    return sizes, 2 * requests * INPUTS


class _Engine(http.server.ThreadingHTTPServer):
    """It counts as the tokenizer does, and has one vector for all.

    Attributes:
        merged: whether it was asked for what no caller has asked for: the router has begun to merge.
    """

    daemon_threads = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.tokenizer = tokenizer
        self.merged = False


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Engine

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "measured", "object": "model"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self._answer({"tokens": self.server.tokenizer.encode(asked["prompt"]).ids})
            return
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        base64 = asked["encoding_format"] == "base64"
        self.server.merged = self.server.merged or (base64 and texts == ["float"])
        tokens = sum(len(each.ids) for each in self.server.tokenizer.encode_batch_fast(texts))
        vector = "AACAPw==" if base64 else [1.0]
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(texts))]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self._answer({"object": "list", "model": "measured", "data": data, "usage": usage})

    def _answer(self, body: object) -> None:
        said = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Silent."""


@contextlib.contextmanager
def _serving(tokenizer: Tokenizer) -> Iterator[_Engine]:
    with _Engine(tokenizer) as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        try:
            yield engine
        finally:
            engine.shutdown()


@contextlib.contextmanager
def _router(engine: _Engine, folder: Path) -> Iterator[tuple[str, int]]:
    """A router before it: its address and its process."""
    url, port = f"http://127.0.0.1:{engine.server_port}", free_port()
    flags = ["--engine", f"embedding={url}", "--tokenizer", f"embedding={folder}", "--port", str(port)]
    process = start([str(TANDEM), "router", *flags], dict(os.environ))
    try:
        until_healthy(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        end([process])


def _ask(router: str, texts: list[str], encoding: str) -> None:
    case = load.Case("counting", "/v1/embeddings", {"model": "measured", "input": texts, "encoding_format": encoding})
    load.ask(case, router)


if __name__ == "__main__":
    main()
