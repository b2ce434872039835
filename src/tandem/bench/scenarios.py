"""What is asked: the five scenarios, the bodies of their requests, and what makes an answer a good one."""

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from tandem.bench.connection import Answer, Failure
from tandem.bench.load import Load

SCENARIOS = ("overhead", "embeddings", "completions", "streams", "soak")
# Without a scenario, these: the target table needs them, and each takes minutes at most.
DEFAULT = ("embeddings", "completions", "streams")

_WORDS = (
    "river stone window paper garden engine market bridge yellow winter coffee letter harbour signal forest copper "
    "planet violin thunder basket mirror candle desert island orange pocket silver ticket valley walnut anchor button "
    "castle dragon feather hammer jacket kettle ladder magnet needle oyster pencil quarry rabbit saddle tunnel velvet "
    "whistle zebra answer before city during every follow great house inside just keep light more never open people "
    "quick river second through under voice water young about because"
)
_TEXTS = 64


class Kind(StrEnum):
    """What a request asks for."""

    EMBEDDINGS = "embeddings"
    COMPLETIONS = "completions"
    STREAMS = "streams"

    @property
    def path(self) -> str:
        return "/embeddings" if self is Kind.EMBEDDINGS else "/completions"


@dataclass(frozen=True)
class Shape:
    """What each request holds; ``max_tokens`` None stands for what suits the scenario."""

    texts: int = 1
    words: int = 32
    dimensions: int | None = None
    encoding_format: str | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Case:
    """One load of one kind of request: what one block of the report is about."""

    name: str
    kind: Kind
    shape: Shape
    load: Load


def cases(scenario: str, shape: Shape, load: Load, kinds: frozenset[Kind]) -> list[Case]:
    """The cases of ``scenario``, in order.

    Args:
        kinds: what the service answers; ``overhead`` takes the cheapest of them.
    """
    if scenario == "overhead":
        # Tiny requests: what is left of a request's time is what lies between caller and engine.
        kind = Kind.EMBEDDINGS if Kind.EMBEDDINGS in kinds else Kind.COMPLETIONS
        tiny = replace(shape, texts=1, words=1, max_tokens=shape.max_tokens or 1)
        one = Case("overhead, 1 connection", kind, tiny, replace(load, clients=1, rate=None))
        return [one, Case(f"overhead, {_hardness(load)}", kind, tiny, load)]
    full = replace(shape, max_tokens=shape.max_tokens or 100)
    return [Case(scenario, Kind(scenario), full, load)]


def _hardness(load: Load) -> str:
    return f"{load.clients} connections" if load.rate is None else f"{load.rate:g} requests/s"


def texts(seed: str, words: int) -> Iterator[str]:
    """Texts without end, each one another, so that no cache answers; the same ones for the same ``seed``."""
    chance = random.Random(seed)
    known = _WORDS.split()
    bases = [" ".join(chance.choices(known, k=words - 1)) for _ in range(_TEXTS)]
    first = chance.getrandbits(32)
    for number in itertools.count():
        yield f"{first + number:x} {bases[number % _TEXTS]}".rstrip()


def body(kind: Kind, shape: Shape, model: str, given: Iterator[str], extra: Mapping[str, Any]) -> bytes:
    """One request's JSON; ``extra`` is what this service takes beyond OpenAI's API."""
    asked: dict[str, Any] = {"model": model}
    if kind is Kind.EMBEDDINGS:
        asked["input"] = next(given) if shape.texts == 1 else list(itertools.islice(given, shape.texts))
        asked |= {"dimensions": shape.dimensions} if shape.dimensions else {}
        asked |= {"encoding_format": shape.encoding_format} if shape.encoding_format else {}
    else:
        asked |= {"prompt": next(given), "max_tokens": shape.max_tokens, **extra}
        asked |= {"stream": True} if kind is Kind.STREAMS else {}
    return json.dumps(asked).encode()


def judge(kind: Kind, shape: Shape, answer: Answer) -> tuple[Failure | None, int]:
    """What is wrong with ``answer``, if anything, and how many tokens it has (of a stream: events)."""
    if answer.failure is not None:
        return answer.failure, 0
    if answer.status != 200:
        return Failure(f"HTTP {answer.status}", said(answer.body)), 0
    if kind is Kind.STREAMS:
        return _judge_stream(answer), len(answer.events)
    if kind is Kind.EMBEDDINGS:
        # Counted, not decoded: to read the vectors would cost more than to make the request.
        found = answer.body.count(b'"embedding":')
        short = Failure("wrong number of vectors", f"{found} for {shape.texts} texts")
        return (None if found == shape.texts else short), 0
    try:
        answered = json.loads(answer.body)
        return (None if answered["choices"] else Failure("no choices", said(answer.body))), _tokens(answered)
    except (ValueError, KeyError, TypeError):
        return Failure("not a completion", said(answer.body)), 0


def said(received: bytes) -> str:
    """The message of an error's body, or its beginning."""
    try:
        return str(json.loads(received)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return received[:200].decode("utf-8", "replace").strip() or "an empty body"


def _tokens(answered: dict[str, Any]) -> int:
    return int((answered.get("usage") or {}).get("completion_tokens") or 0)


def _judge_stream(answer: Answer) -> Failure | None:
    if (at := answer.body.find(b'data: {"error"')) >= 0:
        return Failure("error in a stream", said(answer.body[at + 5 :].split(b"\n")[0]))
    if not answer.done:
        return Failure("stream without [DONE]", f"after {len(answer.events)} events")
    return None if answer.events else Failure("empty stream", "no event before [DONE]")
