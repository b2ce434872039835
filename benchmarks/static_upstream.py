"""Upstreams that cost next to nothing: nginx with vLLM's answers ready made, and a generator of paced event streams.

nginx answers completions, and embeddings with floats or base64, as the request's body says. It reads a body only for
a handler that wants it: here for a proxied request, and as there is nobody to proxy to, the 502 that follows becomes
the ready-made answer. It cannot pace events, so the streams come from a small asyncio server, run as ``python
static_upstream.py PORT RATE``: each completion is ``max_tokens`` events long and has RATE of them a second, the first
at once; the text of each is the time at which it was sent, as ``@`` and nanoseconds of the monotonic clock, which is
the same for all processes of a machine.

Both have the keys of vLLM 0.32, in its order, with ``null`` where it says null.
"""

import asyncio
import base64
import contextlib
import gc
import json
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httptools
import machine
import uvloop
from load import Case

TEXT = " world, and so on it goes for a while"
DIMENSIONS = 384
GENERATION, EMBEDDING = "generation-model", "embedding-model"

COMPLETIONS = Case(
    "completions",
    "/v1/completions",
    {"model": GENERATION, "prompt": "Hello world, how are you", "max_tokens": 10, "temperature": 0.5},
)
_TO_EMBED = {"model": EMBEDDING, "input": "The quick brown fox jumps over the lazy dog."}
FLOATS = Case("embeddings, floats", "/v1/embeddings", _TO_EMBED | {"encoding_format": "float"})
BASE64 = Case("embeddings, base64", "/v1/embeddings", _TO_EMBED | {"encoding_format": "base64"})

_LONGEST = 3000  # bytes; nginx takes parameters of less than 4,096
_CREATED = 1_790_000_000


@dataclass(frozen=True)
class Upstream:
    """Base addresses without ``/v1``: of one that has a generation model, and of one that has an embedding model.

    Each answers all that the upstream knows; they differ in the model that they name.
    """

    generation: str
    embedding: str | None = None


@contextlib.contextmanager
def whole(core: int, folder: Path) -> Iterator[Upstream]:
    """nginx with whole answers on ``core``."""
    ports = {GENERATION: machine.free_port(), EMBEDDING: machine.free_port()}
    path = folder / "nginx.conf"
    path.write_text(configuration(ports))
    log = folder / "nginx.log"
    with machine.started(["nginx", "-p", str(folder), "-e", "stderr", "-c", str(path)], core, log) as process:
        _until_listening(ports[EMBEDDING], process, log)
        generation, embedding = (f"http://127.0.0.1:{port}" for port in ports.values())
        yield Upstream(generation, embedding)


@contextlib.contextmanager
def paced(rate: float, core: int, folder: Path) -> Iterator[Upstream]:
    """Streams of ``rate`` events a second each, from ``core``."""
    port = machine.free_port()
    log = folder / "streams.log"
    with machine.started([sys.executable, str(Path(__file__).resolve()), str(port), str(rate)], core, log) as process:
        _until_listening(port, process, log)
        yield Upstream(f"http://127.0.0.1:{port}")


def configuration(ports: dict[str, int]) -> str:
    """nginx's: one process, a port for each model, temporary files in the folder it is started with."""
    vector = unit_vector()
    floats = _answer(embedding(list(vector)))
    encoded = _answer(embedding(base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode()))
    servers = "\n".join(_server(model, port, floats, encoded) for model, port in ports.items())
    return f"""\
daemon off;
master_process off;
pid nginx.pid;
error_log /dev/null;
events {{ worker_connections 8192; }}
http {{
access_log off;
default_type application/json;
keepalive_requests 1000000000;
client_max_body_size 50m;
client_body_in_single_buffer on;
{"".join(f"{kind}_temp_path temporary-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))}
upstream nobody {{ server 127.0.0.1:1 down; }}
map $request_body $vector {{ default floats; "~\\"encoding_format\\" ?: ?\\"base64\\"" base64; }}
{servers}
}}
"""


def _server(model: str, port: int, floats: str, encoded: str) -> str:
    models = {
        "object": "list",
        "data": [{"id": model, "object": "model", "created": _CREATED, "owned_by": "vllm", "max_model_len": 4096}],
    }
    return f"""\
server {{
listen 127.0.0.1:{port} backlog=4096;
location = /health {{ return 200 ""; }}
location = /v1/models {{ return 200 '{json.dumps(models)}'; }}
location = /v1/completions {{ {_answer(completion())} }}
location = /v1/embeddings {{ proxy_pass http://nobody; error_page 502 =200 @embedding; }}
location @embedding {{
if ($vector = base64) {{ {encoded} }}
{floats}
}}
location / {{ return 404 '{{"error":{{"message":"Not Found","type":"NotFoundError","param":null,"code":404}}}}'; }}
}}"""


