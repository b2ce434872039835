"""The socket that callers connect to. Apart from the server, so that whoever only holds it open need not load that."""

import contextlib
import errno
import socket

from tandem.errors import SetupError


def open_files() -> None:
    """Let this process open as many files, and so connections, as the system allows; shells often set 1,024."""
    try:
        import resource
    except ImportError:
        return  # no POSIX system
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says "no limit", and refuses it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port``; the caller closes it.

    Raises:
        SetupError: the host is not known, or the port is taken or not allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise SetupError(f"the host {host} is not known: {exc.strerror}", "Choose another with --host") from exc
    # With the protocol named: asyncio switches Nagle's delay off only for sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            raise SetupError(
                f"port {port} on {host} is taken by another program",
                f"End that program (`ss -ltnp 'sport = :{port}'` names it), or choose another port with --port",
            ) from exc
        raise SetupError(
            f"port {port} on {host} cannot be listened on: {exc.strerror}", "Choose others with --host and --port"
        ) from exc
    return listener
