"""One engine's life: its states, and the one task that writes them."""

import asyncio
import random
import shutil
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

import httpx2
import msgspec

from tandem.engines import probes, restarts, vitals
from tandem.engines.diagnosis import diagnose
from tandem.engines.hardware import CardUse
from tandem.engines.probes import NotServing
from tandem.engines.process import EngineProcess, environment
from tandem.engines.progress import Progress, Start
from tandem.engines.samples import Samples
from tandem.engines.spec import Spec
from tandem.engines.told import Told, last_line
from tandem.engines.vitals import Processes
from tandem.fleet import Fleet, State, Vitals, now

_WATCH = 2.0  # seconds between two looks at a ready engine
_LOOK = 1.0  # seconds between two looks at whether a starting engine moves
_ROOM = 60.0  # seconds for which the memory of an engine that died is waited for
_ROOM_POLL = 1.0
_LAST_WORDS = 5.0
_LAST_LINES = 300
# Beyond its own time for requests in flight, what vLLM needs to put away.
_PUT_AWAY = 10.0
# Nothing is lost with one that is not ready yet; while it loads, vLLM was seen not to heed SIGTERM.
_BREAK_OFF = 2.0
# Beyond that time, too, how long an engine that listens no more may take to end: vLLM that was told to end by somebody
# else was seen to hang there, and with it the requests that it had.
_DEAF = 5.0


