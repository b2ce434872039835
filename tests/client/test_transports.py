"""HTTP's answers and httpx2's errors, in our words."""

import json
import ssl
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tandem.client import transports
from tandem.client.transports import MEANINGS, Call, proxy, refusal, retry_after
from tandem.errors import (
    AuthenticationError,
    BadRequestError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    ModelNotFoundError,
    RateLimitError,
    ServerError,
)
from tandem.telemetry.timeline import Watch

HERE = "http://h/v1"


def call() -> Call:
    return Call(time.monotonic() + 10, Watch((), mode="http", model="m", n_texts=1))


def descendants(kind: type[Exception]) -> Iterator[type[Exception]]:
    for each in kind.__subclasses__():
        yield each
        yield from descendants(each)


def test_every_error_of_httpx2_has_a_meaning() -> None:
    """Whatever a request can meet in httpx2 is in the table: a release with a new error fails here."""
    assert set(descendants(httpx2.RequestError)) | {httpx2.RequestError} == set(MEANINGS)
    # All that httpx2 raises beside these comes of misusing its objects, or of asking it to judge a status.
    others = set(descendants(httpx2.HTTPError)) - set(MEANINGS)
    assert others == {httpx2.RequestError, httpx2.HTTPStatusError} - set(MEANINGS)


@pytest.mark.parametrize("met", MEANINGS, ids=lambda kind: kind.__name__)
def test_it_is_raised_from_its_cause(met: type[httpx2.RequestError]) -> None:
    """As ours, with the address and the cause in words, and retried only where that may help."""
    cause = met("it went wrong")
    with pytest.raises(ClientError) as raised, transports._translated(HERE, call()):
        raise cause
    kind, _, again = MEANINGS[met]
    assert (type(raised.value), raised.value.again, raised.value.__cause__) == (kind, again, cause)
    assert HERE in str(raised.value)
    assert "it went wrong" in str(raised.value)


def test_a_certificate_that_is_not_trusted_is_not_asked_again() -> None:
    """The next attempt would meet the same certificate."""
    cause = httpx2.ConnectError("verify failed")
    cause.__cause__ = ssl.SSLCertVerificationError("self-signed")
    with pytest.raises(ClientConnectionError, match="not trusted") as raised, transports._translated(HERE, call()):
        raise cause
    assert not raised.value.again


def test_time_that_is_over_is_a_time_out() -> None:
    """asyncio's and Python's own time-outs mean the same."""
    with pytest.raises(ClientTimeoutError, match="deadline"), transports._translated(HERE, call()):
        raise TimeoutError


def openai(message: str = "no", code: str | None = None, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "x", "param": param, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "again"),
    [
        (400, openai("input[3] is empty", param="input[3]"), BadRequestError, False),
        (401, openai("wrong key", "invalid_api_key"), AuthenticationError, False),
        (403, openai("not allowed"), AuthenticationError, False),
        (404, openai("it does not exist", "model_not_found"), ModelNotFoundError, False),
        (404, b'{"object":"error","message":"The model `x` does not exist.","code":404}', ModelNotFoundError, False),
        (404, b'{"detail":"Not Found"}', BadRequestError, False),
        (408, b"", ServerError, True),
        (413, openai("too large"), BadRequestError, False),
        (422, b'{"detail":[{"loc":["body","input"],"msg":"wrong"}]}', BadRequestError, False),
        (429, openai("slow down", "rate_limit_exceeded"), RateLimitError, True),
        (500, b"<html>oops</html>", ServerError, True),
        (502, b"\xff\xfe", ServerError, True),
        (503, b'{"error":"overloaded"}', ServerError, True),
        (301, b"", ServerError, False),
        (204, b"", ServerError, False),
    ],
)
def test_a_status_has_a_meaning(status: int, body: bytes, kind: type[ClientError], again: bool) -> None:
    """Whatever form a server gives its error, it becomes one of ours, with its status and its words."""
    error = refusal(status, {"x-request-id": "req_1"}, body, HERE)
    assert (type(error), error.again, error.status, error.request_id) == (kind, again, status, "req_1")
    assert HERE in str(error)
    for word in (b"oops", b"overloaded", b"wrong", b"slow down", b"input[3]"):
        assert word not in body or word.decode() in str(error)


def test_hints_are_given() -> None:
    """A path that is not there and a redirect say what to look at."""
    assert "base URL" in str(refusal(404, {}, b'{"detail":"Not Found"}', HERE))
    assert "https://h/v1" in str(refusal(308, {"location": "https://h/v1"}, b"", HERE))


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_may_forbid_to_ask_again(status: int) -> None:
    """As OpenAI's clients take it: `x-should-retry: false`."""
    assert not refusal(status, {"x-should-retry": "false"}, b"", HERE).again
    assert refusal(status, {"x-should-retry": "true"}, b"", HERE).again


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:50 GMT"}, 10),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    """As seconds, as a date, or as OpenAI's milliseconds; nonsense says nothing."""
    assert retry_after(headers, 100.0) == seconds


@pytest.mark.parametrize(
    ("scheme", "host", "environment", "found"),
    [
        ("https", "api.example", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("http", "api.example", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ("http", "api.example", {"HTTPS_PROXY": "http://p:1"}, None),
        ("https", "api.example", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.example"}, None),
        ("http", "127.0.0.1", {"ALL_PROXY": "http://p:1"}, None),
        ("http", "::1", {"ALL_PROXY": "http://p:1"}, None),
        ("http", "localhost", {"ALL_PROXY": "http://p:1"}, None),
    ],
)
def test_proxies_are_the_environments(
    scheme: str, host: str, environment: dict[str, str], found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But never for this machine's own services."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy(scheme, host) == found
