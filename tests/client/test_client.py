"""What the client asks for, and what it makes of answers, against a real service that misbehaves when told to."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest

from tandem import (
    AuthenticationError,
    BadRequestError,
    ClientConnectionError,
    ClientTimeoutError,
    DecodingError,
    DimensionMismatchError,
    ModelNotFoundError,
    RateLimitError,
    ServerError,
    VLLMClient,
    VLLMConfig,
)

from . import service as ways
from .calls import ALL, ARRAYS, EXPECTED, TEXTS, Connect, embeds
from .service import DIM, Service, vector


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("way", [ways.well, ways.turned, ways.floats])
def test_vectors_are_the_texts_own(how: str, way: ways.Way, service: Service, connect: Connect) -> None:
    """Float32, contiguous, row i for text i: whatever order and form the server answers in."""
    service.always = way
    found = embeds(connect(), how, TEXTS)
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.float32, (len(TEXTS), DIM), True)
    assert np.array_equal(found, EXPECTED)


def test_one_text_gives_one_vector(connect: Connect) -> None:
    """Of shape (dim,), both ways."""
    client = connect()
    for found in (client.embed_single("a"), asyncio.run(client.embed_single_async("a"))):
        assert (found.shape, found.dtype) == ((DIM,), np.float32)
        assert np.array_equal(found, vector("a"))


@pytest.mark.parametrize("how", ARRAYS)
def test_no_texts_give_no_rows(how: str, service: Service, connect: Connect) -> None:
    """(0, dim): the server is asked for the size once, and not at all where it is known."""
    client = connect()
    for _ in range(2):
        found = embeds(client, how, [])
        assert (found.shape, found.dtype) == ((0, DIM), np.float32)
    assert len(service.asked) == 1
    assert embeds(connect(embedding_dim=5), how, []).shape == (0, 5)
    assert len(service.asked) == 1
    assert list(client.embed_iter([])) == []


def test_the_size_is_asked_for_by_one_thread(service: Service, connect: Connect) -> None:
    """However many want to know it at once."""
    client = connect()
    with ThreadPoolExecutor(8) as threads:
        shapes = list(threads.map(lambda _: client.embed_batch([]).shape, range(8)))
    assert set(shapes) == {(0, DIM)}
    assert len(service.asked) == 1


@pytest.mark.parametrize("how", ALL)
def test_another_size_is_an_error(how: str, service: Service, connect: Connect) -> None:
    """Than was set, or than came before; both are named."""
    with pytest.raises(DimensionMismatchError, match=r"8 dimensions, but embedding_dim is 9") as met:
        embeds(connect(embedding_dim=9), how, ["a"])
    assert (met.value.expected, met.value.found) == (9, 8)
    client = connect()
    assert embeds(client, how, ["a"]).shape == (1, 8)
    service.always = ways.sized(6)
    with pytest.raises(DimensionMismatchError, match="6 dimensions, but earlier answers had 8"):
        embeds(client, how, ["a"])


def twice(body: dict[str, Any]) -> None:
    body["data"][1]["index"] = 0


def short(body: dict[str, Any]) -> None:
    body["data"].pop()


def broken(body: dict[str, Any]) -> None:
    body["data"][1]["embedding"] = "AAAA" * 5  # 15 bytes


def infinite(body: dict[str, Any]) -> None:
    body["data"][1]["embedding"] = [1e39] * DIM


@pytest.mark.parametrize("change", [twice, short, broken, infinite])
@pytest.mark.parametrize("how", ALL)
def test_wrong_vectors_are_refused(how: str, change: Any, service: Service, connect: Connect) -> None:
    """A vector twice, missing, cut off or of no numbers is an error, and is not asked for again."""
    service.always = ways.changed(change)
    with pytest.raises(DecodingError):
        embeds(connect(), how, ["a", "b"])
    assert len(service.asked) == 1


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("wrong", ["a text", b"bytes", None, ["a", None], ["a", b"b"], ["a", ""], ["x" * 101], 3])
def test_bad_texts_are_refused_before_anything_is_sent(
    how: str, wrong: Any, service: Service, connect: Connect
) -> None:
    """With the place of the text, where there is one."""
    with pytest.raises(BadRequestError) as refused:
        embeds(connect(max_text_length=100), how, wrong)
    assert refused.value.index == (len(wrong) - 1 if isinstance(wrong, list) else None)
    assert service.asked == []


def test_a_single_text_must_be_one(service: Service, connect: Connect) -> None:
    """A list, None or nothing is no text."""
    for wrong in (["a"], None, "", b"a"):
        with pytest.raises(BadRequestError):
            connect().embed_single(wrong)  # type: ignore[arg-type]
    assert service.asked == []


def test_what_is_asked_for(service: Service, connect: Connect) -> None:
    """OpenAI's request, with base64, the key and, where set, dimensions and prefixes."""
    client = connect(api_key="sk-1", dimensions=4, query_prefix="q: ", document_prefix="d: ")
    assert client.embed_batch(["a"], kind="query").shape == (1, 4)
    assert asyncio.run(client.embed_chunks_async(["b"])).shape == (1, 4)
    (path, headers, first), (_, _, second) = service.asked
    assert path == "/v1/embeddings"
    assert headers["authorization"] == "Bearer sk-1"
    assert first == {"model": "m", "input": ["q: a"], "encoding_format": "base64", "dimensions": 4}
    assert second["input"] == ["d: b"]


