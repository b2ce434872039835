"""What is asked, and which answers are good ones."""

import itertools
import json
import re

import pytest

from tandem.bench import scenarios
from tandem.bench.connection import Address, Answer, Failure
from tandem.bench.load import Load
from tandem.bench.scenarios import Kind, Shape

LOAD = Load(clients=50, rate=None, seconds=1, warm_up=0, timeout=1)


def test_texts_are_all_different_and_the_same_for_the_same_seed() -> None:
    """No cache can answer, and a run can be repeated."""
    found = list(itertools.islice(scenarios.texts("a", 5), 500))
    assert len(set(found)) == 500
    assert found == list(itertools.islice(scenarios.texts("a", 5), 500))
    assert found[0] != next(scenarios.texts("b", 5))
    assert all(len(text.split()) == 5 for text in found)


def test_bodies_hold_what_was_asked_for_and_nothing_else() -> None:
    """Options that are not given are not sent: a service may refuse them."""
    given = iter("abcdef")
    plain = json.loads(scenarios.body(Kind.EMBEDDINGS, Shape(), "m", given, {}))
    assert plain == {"model": "m", "input": "a"}
    full = Shape(texts=2, dimensions=8, encoding_format="base64")
    assert json.loads(scenarios.body(Kind.EMBEDDINGS, full, "m", given, {})) == {
        "model": "m",
        "input": ["b", "c"],
        "dimensions": 8,
        "encoding_format": "base64",
    }
    stream = json.loads(scenarios.body(Kind.STREAMS, Shape(max_tokens=9), "m", given, {"ignore_eos": True}))
    assert stream == {"model": "m", "prompt": "d", "max_tokens": 9, "ignore_eos": True, "stream": True}


def test_overhead_is_measured_on_one_connection_and_on_many_with_tiny_requests() -> None:
    """Embeddings where there are any, else completions of one token."""
    one, many = scenarios.cases("overhead", Shape(texts=9), LOAD, frozenset(Kind))
    assert (one.load.clients, many.load.clients) == (1, 50)
    assert (one.shape.texts, one.shape.words, one.kind) == (1, 1, Kind.EMBEDDINGS)
    (other, _) = scenarios.cases("overhead", Shape(), LOAD, frozenset({Kind.COMPLETIONS, Kind.STREAMS}))
    assert (other.kind, other.shape.max_tokens) == (Kind.COMPLETIONS, 1)


VECTORS = b'{"data": [{"index": 0, "object": "embedding", "embedding": [0.5]}]}'
CHOICE = b'{"choices": [{"text": "x"}], "usage": {"completion_tokens": 4}}'


@pytest.mark.parametrize(
    ("kind", "answer", "failure"),
    [
        (Kind.EMBEDDINGS, Answer(200, VECTORS), None),
        (Kind.EMBEDDINGS, Answer(200, b"{}"), Failure("wrong number of vectors", "0 for 1 texts")),
        (Kind.EMBEDDINGS, Answer(503, b'{"error": {"message": "busy"}}'), Failure("HTTP 503", "busy")),
        (Kind.EMBEDDINGS, Answer(502, b"<html>"), Failure("HTTP 502", "<html>")),
        (Kind.EMBEDDINGS, Answer(500), Failure("HTTP 500", "an empty body")),
        (Kind.EMBEDDINGS, Answer(0, failure=Failure("timeout", "x")), Failure("timeout", "x")),
        (Kind.COMPLETIONS, Answer(200, CHOICE), None),
        (Kind.COMPLETIONS, Answer(200, b'{"choices": []}'), Failure("no choices", '{"choices": []}')),
        (Kind.COMPLETIONS, Answer(200, b"[]"), Failure("not a completion", "[]")),
        (Kind.STREAMS, Answer(200, b"data: {}\n\n", [1.0], done=True), None),
        (Kind.STREAMS, Answer(200, b"", [1.0]), Failure("stream without [DONE]", "after 1 events")),
        (Kind.STREAMS, Answer(200, b"", done=True), Failure("empty stream", "no event before [DONE]")),
        (
            Kind.STREAMS,
            Answer(200, b'data: {}\n\ndata: {"error": {"message": "gone"}}\n\ndata: [DONE]\n\n', [1.0, 2.0], done=True),
            Failure("error in a stream", "gone"),
        ),
    ],
)
def test_an_answer_is_good_or_an_error_of_some_kind(kind: Kind, answer: Answer, failure: Failure | None) -> None:
    """What a caller could not use is an error, whatever its status."""
    assert scenarios.judge(kind, Shape(), answer)[0] == failure


def test_an_address_without_a_path_is_given_openais() -> None:
    """Where one is given, it stays; a name and password are not sent as the host."""
    assert Address("http://h:1").url == "http://h:1/v1"
    assert Address("https://me:pw@h/api/v3/").url == "https://h/api/v3"
    assert Address("http://h").message("GET", "/models", key="k").startswith(b"GET /v1/models HTTP/1.1\r\nhost: h\r\n")


@pytest.mark.parametrize(
    "url",
    [
        "h:8200",
        "http://",
        "http://h:99999",
        "http://h:0",
        "http://[::1",
        "http://h/v1?key=1",
        "http://h/a b",
        "http://ö/",
    ],
)
def test_what_is_no_base_url_is_refused_by_its_name(url: str) -> None:
    """Before it is written into a request."""
    with pytest.raises(ValueError, match=re.escape(repr(url))):
        Address(url)
