"""One of the services to compare: where it is, and which of its models answers what."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tandem.bench import scenarios
from tandem.bench.connection import Address, Answer, Connections
from tandem.bench.load import Ask, Reply
from tandem.bench.scenarios import Case, Kind, Shape
from tandem.errors import SettingsError, SetupError

_PATIENCE = 120.0  # seconds for one tiny request: an engine's first may have to compile
# Answers end where they are told to, so that all are equally long; engines know it, OpenAI's API does not.
_FULL_LENGTH = {"ignore_eos": True}


@dataclass(frozen=True)
class Side:
    """A service that was asked what it serves.

    Args:
        name: ``A``, or ``B`` for the one it is compared with.
        key: its API key, if it wants one.
        models: the model that answers each kind of request.
        extra: what its completions take beyond OpenAI's API.
    """

    name: str
    address: Address
    key: str | None
    models: Mapping[Kind, str]
    extra: Mapping[str, Any]

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
    name: str, url: str, key: str | None, model: str | None, kinds: Collection[Kind], *, others: bool = False
) -> Side:
    """Find a model for each of ``kinds``, by one tiny request; what has none is left out.

    Args:
        model: the one to try; by default all that ``GET /models`` lists, in its order.
        others: whether to try those, too, for what ``model`` does not answer.

    Raises:
        SettingsError: ``url`` is no address.
        SetupError: nothing answers there, or no model answers any of ``kinds``.
    """
    try:
        address = Address(url)
    except ValueError as exc:
        raise SettingsError(str(exc), "Name one such as http://127.0.0.1:8200/v1") from exc
    connections = Connections(address)
    try:
        listed = await _listed(connections, key) if others or not model else []
        listed = [model, *listed] if model else listed
        models, refusals = {}, []
        extra: Mapping[str, Any] = {}
        if Kind.EMBEDDINGS in kinds:
            for candidate in listed:
                if refusal := await _refusal(connections, key, Kind.EMBEDDINGS, candidate, {}):
                    refusals.append(refusal)
                else:
                    models[Kind.EMBEDDINGS] = candidate
                    break
        writing = [kind for kind in (Kind.COMPLETIONS, Kind.STREAMS) if kind in kinds]
        for candidate in listed if writing else []:
            extra = _FULL_LENGTH
            if await _refusal(connections, key, Kind.COMPLETIONS, candidate, extra):
                extra = {}
                if refusal := await _refusal(connections, key, Kind.COMPLETIONS, candidate, extra):
                    refusals.append(refusal)
                    continue
            models |= dict.fromkeys(writing, candidate)
            break
    finally:
        connections.close()
    if not models:
        why = refusals[-1] if refusals else "it lists no models"
        raise SetupError(f"{address.url} answers no request for {' or '.join(kinds)}: {why}")
    return Side(name, address, key, models, extra)


async def _listed(connections: Connections, key: str | None) -> list[str]:
    answer = await connections.ask(connections.address.message("GET", "/models", key=key), _PATIENCE)
    _reached(connections.address, answer)
    try:
        return [entry["id"] for entry in json.loads(answer.body)["data"]]
    except (ValueError, KeyError, TypeError) as exc:
        where = f"{connections.address.url}/models answers {answer.status} without a list of models"
        raise SetupError(where, "Name one with --model") from exc


async def _refusal(
    connections: Connections, key: str | None, kind: Kind, model: str, extra: Mapping[str, Any]
) -> str | None:
    """Why ``model`` does not answer such requests, or None if it does."""
    shape = Shape(words=1, max_tokens=1)
    body = scenarios.body(kind, shape, model, iter(["Hello"]), extra)
    answer = await connections.ask(connections.address.message("POST", kind.path, body, key), _PATIENCE)
    _reached(connections.address, answer)
    failure, _ = scenarios.judge(kind, shape, answer)
    return f"{model}: {failure.kind}, {failure.example}" if failure else None


def _reached(address: Address, answer: Answer) -> None:
    if answer.failure is not None:
        cause = f"{address.url} does not answer: {answer.failure.kind} ({answer.failure.example})"
        raise SetupError(cause, "Start a service with `tandem up`, or name another with --url")
    if answer.status in {401, 403}:
        cause = f"{address.url} wants another API key: {scenarios.said(answer.body)}"
        raise SetupError(cause, "Give it with --api-key, or in OPENAI_API_KEY")
