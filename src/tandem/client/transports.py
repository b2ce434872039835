"""How a request becomes an answer: what a transport is, and the two that speak HTTP.

The library is httpx2, used below its client, at its transports, which costs less CPU than its client does. Aiohttp and
urllib3 cost less still, and are two libraries with two sets of errors and of settings, for what is then a small part of
what other clients take for such an answer (``benchmarks/client.py``); pyreqwest, in Rust, costs least and aborted the
interpreter at its exit. httpx2 has both worlds, Unix sockets, limits on connections and one tree of errors, and is what
the rest of Tandem uses.
"""

import asyncio
import email.utils
import ipaddress
import math
import ssl
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import httpx2
import msgspec

from tandem import __version__
from tandem.client.config import VLLMConfig
from tandem.client.structs import Answer, EmbeddingRequest, decoded
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

# Engines close connections that were idle for 5 s (vLLM's default): a pool must drop them before that.
_LIMITS = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=4.0)
_CONNECT = 10.0  # seconds
_BETWEEN = 10.0  # seconds from one part of an answer to the next: engines send theirs at once
_AGAIN = frozenset({408, 429})


@dataclass(frozen=True, slots=True)
class Call:
    """A request's way through all layers.

    Attributes:
        deadline: when it must be answered, by :func:`time.monotonic`.
        watch: what is told of what happens to it.
    """

    deadline: float
    watch: Watch

    def remaining(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()


class Transport(Protocol):
    """Turns a request into its answer, or raises a :class:`~tandem.errors.ClientError`. Used by several threads."""

    def send(self, request: EmbeddingRequest, call: Call) -> Answer:
        """The vectors of all of the request's texts, in order."""

    def close(self) -> None:
        """Let go of everything."""


class AsyncTransport(Protocol):
    """The same, for tasks, on one event loop after the other."""

    async def send(self, request: EmbeddingRequest, call: Call) -> Answer:
        """The vectors of all of the request's texts, in order."""

    async def aclose(self) -> None:
        """Let go of everything."""


class HttpTransport:
    """HTTP/1.1 over kept-alive connections, for threads.

    Args:
        trace: headers that tie a request to the caller's trace.
    """

    def __init__(self, config: VLLMConfig, trace: Callable[[], Mapping[str, str]] = dict) -> None:
        self._wire = _Wire(config, trace)
        self._pool = httpx2.HTTPTransport(**_pool_arguments(config))
        self._closed = False

    def send(self, request: EmbeddingRequest, call: Call) -> Answer:
        """Post it, and decode what comes back."""
        body = bytearray()
        with _translated(self._wire.address, call):
            sent = self._wire.request(request, call)
            response = self._pool.handle_request(sent)
            try:
                _body_follows(sent, call)
                for part in cast("httpx2.SyncByteStream", response.stream):
                    body += part
                    if call.remaining() <= 0:
                        raise TimeoutError("the deadline passed while the answer came")
            finally:
                response.close()
                if self._closed:  # the pool does not know of a connection that was being made when it was closed
                    response.extensions["network_stream"].close()
        return self._wire.answer(request, response, body)

    def close(self) -> None:
        """Close all connections; one that a thread is making just now is closed after its answer."""
        self._closed = True
        self._pool.close()


class AsyncHttpTransport:
    """HTTP/1.1 over kept-alive connections, for tasks.

    Connections belong to the event loop that opened them. Each loop gets a pool of its own, which is closed when the
    loop shuts its asynchronous generators down, as ``asyncio.run`` does at its end: that is the one moment which the
    loop announces and in which it still runs.
    """

    def __init__(self, config: VLLMConfig, trace: Callable[[], Mapping[str, str]] = dict) -> None:
        self._wire = _Wire(config, trace)
        self._config = config
        self._pools: dict[asyncio.AbstractEventLoop, tuple[httpx2.AsyncHTTPTransport, AsyncGenerator[None]]] = {}

    async def send(self, request: EmbeddingRequest, call: Call) -> Answer:
        """Post it, and decode what comes back."""
        body = bytearray()
        with _translated(self._wire.address, call):
            async with asyncio.timeout(max(call.remaining(), 0)):
                pool = await self._pool()
                response = await pool.handle_async_request(self._wire.request(request, call))
                try:
                    async for part in cast("httpx2.AsyncByteStream", response.stream):
                        body += part
                finally:
                    await response.aclose()
        return self._wire.answer(request, response, body)

    async def aclose(self) -> None:
        """Close the connections of the running loop; those of other loops close with these."""
        if held := self._pools.get(asyncio.get_running_loop()):
            await held[1].aclose()

    async def _pool(self) -> httpx2.AsyncHTTPTransport:
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            for other in [other for other in self._pools if other.is_closed()]:
                del self._pools[other]
            pool = httpx2.AsyncHTTPTransport(**_pool_arguments(self._config))
            until_shutdown = self._until_shutdown(loop, pool)
            await anext(until_shutdown)
            self._pools[loop] = pool, until_shutdown
        return self._pools[loop][0]

    async def _until_shutdown(
        self, loop: asyncio.AbstractEventLoop, pool: httpx2.AsyncHTTPTransport
    ) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._pools.pop(loop, None)
            await pool.aclose()


class _Wire:
    """Requests and answers as HTTP has them: all that both transports share."""

    def __init__(self, config: VLLMConfig, trace: Callable[[], Mapping[str, str]]) -> None:
        self.address = config.base_url
        base = "http://localhost/v1" if config.socket else config.base_url
        self._url = httpx2.URL(f"{base}/embeddings")
        self._trace = trace
        self._headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",  # vectors hardly shrink, and unpacking costs more than the network
            "user-agent": f"vllm-tandem/{__version__}",
        }
        if config.api_key:
            self._headers["authorization"] = f"Bearer {config.api_key}"

    def request(self, request: EmbeddingRequest, call: Call) -> httpx2.Request:
        left = call.remaining()
        if left <= 0:
            raise TimeoutError("the deadline passed before it was sent")
        timeout = {"connect": min(left, _CONNECT), "read": left, "write": left, "pool": left}
        return httpx2.Request(
            "POST",
            self._url,
            headers={**self._headers, **self._trace()},
            content=msgspec.json.encode(request),
            extensions={"timeout": timeout},
        )

    def answer(self, request: EmbeddingRequest, response: httpx2.Response, body: bytes | bytearray) -> Answer:
        if response.status_code == 200:
            return decoded(body, len(request.input))
        raise refusal(response.status_code, response.headers, body, self.address)


