"""What systemd is told of a service."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tandem import notify
from tandem.fleet import Engine, Fleet, State
from tandem.notify import Notifier, telling


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """The socket that systemd would listen on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if address.startswith("@") else address)
        manager.settimeout(10)
        yield manager


async def heard(manager: socket.socket, what: str) -> str:
    """The next message with ``what`` in it."""
    while True:
        message = (await asyncio.to_thread(manager.recv, 4096)).decode()
        if what in message:
            return message


def engine(state: State, detail: str = "") -> Engine:
    return Engine(name="embedding", kind="embedding", model="m", state=state, detail=detail)


async def test_a_life_as_systemd_hears_of_it(short_path: Path) -> None:
    """Signs of life that ask for time while it starts; ready when every engine is; the phase; and that it stops."""
    address = str(short_path / "notify")
    fleet = Fleet()
    with listening(address) as manager:
        async with telling(Notifier(address, beat=0.01), fleet):
            assert await heard(manager, "WATCHDOG=1") == f"WATCHDOG=1\nEXTEND_TIMEOUT_USEC={60_010_000}"
            fleet.put(engine(State.LOADING, "loading weights, 40%"))
            assert await heard(manager, "STATUS=embedding") == "STATUS=embedding: loading weights, 40%"
            fleet.put(engine(State.READY))
            assert await heard(manager, "READY=1") == "READY=1\nSTATUS=embedding: ready"
            fleet.put(engine(State.RESTARTING, "it died"))
            assert "READY" not in await heard(manager, "it died")
            fleet.put(engine(State.READY))
            assert "READY" not in await heard(manager, "STATUS=embedding: ready")
            fleet.drain()
            assert (await heard(manager, "draining")).startswith("STOPPING=1\nSTATUS=draining; ")
        assert await heard(manager, "STOPPING=1") == "STOPPING=1"


async def test_once_ready_it_asks_for_no_more_time(short_path: Path) -> None:
    address = str(short_path / "notify")
    fleet = Fleet()
    fleet.put(engine(State.READY))
    with listening(address) as manager:
        async with telling(Notifier(address, beat=0.01), fleet):
            assert await heard(manager, "WATCHDOG=1") == "WATCHDOG=1"


async def test_an_abstract_socket_is_reached() -> None:
    with listening("@tandem-test-notify") as manager:
        Notifier("@tandem-test-notify").tell(READY=1)
        assert await heard(manager, "READY") == "READY=1"


async def test_a_manager_that_does_not_listen_hinders_nothing(short_path: Path) -> None:
    Notifier(str(short_path / "nobody")).tell(READY=1)
    async with telling(None, Fleet()):
        pass


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, None),
        ({"NOTIFY_SOCKET": "/run/n"}, Notifier("/run/n", 10)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "6000000"}, Notifier("@n", 3)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "6000000", "WATCHDOG_PID": "1"}, Notifier("@n", 10)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "0"}, Notifier("@n", 10)),
    ],
)
def test_the_watchdog_sets_the_beat(environ: dict[str, str], found: Notifier | None) -> None:
    """Half of what it allows, if it is this process's."""
    assert Notifier.find(environ) == found


def test_a_status_is_one_line() -> None:
    fleet = Fleet()
    fleet.put(engine(State.FAILED, "first\nsecond"))
    assert notify.status(fleet.now) == "embedding: first second"
