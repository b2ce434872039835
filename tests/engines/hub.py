"""A model hub on loopback: as much of Hugging Face's as a download asks for."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

COMMIT = "a" * 40


@contextmanager
def hub(repository: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """One that has ``repository`` alone; its address, and what it was asked for."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            path, _, _ = self.path.partition("?")
            if path.startswith(f"/{repository}/resolve/{COMMIT}/"):
                self._answer(files[path.removeprefix(f"/{repository}/resolve/{COMMIT}/")])
            elif path == f"/api/models/{repository}/revision/main":
                siblings = [{"rfilename": name} for name in files]
                self._answer(json.dumps({"_id": "1", "id": repository, "sha": COMMIT, "siblings": siblings}).encode())
            elif path == f"/api/models/{repository}/tree/{COMMIT}":
                tree = [{"type": "file", "oid": tag(b), "size": len(b), "path": name} for name, b in files.items()]
                self._answer(json.dumps(tree).encode())
            else:
                self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{tag(body)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def tag(content: bytes) -> str:
    """What the hub names a file's content by."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
