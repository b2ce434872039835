"""All that waits for one engine's vectors, and what of it the engine has: when a batch leaves, and whom it tells."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from tandem.errors import ApiError, EngineFault, TandemError
from tandem.fleet import Engine
from tandem.router import answers, vectors
from tandem.router.admission import overloaded
from tandem.router.coalesce import Batch, Input, Job, Queue
from tandem.router.dispatch import Dispatch, Errand, Question
from tandem.router.exchange import clock
from tandem.router.tokens import Counter, QuickCounter, Uncountable, counter_of
from tandem.router.translate import Asked
from tandem.router.upstream import Answer, Upstreams
from tandem.settings import RouterSettings

PATH = "/v1/embeddings"
UNCOUNTED = 0  # tokens of a text that goes alone: the engine tells

_log = logging.getLogger("tandem.router")
_IN_FLIGHT = 4  # batches that one engine has at once
_FEW = 2  # of them, that need not be full: with fewer the engine idles between them
_ENOUGH = 16  # texts that make a batch full
_MOST = 32  # texts of a batch
_QUIET = 0.002  # seconds in which nobody comes: then all have come who were answered together
_LONGEST = 0.01  # seconds that this is waited for
_SPAN = 0.1  # seconds of the engine's work that a batch may be: so long does a small one wait behind a large one
_FIRST_BUDGET = 4096  # tokens of a batch, as long as nobody knows how fast the engine is
_LEAST_BUDGET = 512  # tokens that it may be in any case: one slow answer says little
_WINDOW = 0.5  # seconds over which that is measured


class Miscounted(TandemError):
    """The router and the engine have counted differently: nobody knows what each caller has used."""


class Key(NamedTuple):
    """With what a request may share a batch: with what has all of this alike.

    Attributes:
        counter: by whom its tokens were counted.
    """

    kind: type
    dimensions: int | None
    cut: int | None
    activation: bool | None
    counter: Counter

    @property
    def parameters(self) -> dict[str, int | None]:
        return {
            "dimensions": self.dimensions,
            "truncate_prompt_tokens": self.cut,
            "use_activation": self.activation,
        }


class Line:
    """All requests for one engine, or for several that serve the same: what waits, and what is with the engine."""

    def __init__(self, dispatch: Dispatch, upstreams: Upstreams, settings: RouterSettings) -> None:
        self._dispatch = dispatch
        self._upstreams = upstreams
        self._settings = settings
        self._queue: Queue[Key] = Queue()
        self._waiting: dict[Job, asyncio.Future[None]] = {}
        self._sent: dict[asyncio.Task[None], Batch[Key]] = {}
        self._pace = _Pace()
        self._engine: Engine | None = None
        self.counter: Counter | None = None  # counts as the engine does; without one, nothing is merged
        self._quick = True  # whether it may be the quick one: as long as that was never wrong
        self._compared: tuple[float, str, str] | None = None  # the life of the engine that was compared with
        self._checking: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle | None = None  # while those who come are gathered
        self._first_came = self._last_came = 0.0  # of them

    def look(self, engine: Engine) -> None:
        """Take note of the engine as it is now; one that has started anew is compared with again."""
        self._engine = engine
        life = _life(engine)
        if self.counter is not None and self._compared != life:
            self.counter = None
        if engine.tokenizer and engine.ready and self._compared != life and self._checking is None:
            self._checking = asyncio.create_task(self._check(engine))

    @property
    def idle(self) -> bool:
        """Whether whoever comes now is asked for at once, and alone."""
        return not self._sent and not len(self._queue)

    async def count(self, counter: Counter, texts: Sequence[str]) -> list[int]:
        """How many tokens the engine makes of each text, by the line's ``counter``.

        Raises:
            Miscounted: it cannot tell.
        """
        try:
            return await counter.count(texts)
        except Uncountable as exc:
            if counter is self.counter:
                self._distrust(f"fastokens has failed ({exc})")
            raise Miscounted from exc

    async def vectors(
        self, engine: Engine, key: Key, inputs: Sequence[Input], tokens: Sequence[int], headers: Mapping[str, str]
    ) -> Job:
        """What the engine makes of ``inputs``; returns when all has come.

        Args:
            key: with what they may share a batch.
            tokens: how many each has, or :data:`UNCOUNTED`, if the line is idle and it is just one.
            headers: for the engine.

        Raises:
            ApiError: as :meth:`Dispatch.ask` does.
            Miscounted: the router and the engine disagree.
        """
        self._dispatch.admission.check(engine, len(self._waiting))
        job = self._queue.add(key, inputs, tokens)
        job.headers = headers
        await self._done(job)
        return job

    async def _done(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        future = self._waiting[job] = loop.create_future()
        patience: asyncio.TimerHandle | None = None
        try:
            self._pump()
            if not job.began:
                patience = loop.call_later(self._settings.queue_timeout, self._too_long, job)
            await future
        finally:
            if patience is not None:
                patience.cancel()
            del self._waiting[job]
            if not future.done() or future.cancelled() or future.exception():
                self._queue.drop(job)
                for task, batch in list(self._sent.items()):
                    if not batch.wanted:
                        self._queue.forget(batch)
                        task.cancel()

    def _too_long(self, job: Job) -> None:
        """Nothing of it has been sent yet, and it has waited as long as anything may."""
        if not job.began and self._engine is not None:
            self._tell(job, overloaded(self._engine))

    def _pump(self, *, gathered: bool = False) -> None:
        """Send as much as the engine can use.

        An idle engine is asked at once. One that is at work gets full batches, and, so that it never idles, one more
        that is not. Those who were answered together come back within a few milliseconds of one another: such a batch
        is sent when no more of them come, and not with the first of them alone.
        """
        while self._room() and len(self._queue):
            full = len(self._queue) >= _ENOUGH or self._queue.tokens >= self._pace.budget
            if self._sent and not full:
                if len(self._sent) >= _FEW * self._engines():
                    return
                if not gathered:
                    self._gather()
                    return
            gathered = False
            if (batch := self._queue.next(_MOST, self._pace.budget)) is None:
                return
            self._pace.began(busy=bool(self._sent))
            for item in batch.items:
                for job, _ in item.places:
                    job.began = job.began or clock()
            task = asyncio.create_task(self._send(batch))
            self._sent[task] = batch
            task.add_done_callback(self._returned)

    def _gather(self) -> None:
        """Somebody has come: look again when nobody has for a moment."""
        self._last_came = clock()
        if self._looking is None:
            self._first_came = self._last_came
            self._looking = asyncio.get_running_loop().call_later(_QUIET, self._look_again)

    def _look_again(self) -> None:
        now = clock()
        if now - self._last_came < _QUIET and now - self._first_came < _LONGEST:
            self._looking = asyncio.get_running_loop().call_later(_QUIET, self._look_again)
        else:
            self._looking = None
            self._pump(gathered=True)

    def _engines(self) -> int:
        assert self._engine is not None  # noqa: S101 - somebody has asked
        return self._dispatch.ready(self._engine)

    def _room(self) -> bool:
        most = _IN_FLIGHT * self._engines()
        if len(self._sent) < most - 1 or self._queue.jobs > 1:
            return len(self._sent) < most
        # The last place is not for somebody who has all the others already.
        callers = {job for batch in self._sent.values() for item in batch.items for job, _ in item.places}
        return len(self._sent) < most and len(callers) > 1

    def _returned(self, task: asyncio.Task[None]) -> None:
        batch = self._sent.pop(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            _log.error("a batch of embeddings failed", exc_info=bug)
            self._fail(batch, answers.our_fault())
        self._pump()

    async def _send(self, batch: Batch[Key]) -> None:
        """Ask for a batch, and tell everybody who waits; of one that is refused, find the item at fault."""
        began = clock()
        try:
            found, counted = await self._ask(batch)
        except EngineFault as exc:
            self._fail(batch, exc)
        except ApiError as exc:
            if exc.status != 400:
                self._fail(batch, exc)
            elif len(batch.items) == 1:
                self._refuse(batch, exc)
            elif exc.param not in (None, "input"):  # it is about all of them
                self._fail(batch, exc)
            else:
                for half in batch.halves():
                    if half.wanted:
                        await self._send(half)
                    else:
                        self._queue.forget(half)
        else:
            if len(batch.items) == 1:  # then the engine's count is the text's, if nobody else has counted it
                batch.items[0].tokens = batch.items[0].tokens or counted
            self._pace.ended(batch.tokens, began, clock())
            if counted != batch.tokens:
                if batch.key.counter is self.counter:  # else that one is out of use by now
                    self._miscounted(batch, counted)
                self._fail(batch, Miscounted())
                return
            for item, vector in zip(batch.items, found, strict=True):
                for job, index in self._queue.done(batch.key, item):
                    job.tokens = job.tokens or item.tokens
                    if job.give(index, vector) and (future := self._waiting.get(job)) and not future.done():
                        future.set_result(None)

    def _miscounted(self, batch: Batch[Key], counted: int) -> None:
        """Merge no more; or, if the quick counter was at fault, not before the thorough one agrees with the engine."""
        if batch.key.kind is str and isinstance(self.counter, QuickCounter):
            self._distrust(f"fastokens counts {batch.tokens} tokens where the engine counts {counted}")
            return
        _log.error(
            "the router counts %d tokens where the engine counts %d: requests for embeddings are not merged any more",
            batch.tokens,
            counted,
        )
        self.counter = None

    def _distrust(self, why: str) -> None:
        """Have tokenizers count, once that has been compared with the engine."""
        _log.warning("%s: tokenizers is to count instead", why)
        self._quick, self._compared, self.counter = False, None, None

    async def _ask(self, batch: Batch[Key]) -> tuple[list[bytes], int]:
        engine = self._engine
        assert engine is not None  # noqa: S101 - somebody has asked
        inputs = [item.input for item in batch.items]
        question: dict[str, object] = {
            "model": engine.model,
            "input": inputs if len(inputs) > 1 else inputs[0],  # of one alone an engine makes less ado
            "encoding_format": "base64",
        }
        question |= {name: value for name, value in batch.key.parameters.items() if value is not None}
        asked = Asked(engine.model, inputs=len(inputs), prompt="input")
        first = next((job for item in batch.items for job, _ in item.places), None)
        errand = Errand(PATH, self._settings.timeout, first.headers if first else {})

        async def use(answer: Answer) -> tuple[list[bytes], int]:
            found, counted = vectors.read(await answer.read(), len(inputs))
            if (wanted := batch.key.dimensions) is not None and vectors.size(found[0]) != wanted:
                raise answers.nonsense()
            return found, counted

        return await self._dispatch.ask(errand, engine, Question(PATH, msgspec.json.encode(question), asked), use)

    def _fail(self, batch: Batch[Key], exc: TandemError) -> None:
        for item in batch.items:
            for job, _ in self._queue.done(batch.key, item):
                self._tell(job, exc)

    def _refuse(self, batch: Batch[Key], exc: ApiError) -> None:
        (item,) = batch.items
        for job, index in self._queue.done(batch.key, item):
            where = path(index, len(job.vectors))
            message = exc.message.replace("'input'", f"'{where}'")
            param = where if exc.param == "input" else exc.param
            self._tell(job, ApiError(exc.status, message, param=param, code=exc.code))

    def _tell(self, job: Job, exc: TandemError) -> None:
        future = self._waiting.get(job)
        if future is not None and not future.done():
            future.set_exception(exc)

    async def _check(self, engine: Engine) -> None:
        """Open the line if the router counts as the engine does."""
        try:
            await asyncio.to_thread(vectors.load)
            for quick in (True, False) if self._quick else (False,):
                counter = await asyncio.to_thread(counter_of, engine.tokenizer, quick=quick)
                agrees = counter is not None and await counter.agrees(engine, self._upstreams)
                if agrees is None:  # it does not tell: when it is asked again
                    return
                if agrees:
                    break
            self._compared = _life(engine)
            if agrees:
                self.counter = counter
                _log.info("requests for embeddings of %s are merged", engine.name)
            else:
                _log.warning("the router cannot count as %s does: requests for embeddings are not merged", engine.name)
        finally:
            self._checking = None


class _Pace:
    """How fast the engine works, in tokens a second, measured while it is busy."""

    def __init__(self) -> None:
        self._rate: float | None = None
        self._since = 0.0
        self._tokens = 0

    @property
    def budget(self) -> int:
        """Tokens that a batch may have."""
        return _FIRST_BUDGET if self._rate is None else max(_LEAST_BUDGET, int(self._rate * _SPAN))

    def began(self, *, busy: bool) -> None:
        """A batch is sent, while others are with the engine (``busy``) or none."""
        if not busy:
            self._since, self._tokens = clock(), 0

    def ended(self, tokens: int, began: float, now: float) -> None:
        """A batch has come back."""
        self._tokens += tokens
        if now - self._since >= _WINDOW:
            self._rate = self._tokens / (now - self._since)
            self._since, self._tokens = now, 0


def _life(engine: Engine) -> tuple[float, str, str]:
    return engine.started, engine.model, engine.tokenizer


def path(index: int, number: int) -> str:
    return "input" if number == 1 else f"input[{index}]"
