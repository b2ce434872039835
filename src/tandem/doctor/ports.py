"""Whether the ports of a service are free, and which program has those that are not."""

import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tandem.doctor.finding import Finding, fine, problem, warning
from tandem.settings import Settings

_LISTENS = "0A"  # a TCP socket's state in /proc/net/tcp: proc(5), include/net/tcp_states.h


def examine(settings: Settings, set_ports: Collection[str], *, running: bool) -> Iterator[Finding]:
    """A finding for the router's port and for each engine's.

    Args:
        set_ports: the engines whose port somebody chose; another is taken for those whose default is not free.
        running: whether the service that is meant runs: then the ports are its own.
    """
    listening = listeners()
    wanted = {"router": settings.router.port}
    wanted |= {name: engine.port for name, engine in settings.engines.items() if engine.port is not None}
    for name, port in wanted.items():
        subject = f"port {port}"
        if port in listening or not _free(port):
            if running:
                yield fine(subject, f"the service that runs has it, for the {name}")
                continue
            says = f"the {name}'s, and {_who(listening.get(port))} has it"
            if name == "router":
                yield problem(subject, says, "End that program, or choose another port with --port (TANDEM_PORT)")
            elif name in set_ports:
                yield problem(subject, says, f"End that program, or set another port for engines.{name}")
            else:
                yield warning(
                    subject, says, f"Another one will be chosen; set engines.{name}.port to choose it yourself"
                )
        else:
            yield fine(subject, f"free for the {name}")


def listeners(proc: Path = Path("/proc")) -> Mapping[int, str]:
    """The TCP ports that something listens on, each with the inode of a socket there."""
    found = {}
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENS:
                found[int(fields[1].rpartition(":")[2], 16)] = fields[9]
    return found


def owner(inode: str, proc: Path = Path("/proc")) -> tuple[int, str] | None:
    """The process that has the socket ``inode``, and its name; None where it is another user's."""
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(fd.readlink() == Path(f"socket:[{inode}]") for fd in (process / "fd").iterdir()):
                return int(process.name), (process / "comm").read_text().strip()
        except OSError:
            continue
    return None


def _who(inode: str | None) -> str:
    found = owner(inode) if inode else None
    return f"{found[1]} (pid {found[0]})" if found else "another user's program"


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
