"""An engine that misbehaves on command: a child process that speaks OpenAI's API as vLLM's server does.

Run as a script; standard library only. It listens on a free port of loopback, prints that port, one line on standard
output, and ends when its standard input does, so that it never outlives whoever started it.

``POST /misbehave`` tells it what to do with the requests for a model that come next: ``{"how": "late", "times": 2,
"seconds": 1}``, or a list of such plans, one after the other; -1 times is until told otherwise, and without a plan it
is well. The ways to misbehave, and their options, are the functions in ``WAYS``. ``refuse_connections`` begins at once,
and spares only the connection on which it was told. ``GET /counters`` says how many requests came (``asked``), how many
of them were left by their caller before the end (``aborted``), the bytes that were sent (``sent``), and the last few
``bodies``. ``POST /forget`` makes it as new.
"""

import asyncio
import json
import os
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

JSON, SSE, HTML = "application/json", "text/event-stream; charset=utf-8", "text/html"
PAGE = b"<html><body><h1>Something is wrong</h1></body></html>"
METRICS = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0.0\n"
HOT = {"/v1/completions", "/v1/chat/completions", "/v1/embeddings"}
_A_MOMENT = 0.05  # seconds after which what was sent has been read


class Engine:
    """What it is to do, and what it has seen."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.listening: asyncio.Server | None = None
        self.port = 0
        self.forget()

    def forget(self) -> None:
        self.plans: deque[dict[str, Any]] = deque()
        self.asked = 0
        self.aborted = 0
        self.sent = 0
        self.bodies: deque[Any] = deque(maxlen=10)

    def drop(self, *, but: "Connection") -> None:
        """Close all connections but one; who was asking there has not left."""
        for connection in self.connections - {but}:
            connection.end()

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        self.listening = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port)
        self.port = self.listening.sockets[0].getsockname()[1]

    async def refuse_connections(self, teller: "Connection", seconds: float) -> None:
        assert self.listening is not None
        self.listening.close()
        self.drop(but=teller)
        await asyncio.sleep(seconds)
        await self.listen()

    def next_plan(self) -> dict[str, Any]:
        while self.plans and self.plans[0]["times"] == 0:
            self.plans.popleft()
        if not self.plans:
            return {"how": "good", "times": -1}
        self.plans[0]["times"] -= 1
        return self.plans[0]

    @property
    def counters(self) -> dict[str, Any]:
        return {"asked": self.asked, "aborted": self.aborted, "sent": self.sent, "bodies": list(self.bodies)}


class Connection(asyncio.Protocol):
    """HTTP/1.1, kept alive; one request at a time."""

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.received = b""
        self.answering: asyncio.Task[None] | None = None
        self.call: Call | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.engine.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.begin()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def eof_received(self) -> None:
        self.left()

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.connections.discard(self)
        self.left()

    def left(self) -> None:
        """The caller is gone; if its request was not answered to the end, that counts."""
        if self.answering is not None and self.call is not None and not self.call.over:
            self.engine.aborted += self.call.hot
            self.call.over = True
            self.answering.cancel()

    def end(self) -> None:
        if self.call is not None:
            self.call.over = True
        if self.answering is not None:
            self.answering.cancel()
        self.transport.abort()

    def begin(self) -> None:
        """Answer the next request if it is there as a whole."""
        head, found, rest = self.received.partition(b"\r\n\r\n")
        if not found or self.answering is not None:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.received = rest[length:]
        self.call = Call(self, first.split()[0], first.split()[1], rest[:length])
        self.answering = asyncio.ensure_future(self.call.answer())
        self.answering.add_done_callback(self.done)

    def done(self, answering: "asyncio.Task[None]") -> None:
        self.answering = self.call = None
        if not answering.cancelled() and (exc := answering.exception()):
            raise exc
        self.begin()


class Call:
    """One request, and the means to answer it, well or badly."""

    def __init__(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        self.connection = connection
        self.engine = connection.engine
        self.method = method
        self.path = path
        self.asked: Any = json.loads(body) if body else {}
        self.hot = path in HOT
        self.streamed = self.hot and bool(self.asked.get("stream"))
        self.chat = path == "/v1/chat/completions"
        self.over = False

    async def answer(self) -> None:
        if self.hot:
            self.engine.asked += 1
            self.engine.bodies.append(self.asked)
            options = dict(self.engine.next_plan())
            del options["times"]
            await WAYS[options.pop("how")](self, **options)
        else:
            await self.plain()
        self.over = True

    async def plain(self) -> None:
        """The routes on which it never misbehaves."""
        if self.path == "/misbehave":
            plans = self.asked if isinstance(self.asked, list) else [self.asked]
            self.engine.plans.clear()
            self.whole(b"{}")
            for plan in plans:
                if plan["how"] == "refuse_connections":
                    await self.engine.refuse_connections(self.connection, plan["seconds"])
                else:
                    self.engine.plans.append({"times": 1, **plan})
        elif self.path == "/forget":
            self.engine.drop(but=self.connection)
            self.engine.forget()
            self.whole(b"{}")
        elif self.path == "/counters":
            self.whole(as_json(self.engine.counters))
        elif self.path == "/health":
            self.whole(b"", kind=HTML)
        elif self.path == "/metrics":
            self.whole(METRICS, kind="text/plain; version=0.0.4")
        elif self.path == "/v1/models":
            card = {"id": "org/gen", "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 4096}
            self.whole(as_json({"object": "list", "data": [card]}))
        else:
            self.whole(as_json({"detail": "Not Found"}), 404)

    # What an answer is made of

    def send(self, data: bytes) -> None:
        self.engine.sent += len(data) * self.hot
        self.connection.transport.write(data)

    def head(self, *lines: str, status: int = 200, kind: str = JSON) -> None:
        self.send("\r\n".join([f"HTTP/1.1 {status} X", f"content-type: {kind}", *lines, "", ""]).encode())

    def whole(self, body: bytes, status: int = 200, kind: str = JSON, *lines: str) -> None:
        self.head(f"content-length: {len(body)}", *lines, status=status, kind=kind)
        self.send(body)

    def open_stream(self, kind: str = SSE) -> None:
        self.head("transfer-encoding: chunked", kind=kind)

    async def part(self, data: bytes) -> None:
        """A chunk of a stream; waits while the caller is slow."""
        self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.connection.writable.wait()

    async def events(self, number: int, text: str = "x") -> None:
        for _ in range(number):
            await self.part(event(self.piece(text)))

    def close_stream(self) -> None:
        self.send(b"0\r\n\r\n")

    async def hang_up(self) -> None:
        """Close in the middle of the answer."""
        await asyncio.sleep(_A_MOMENT)
        self.over = True
        self.connection.transport.close()

    async def reset(self) -> None:
        """Close so that the other side gets an RST."""
        await asyncio.sleep(_A_MOMENT)
        self.over = True
        sock = self.connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()

    # What it says

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": 1, "total_tokens": 4, "completion_tokens": 3}

    def piece(self, text: str, finish: str | None = None) -> dict[str, Any]:
        """A chunk of a stream."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish, "stop_reason": None}
        choice |= {"delta": {"content": text}} if self.chat else {"text": text}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"id": "cmpl-1", "object": kind, "created": 1, "model": self.asked.get("model"), "choices": [choice]}

    def pieces(self) -> Iterator[bytes]:
        """The events of a whole stream."""
        for text in ("One", " two"):
            yield event(self.piece(text))
        yield event(self.piece(" three", "length"))
        if (self.asked.get("stream_options") or {}).get("include_usage"):
            yield event({**self.piece(""), "choices": [], "usage": self.usage})
        yield event("[DONE]")

    def said(self, text: str = "One two three", finish: str = "length") -> dict[str, Any]:
        """A whole answer."""
        if self.path == "/v1/embeddings":
            given = self.asked["input"]
            several = isinstance(given, list) and not isinstance(given[0], int)
            return self.vectors(list(range(len(given) if several else 1)))
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish, "stop_reason": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        known = {"id": "cmpl-1", "object": kind, "created": 1, "model": self.asked.get("model")}
        return {**known, "choices": [choice], "usage": self.usage}

    def vectors(self, indices: list[int]) -> dict[str, Any]:
        data = [{"index": index, "object": "embedding", "embedding": [0.5, -0.5]} for index in indices]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {"id": "embd-1", "object": "list", "created": 1, "model": "m", "data": data, "usage": usage}


