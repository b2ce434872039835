"""Resident memory of the process that answers on a port of this machine, as /proc tells (Linux)."""

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

_LISTENING = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h


def local(host: str) -> bool:
    """Whether ``host`` is this machine for certain: a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def resident(pids: Iterable[int]) -> int | None:
    """Bytes that the processes hold in memory, together; None if one of them is gone, or there is none."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return None
    return total or None


def answering(port: int) -> frozenset[int]:
    """Pids of the processes that listen on ``port``; empty where they cannot be seen.

    Of a parent and a child that share the socket only the child counts: a supervisor that keeps it open answers nobody.
    """
    inodes = set(_inodes(port))
    pids = {pid for pid in _pids() if inodes & set(_sockets(pid))} if inodes else set()
    return frozenset(pids - {_parent(pid) for pid in pids})


def _inodes(port: int) -> Iterable[str]:
    """Inodes of listening sockets: column 10 of /proc/net/tcp, proc(5)."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for columns in map(str.split, lines):
            if columns[3] == _LISTENING and int(columns[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{columns[9]}]"


def _pids() -> Iterable[int]:
    try:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return []


def _sockets(pid: int) -> Iterable[str]:
    try:
        opened = [*Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # another user's, or gone
        return
    for entry in opened:
        try:
            yield str(entry.readlink())
        except OSError:
            continue


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
