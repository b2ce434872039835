"""Nothing of a request or a connection is left to the garbage collector, which a busy router hardly ever runs."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Iterator

import pytest

from tandem.fleet import Fleet

from .conftest import CHUNK, COMPLETION, Script, ScriptedEngine, answer, connected, reset, serving, stream, two_engines

TIMES = 3
OURS = ("tandem.", "uvicorn.", "uvloop.")
HEAD = "{} HTTP/1.1\r\nhost: router\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{}"


@pytest.fixture
def collecting() -> Iterator[None]:
    """What only the collector finds is kept, for the test to look at."""
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def asks(what: str, body: object = None) -> bytes:
    text = json.dumps(body) if body else ""
    return HEAD.format(what, len(text), text).encode()


PROMPT = {"model": "generation", "prompt": "a"}
LATER = CHUNK | {"choices": [{"index": 0, "text": "later"}]}
WHOLE = asks("POST /v1/completions", PROMPT)
STREAMED = asks("POST /v1/completions", PROMPT | {"stream": True})
CASES: dict[str, tuple[bytes, bytes, Script]] = {
    # What a caller sends, up to where it reads before it leaves, and what the engine says.
    "whole": (WHOLE, b"200 OK", answer(COMPLETION)),
    "pipelined": (WHOLE * 2, b"200 OK", answer(COMPLETION)),
    "streamed": (STREAMED, b"[DONE]", stream(CHUNK, CHUNK, "[DONE]")),
    "left": (STREAMED, b"data: ", stream(CHUNK, CHUNK, "[DONE]", pause=0.2)),
    "sent on": (STREAMED, b"[DONE]", stream(*[CHUNK] * 9, "[DONE]", pause=0.01)),
    "left while sent on": (STREAMED, b"later", stream(*[CHUNK] * 9, LATER, *[CHUNK] * 99, pause=0.01)),
    "broken off": (STREAMED, b"error", stream(CHUNK, close=True)),
    "wrong event": (STREAMED, b"error", stream(CHUNK, "nonsense", "[DONE]")),
    "refused": (asks("POST /v1/completions", PROMPT | {"model": "none"}), b"404 Not Found", answer(COMPLETION)),
    "refused by the engine": (WHOLE, b"400 Bad", answer({"error": {"message": "no"}}, 400)),
    "failed": (WHOLE, b"HTTP/1.1 5", answer({"error": {"message": "x"}}, 500)),
    "reset": (WHOLE, b"HTTP/1.1 5", reset()),
    "nonsense of the engine": (WHOLE, b"HTTP/1.1 5", answer(None, raw=b"nonsense")),
    "wrong method": (asks("GET /v1/completions"), b"405 Method", answer(COMPLETION)),
    "cold": (asks("GET /health"), b"200 OK", answer(COMPLETION)),
    "nowhere": (asks("GET /nowhere"), b"404 Not Found", answer(COMPLETION)),
    "no HTTP": (b"nonsense\r\n\r\n", b"400 ", answer(COMPLETION)),
    "cut short": (WHOLE[:-5], b"", answer(COMPLETION)),
}


@pytest.mark.parametrize("case", CASES)
async def test_no_cycles_are_left(case: str, engine: ScriptedEngine, fleet: Fleet, collecting: None) -> None:
    sent, until, said = CASES[case]
    engine.scripts["/v1/completions"] = said

    def of_the_engine(each: object) -> bool:
        """The test's own end of a connection, which runs on the same loop."""
        name = each.get_extra_info("sockname") if hasattr(each, "get_extra_info") else None
        return name is not None and engine.url == f"http://{name[0]}:{name[1]}"

    async def ask(life: int) -> None:
        fleet.replace(two_engines(engine.url, started=life))  # what it did before is forgotten
        await asyncio.sleep(0)
        reader, writer = await connected(address)
        writer.write(sent)
        async with asyncio.timeout(10):
            if until:
                await reader.readuntil(until)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)

    async with serving(fleet, timeout=1) as (_, address):
        await ask(0)  # what comes once, and stays
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        for life in range(TIMES):
            await ask(1 + life)
        gc.collect()
        left = [each for each in gc.garbage if type(each).__module__.startswith(OURS) and not of_the_engine(each)]
        assert not Counter(type(each).__qualname__ for each in left)
