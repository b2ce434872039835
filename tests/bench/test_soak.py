"""Memory over hours: flat, growing, or not measured; and who is watched."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.bench import memory, targets
from tandem.bench.soak import Row, growth

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


def rows(resident: list[float], pids: tuple[int, ...] = (1,)) -> list[Row]:
    """One a minute."""
    return [Row(60.0 * at, 60, 9, 0, 0.1, 0.2, int(value), pids) for at, value in enumerate(resident)]


def flat(found: list[Row]) -> bool:
    grown = growth(found)
    assert grown is not None
    return targets.MEMORY.met(grown.percent)


def test_memory_that_only_shakes_is_flat() -> None:
    """A day of noise around 60 MiB."""
    chance = random.Random(4)
    assert flat(rows([60 * MIB + chance.gauss(0, MIB) for _ in range(1440)]))


def test_a_leak_is_growth_even_in_noise() -> None:
    """Half a MiB an hour, under noise of a MiB, for a day."""
    chance = random.Random(4)
    found = rows([60 * MIB + at / 60 * MIB / 2 + chance.gauss(0, MIB) for at in range(1440)])
    grown = growth(found)
    assert grown is not None
    assert grown.slope.per_unit * 3600 / MIB == pytest.approx(0.5, rel=0.05)
    assert not flat(found)


def test_what_fills_up_at_the_start_is_no_growth() -> None:
    """Pools and caches fill in the first tenth, which does not count."""
    assert flat(rows([40 * MIB + at * MIB for at in range(10)] + [60.0 * MIB] * 100))


def test_growth_too_small_to_matter_is_flat() -> None:
    """A page an hour, without any noise, is beyond chance and still no leak."""
    assert flat(rows([60 * MIB + at * 68 for at in range(1440)]))


def test_a_process_that_was_replaced_begins_anew() -> None:
    """A restart is no fall, and what grew before it is not what runs."""
    found = rows([90 * MIB + at * MIB for at in range(50)], (1,)) + rows([60.0 * MIB] * 50, (2,))
    grown = growth([Row(60.0 * at, *list(vars(row).values())[1:]) for at, row in enumerate(found)])
    assert grown is not None
    assert grown.percent == 0


def test_too_few_rows_prove_nothing() -> None:
    """Nor do rows that saw no process."""
    assert growth(rows([60.0 * MIB] * 2)) is None
    assert growth(rows([0.0] * 20, ())) is None
    assert growth([]) is None


@linux
def test_a_process_is_found_by_its_port() -> None:
    """Whoever listens there; nobody where nobody does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert memory.answering(port) == {os.getpid()}
        assert (memory.resident({os.getpid()}) or 0) > MIB
    assert memory.answering(port) == frozenset()
    assert memory.resident([]) is None


@linux
@pytest.mark.process
def test_of_a_parent_and_a_child_that_share_a_socket_the_child_is_watched() -> None:
    """As `tandem up` does: the supervisor keeps the socket open, the router answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        child = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
        with subprocess.Popen(
            child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listening.fileno()]
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert memory.answering(listening.getsockname()[1]) == {process.pid}


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)]
)
def test_only_a_loopback_address_is_this_machine(host: str, local: bool) -> None:
    """Another machine's port may be open here, too."""
    assert memory.local(host) is local
