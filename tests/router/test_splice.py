"""A stream's events come out the same, byte for byte, whether they are spliced or read."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import ApiError
from tandem.models.responses import ChatCompletionChunk, Completion, Usage
from tandem.router.answers import Form
from tandem.router.splice import Splicer, Write
from tandem.router.translate import Asked

TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from(["the", " quick", "\n", '"', "\\", "\\u0041", "你好", "é", "🙂", "\x7f", "</s>", '","text":"', ""]),
)
LOGPROBS = {"text_offset": [0], "token_logprobs": [-0.5], "tokens": ["x"], "top_logprobs": None}
USAGE = {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2}
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["cmpl-1", "cmpl-1", "cmpl-1", '"text":"x"']),
    "created": st.just(1),
    "model": st.just("org/m"),
    "usage": st.sampled_from([None, None, None, USAGE]),
    "system_fingerprint": st.sampled_from([None, "vllm"]),
}
FINISHES = st.sampled_from([None, None, None, "stop", "repetition", "abort"])
COMPLETION = st.fixed_dictionaries(
    {
        "index": st.sampled_from([0, 0, 0, 1]),
        "text": TEXT,
        "logprobs": st.sampled_from([None, None, LOGPROBS]),
        "finish_reason": FINISHES,
        "stop_reason": st.none(),
    }
)
DELTA = st.one_of(
    *(st.fixed_dictionaries({key: TEXT}) for key in ("content", "content", "reasoning", "reasoning_content")),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT, "reasoning": TEXT}),
    st.just({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
)
CHAT = st.fixed_dictionaries({"index": st.just(0), "delta": DELTA, "logprobs": st.none(), "finish_reason": FINISHES})


def events(choice: st.SearchStrategy[Any]) -> st.SearchStrategy[list[bytes]]:
    event = st.fixed_dictionaries({**COMMON, "choices": st.lists(choice, max_size=2).map(lambda some: some or [])})
    plain = st.builds(
        lambda event, only: {**event, "usage": None, "choices": [only]}, event, choice
    )  # most have one choice, and are alike
    return st.lists(st.one_of(plain, plain, event).map(written), min_size=1, max_size=30)


def written(event: object) -> bytes:
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


def whole(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def outcome(chunk: Write, event: bytes) -> object:
    try:
        return chunk(event)
    except ApiError as exc:
        return type(exc), exc.status, exc.message


def alike(write: Write, sent: list[bytes]) -> None:
    splicer = Splicer(write)
    for event in sent:
        assert outcome(splicer.chunk, whole(event)) == outcome(write, event)


ASKED = st.builds(Asked, st.just("m"), usage=st.booleans(), logprobs=st.booleans(), nothing=st.booleans())


@given(events(COMPLETION), ASKED, st.booleans())
def test_completions(sent: list[bytes], asked: Asked, strict: bool) -> None:
    form = Form(strict=strict)
    alike(lambda event: form.chunk(Completion, event, asked), sent)


@given(events(CHAT), ASKED, st.booleans())
def test_chats(sent: list[bytes], asked: Asked, strict: bool) -> None:
    form = Form(strict=strict)
    alike(lambda event: form.chunk(ChatCompletionChunk, event, asked), sent)


def said(text: bytes, *, kind: bytes = b"text") -> bytes:
    choice = b'{"index":0,"' + kind + b'":"' + text + b'","logprobs":null,"finish_reason":null,"stop_reason":null}'
    return b'{"id":"cmpl-1","created":1,"model":"org/m","choices":[' + choice + b'],"usage":null}'


class Counted:
    """Counts what is read."""

    def __init__(self, write: Callable[[bytes], tuple[bytes, Usage | None]]) -> None:
        self._write = write
        self.events = 0

    def __call__(self, event: bytes) -> tuple[bytes, Usage | None]:
        self.events += 1
        return self._write(event)


@pytest.fixture
def read() -> Counted:
    form = Form()
    return Counted(lambda event: form.chunk(Completion, event, Asked("m")))


def test_only_the_first_of_many_is_read(read: Counted) -> None:
    """Twice: once to learn from. And the last, which tells why the text has ended."""
    splicer = Splicer(read)
    for text in (b"one", b" two", "drei ß".encode(), b"</four>", rb"\n\t\"five\"\\", rb"\b\f\r"):
        assert text in splicer.chunk(whole(said(text)))[0]
    assert read.events == 2
    last = said(b"!").replace(b'"finish_reason":null', b'"finish_reason":"stop"')
    assert b'"finish_reason":"stop"' in splicer.chunk(whole(last))[0]
    assert read.events == 3


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"a\\", rb"\u000a", rb"\u0041", rb"\/", rb"\x", b"\xff", b"\xed\xa0\x80", b"a\tb"),
        *(b'","finish_reason":"stop', rb'\\","finish_reason":"stop'),
    ],
)
def test_a_text_that_is_not_plain_is_read(read: Counted, text: bytes) -> None:
    splicer = Splicer(read)
    splicer.chunk(whole(said(b"one")))
    before = read.events
    assert outcome(splicer.chunk, whole(said(text))) == outcome(read, said(text))
    assert read.events >= before + 2


def test_little_is_learnt_in_vain(read: Counted) -> None:
    """From a stream whose every event differs in more than its text."""
    splicer = Splicer(read)
    for number in range(1000):
        splicer.chunk(whole(said(b"x").replace(b'"created":1', b'"created":%d' % number)))
    assert read.events == 1000 + 9