class EngineRunner:
    """Runs one engine and restarts it when it dies; the only writer of its snapshot."""

    def __init__(self, spec: Spec, fleet: Fleet) -> None:
        self._spec = spec
        self._fleet = fleet
        self._engine = msgspec.structs.replace(spec.engine, estimate=spec.took)
        self._told = Told()
        self._process: EngineProcess | None = None
        self._ready_at: float | None = None
        self._samples = Samples(self.name, fleet)
        self._stopping = asyncio.Event()
        self._renewing = asyncio.Event()
        self._next: Spec | None = None
        self._renewed: asyncio.Future[str] | None = None

    @property
    def name(self) -> str:
        return self._spec.engine.name

    @property
    def spec(self) -> Spec:
        return self._spec

    @property
    def log(self) -> Path:
        return self._spec.log

    async def run(self) -> None:
        """Start the engine and keep it up, until :meth:`stop` or until it has failed for good."""
        self._spec.tmp.mkdir(parents=True, exist_ok=True)
        self._spec.log.parent.mkdir(parents=True, exist_ok=True)
        deaths: list[float] = []
        trusted = False  # whether it was ever ready with these settings
        while not self._stopping.is_set():
            if self._next:
                self._begin_anew(self._next)
                deaths, trusted = [], False
                await self._room()
            ready_at = await self._live()
            if self._stopping.is_set():
                break
            if self._next:
                continue
            trusted = trusted or ready_at is not None
            supervision = self._spec.supervision
            deaths = restarts.recent([*deaths, now()], now(), supervision)
            if not trusted or restarts.given_up(deaths, supervision):
                self._give_up(len(deaths) if trusted else 0)
                return
            pause = restarts.pause(deaths, supervision, random.random())  # noqa: S311 - jitter
            self._write(
                State.RESTARTING,
                restarts=self._engine.restarts + 1,
                expected=self._expected(pause),
                error=self._engine.reason,
            )
            await self._pause(pause)
            await self._room()
        self._write(State.STOPPED, detail="", reason="it was stopped", pid=None, renewed=False)
        self._answer("it was stopped")

    def stop(self) -> None:
        """Have the engine finish its requests and end; :meth:`run` returns when nothing of it is left."""
        self._stopping.set()

    def renew(self, spec: Spec | None = None) -> "asyncio.Future[str]":
        """Have the engine finish its requests, end, and start again, as ``spec`` says where that is another one.

        Where :meth:`run` has returned, it is to be called again.

        Returns:
            What becomes of it: why it did not come back; empty once it is ready.
        """
        self._next = spec or self._spec
        self._renewing.set()
        self._renewed = asyncio.get_running_loop().create_future()
        return self._renewed

    def adopt(self, spec: Spec) -> None:
        """Take over what of ``spec`` concerns callers alone: the engine itself runs on as it is."""
        self._take(spec)
        self._fleet.put(self._engine)

    def kill(self) -> None:
        """End every process of the engine at once."""
        self._stopping.set()
        if self._process:
            self._process.kill()

    async def _live(self) -> float | None:
        """One life of the engine, to its end. When it became ready; None if it never did."""
        self._told = Told()
        self._ready_at = None
        self._samples.forget()
        before = f" again; before that: {self._engine.reason}" if self._engine.state is State.RESTARTING else ""
        self._write(
            State.STARTING,
            detail=self._told.phase.detail,
            reason=f"it is starting{before}",
            started=now(),
            expected=self._expected(),
            line="",
        )
        process = self._process = await EngineProcess.start(
            self._spec.launch.argv,
            environment(self._spec.inherited, self._spec.launch.env),
            log=self._spec.log,
            rotation=self._spec.rotation,
            on_line=self._heard,
        )
        exited = asyncio.create_task(process.wait())
        watching = asyncio.create_task(self._watch(process))
        stopping = asyncio.create_task(self._stopping.wait())
        renewing = asyncio.create_task(self._renewing.wait())
        try:
            await asyncio.wait({exited, watching, stopping, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():  # it refused, perhaps because it is just ending: then that tells more
                told = {exited, stopping, renewing}
                await asyncio.wait(told, timeout=_LAST_WORDS, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                # What a serving engine logged of single requests long before is not why it ended.
                lines = list(process.lines)[-_LAST_LINES if self._ready_at else 0 :]
                found = diagnose(lines, exited.result())
                self._write(self._engine.state, reason=f"{found.cause}. {found.mend}".rstrip(" ."), pid=None)
            elif watching.done() and (refusal := watching.exception()):
                if not isinstance(refusal, NotServing):
                    raise refusal
                self._write(self._engine.state, reason=str(refusal), pid=None)
            else:
                watching.cancel()  # its health stays good while it drains
                if not stopping.done():
                    await self._drain(stopping)
                detail = "finishing requests" if self._ready_at else "breaking off its start"
                self._write(State.DRAINING, detail=detail, reason=self._leaving())
                await process.stop(self._spec.drain_timeout + _PUT_AWAY if self._ready_at else _BREAK_OFF)
            return self._ready_at
        finally:
            for task in (watching, stopping, renewing):
                task.cancel()
            process.kill()
            await process.wait()
            shutil.rmtree(self._spec.tmp, ignore_errors=True)
            self._spec.tmp.mkdir(parents=True, exist_ok=True)

    async def _drain(self, stopping: "asyncio.Task[bool]") -> None:
        """Have the routers give it no more, and wait until they have all that it was asked, within its time."""
        self._write(
            State.DRAINING,
            detail="finishing requests",
            reason=self._leaving(),
            renewed=True,
            expected=self._expected(),
        )
        idle = asyncio.create_task(self._fleet.idle(self.name))
        await asyncio.wait({idle, stopping}, timeout=self._spec.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()

    def _leaving(self) -> str:
        return "it is stopping" if self._stopping.is_set() else "it is going to be started anew"

    async def _watch(self, process: EngineProcess) -> None:
        """Ready once the engine's own health and one real request say so; from then on, as its health goes."""
        async with probes.client(self._engine) as client:
            await self._while_it_moves(process, probes.come_up(client, self._engine))
            context = await probes.context(client)
            self._ready_at = now()
            took = self._ready_at - self._engine.started
            self._write(
                State.READY,
                detail=self._told.remark,
                reason="",
                pid=process.pid,
                context=context,
                expected=0.0,
                renewed=False,
                estimate=took,
                line="",
            )
            self._answer("")
            if self._spec.remember and process.pid is not None:
                await asyncio.to_thread(self._spec.remember, process.pid, self._told.seen, took)
            heard = now()
            progress: Progress | None = None
            while True:
                await asyncio.sleep(_WATCH)
                if (pid := process.pid) is not None:
                    progress = await self._check_progress(pid, client, progress)
                health = await probes.health(client)
                if health == 200:
                    self._write(State.READY, detail=self._told.remark, reason="")
                elif health == 0:
                    self._write(State.STALLED, reason="it does not listen any more")
                elif health is not None:
                    self._write(State.STALLED, reason=f"its health check answers {health}")
                if health != 0:
                    heard = now()
                elif now() - heard > self._spec.drain_timeout + _DEAF:
                    raise NotServing("it did not listen any more, and did not end")

    async def vitals(self, use: CardUse) -> Vitals:
        """How it fares now.

        Args:
            use: what the cards are used for.
        """
        pid = self._engine.pid
        if pid is None:
            return Vitals(engine=self.name, in_flight=self._fleet.work(self.name).in_flight)
        on_card = self._spec.room is not None
        cards = (self._spec.cards or tuple(use.busy)) if on_card else ()
        async with probes.client(self._engine) as client:
            return await self._samples.vitals(pid, client if self._engine.ready else None, use, cards)

    async def _check_progress(self, pid: int, client: httpx2.AsyncClient, before: Progress | None) -> Progress:
        """See whether it moves. In doubt, ask it something: callers may just be slow to take their answers.

        Raises:
            NotServing: it has work, nothing has moved for its grace, and it does not answer.
        """
        sample = await self._samples.keep(pid, client)
        progress = before.after(sample) if before else Progress(sample, sample.at)
        grace = progress.grace(self._spec.supervision)
        if progress.still < grace / 2:
            return progress
        try:
            async with asyncio.timeout(grace - progress.still):
                await probes.first_request(client, self._engine)
            return progress.answered()
        except TimeoutError:
            last = await self._samples.take(pid, client)
        progress = progress.after(last)
        if progress.still < grace:
            return progress
        reason = f"it has {last.in_flight} requests in flight, and for {progress.still:.0f} s nothing of it has moved"
        self._write(State.STALLED, reason=reason)
        raise NotServing(reason)

    async def _while_it_moves(self, process: EngineProcess, coming: Coroutine[None, None, None]) -> None:
        """Wait until it has come up, for as long as it logs, reads or computes.

        Raises:
            NotServing: it does none of these, or refused its first request.
        """
        timeout = self._spec.supervision.start_timeout
        start = Start(vitals.now(), self._told.lines, Processes(), vitals.now())
        task = asyncio.create_task(coming)
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK))[0]:
                pid = process.pid
                did = await asyncio.to_thread(vitals.processes, pid) if pid is not None else Processes()
                start = start.after(vitals.now(), self._told.lines, did)
                line = last_line(process.lines)
                if start.still < timeout:
                    state = self._told.phase.state if self._engine.state is State.STALLED else self._engine.state
                    self._write(state, detail=self._told.phase.detail, line=line)
                    continue
                reason = (
                    f"for {start.still:.0f} s it has logged, read and computed nothing; "
                    f"the last it did: {self._told.phase.detail}" + (f"; its last line: {line}" if line else "")
                )
                self._write(State.STALLED, detail="", reason=reason, line=line)
                if start.still >= 2 * timeout:
                    raise NotServing(f"it stalled: {reason}")
            await task
        finally:
            task.cancel()
            await asyncio.wait({task})

    def _expected(self, pause: float = 0.0) -> float:
        """When it will be ready if it starts after ``pause`` seconds, by its last start; 0 if nobody knows."""
        return now() + pause + self._engine.estimate if self._engine.estimate else 0.0

    def _heard(self, line: str) -> None:
        before, self._told = self._told.phase, self._told.after(line)
        phase = self._told.phase
        if phase != before and self._engine.state in _ON_THE_WAY:
            pid = self._process.pid if self._process else None
            self._write(phase.state, detail=phase.detail, pid=pid)

    async def _pause(self, seconds: float) -> None:
        told = [asyncio.create_task(event.wait()) for event in (self._stopping, self._renewing)]
        await asyncio.wait(told, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in told:
            task.cancel()

    async def _room(self) -> None:
        """Wait until what it takes is free again; not for ever, since vLLM says best what it lacks."""
        if self._spec.room is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_ROOM):
                while not (self._stopping.is_set() or await asyncio.to_thread(self._spec.room)):
                    self._write(self._engine.state, detail="waiting until its memory is free again")
                    await self._pause(_ROOM_POLL)

    def _give_up(self, deaths: int) -> None:
        reason = self._engine.reason
        if deaths > 1:
            window = f"{self._spec.supervision.restart_window:g} s"
            reason = f"it ended {deaths} times within {window}; the last time: {reason}"
        self._write(State.FAILED, reason=reason, error=self._engine.reason, renewed=False, expected=0.0)
        self._answer(reason)

    def _begin_anew(self, spec: Spec) -> None:
        self._next = None
        self._renewing.clear()
        self._take(spec)
        self._engine = msgspec.structs.replace(self._engine, estimate=spec.took or self._engine.estimate)
        self._write(State.WAITING, reason="", detail="", pid=None, renewed=True, expected=self._expected())

    def _take(self, spec: Spec) -> None:
        self._spec = spec
        known = {name: getattr(self._engine, name) for name in _LIVED}
        self._engine = msgspec.structs.replace(spec.engine, **known)

    def _answer(self, reason: str) -> None:
        """Tell whoever asked for a new start what came of it; a start that is to be followed by another is no news."""
        if self._renewed and not self._renewed.done() and not self._next:
            self._renewed.set_result(reason)

    def _write(self, state: State, **changes: object) -> None:
        since = self._engine.since if state is self._engine.state else now()
        self._engine = msgspec.structs.replace(self._engine, state=state, since=since, **changes)
        self._fleet.put(self._engine)


# What an engine's snapshot has of its life, and not of its settings.
_LIVED = (
    *("state", "detail", "reason", "since", "started", "pid", "restarts", "context", "expected", "renewed", "error"),
    *("estimate", "line"),
)
_ON_THE_WAY = frozenset({State.STARTING, State.LOADING, State.SIZING, State.WARMING})
