"""What an engine's processes do, as the kernel and its own metrics tell it."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from tandem.engines import hardware, vitals
from tandem.engines.engine import EngineRunner
from tandem.engines.hardware import CardUse, parse_card_use
from tandem.engines.vitals import Counters, Processes, Sample, counters, processes
from tandem.fleet import Fleet, Vitals, Work

from .conftest import MakeSpec
from .test_engine import serving

# As vLLM 0.32 writes them.
METRICS = """# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1200.0
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 3.4e+02
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 5.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 7.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 100.0
"""


def test_counters_are_what_the_engine_did_and_not_what_callers_gave_up() -> None:
    assert counters(METRICS) == Counters(requests=12, tokens=1540)
    assert counters("nonsense") == Counters()


@pytest.mark.process
def test_processes_tell_whether_they_compute_read_or_are_stopped() -> None:
    """Of a server that sleeps, and its child that reads and computes; then the child is stopped."""
    code = "open('/proc/cpuinfo').read(); print(flush=True)\nwhile True: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        before = processes(server.pid)
        assert before.read > 1000
        assert not before.stopped
        while (after := processes(server.pid)).workers < before.workers + 0.05:
            pass
        assert after.cpu >= after.workers
        (worker,) = vitals.descendants(server.pid)
        os.kill(worker, signal.SIGSTOP)
        while not processes(server.pid).stopped:
            pass
        os.kill(worker, signal.SIGKILL)
        server.kill()
    assert processes(server.pid) == Processes()


def test_rates_lie_between_two_samples() -> None:
    before = Sample(10, processes=Processes(cpu=3), counters=Counters(tokens=100))
    after = Sample(14, processes=Processes(cpu=9), counters=Counters(tokens=500))
    assert (vitals.tokens_per_second(before, after), vitals.cores(before, after)) == (100, 1.5)
    assert vitals.tokens_per_second(before, replace(after, counters=None)) is None
    assert (vitals.tokens_per_second(after, after), vitals.cores(after, after)) == (None, None)


def test_the_driver_s_tables_are_read() -> None:
    """As ``nvidia-smi`` writes them; a process on two cards holds memory of both."""
    assert parse_card_use("0, 97\n1, [N/A]\n", "10, 2048\n10, 1024\n11, [N/A]\n") == CardUse({0: 0.97}, {10: 3 * 2**30})
    assert parse_card_use("", "") == CardUse({}, {})


@pytest.mark.process
async def test_an_engine_s_vitals(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the router says it has, what it has counted, what its processes hold and use, of its card, too."""
    spec = replace(make_spec("embedding", "--busy"), room=lambda: True, cards=(1,))
    async with serving(spec) as (supervisor, fleet):
        pid = fleet.now.engines[0].pid or 0
        monkeypatch.setattr(
            "tandem.engines.supervisor.card_use", lambda: CardUse({0: 0.1, 1: 0.5}, {pid: 2**30, 1: 2**40})
        )
        fleet.report("router", [Work("embedding", 3)])
        (told,) = await supervisor.vitals()
        assert (told.in_flight, told.requests, told.card_memory, told.card_use) == (3, 1, 2**30, 0.5)
        assert (told.memory or 0) > 2**20
        assert (told.cores or 0) > 0.1
        assert told.tokens_per_second is not None


async def test_an_engine_without_a_process_has_few(make_spec: MakeSpec) -> None:
    runner = EngineRunner(make_spec(), Fleet())
    assert await asyncio.wait_for(runner.vitals(hardware.card_use()), 5) == Vitals(engine="embedding")
