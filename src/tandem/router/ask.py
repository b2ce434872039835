"""One question to one engine, with its failures in OpenAI's form."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tandem.fleet import Engine
from tandem.router import answers
from tandem.router.upstream import Answer, UpstreamError, Upstreams

_log = logging.getLogger("tandem.router")


@asynccontextmanager
async def ask(upstreams: Upstreams, engine: Engine, path: str, body: bytes) -> AsyncIterator[Answer]:
    """Ask ``engine``; its answer, if it is a good one. Leaving the block early breaks it off.

    Raises:
        ApiError: the engine refused (its status), failed (502) or could not be reached (503).
    """
    try:
        answer = await upstreams.to(engine.url).request("POST", path, body)
    except UpstreamError as exc:
        _log.warning("%s: %s", engine.name, exc)
        raise answers.unreachable(answered=exc.answered) from exc
    try:
        if answer.status != 200:
            raise answers.error(await read(answer), answer.status)
        yield answer
    finally:
        answer.close()


async def read(answer: Answer) -> bytes:
    """The whole body of ``answer``.

    Raises:
        ApiError: 502, the engine broke off.
    """
    try:
        return await answer.read()
    except UpstreamError as exc:
        raise answers.unreachable(answered=True) from exc
