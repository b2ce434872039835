"""Samples of an engine that runs: which are kept, and when it is asked."""

import os

import httpx2

from tandem.engines.samples import Samples
from tandem.engines.vitals import Counters
from tandem.fleet import Fleet, Work


async def test_an_idle_engine_is_not_asked_again_what_it_has_counted() -> None:
    """Once is enough, until it has something to do; the samples of a life that is over tell nothing of the next."""
    fleet, asked = Fleet(), list[str]()

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        return httpx2.Response(200, text=f"vllm:prompt_tokens_total {len(asked)}.0\n")

    samples = Samples("embedding", fleet)
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://engine") as client:
        for _ in range(3):
            assert (await samples.keep(os.getpid(), client)).counters == Counters(tokens=1)
        fleet.report("router", [Work("embedding", in_flight=2, bytes=10)])
        busy = await samples.keep(os.getpid(), client)
        assert (busy.counters, busy.in_flight, busy.bytes) == (Counters(tokens=2), 2, 10)
        fleet.report("router", [])
        assert (await samples.keep(os.getpid(), client)).counters == Counters(tokens=3)  # of what it just did
        samples.forget()
        assert (await samples.keep(os.getpid(), client)).counters == Counters(tokens=4)
    assert asked == ["/metrics"] * 4