def _body_follows(request: httpx2.Request, call: Call) -> None:
    """Wait less for the rest of an answer than for its head: a total can only be kept between two parts."""
    request.extensions["timeout"]["read"] = max(min(call.remaining(), _BETWEEN), 0.001)


def _pool_arguments(config: VLLMConfig) -> dict[str, Any]:
    url = urlsplit(config.base_url)
    # Loading the machine's certificates takes longer than all else: only for those who need them.
    verify: bool | ssl.SSLContext = True if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return {
        "limits": _LIMITS,
        "http1": True,
        "http2": False,
        "uds": config.socket,
        "verify": verify,
        "proxy": None if config.socket else proxy(url.scheme, url.hostname or ""),
    }


def proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for ``host`` (``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``).

    None for this machine's own addresses, whatever it says.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if local or urllib.request.proxy_bypass(host):
        return None
    found = urllib.request.getproxies()
    return found.get(scheme) or found.get("all")


# Each error that httpx2 can meet on a request's way: what it is to us, in words, and whether to send again.
MEANINGS: Mapping[type[httpx2.RequestError], tuple[type[ClientError], str, bool]] = {
    httpx2.ConnectError: (ClientConnectionError, "No connection to", True),
    httpx2.ConnectTimeout: (ClientConnectionError, "No connection to", True),
    httpx2.ReadError: (ClientConnectionError, "The connection broke to", True),
    httpx2.WriteError: (ClientConnectionError, "The connection broke to", True),
    httpx2.CloseError: (ClientConnectionError, "The connection broke to", True),
    httpx2.NetworkError: (ClientConnectionError, "The connection broke to", True),
    httpx2.RemoteProtocolError: (ClientConnectionError, "The connection broke, or what came was no HTTP, from", True),
    httpx2.ProtocolError: (ClientConnectionError, "What came was no HTTP, from", False),
    httpx2.LocalProtocolError: (ClientConnectionError, "The request is no valid HTTP, to", False),
    httpx2.ProxyError: (ClientConnectionError, "The proxy refused the way to", False),
    httpx2.UnsupportedProtocol: (ClientConnectionError, "No such protocol:", False),
    httpx2.TransportError: (ClientConnectionError, "The connection failed to", False),
    httpx2.ReadTimeout: (ClientTimeoutError, "No answer in time from", False),
    httpx2.WriteTimeout: (ClientTimeoutError, "The request was not taken in time by", False),
    httpx2.PoolTimeout: (ClientTimeoutError, "All connections stayed in use to", False),
    httpx2.TimeoutException: (ClientTimeoutError, "No answer in time from", False),
    # Redirects, events and packed bodies are not followed, read or unpacked: these three cannot come.
    httpx2.TooManyRedirects: (ServerError, "Redirected in circles by", False),
    httpx2.SSEError: (ServerError, "Events instead of an answer from", False),
    httpx2.DecodingError: (ServerError, "An answer that cannot be unpacked, from", False),
    httpx2.RequestError: (ClientConnectionError, "The request failed to", False),
}