def _answer(body: dict[str, Any]) -> str:
    """``return 200`` with the body, in pieces that nginx's configuration takes."""
    text = json.dumps(body, separators=(",", ":"))
    assert not set(text) & set("$'\\")
    pieces = [text[at : at + _LONGEST] for at in range(0, len(text), _LONGEST)]
    if len(pieces) == 1:
        return f"return 200 '{text}';"
    names = [f"$piece_{len(pieces)}_{i}" for i in range(len(pieces))]
    sets = "".join(f"set {name} '{piece}';\n" for name, piece in zip(names, pieces, strict=True))
    return f'{sets}return 200 "{"".join(names)}";'


def completion() -> dict[str, Any]:
    """vLLM's answer to a completion."""
    choice = {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    extras = dict.fromkeys(("token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts"))
    return {
        "id": "cmpl-8a6fd1f2f0c34a10a5b4f2f54e5a9d3e",
        "object": "text_completion",
        "created": _CREATED,
        "model": GENERATION,
        "choices": [choice | extras],
        "service_tier": None,
        "system_fingerprint": "vllm-0.32.0-tp1-4f2c9a51",
        "usage": _usage(5, 10),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def embedding(vector: list[float] | str) -> dict[str, Any]:
    """vLLM's answer to the embedding of one text."""
    return {
        "id": "embd-8a6fd1f2f0c34a10a5b4f2f54e5a9d3e",
        "object": "list",
        "created": _CREATED,
        "model": EMBEDDING,
        "data": [{"index": 0, "object": "embedding", "embedding": vector}],
        "usage": _usage(11, 0),
    }


def _usage(prompt: int, made: int) -> dict[str, Any]:
    details = dict.fromkeys(("prompt_tokens_details", "completion_tokens_details"))
    return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made, **details}


def unit_vector() -> tuple[float, ...]:
    """Of length 1, in float32's precision, which is what vLLM writes."""
    chance = random.Random(0)  # noqa: S311
    drawn = [chance.gauss(0, 1) for _ in range(DIMENSIONS)]
    length = sum(x * x for x in drawn) ** 0.5
    found: tuple[float, ...] = struct.unpack(
        f"<{DIMENSIONS}f", struct.pack(f"<{DIMENSIONS}f", *(x / length for x in drawn))
    )
    return found


def check(case: Case, answer: Any) -> bool:
    """Whether ``answer`` is what was asked for."""
    if case is COMPLETIONS:
        return bool(answer["choices"][0]["text"] == TEXT)
    vector = answer["data"][0]["embedding"]
    if case is BASE64:
        vector = struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(vector))
    return len(vector) == DIMENSIONS and all(abs(a - b) < 1e-6 for a, b in zip(vector, unit_vector(), strict=True))


def _until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"The upstream does not listen:\n{log.read_text()}") from None
            time.sleep(0.05)
        else:
            return


_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sat, 01 Aug 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_ID = "cmpl-8a6fd1f2f0c34a10a5b4f2f54e5a9d3e"
_NAMES = f'"id":"{_ID}","object":"text_completion","created":{_CREATED},"model":"{GENERATION}"'
_EVENT = (
    f'data: {{{_NAMES},"choices":[{{"index":0,"text":" @%d","logprobs":null,"finish_reason":%s,"stop_reason":null,'
    '"prompt_token_ids":null,"token_ids":null}]}\n\n'
)
_USAGE = (
    f'data: {{{_NAMES},"choices":[],"usage":{{"prompt_tokens":5,"total_tokens":%d,"completion_tokens":%d}},'
    '"system_fingerprint":"vllm-0.32.0-tp1-4f2c9a51"}\n\n'
)


class Streams(asyncio.Protocol):
    """A connection to the paced upstream."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._url = self._body = b""
        self._began = 0.0
        self._sent = self._events = 0
        self._usage = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # sglang's gateway tries HTTP/2 first
            self._transport.close()

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url == b"/v1/completions":
            asked = json.loads(self._body)
            if asked.get("stream"):
                self._usage = bool((asked.get("stream_options") or {}).get("include_usage"))
                self._events, self._sent, self._began = asked["max_tokens"], 0, self._loop.time()
                self._transport.write(_HEAD)
                self._next()
                return
            self._answer(json.dumps(completion()).encode())
        elif self._url == b"/v1/models":
            self._answer(b'{"object":"list","data":[{"id":"%s","object":"model"}]}' % GENERATION.encode())
        elif self._url == b"/health":
            self._answer(b"")
        else:
            self._answer(b"{}", b"404 Not Found")

    def _answer(self, body: bytes, status: bytes = b"200 OK") -> None:
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)

    def _next(self) -> None:
        self._sent += 1
        last = self._sent == self._events
        self._chunk(_EVENT % (time.monotonic_ns(), '"length"' if last else "null"))
        if last:
            if self._usage:
                self._chunk(_USAGE % (5 + self._events, self._events))
            self._chunk("data: [DONE]\n\n")
            self._transport.write(b"0\r\n\r\n")
        else:
            self._timer = self._loop.call_at(self._began + self._sent / self._rate, self._next)

    def _chunk(self, text: str) -> None:
        self._transport.write(b"%x\r\n%s\r\n" % (len(text), text.encode()))


async def _serve(port: int, rate: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Streams(rate), "127.0.0.1", port, backlog=4096)
    gc.collect()
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
