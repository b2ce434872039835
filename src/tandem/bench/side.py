"""One of the services to compare: where it is, and which of its models answers what."""

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tandem.bench import scenarios
from tandem.bench.connection import Address, Answer, Connections
from tandem.bench.load import Ask, Reply
from tandem.bench.scenarios import Case, Kind, Shape
from tandem.errors import SetupError

_PATIENCE = 120.0  # seconds for one tiny request: an engine's first may have to compile
# Answers end where they are told to, so that all are equally long; engines know it, OpenAI's API does not.
_FULL_LENGTH = {"ignore_eos": True}
# What to try a model with, and what beyond OpenAI's API to try then; streams are completions, too.
_TRIED: Mapping[Kind, Sequence[Mapping[str, Any]]] = {Kind.EMBEDDINGS: ({},), Kind.COMPLETIONS: (_FULL_LENGTH, {})}


@dataclass(frozen=True)
class Side:
    """A service that was asked what it serves.

    Args:
        name: ``A``, or ``B`` for the one it is compared with.
        key: its API key, if it wants one.
        models: the model that answers each kind of request.
        extra: what its completions take beyond OpenAI's API.
        refusals: why no model answers the other kinds that were wanted.
    """

    name: str
    address: Address
    key: str | None
    models: Mapping[Kind, str]
    extra: Mapping[str, Any]
    refusals: Mapping[Kind, str] = field(default_factory=dict)

    def asking(self, case: Case, seed: str, connections: Connections) -> Ask:
        """What sends the case's requests, one a call, each with texts of its own."""
        given = scenarios.texts(seed, case.shape.words)

        async def ask() -> Reply:
            answer = await connections.ask(self._message(case.kind, case.shape, given), case.load.timeout)
            failure, tokens = scenarios.judge(case.kind, case.shape, answer)
            texts = case.shape.texts if case.kind is Kind.EMBEDDINGS else 0
            return Reply(answer.ended, answer.events, texts, tokens, failure)

        return ask

    def _message(self, kind: Kind, shape: Shape, given: Iterator[str]) -> bytes:
        body = scenarios.body(kind, shape, self.models[kind], given, self.extra)
        return self.address.message("POST", kind.path, body, self.key)


async def meet(
    name: str,
    address: Address,
    key: str | None,
    model: str | None,
    kinds: Collection[Kind],
    shape: Shape,
    *,
    others: bool = False,
) -> Side:
    """Find a model for each of ``kinds``, by one small request; what has none is left out.

    Args:
        model: the one to try; by default all that ``GET /models`` lists, in its order.
        shape: of what will be asked; a model that refuses its dimensions, or its format, does not answer.
        others: whether to try those, too, for what ``model`` does not answer.

    Raises:
        SetupError: nothing answers there, or no model answers any of ``kinds``.
    """
    connections = Connections(address)
    models: dict[Kind, str] = {}
    refusals: dict[Kind, str] = {}
    extra: Mapping[str, Any] = {}
    try:
        listed = await _listed(connections, key) if others or not model else []
        candidates = [model, *listed] if model else listed
        for tried, extras in _TRIED.items():
            alike = [kind for kind in Kind if kind in kinds and kind.path == tried.path]
            if not alike:
                continue
            match = await _match(connections, key, tried, shape, candidates, extras)
            if match.model is None:
                refusals |= dict.fromkeys(alike, match.refusal)
            else:
                models |= dict.fromkeys(alike, match.model)
                extra = match.extra
    finally:
        connections.close()
    if not models:
        why = next(reversed(refusals.values()))
        raise SetupError(f"{address.url} answers no request for {' or '.join(kinds)}: {why}")
    return Side(name, address, key, models, extra, refusals)


class _Match(NamedTuple):
    """The first model that answers, or the last one's refusal."""

    model: str | None
    extra: Mapping[str, Any]
    refusal: str


async def _match(
    connections: Connections,
    key: str | None,
    kind: Kind,
    shape: Shape,
    models: Sequence[str],
    extras: Sequence[Mapping[str, Any]],
) -> _Match:
    refusal: str | None = "it lists no models"
    for model, extra in itertools.product(models, extras):
        refusal = await _refusal(connections, key, kind, shape, model, extra)
        if refusal is None:
            return _Match(model, extra, "")
    return _Match(None, {}, refusal or "")


async def _listed(connections: Connections, key: str | None) -> list[str]:
    answer = await connections.ask(connections.address.message("GET", "/models", key=key), _PATIENCE)
    _reached(connections.address, answer)
    try:
        return [entry["id"] for entry in json.loads(answer.body)["data"]]
    except (ValueError, KeyError, TypeError) as exc:
        where = f"{connections.address.url}/models answers {answer.status} without a list of models"
        raise SetupError(where, "Name one with --model") from exc


async def _refusal(
    connections: Connections, key: str | None, kind: Kind, shape: Shape, model: str, extra: Mapping[str, Any]
) -> str | None:
    """Why ``model`` does not answer such requests, or None if it does."""
    small = replace(shape, texts=1, max_tokens=1)
    body = scenarios.body(kind, small, model, iter(["Hello"]), extra)
    answer = await connections.ask(connections.address.message("POST", kind.path, body, key), _PATIENCE)
    _reached(connections.address, answer)
    failure, _ = scenarios.judge(kind, small, answer)
    return f"{model}: {failure.kind}, {failure.example}" if failure else None


def _reached(address: Address, answer: Answer) -> None:
    if answer.failure is not None:
        cause = f"{address.url} does not answer: {answer.failure.kind} ({answer.failure.example})"
        raise SetupError(cause, "Start a service with `tandem up`, or name another with --url")
    if answer.status in {401, 403}:
        cause = f"{address.url} wants another API key: {scenarios.said(answer.body)}"
        raise SetupError(cause, "Give it with --api-key, or in OPENAI_API_KEY")
