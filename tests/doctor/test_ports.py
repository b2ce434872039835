"""Whether ports are free, and whose they are."""

import os
import socket
from pathlib import Path

from tandem import settings
from tandem.doctor import ports
from tandem.doctor.finding import Level
from tandem.settings import Settings


def with_ports(router: int, engine: int) -> Settings:
    engines = {"embedding": {"port": engine}}
    flags = {"router": {"port": router}, "engines": engines}
    return settings.load(flags, gpu=False, only=["embedding"], environ={}).settings


def test_a_taken_port_is_told_with_who_has_it(free_port: int) -> None:
    """The router's is a problem, an engine's only where somebody chose it; none is while the service itself runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (router, engine) = ports.examine(with_ports(port, free_port), (), running=False)
        assert router.level is Level.PROBLEM
        assert f"(pid {os.getpid()}) has it" in router.says
        assert engine.level is Level.OK
        (_, engine) = ports.examine(with_ports(free_port, port), {"embedding"}, running=False)
        assert engine.level is Level.PROBLEM
        (_, engine) = ports.examine(with_ports(free_port, port), (), running=False)
        assert engine.level is Level.WARNING
        (router, _) = ports.examine(with_ports(port, free_port), (), running=True)
        assert router.level is Level.OK


def test_sockets_that_only_connect_are_no_listeners(tmp_path: Path) -> None:
    """As /proc/net/tcp has them: state 0A listens, 01 is connected; and a socket of nobody's has no owner."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net/tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:2008 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0\n"
        "   1: 0100007F:1F90 0100007F:2008 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0\n"
    )
    assert ports.listeners(tmp_path) == {8200: "4711"}
    assert ports.owner("4711", tmp_path) is None