def test_vectors_can_be_normalised(connect: Connect) -> None:
    """To length 1, in every way to embed."""
    client = connect(normalize=True)
    for how in ALL:
        assert np.linalg.norm(embeds(client, how, TEXTS), axis=1) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("how", ["embed_chunks", "embed_chunks_async"])
def test_a_refusal_names_the_callers_own_text(how: str, service: Service, connect: Connect) -> None:
    """The server counts within a batch of texts that were sorted; the error counts as the caller does."""

    def picky(handler: ways.Handler, asked: dict[str, Any]) -> None:
        if TEXTS[31] in asked["input"]:
            place = asked["input"].index(TEXTS[31])
            ways.error(400, f"input[{place}] is bad", param=f"input[{place}]")(handler, asked)
        else:
            ways.well(handler, asked)

    service.always = picky
    with pytest.raises(BadRequestError, match=r"input\[31\] is bad") as refused:
        embeds(connect(), how, TEXTS)
    assert (refused.value.index, refused.value.param, refused.value.status) == (31, "input[31]", 400)


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        (ways.error(401, "no key"), AuthenticationError),
        (ways.error(404, "no such model", code="model_not_found"), ModelNotFoundError),
        (ways.error(413, "too large"), BadRequestError),
        (ways.error(500, "oops", headers={"x-should-retry": "false"}), ServerError),
        (ways.error(429, "enough", headers={"retry-after": "60"}), RateLimitError),
    ],
)
@pytest.mark.parametrize("how", ALL)
def test_what_would_come_again_is_raised_at_once(
    how: str, way: ways.Way, kind: type[Exception], service: Service, connect: Connect
) -> None:
    """One request, one error; also where the pause that is asked for is longer than the deadline."""
    service.always = way
    with pytest.raises(kind):
        embeds(connect(), how, ["a"])
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    "way",
    [
        ways.reset,
        ways.half,
        ways.error(429, "enough", headers={"retry-after": "0"}),
        ways.error(503, "busy", headers={"retry-after-ms": "1"}),
        ways.refusing(408),
    ],
    ids=["reset", "half", "429", "503", "408"],
)
@pytest.mark.parametrize("how", ALL)
def test_what_may_pass_is_asked_again(how: str, way: ways.Way, service: Service, connect: Connect) -> None:
    """And the caller sees vectors only."""
    service.ways = [way]
    assert np.array_equal(embeds(connect(), how, ["a"]), [vector("a")])
    assert len(service.asked) == 2


def test_retries_end(service: Service, connect: Connect) -> None:
    """With the last error, which says how long to stay away and which request it was."""
    service.always = ways.error(429, "enough", headers={"retry-after": "0.001", "x-request-id": "req_7"})
    with pytest.raises(RateLimitError, match=r"enough \(request req_7\)") as met:
        connect(retries=2).embed_batch(["a"])
    assert (met.value.retry_after, met.value.status, len(service.asked)) == (0.001, 429, 3)


@pytest.mark.parametrize("how", ALL)
def test_nobody_there(how: str, free_port: int) -> None:
    """A refused connection says whether the service runs, and keeps its cause."""
    with VLLMClient(VLLMConfig(base_url=f"http://127.0.0.1:{free_port}", model="m", retries=1)) as client:
        with pytest.raises(ClientConnectionError, match="Does the service run") as met:
            embeds(client, how, ["a"])
        assert isinstance(met.value.__cause__, httpx2.ConnectError)


@pytest.mark.parametrize("how", ALL)
def test_the_deadline_is_total(how: str, service: Service, connect: Connect) -> None:
    """A server that says nothing, or dribbles, is given up on, and not asked again."""
    over = threading.Event()

    def dribble(handler: ways.Handler, asked: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        while not over.wait(0.01):
            handler.wfile.write(b" ")

    silent: ways.Way = lambda handler, asked: over.wait(20) and None  # noqa: E731
    try:
        for service.always in (silent, dribble):
            before = len(service.asked)
            with pytest.raises(ClientTimeoutError, match=r"deadline|in time"):
                embeds(connect(timeout_s=0.1), how, ["a"])
            assert len(service.asked) == before + 1
    finally:
        over.set()
