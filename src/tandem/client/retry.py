"""Asking again: what, when and how often, within the caller's deadline. A transport around a transport."""

import asyncio
import random
import threading
from collections.abc import Callable

from tandem.client.structs import Answer, EmbeddingRequest
from tandem.client.transports import AsyncTransport, Call, Transport
from tandem.errors import ClientClosedError, ClientError

_FIRST = 0.25  # seconds: the longest pause before the first repetition; it doubles with each
_LONGEST = 8.0


class Attempts:
    """What is left of one request's attempts. Pure, but for the deadline's clock.

    Args:
        retries: how often it may be sent again.
        chance: a number in [0, 1).
    """

    def __init__(self, call: Call, retries: int, chance: Callable[[], float] = random.random) -> None:
        self._call, self._left, self._chance = call, retries, chance
        self._longest = _FIRST

    def pause(self, exc: ClientError) -> float:
        """Seconds to wait before the next attempt, told to those who watch.

        Full jitter, so that callers who failed together do not come again together; on top of what the server asks
        for. Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

        Raises:
            ClientError: ``exc`` itself, where asking again is no use or there is no time for it.
        """
        if not exc.again or not self._left:
            raise exc
        asked = exc.retry_after or 0.0
        pause = asked + self._chance() * self._longest
        left = self._call.remaining()
        if asked >= left:
            raise exc
        if pause >= left:
            pause = asked
        self._left -= 1
        self._longest = min(2 * self._longest, _LONGEST)
        self._call.watch.retried(exc, pause)
        return pause


class Retrying:
    """Sends again what may be sent again."""

    def __init__(self, transport: Transport, retries: int) -> None:
        self._transport, self._retries = transport, retries
        self._closed = threading.Event()

    def send(self, request: EmbeddingRequest, call: Call) -> Answer:
        """The answer of the first attempt that succeeds; the error of the last, where none did."""
        attempts = Attempts(call, self._retries)
        while True:
            call.watch.sent()
            try:
                return self._transport.send(request, call)
            except ClientError as exc:
                pause = attempts.pause(exc)
            if self._closed.wait(pause):
                raise ClientClosedError("The client was closed while a request waited to be sent again")

    def close(self) -> None:
        """Close what is below, and end all pauses."""
        self._closed.set()
        self._transport.close()


class AsyncRetrying:
    """The same, for tasks."""

    def __init__(self, transport: AsyncTransport, retries: int) -> None:
        self._transport, self._retries = transport, retries

    async def send(self, request: EmbeddingRequest, call: Call) -> Answer:
        """The answer of the first attempt that succeeds; the error of the last, where none did."""
        attempts = Attempts(call, self._retries)
        while True:
            call.watch.sent()
            try:
                return await self._transport.send(request, call)
            except ClientError as exc:
                pause = attempts.pause(exc)
            await asyncio.sleep(pause)

    async def aclose(self) -> None:
        """Close what is below."""
        await self._transport.aclose()
