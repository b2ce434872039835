"""What is asked of an engine's HTTP server: whether it is healthy and answers, its context, what it has counted."""

import asyncio

import httpx2

from tandem.engines.vitals import Counters, counters
from tandem.fleet import Engine

_POLL = 0.25  # seconds between two questions whether a starting engine listens yet
_TIMEOUT = 10.0


class NotServing(Exception):
    """The engine says that it is healthy, and refuses a plain request; or its process is there, and listens no more."""


def client(engine: Engine) -> httpx2.AsyncClient:
    """What all questions to ``engine`` are asked over; to be closed by who asks."""
    return httpx2.AsyncClient(base_url=engine.url, trust_env=False, timeout=_TIMEOUT)


async def health(client: httpx2.AsyncClient) -> int | None:
    """The status of the engine's ``/health``; 0 if it does not listen, None if it is too busy to answer."""
    try:
        return (await client.get("/health")).status_code
    except httpx2.TimeoutException:
        return None
    except httpx2.TransportError:
        return 0


async def come_up(client: httpx2.AsyncClient, engine: Engine) -> None:
    """Returns once it is healthy and has answered a real request.

    Raises:
        NotServing: it refused that.
    """
    while await health(client) != 200:
        await asyncio.sleep(_POLL)
    await first_request(client, engine)


async def first_request(client: httpx2.AsyncClient, engine: Engine) -> None:
    """Ask for one short embedding or one token, however long that takes.

    Raises:
        NotServing: it broke that off, or refused it.
    """
    body: dict[str, object] = {"model": engine.model}
    if engine.kind == "embedding":
        path, body = "/v1/embeddings", {**body, "input": "ready?"}
    else:
        path, body = "/v1/completions", {**body, "prompt": "ready?", "max_tokens": 1}
    try:
        # However long it takes: a CPU may page in gigabytes for it, and computes meanwhile.
        answer = await client.post(path, json=body, timeout=None)
    except httpx2.TransportError as exc:
        raise NotServing(f"it broke off its first request ({exc})") from exc
    if answer.status_code != 200:
        raise NotServing(f"it answered its first request with {answer.status_code}: {answer.text[:300]}")


async def context(client: httpx2.AsyncClient) -> int:
    """How many tokens the model takes, as the engine has it; 0 if it does not tell."""
    try:
        (served, *_) = (await client.get("/v1/models")).json()["data"]
        return int(served["max_model_len"])
    except (httpx2.TransportError, ValueError, LookupError, TypeError):
        return 0


async def counted(client: httpx2.AsyncClient) -> Counters | None:
    """What it has counted; None if it does not answer."""
    try:
        answer = await client.get("/metrics")
    except httpx2.TransportError:
        return None
    return counters(answer.text) if answer.status_code == 200 else None
