"""What systemd is told of a service of type ``notify``: that it is ready, alive, what it does, that it stops.

The protocol is a datagram of ``NAME=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names (sd_notify(3)). The
libraries for it are these lines and little more, and hide every failure.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tandem.fleet import Fleet, Snapshot

_BEAT = 10.0  # seconds between two signs of life where no watchdog asks for more
_PATIENCE = 60.0  # seconds that systemd is asked to wait from each sign of life on, while engines start


@dataclass(frozen=True)
class Notifier:
    """Where to tell it.

    Attributes:
        address: of the socket; one that begins with ``@`` is abstract (unix(7)).
        beat: seconds between two signs of life: half of what the watchdog allows.
    """

    address: str
    beat: float = _BEAT

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> "Notifier | None":
        """The one this process was given; None where systemd did not start it, or does not listen."""
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        watchdog = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        beat = int(watchdog) / 2e6 if mine and watchdog.isdigit() and int(watchdog) else _BEAT
        return cls(address, min(beat, _BEAT))

    def tell(self, **values: object) -> None:
        """Send these values in one message; a manager that is being restarted just then does not hear it."""
        message = "\n".join(f"{name}={value}" for name, value in values.items())
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to, suppress(OSError):
            to.setblocking(False)
            to.sendto(message.encode(), address)


@asynccontextmanager
async def telling(notifier: Notifier | None, fleet: Fleet) -> AsyncIterator[None]:
    """Tell systemd how ``fleet`` fares until the block ends.

    ``READY=1`` comes when every engine has answered a request, so that what is ordered after the service can use it.
    Until then each sign of life asks for more time: the start takes as long as it takes, while the event loop turns.
    """
    if notifier is None:
        yield
        return
    watching = asyncio.create_task(_watch(notifier, fleet))
    beating = asyncio.create_task(_beat(notifier, fleet))
    try:
        yield
    finally:
        notifier.tell(STOPPING=1)
        for task in (watching, beating):
            task.cancel()
        await asyncio.wait({watching, beating})


def status(snapshot: Snapshot) -> str:
    """One line about every engine, for ``systemctl status``."""
    words = ("draining" if snapshot.draining else "", *(f"{e.name}: {e.detail or e.state}" for e in snapshot.engines))
    return "; ".join(word for word in words if word).replace("\n", " ")


async def _watch(notifier: Notifier, fleet: Fleet) -> None:
    ready = False
    async for snapshot in fleet.snapshots():
        values = {"STATUS": status(snapshot)}
        if snapshot.ready and not ready:
            ready = True
            values = {"READY": "1", **values}
        if snapshot.draining:
            values = {"STOPPING": "1", **values}
        notifier.tell(**values)


async def _beat(notifier: Notifier, fleet: Fleet) -> None:
    ready = False
    while True:
        ready = ready or fleet.now.ready
        more = {} if ready else {"EXTEND_TIMEOUT_USEC": int((_PATIENCE + notifier.beat) * 1e6)}
        notifier.tell(WATCHDOG=1, **more)
        await asyncio.sleep(notifier.beat)
