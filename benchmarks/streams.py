"""What a gateway costs a stream: CPU an event, time to the first event, delay added to and between events.

100 callers ask for streams of 100 events, one after the other without a break, from an upstream that sends 50 events a
second to each: 5,000 in all. Each event carries the time at which it was sent. Its delay is what passed until the
caller had it; a pause's delay is by how much longer it was, between two events of a stream, than at the upstream. Both
are measured directly, too, in the same rounds, and what a gateway adds is the difference: caller and upstream also
need time.

What a machine does beside this changes from second to second, and a gateway's CPU with it: it is measured once more
with all gateways at the same time, the streams shared out among them, on the same core. Each has more misses in its
caches like that, and the ratios are steady.
Usage: ``python benchmarks/streams.py [--quick] [--beside TANDEM]``.
"""

import asyncio
import contextlib
import gc
import itertools
import json
import os
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import httptools
import load
import machine
import peers
import report
import static_upstream
import uvloop
from peers import Running

STREAMS = 100
EVENTS = 100
RATE = 50.0
HEAD = (
    "through",
    "events/s",
    "its CPU an event, µs",
    "Tandem's by this",
    "to the first event, median, ms",
    "added, ms",
    "delay of an event, p50, ms",
    "p99, ms",
    "delay of a pause, p99, ms",
    "p99 added, ms",
)
TOGETHER = ("through", "CPU an event, µs", "Tandem's by this")
_STAMP = re.compile(rb'@(\d+)"')


@dataclass
class Window:
    """What callers note while it is open; times in milliseconds."""

    open: bool = False
    first: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)


@dataclass
class Series:
    """Of one gateway, a value a round."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    delay: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    pause: list[float] = field(default_factory=list)


def main() -> None:
    """Measure all and print the table."""
    given = machine.arguments(str(__doc__), beside=True)
    quick = given.quick
    rounds, seconds = (1, 1.0) if quick else (5, 3.0)
    cores, versions = machine.cores(), peers.versions()
    asked = 0
    with contextlib.ExitStack() as stack:
        others = stack.enter_context(machine.neighbours())
        folder = stack.enter_context(machine.workspace())
        upstream = stack.enter_context(static_upstream.paced(RATE, cores.upstream, folder))
        through = [peers.direct(upstream)]
        gateways = peers.gateways(given.beside)
        through += [stack.enter_context(peers.running(each, upstream, cores.router, folder)) for each in gateways]
        series = {each.name: Series() for each in through}
        os.sched_setaffinity(0, {cores.load})
        for _ in range(rounds):
            for each in through:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    asked += runner.run(_round(each, series[each.name], seconds))
        side_by_side = [each for each in through if each.pid]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            together, more = runner.run(_together(side_by_side, 2 * rounds, seconds))
        taken = others()
    print(f"{STREAMS} streams, {'one round' if rounds == 1 else f'median of {rounds} rounds (least to most)'}.")
    print(machine.described(versions, cores), end="\n\n")
    print(report.table(HEAD, [_row(each, series) for each in through]), end="\n\n")
    print(f"The same {STREAMS}, shared out among all at once, median of {2 * rounds} rounds (least to most).\n")
    print(report.table(TOGETHER, [_compared(each, together) for each in side_by_side]), end="\n\n")
    print(f"Every one of {asked + more:,} streams was a 200 and whole. {taken}")


async def _round(through: Running, seen: Series, seconds: float) -> int:
    """One value more for ``seen``; how many streams that took."""
    async with _asking([through]) as ((window,), callers):
        cpu, began = machine.cpu_seconds(through.pid) if through.pid else 0.0, time.monotonic()
        window.open = True
        await asyncio.sleep(seconds)
        window.open = False
        took, spent = time.monotonic() - began, machine.cpu_seconds(through.pid) - cpu if through.pid else 0.0
    seen.rates.append(len(window.delays) / took)
    seen.cpu.append(spent / len(window.delays) * 1e6)
    seen.first.append(report.quantile(window.first, 0.5))
    seen.delay.append(report.quantile(window.delays, 0.5))
    seen.late.append(report.quantile(window.delays, 0.99))
    seen.pause.append(report.quantile(window.pauses, 0.99))
    return sum(caller.streams for caller in callers)


async def _together(through: Sequence[Running], rounds: int, seconds: float) -> tuple[dict[str, list[float]], int]:
    """By gateway's name, its CPU an event in µs, a value a round; and how many streams that took."""
    spent: dict[str, list[tuple[float, int]]] = {each.name: [] for each in through}
    async with _asking(through) as (windows, callers):
        for _ in range(rounds):
            before = [machine.cpu_seconds(each.pid or 0) for each in through]
            for window in windows:
                window.delays.clear()
                window.open = True
            await asyncio.sleep(seconds)
            for each, window, cpu in zip(through, windows, before, strict=True):
                window.open = False
                spent[each.name].append((machine.cpu_seconds(each.pid or 0) - cpu, len(window.delays)))
    found = {name: [cpu / events * 1e6 for cpu, events in values] for name, values in spent.items()}
    return found, sum(caller.streams for caller in callers)


