"""One request and its answer, on ASGI's own terms: the body within a bound, the answer, and the caller's leaving."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any, TypeVar

from tandem.errors import ApiError, TandemError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

T = TypeVar("T")


class Disconnected(TandemError):
    """The caller went away; there is nobody to answer."""


class Exchange:
    """One request on its way through the router.

    Attributes:
        id: the router's own id of the request, sent back as ``x-request-id``.
        started: when it came, on the monotonic clock, in seconds.
        status: the status that was sent; 0 while none was.
        complete: whether the answer has been sent to its end.
        model: the model that was asked for, once that is known to exist; for logs and metrics.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.id = f"req_{uuid.uuid4().hex}"
        self.started = time.monotonic()
        self.status = 0
        self.complete = False
        self.model = ""
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str:
        """One request header, by its lower-case name; empty where it was not sent."""
        return next((value.decode("latin-1") for key, value in self._headers if key == name), "")

    async def body(self, limit: int) -> bytes:
        """The request's body.

        Raises:
            ApiError: 413, it is larger than ``limit`` bytes.
            Disconnected: the caller went away before it was whole.
        """
        length = self.header(b"content-length")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        parts = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            parts += message.get("body", b"")
            if len(parts) > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return bytes(parts)

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is cancelled the moment the caller goes away. Only after :meth:`body`.

        Raises:
            Disconnected: the caller went away first.
        """
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._left())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Disconnected
            return working.result()
        finally:
            leaving.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})

    async def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: bytes = b"application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a whole answer."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [(b"content-type", content_type), length], headers)
        await self._end(body)

    async def fail(self, status: int, body: bytes, event: bytes, headers: Mapping[str, str]) -> None:
        """Send an error: as the answer, or, once a stream has begun, as ``event``, its last; too late, nothing."""
        if not self.status:
            await self.answer(status, body, headers=headers)
        elif not self.complete:
            await self._end(event)

    async def relay(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's ``send`` for an application behind the router: adds the router's own headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
        elif not message.get("more_body"):
            self.complete = True
        await self._send(message)

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        """Send server-sent events as they come."""
        await self._start(
            200, [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        )
        async for event in events:
            await self._send({"type": "http.response.body", "body": event, "more_body": True})
        await self._end(b"")

    async def _end(self, body: bytes) -> None:
        self.complete = True
        await self._send({"type": "http.response.body", "body": body})

    async def _start(
        self, status: int, headers: list[tuple[bytes, bytes]], more: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        headers.append((b"x-request-id", self.id.encode()))
        headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in (more or {}).items()]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than this server's limit of {limit} bytes. Send fewer inputs at a time.",
        code="request_too_large",
        headers={"Connection": "close"},
    )
