"""The control socket: JSON lines over a Unix socket in the run folder, mode 0600 (0660 under systemd). Both ends of it.

A caller sends one line, ``{"verb": …}``. ``status`` gets one snapshot back and how each engine fares, ``watch`` gets
the current snapshot and then each newer one, ``stop`` does the same until the service has ended. The end of the stream
is the end of the service: that is how the router learns that its supervisor is gone. The router's own verb is
``route``: it watches, and tells in lines of its own what each engine has to do. ``restart`` (of an ``engine``) and
``reload`` get snapshots until they are done, and then a line with what came of it; they go on if their caller leaves.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Literal, Protocol

import msgspec

from tandem.errors import SetupError
from tandem.fleet import Engine, Fleet, Snapshot, Vitals, Work
from tandem.rundir import RunDir
from tandem.settings import ApiSettings, RouterSettings

Verb = Literal["status", "watch", "route", "stop", "restart", "reload"]


class _Question(msgspec.Struct):
    verb: Verb
    engine: str = ""


class _Outcome(msgspec.Struct, omit_defaults=True):
    """What came of a verb.

    Attributes:
        said: sentences for people.
        error: why it was not done; empty when it was.
        exit_code: the status with which a command that hears this error ends.
    """

    said: tuple[str, ...] = ()
    error: str = ""
    exit_code: int = 0


class _Ended(msgspec.Struct):
    outcome: _Outcome


class _Fares(msgspec.Struct):
    vitals: tuple[Vitals, ...]


class _Line(msgspec.Struct):
    """A snapshot, or what comes last."""

    engines: tuple[Engine, ...] = ()
    draining: bool = False
    outcome: _Outcome | None = None
    vitals: tuple[Vitals, ...] | None = None


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


class Service(Protocol):
    """What answers the verbs."""

    def hello(self) -> Hello: ...

    def stop(self) -> None:
        """Have it end; returns at once."""

    def routed(self) -> None:
        """A router is there, and follows."""

    async def vitals(self) -> Sequence[Vitals]:
        """How each engine fares."""

    async def restart(self, engine: str) -> Sequence[str]:
        """Start ``engine`` and its replicas anew; what is to be said of it.

        Raises:
            SetupError: there is no such engine, or it did not come back.
        """

    async def reload(self) -> Sequence[str]:
        """Read the settings anew and do as they say; what is to be said of it.

        Raises:
            SetupError: nothing was changed, or an engine did not come back.
        """


_decode_question = msgspec.json.Decoder(_Question).decode
_decode_hello = msgspec.json.Decoder(Hello).decode
_decode_line = msgspec.json.Decoder(_Line).decode
_decode_work = msgspec.json.Decoder(tuple[Work, ...]).decode
_encode = msgspec.json.Encoder().encode


@asynccontextmanager
async def serve(run_dir: RunDir, fleet: Fleet, service: Service) -> AsyncIterator[None]:
    """Answer on ``run_dir``'s socket until the block ends."""
    answering: set[asyncio.Task[None]] = set()
    acting: set[asyncio.Task[_Outcome]] = set()  # which go on without their caller

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this callback in a task
        answering.add(task)
        try:
            question = _decode_question(await reader.readline())
            writer.write(_encode(service.hello()) + b"\n")
            if question.verb == "status":
                writer.write(_encode(fleet.now) + b"\n")
                writer.write(_encode(_Fares(tuple(await service.vitals()))) + b"\n")
            elif question.verb in ("restart", "reload"):
                action = asyncio.create_task(_outcome(service, question))
                acting.add(action)
                action.add_done_callback(acting.discard)
                await _first(_tell(fleet, writer), _wait(action))
                writer.write(_encode(_Ended(action.result())) + b"\n")
            elif question.verb == "route":
                service.routed()
                await _first(_tell(fleet, writer), _hear(fleet, reader, task))
            else:
                if question.verb == "stop":
                    service.stop()
                await _tell(fleet, writer)
        except msgspec.DecodeError as exc:
            writer.write(_encode({"error": str(exc)}) + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            return  # the caller went, or the service ends: either way the task is at its end
        finally:
            fleet.report(task, ())
            writer.close()
            answering.discard(task)

    run_dir.socket.unlink(missing_ok=True)  # left by a service that was killed: the folder's lock says it is gone
    server = await asyncio.start_unix_server(answer, run_dir.socket)
    run_dir.socket.chmod(run_dir.socket_mode)
    try:
        yield
    finally:
        server.close()
        tasks = [*answering, *acting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _outcome(service: Service, question: _Question) -> _Outcome:
    try:
        said = await (service.restart(question.engine) if question.verb == "restart" else service.reload())
    except SetupError as exc:
        return _Outcome(error=str(exc), exit_code=exc.exit_code)
    return _Outcome(tuple(said))


async def _tell(fleet: Fleet, writer: asyncio.StreamWriter) -> None:
    async for snapshot in fleet.snapshots():
        writer.write(_encode(snapshot) + b"\n")
        await writer.drain()


async def _hear(fleet: Fleet, reader: asyncio.StreamReader, router: object) -> None:
    while line := await reader.readline():
        fleet.report(router, _decode_work(line))


async def _wait(task: "asyncio.Task[_Outcome]") -> None:
    await asyncio.wait({task})


async def _first(*waits: Coroutine[None, None, None]) -> None:
    """Wait for whichever comes first, raise what it raised, and give up the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Conversation:
    """The caller's end: the service's hello, then its snapshots.

    Attributes:
        said: what came of the verb, for people; known once the snapshots have ended.
        vitals: how each engine fares, after ``status``; likewise.
    """

    def __init__(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self.said: tuple[str, ...] | None = None
        self.vitals: tuple[Vitals, ...] = ()
        self._reader = reader
        self._writer = writer

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Each snapshot as it comes; ends with the verb or the service (or, for ``status``, after one).

        Raises:
            SetupError: the verb was not done, and why.
        """
        try:
            while line := await self._reader.readline():
                told = _decode_line(line)
                if told.vitals is not None:
                    self.vitals = told.vitals
                elif told.outcome is None:
                    yield Snapshot(told.engines, told.draining)
                elif told.outcome.error:
                    raise SetupError(told.outcome.error, exit_code=told.outcome.exit_code)
                else:
                    self.said = told.outcome.said
        except ConnectionError:
            return

    async def tell(self, work: Iterable[Work]) -> None:
        """Say what the engines have to do; for the router.

        Raises:
            ConnectionError: the service is gone.
        """
        self._writer.write(_encode(tuple(work)) + b"\n")
        await self._writer.drain()


@asynccontextmanager
async def ask(run_dir: RunDir, verb: Verb, engine: str = "") -> AsyncIterator[Conversation]:
    """Ask the service that holds ``run_dir``.

    Args:
        engine: the one that ``verb`` is about.

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
        writer.write(_encode(_Question(verb, engine)) + b"\n")
        hello = await reader.readline()
        if not hello:
            raise SetupError(f"the service on {run_dir.path} ended before it answered")
        yield Conversation(_decode_hello(hello), reader, writer)
    finally:
        writer.close()
