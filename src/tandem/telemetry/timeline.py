"""What the client tells of itself: a frozen step for each thing that happens to a batch, and whoever wants to know.

The client's path builds steps and knows no sink; a sink is any callable that takes a step. What a sink raises is
logged and forgotten: telemetry fails no call.
"""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Literal, Self

_log = logging.getLogger("tandem.client")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happened to a batch.

    Attributes:
        name: ``started``, ``retried`` (it failed, and is asked for again after a pause), ``finished`` or ``failed``.
        batch_id: the same for all steps of one batch, different for all batches of this process.
        batch: the batch's place among those of its call, from 0.
        mode: ``http`` or ``inprocess``.
        model: the name that was asked for.
        n_texts: texts in the batch.
        at: when it happened, in seconds since the epoch.
        seconds: since the batch was started.
        attempt: how often the batch was sent by then; 0 when it starts.
        dim: dimensions of its vectors; 0 before they came.
        tokens: of all its texts, as the server counted; 0 where it did not tell.
        outcome: ``ok``, or the name of the error's class; empty while that is open.
        error: what went wrong, in words; empty if nothing did.
        pause: seconds until it is sent again; 0 unless it is ``retried``.
    """

    name: Literal["started", "retried", "finished", "failed"]
    batch_id: int
    batch: int
    mode: str
    model: str
    n_texts: int
    at: float
    seconds: float = 0.0
    attempt: int = 0
    dim: int = 0
    tokens: int = 0
    outcome: str = ""
    error: str = ""
    pause: float = 0.0


Sink = Callable[[Step], object]


class Timeline:
    """The steps of everything that is embedded within its scope, in the order in which they happened.

    Scopes may be nested, each timeline then has the steps of the scopes within; those of other threads and tasks that
    were not started within are left out.

    >>> with Timeline() as timeline:
    ...     Watch((), mode="http", model="embedding", n_texts=2).finished(dim=384, tokens=8)
    >>> [(step.name, step.outcome, step.dim) for step in timeline.steps]
    [('started', '', 0), ('finished', 'ok', 384)]
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._token: Token[tuple[Timeline, ...]] | None = None

    @property
    def steps(self) -> Sequence[Step]:
        """What has happened so far."""
        return tuple(self._steps)

    def __call__(self, step: Step) -> None:
        """Add a step; appending to a list needs no lock."""
        self._steps.append(step)

    def __enter__(self) -> Self:
        self._token = _scopes.set((*_scopes.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _scopes.reset(self._token)
            self._token = None


_scopes: ContextVar[tuple[Timeline, ...]] = ContextVar("tandem_timelines", default=())


class Watch:
    """One batch, watched from its start to its end. Making it is the first step.

    Lives in one thread or task, since sinks may keep a context from the first step to the last.
    """

    def __init__(self, sinks: Sequence[Sink], *, mode: str, model: str, n_texts: int, batch: int = 0) -> None:
        self._sinks: Sequence[Sink] = (*sinks, *_scopes.get())
        self._began = time.monotonic()
        self._id = next(_numbers)
        self._batch, self._mode, self._model, self._n_texts = batch, mode, model, n_texts
        self._attempt = 0
        self._tell("started")

    def sent(self) -> None:
        """It is sent, for the first time or again: no step of its own, but counted."""
        self._attempt += 1

    def retried(self, exc: Exception, pause: float) -> None:
        """It failed, and is sent again after ``pause`` seconds."""
        self._tell("retried", error=str(exc), pause=pause)

    def finished(self, *, dim: int, tokens: int) -> None:
        """Its vectors are there."""
        self._tell("finished", dim=dim, tokens=tokens, outcome="ok")

    def failed(self, exc: BaseException) -> None:
        """It has no vectors, and gets none."""
        self._tell("failed", outcome=type(exc).__name__, error=str(exc))

    def _tell(
        self,
        name: Literal["started", "retried", "finished", "failed"],
        *,
        dim: int = 0,
        tokens: int = 0,
        outcome: str = "",
        error: str = "",
        pause: float = 0.0,
    ) -> None:
        if not self._sinks:
            return
        step = Step(
            name=name,
            batch_id=self._id,
            batch=self._batch,
            mode=self._mode,
            model=self._model,
            n_texts=self._n_texts,
            at=time.time(),
            seconds=time.monotonic() - self._began,
            attempt=self._attempt,
            dim=dim,
            tokens=tokens,
            outcome=outcome,
            error=error,
            pause=pause,
        )
        for sink in self._sinks:
            try:
                sink(step)
            except Exception:  # whatever a caller's own code raises: embedding goes on
                _log.exception("A telemetry sink failed at the step %r of a batch", name)