@contextmanager
def _translated(address: str, call: Call) -> Iterator[None]:
    """The one place where httpx2's errors become ours."""
    try:
        yield
    except TimeoutError as exc:
        raise ClientTimeoutError(f"No answer in time from {address}: the deadline is over") from exc
    except httpx2.RequestError as exc:
        kind, words, again = MEANINGS[next(each for each in type(exc).__mro__ if each in MEANINGS)]
        if again and _distrusted(exc):
            words, again = "Its certificate is not trusted:", False
        said = str(exc).strip().rstrip(".") or type(exc).__name__
        hint = ". Does the service run?" if isinstance(exc, httpx2.ConnectError) and again else ""
        raise kind(f"{words} {address}: {said}{hint}", again=again) from exc


def _distrusted(exc: BaseException) -> bool:
    """Whether a certificate is behind it: the next attempt would fail the same way."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class _Detail(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None


class _Refusal(msgspec.Struct):
    """An error as OpenAI has it, as older servers have it, or as FastAPI has it."""

    error: _Detail | str | None = None
    message: str = ""
    detail: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b""))

    def read(self) -> _Detail:
        if isinstance(self.error, _Detail):
            return self.error
        return _Detail(message=self.error or self.message or bytes(self.detail).decode().strip('"'))


def refusal(status: int, headers: Mapping[str, str], body: bytes | bytearray, address: str) -> ClientError:
    """The error that an HTTP answer other than 200 stands for. Pure.

    Args:
        headers: with names in lower case, or a mapping that does not mind.
        address: the base URL, for messages.
    """
    try:
        detail = msgspec.json.decode(body, type=_Refusal).read()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        detail = _Detail(message=body[:200].decode(errors="replace").strip())
    code = detail.code if isinstance(detail.code, str) else None
    said = detail.message or "the answer says no more"
    common: dict[str, Any] = {"status": status, "code": code, "request_id": headers.get("x-request-id")}
    if status in (401, 403):
        return AuthenticationError(f"{address} wants another key: {said}", param=detail.param, **common)
    if status == 404 and (code == "model_not_found" or (detail.message and "model" in detail.message.lower())):
        return ModelNotFoundError(f"{address} has no such model: {said}", param=detail.param, **common)
    if status == 404:
        hint = "Does the base URL end as the service's does, mostly in /v1?"
        return BadRequestError(f"There is no {address}/embeddings (404): {said}. {hint}", **common)
    if 400 <= status < 500 and status not in _AGAIN:
        return BadRequestError(f"{address} refused it ({status}): {said}", param=detail.param, **common)
    if status < 400:
        where = headers.get("location")
        return ServerError(f"{address} answered {status}{f' and points to {where}' if where else ''}", **common)
    again = headers.get("x-should-retry", "").strip().lower() != "false"
    after = retry_after(headers, time.time())
    kind = RateLimitError if status == 429 else ServerError
    return kind(f"{address} failed ({status}): {said}", again=again, retry_after=after, **common)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds for which the server asks to be left alone; None if it does not say, or nonsense.

    Args:
        now: seconds since the epoch.

    Source: https://www.rfc-editor.org/rfc/rfc9110#name-retry-after, and OpenAI's ``retry-after-ms``
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 <= seconds < math.inf:
            return seconds
    try:
        when = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(when.timestamp() - now, 0.0)
