"""From a request to an engine's answer: a lease, a question, and again where that is right.

Only what the caller has seen nothing of is asked again: a refused or broken connection, or an answer of 5xx, before
the first byte was sent on. Whether that is so, the exchange knows.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

import msgspec

from tandem.errors import ApiError, EngineFault
from tandem.fleet import Engine, Fleet, Kind
from tandem.router import answers, checks, retry
from tandem.router.admission import Admission
from tandem.router.connection import Nonsense, UpstreamError, UpstreamTimeout
from tandem.router.exchange import Exchange, clock
from tandem.router.translate import Asked
from tandem.router.upstream import Answer, Upstreams
from tandem.settings import RouterSettings

T = TypeVar("T")

_log = logging.getLogger("tandem.router")
_BRINK = 0.1  # seconds: twice what may pass until a time-out is noticed


class Question(msgspec.Struct, frozen=True):
    """What to ask of an engine.

    Attributes:
        path: the engine's route.
        body: JSON.
        asked: what the caller wants to read.
        streamed: the answer comes in events; else at once, when all is done.
        check: what only the engine that is going to be asked can tell of the question; raises what is wrong with it,
            at once or when what it returns is awaited.
    """

    path: str
    body: bytes
    asked: Asked
    streamed: bool = False
    check: Callable[[Engine], Awaitable[None] | None] | None = None


class Asking(Protocol):
    """On whose behalf an engine is asked: an :class:`Exchange`, or an :class:`Errand`."""

    path: str
    id: str
    started: float
    deadline: float
    hurried: bool
    status: int
    engine: str
    queued: float
    asked: float
    answered: float
    retries: int

    @property
    def trace_context(self) -> Mapping[str, str]: ...


class Errand:
    """A question on behalf of several callers."""

    def __init__(self, path: str, timeout: float, trace_context: Mapping[str, str]) -> None:
        self.path = path
        self.id = f"{path} for several"
        self.started = clock()
        self.deadline = self.started + timeout
        self.hurried = False
        self.status = 0
        self.engine = ""
        self.queued = 0.0
        self.asked = 0.0
        self.answered = 0.0
        self.retries = 0
        self.trace_context = trace_context


class Dispatch:
    """Asks engines on behalf of exchanges."""

    def __init__(self, fleet: Fleet, upstreams: Upstreams, settings: RouterSettings) -> None:
        self.admission = Admission(fleet, settings)
        self._fleet = fleet
        self._upstreams = upstreams
        self._settings = settings
        self._budget = retry.Budget()

    async def follow(self) -> None:
        """Follow the fleet, for as long as the router serves."""
        await self.admission.follow(lambda engine: self._upstreams.to(engine.url).break_off(f"{engine.name} is gone"))

    def engine_for(self, exchange: Exchange, model: str, kind: Kind) -> Engine:
        """The engine that serves ``model``, whatever its state; noted for logs and metrics.

        Raises:
            ApiError: 403 or 404, there is none that can do what was asked.
        """
        engine = checks.engine_for(self._fleet.now, model, kind, exchange.path)
        exchange.model = engine.model
        return engine

    def ready(self, engine: Engine) -> int:
        """How many engines can be asked in ``engine``'s place, itself included; at least one."""
        return max(1, sum(each.ready for each in self._fleet.now.replicas(engine)))

    async def ask(
        self, exchange: Asking, engine: Engine, question: Question, use: Callable[[Answer], Awaitable[T]]
    ) -> T:
        """Ask ``engine``, or a replica of it, and ``use`` its good answer; what that returned.

        Raises:
            ApiError: the engine refused; or it failed, more often than it is asked, or too late.
        """
        self._budget.earn()
        tried, patient = "", False
        blamed: set[str] = set()  # the engines that this request has counted against: a bad question is one fault
        while True:
            lease = self.admission.at_once(engine, tried, len(question.body))
            if lease is None:
                began = clock()
                try:
                    lease = await self.admission.lease(
                        engine, deadline=exchange.deadline, patient=patient, tried=tried, size=len(question.body)
                    )
                finally:
                    exchange.queued += clock() - began
            exchange.engine = lease.engine.name
            try:
                result = await self._once(exchange, lease.engine, question, use)
            except EngineFault as exc:
                lease.failed(gone=exc.gone, counts=lease.engine.name not in blamed)
                blamed.add(lease.engine.name)
                if not await self._may_ask_again(exchange, exc):
                    raise
            except ApiError:
                lease.succeeded()  # it is well: it refused
                raise
            except BaseException:
                lease.left()
                raise
            else:
                lease.succeeded()
                return result
            tried, patient = lease.engine.name, True

    async def _once(
        self, exchange: Asking, engine: Engine, question: Question, use: Callable[[Answer], Awaitable[T]]
    ) -> T:
        exchange.asked, exchange.answered = clock(), 0.0
        # The router's own limit is to be noticed here, where it tells of the engine; the caller's tells nothing.
        left = max(0.0, exchange.deadline - exchange.asked - (0.0 if exchange.hurried else _BRINK))
        first = min(left, self._settings.first_event_timeout) if question.streamed else left
        try:
            if question.check is not None and (checking := question.check(engine)) is not None:
                await checking
            answer = await self._upstreams.to(engine.url).request(
                "POST",
                question.path,
                question.body,
                exchange.trace_context,
                streamed=question.streamed,
                first=first,
                between=self._settings.event_timeout,
            )
            try:
                if answer.status == 200:
                    return await use(answer)
                raise answers.error(await answer.read(), question.asked, answer.status, retry_after=answer.retry_after)
            finally:
                answer.close()
        except UpstreamTimeout as exc:
            if exchange.hurried and clock() >= exchange.deadline - _BRINK:
                raise TimeoutError from exc
            _log.warning("%s %s: %s", exchange.id, engine.name, exc)
            raise answers.silent(clock() - exchange.asked) from exc
        except Nonsense as exc:
            _log.warning("%s %s: %s", exchange.id, engine.name, exc)
            raise answers.nonsense() from exc
        except UpstreamError as exc:
            _log.warning("%s %s: %s", exchange.id, engine.name, exc)
            raise answers.unreachable(answered=exc.answered, gone=True) from exc

    async def _may_ask_again(self, exchange: Asking, fault: EngineFault) -> bool:
        """Whether the question may be asked again after ``fault``; if so, a pause has passed."""
        if exchange.status:
            return False
        pause = retry.delay(exchange.retries + 1, random.random())  # noqa: S311 - jitter
        pause = max(pause, fault.pause or 0.0)
        in_time = clock() + pause < exchange.deadline
        if not (fault.again and in_time and exchange.retries + 1 < retry.ATTEMPTS and self._budget.spend()):
            fault.headers["x-should-retry"] = "false"  # it was asked often enough, or asking does not help
            return False
        exchange.retries += 1
        await asyncio.sleep(pause)
        return True