@contextlib.asynccontextmanager
async def _asking(through: Sequence[Running]) -> AsyncIterator[tuple[list[Window], "list[Caller]"]]:
    """Callers in the middle of their streams, shared out; a window for each of ``through``, closed to begin with."""
    loop = asyncio.get_running_loop()
    windows = [Window() for _ in through]
    callers: list[Caller] = []
    length = EVENTS / RATE
    gc.collect()
    gc.disable()
    try:
        # Evenly over the length of a stream, so that later ends and beginnings are, too.
        for _, (each, window) in zip(range(STREAMS), itertools.cycle(zip(through, windows, strict=True)), strict=False):
            host, port = each.url.removeprefix("http://").split(":")
            _, caller = await loop.create_connection(partial(Caller, window), host, int(port))
            callers.append(caller)
            await asyncio.sleep(length / STREAMS)
        await asyncio.sleep(length / 4)
        yield windows, callers
    finally:
        gc.enable()
        for caller in callers:
            caller.close()
    names = itertools.cycle(each.name for each in through)
    if faults := [f"{name}: {caller.fault}" for caller, name in zip(callers, names, strict=False) if caller.fault]:
        raise load.Failed(f"{faults[0]}, and {len(faults) - 1} more")


class Caller(asyncio.Protocol):
    """A connection on which one stream follows the other."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._events = self._asked = self._sent = self._came = 0
        self._closed = False
        self.streams = 0
        self.fault = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed:
            self.fault = self.fault or f"the connection broke off after {self._events} events: {exc}"

    def close(self) -> None:
        """The end, in the middle of a stream."""
        self._closed = True
        if hasattr(self, "_transport"):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        now = time.monotonic_ns()
        text = self._rest + body
        end = 0
        for stamp in _STAMP.finditer(text):
            end = stamp.end()
            self._event(int(stamp[1]), now)
        self._rest = text[end:]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200 or self._events != EVENTS or b"[DONE]" not in self._rest:
            self.fault = f"status {status}, {self._events} of {EVENTS} events: {self._rest[-300:]!r}"
            self.close()
            return
        self.streams += 1
        asyncio.get_running_loop().call_later(1 / RATE, self._ask)

    def _ask(self) -> None:
        if not self._closed:
            self._rest, self._events = b"", 0
            self._asked = time.monotonic_ns()
            self._transport.write(REQUEST)

    def _event(self, sent: int, came: int) -> None:
        self._events += 1
        if self._window.open:
            if self._events == 1:
                self._window.first.append((came - self._asked) / 1e6)
            else:
                self._window.pauses.append(((came - self._came) - (sent - self._sent)) / 1e6)
            self._window.delays.append((came - sent) / 1e6)
        self._sent, self._came = sent, came


def request() -> bytes:
    """A completion, streamed."""
    asked = dict(static_upstream.COMPLETIONS.body) | {"max_tokens": EVENTS, "stream": True}
    body = json.dumps(asked).encode()
    head = f"host: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return b"POST /v1/completions HTTP/1.1\r\n" + head.encode() + body


REQUEST = request()


def _row(through: Running, series: dict[str, Series]) -> list[str]:
    seen, ours, direct = (series[name] for name in (through.name, peers.TANDEM.name, "direct"))
    ratios = [a / b for a, b in zip(ours.cpu, seen.cpu, strict=True)] if through.pid and seen is not ours else []

    def added(a: list[float], b: list[float]) -> str:
        return report.spread([x - y for x, y in zip(a, b, strict=True)], ".2f") if through.pid else ""

    return [
        through.name,
        report.spread(seen.rates),
        report.spread(seen.cpu, ".0f") if through.pid else "",
        report.spread(ratios, ".2f") if ratios else "",
        report.spread(seen.first, ".2f"),
        added(seen.first, direct.first),
        report.spread(seen.delay, ".2f"),
        report.spread(seen.late, ".2f"),
        report.spread(seen.pause, ".2f"),
        added(seen.pause, direct.pause),
    ]


def _compared(gateway: Running, cpu: dict[str, list[float]]) -> list[str]:
    ours, its = cpu[peers.TANDEM.name], cpu[gateway.name]
    ratios = [a / b for a, b in zip(ours, its, strict=True)] if its is not ours else []
    return [gateway.name, report.spread(its, ".1f"), report.spread(ratios, ".2f") if ratios else ""]


if __name__ == "__main__":
    main()
