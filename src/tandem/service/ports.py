"""Where engines listen: ports that are theirs from before they are started."""

import errno
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tandem.engines.process import free_port
from tandem.engines.spec import Spec
from tandem.errors import SetupError
from tandem.settings import EngineSettings, Loaded


@dataclass(frozen=True)
class Had:
    """The ports that a running service's engines have.

    Attributes:
        kept: by engine, of those that are to go on.
        given_back: of those that are not.
    """

    kept: Mapping[str, int] = field(default_factory=dict)
    given_back: frozenset[int] = frozenset()


def choose(
    loaded: Loaded, engines: Mapping[str, EngineSettings], router: int, had: Had, *, starting: bool
) -> dict[str, int]:
    """Where each engine listens: where it does now, if that may be, or where the settings say, or on a free port.

    Args:
        router: the router's port.
        starting: whether they are to be started: then a port that is set must be free.

    Raises:
        SetupError: a port that is set is taken.
    """
    ports: dict[str, int] = {}
    for name, engine in engines.items():
        asked = ("engines", name, "port") in loaded.origins
        before = had.kept.get(name)
        if before and (engine.port == before or not asked):
            ports[name] = before
        elif engine.port and engine.port in had.given_back and engine.port not in ports.values():
            ports[name] = engine.port  # by then, the engine that listens there has ended
        elif starting or not engine.port:
            ports[name] = free(engine.port, name, {router, *ports.values()}, asked=asked)
        else:
            ports[name] = engine.port
    return ports


def free(port: int | None, engine: str, given: Collection[int], *, asked: bool) -> int:
    """The engine's port, if it is free; where nobody asked for that one, any other will do.

    Args:
        given: the ports that the router and the engines before it have.
    """
    if port is None:
        return free_port()
    with socket.socket() as probe:
        if asked:  # else a port that was used a moment ago counts as taken, as one that is only reserved must
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if port in given:
                raise OSError(errno.EADDRINUSE, "given")
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            if not asked:
                return free_port()
            whom = "the router or another engine" if port in given else "another program"
            raise SetupError(
                f"port {port}, which is set for the engine {engine}, is taken by {whom}",
                f"Set another port for it (`ss -ltnp 'sport = :{port}'` names the program that has one)",
            ) from exc
    return port


class Ports(ExitStack):
    """Holds the engines' ports against other services until the block ends: an engine listens only after it has loaded.

    A socket that is bound, and never listens, hinders none that is bound with ``SO_REUSEADDR``, as vLLM's is; but it
    makes :func:`free` of another service choose another port.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: set[int] = set()

    def reserve(self, specs: Sequence[Spec]) -> None:
        """Hold those of ``specs``, too.

        Raises:
            SetupError: one was taken since it was chosen.
        """
        for spec in specs:
            port = urlsplit(spec.engine.url).port
            if port is None or port in self._held:
                continue
            holder = self.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind(("127.0.0.1", port))
            except OSError as exc:
                raise SetupError(
                    f"port {port} for the engine {spec.engine.name} was taken just now", "Try again"
                ) from exc
            self._held.add(port)