Way = Callable[..., Awaitable[None]]


async def good(call: Call) -> None:
    if not call.streamed:
        call.whole(as_json(call.said()))
        return
    call.open_stream()
    for piece in call.pieces():
        await call.part(piece)
    call.close_stream()


async def late(call: Call, *, seconds: float) -> None:
    """A good answer, after a while."""
    await asyncio.sleep(seconds)
    await good(call)


async def silent(call: Call) -> None:
    """No answer, ever."""
    await asyncio.sleep(3600)


async def silent_after_head(call: Call) -> None:
    call.open_stream()
    await silent(call)


async def half_stream(call: Call, *, events: int) -> None:
    """Reset after some events."""
    call.open_stream()
    await call.events(events)
    await call.reset()


async def half_stream_clean(call: Call, *, events: int) -> None:
    """Some events and a proper end, without ``[DONE]``."""
    call.open_stream()
    await call.events(events)
    call.close_stream()


async def stalls_mid_stream(call: Call, *, events: int) -> None:
    call.open_stream()
    await call.events(events)
    await silent(call)


async def half_body(call: Call) -> None:
    body = as_json(call.said())
    call.head(f"content-length: {len(body)}")
    call.send(body[: len(body) // 2])
    await call.hang_up()


async def reset(call: Call) -> None:
    """An RST instead of an answer."""
    await call.reset()


async def status(call: Call, *, status: int, form: str = "json", retry_after: int | None = None) -> None:
    """An error as vLLM words it, or as a proxy before it would."""
    said = {"message": "it is broken", "type": "InternalServerError", "param": None, "code": status}
    body, kind = (as_json({"error": said}), JSON) if form == "json" else (PAGE, HTML)
    call.whole(body, status, kind, *([] if retry_after is None else [f"retry-after: {retry_after}"]))


async def html(call: Call) -> None:
    call.whole(PAGE, kind=HTML)


async def wrong_content_type(call: Call, *, whole: bool = False) -> None:
    """Events as JSON, or JSON as events; with ``whole``, what was to come in events comes at once."""
    if call.streamed and not whole:
        call.whole(b"".join(call.pieces()))
    else:
        call.whole(as_json(call.said()), kind=SSE)


async def not_http(call: Call) -> None:
    call.send(b"\x15\x03\x01\x00\x02\x02\x16 this is no HTTP\r\n\r\n")
    await call.hang_up()


async def slow_drip(call: Call, *, seconds: float) -> None:
    """A good answer, one byte at a time."""
    body = b"".join(call.pieces()) if call.streamed else as_json(call.said())
    call.head(f"content-length: {len(body)}", kind=SSE if call.streamed else JSON)
    for byte in body:
        call.send(bytes([byte]))
        await asyncio.sleep(seconds)


async def oversized(call: Call, *, what: str, size: int, events: int = 0) -> None:
    """A ``body``, an ``event`` or a ``header`` of more than so many bytes, or so many bytes of ``headers``."""
    if what == "body":
        call.whole(as_json({**call.said(), "padding": "x" * size}))
    elif what == "event":
        call.open_stream()
        await call.events(events)
        await call.events(1, "x" * size)
        await call.part(event("[DONE]"))
        call.close_stream()
    else:
        each = size if what == "header" else 100
        call.head(*(f"x-{n}: {'x' * each}" for n in range(size // each)), "content-length: 0")


async def error_event(call: Call, *, code: int, events: int = 0) -> None:
    """vLLM has said 200 before it looks at the request."""
    call.open_stream()
    await call.events(events)
    await call.part(event({"error": {"message": "it is broken", "type": "X", "param": None, "code": code}}))
    await call.part(event("[DONE]"))
    call.close_stream()


async def abort_finish(call: Call, *, events: int = 1) -> None:
    """What vLLM says of requests in flight when it is told to end."""
    if not call.streamed:
        call.whole(as_json(call.said(finish="abort")))
        return
    call.open_stream()
    await call.events(events)
    await call.part(event(call.piece("", "abort")))
    await call.part(event("[DONE]"))
    call.close_stream()


async def die(call: Call, *, events: int | None = None) -> None:
    if events is not None:
        call.open_stream()
        await call.events(events)
        await asyncio.sleep(_A_MOMENT)
    os._exit(1)


async def wrong_count(call: Call, *, indices: list[int]) -> None:
    """Vectors with these indices, whatever was asked for; of choices, none."""
    said = call.said()
    call.whole(as_json(call.vectors(indices) if "data" in said else {**said, "choices": []}))


async def bad_json(call: Call, *, events: int = 0, form: str = "cut") -> None:
    """JSON that is cut off, not UTF-8, or too deep to be read."""
    forms = {"cut": b'{"id": "cmpl-1", "choices": [', "bytes": b'{"id": "\xff"}', "deep": b'{"x": ' + b"[" * 50_000}
    said = forms[form]
    if not call.streamed:
        call.whole(said)
        return
    call.open_stream()
    await call.events(events)
    await call.part(b"data: " + said + b"\n\n")
    await call.part(event("[DONE]"))
    call.close_stream()


async def empty(call: Call) -> None:
    call.whole(b"", kind=SSE if call.streamed else JSON)


async def duplicate_done(call: Call) -> None:
    """A good stream, twice."""
    call.open_stream()
    for piece in (*call.pieces(), *call.pieces()):
        await call.part(piece)
    call.close_stream()


async def long_stream(call: Call, *, events: int, size: int = 1, seconds: float = 0) -> None:
    """A good stream of so many events, each with that much text, with pauses in between."""
    call.open_stream()
    for _ in range(events):
        await call.events(1, "x" * size)
        await asyncio.sleep(seconds)
    await call.part(event("[DONE]"))
    call.close_stream()


WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (
        good,
        late,
        silent,
        silent_after_head,
        half_stream,
        half_stream_clean,
        stalls_mid_stream,
        half_body,
        reset,
        status,
        html,
        wrong_content_type,
        not_http,
        slow_drip,
        oversized,
        error_event,
        abort_finish,
        die,
        wrong_count,
        bad_json,
        empty,
        duplicate_done,
        long_stream,
    )
}


def event(said: object) -> bytes:
    return b"data: " + (said.encode() if isinstance(said, str) else as_json(said)) + b"\n\n"


def as_json(said: object) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode()


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


async def main() -> None:
    engine = Engine()
    await engine.listen()
    print(engine.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    asyncio.run(main())
