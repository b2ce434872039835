"""A small embeddings service on loopback that can misbehave: real sockets, real HTTP, in a thread of the tests."""

import base64
import hashlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM = 8
Way = Callable[["Handler", dict[str, Any]], None]


def vector(text: str, dim: int = DIM) -> NDArray[np.float32]:
    """What this service embeds ``text`` as."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def answer(asked: dict[str, Any], *, dim: int = DIM) -> dict[str, Any]:
    """The service's answer when it is well."""
    texts = asked["input"]
    vectors = [vector(text, asked.get("dimensions", dim)) for text in texts]
    if asked.get("encoding_format") == "base64":
        written: list[Any] = [base64.b64encode(each.astype("<f4").tobytes()).decode() for each in vectors]
    else:
        written = [each.tolist() for each in vectors]
    data = [{"object": "embedding", "index": i, "embedding": each} for i, each in enumerate(written)]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "data": data, "model": asked["model"], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        """Note what is asked, and answer it in the next way that was set, or well."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        service = self.server.service
        with service.lock:
            service.asked.append((self.path, dict(self.headers), asked))
            way = service.ways.pop(0) if service.ways else service.always
        way(self, asked)

    def reply(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """One whole answer; ``body`` is JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        """Of a Unix socket there is none."""
        return "-"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
        """Say nothing."""


def well(handler: Handler, asked: dict[str, Any]) -> None:
    handler.reply(answer(asked))


def turned(handler: Handler, asked: dict[str, Any]) -> None:
    """The vectors in another order."""
    body = answer(asked)
    handler.reply({**body, "data": body["data"][::-1]})


def floats(handler: Handler, asked: dict[str, Any]) -> None:
    """Floats, whatever was asked for."""
    handler.reply(answer({**asked, "encoding_format": "float"}))


def sized(dim: int) -> Way:
    """Vectors of another size."""
    return lambda handler, asked: handler.reply(answer(asked, dim=dim))


def changed(change: Callable[[dict[str, Any]], object]) -> Way:
    """The answer, once ``change`` has been done to it."""

    def way(handler: Handler, asked: dict[str, Any]) -> None:
        body = answer(asked)
        change(body)
        handler.reply(body)

    return way


def refusing(status: int, body: Any = b"", headers: dict[str, str] | None = None) -> Way:
    """Always the same answer."""
    return lambda handler, _: handler.reply(body, status, headers)


def error(status: int, message: str, *, headers: dict[str, str] | None = None, **detail: Any) -> Way:
    """OpenAI's error object."""
    return refusing(status, {"error": {"message": message, "type": "x", "param": None, "code": None} | detail}, headers)


def reset(handler: Handler, asked: dict[str, Any]) -> None:
    """The connection is reset instead of an answer."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def half(handler: Handler, asked: dict[str, Any]) -> None:
    """Half of the answer, and the end of the connection."""
    content = json.dumps(answer(asked)).encode()
    handler.send_response(200)
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    service: "Service"

    def get_request(self) -> tuple[Any, Any]:
        """An answer is written in two parts: without this, the second waits until the first is acknowledged."""
        connection, address = super().get_request()
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that leaves is none of this server's errors."""


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", 0


class Service:
    """Runs until it is closed.

    Attributes:
        ways: what to do with the requests that come next; then ``always``.
        asked: path, headers and body of each request so far.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.lock = threading.Lock()
        self.ways: list[Way] = []
        self.always: Way = well
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self._server = _Server(("127.0.0.1", 0), Handler) if path is None else _UnixServer(str(path), Handler)
        self._server.service = self
        self.url = f"unix://{path}" if path else f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def texts(self) -> list[list[str]]:
        """The texts of each request so far."""
        return [body["input"] for _, _, body in self.asked]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
