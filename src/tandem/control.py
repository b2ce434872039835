"""The control socket: JSON lines over a Unix socket in the run folder, mode 0600 (0660 under systemd). Both ends of it.

A caller sends one line, ``{"verb": …}``. ``status`` gets one snapshot back, ``watch`` gets the current snapshot and
then each newer one, ``stop`` does the same until the service has ended. The end of the stream is the end of the
service: that is how the router learns that its supervisor is gone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

import msgspec

from tandem.errors import SetupError
from tandem.fleet import Fleet, Snapshot
from tandem.rundir import RunDir
from tandem.settings import ApiSettings, RouterSettings

Verb = Literal["status", "watch", "stop"]


class _Question(msgspec.Struct):
    verb: Verb


class Hello(msgspec.Struct, frozen=True):
    """What every answer begins with.

    Attributes:
        pid: the service's process.
        address: where callers reach the service, such as ``http://127.0.0.1:8200``.
        log_level: how much the router logs.
        log_format: in which form.
        router: the router's settings, as :class:`~tandem.settings.RouterSettings` writes them.
        api: the API's, likewise.
    """

    pid: int
    address: str
    log_level: str
    log_format: str
    router: msgspec.Raw
    api: msgspec.Raw

    def router_settings(self) -> RouterSettings:
        return RouterSettings.model_validate_json(bytes(self.router))

    def api_settings(self) -> ApiSettings:
        return ApiSettings.model_validate_json(bytes(self.api))


_decode_question = msgspec.json.Decoder(_Question).decode
_decode_hello = msgspec.json.Decoder(Hello).decode
_decode_snapshot = msgspec.json.Decoder(Snapshot).decode
_encode = msgspec.json.Encoder().encode


@asynccontextmanager
async def serve(run_dir: RunDir, fleet: Fleet, hello: Hello, stop: Callable[[], None]) -> AsyncIterator[None]:
    """Answer on ``run_dir``'s socket until the block ends; ``stop`` is called when a caller asks for the end."""
    answering: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this callback in a task
        answering.add(task)
        try:
            question = _decode_question(await reader.readline())
            writer.write(_encode(hello) + b"\n")
            if question.verb == "stop":
                stop()
            async for snapshot in fleet.snapshots():
                writer.write(_encode(snapshot) + b"\n")
                await writer.drain()
                if question.verb == "status":
                    break
        except msgspec.DecodeError as exc:
            writer.write(_encode({"error": str(exc)}) + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            return  # the caller went, or the service ends: either way the task is at its end
        finally:
            writer.close()
            answering.discard(task)

    run_dir.socket.unlink(missing_ok=True)  # left by a service that was killed: the folder's lock says it is gone
    server = await asyncio.start_unix_server(answer, run_dir.socket)
    run_dir.socket.chmod(run_dir.socket_mode)
    try:
        yield
    finally:
        server.close()
        for task in list(answering):
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


class Conversation:
    """The caller's end: the service's hello, then its snapshots."""

    def __init__(self, hello: Hello, reader: asyncio.StreamReader) -> None:
        self.hello = hello
        self._reader = reader

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Each snapshot as it comes; ends with the service (or, for ``status``, after one)."""
        try:
            while line := await self._reader.readline():
                yield _decode_snapshot(line)
        except ConnectionError:
            return


@asynccontextmanager
async def ask(run_dir: RunDir, verb: Verb) -> AsyncIterator[Conversation]:
    """Ask the service that holds ``run_dir``.

    Raises:
        SetupError: no service answers there.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(run_dir.socket, limit=2**20)
    except OSError as exc:
        raise SetupError(
            f"no service runs on {run_dir.path}",
            "Start one with `tandem up`, or name its folder with --run-dir",
        ) from exc
    try:
        writer.write(_encode({"verb": verb}) + b"\n")
        hello = await reader.readline()
        if not hello:
            raise SetupError(f"the service on {run_dir.path} ended before it answered")
        yield Conversation(_decode_hello(hello), reader)
    finally:
        writer.close()
