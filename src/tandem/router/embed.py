"""The embeddings route: texts of many callers go to the engine together, and each gets its own vectors back.

Where the router cannot count as the engine does (no tokenizer at hand, or one that differs), requests go through one
by one: who merges what it cannot count cannot say what each caller used.
"""

import asyncio
from collections.abc import Sequence

from tandem.fleet import Engine
from tandem.models.requests import EmbeddingRequest
from tandem.models.responses import EmbeddingResponse, Usage
from tandem.router import checks, translate, vectors, wording
from tandem.router.answers import Form
from tandem.router.coalesce import Input
from tandem.router.dispatch import Dispatch, Question
from tandem.router.exchange import Exchange, clock
from tandem.router.line import PATH, UNCOUNTED, Key, Line, Miscounted, path
from tandem.router.tokens import Counter
from tandem.router.upstream import Answer, Upstreams
from tandem.settings import RouterSettings

_SLICE = 64  # vectors that are rendered without a pause
_SPECIAL = 16  # tokens that a tokenizer adds, at most
# Parameters of which the number of tokens depends in ways that only the engine knows.
_ALONE = ("add_special_tokens", "padding", "truncation_side")


class Embeddings:
    """The route's handler."""

    def __init__(self, dispatch: Dispatch, upstreams: Upstreams, settings: RouterSettings, form: Form) -> None:
        self._dispatch = dispatch
        self._upstreams = upstreams
        self._settings = settings
        self._form = form
        self._lines: dict[str, Line] = {}

    async def __call__(self, exchange: Exchange) -> None:
        body = await exchange.json_body(self._settings)
        request = checks.parse(EmbeddingRequest, body, strict=self._form.strict, max_inputs=self._settings.max_inputs)
        engine = self._dispatch.engine_for(exchange, request.model, "embedding")
        line = self._line(engine)
        if (counter := line.counter) is not None and self._form.strict and not _alone(request):
            try:
                exchange.answer(200, await self._merged(exchange, engine, line, counter, request))
            except Miscounted:
                pass  # then alone
            else:
                return
        exchange.answer(200, await self._forward(exchange, engine, request, body))

    async def _merged(
        self, exchange: Exchange, engine: Engine, line: Line, counter: Counter, request: EmbeddingRequest
    ) -> bytes:
        """The answer to a request of which the texts go together with others'."""
        inputs, kind = _inputs(request)
        exchange.inputs = len(inputs)
        cut = request.truncate_prompt_tokens
        if line.idle and _surely_fits(inputs, engine.context):
            tokens = [UNCOUNTED]
        else:
            tokens = await _count(line, counter, inputs, cut, engine.context)
        key = Key(kind, request.dimensions, cut, request.use_activation, counter)
        exchange.engine, exchange.asked = engine.name, clock()
        job = await line.vectors(engine, key, inputs, tokens, exchange.trace_context)
        if job.began > exchange.asked:  # else all of it was under way already
            exchange.queued, exchange.asked = job.began - exchange.asked, job.began
        exchange.count(Usage(job.tokens, job.tokens))
        encoding = request.encoding_format or "float"
        data: list[bytes] = []
        for first in range(0, len(job.vectors), _SLICE):
            if first:
                await asyncio.sleep(0)  # others have their turn
            data += vectors.items(job.vectors[first : first + _SLICE], first, encoding)
        return vectors.answer(data, request.model, job.tokens)

    async def _forward(self, exchange: Exchange, engine: Engine, request: EmbeddingRequest, given: bytes) -> bytes:
        """The request as it is, alone."""
        body, asked = translate.embedding(request, given, engine.model)
        exchange.inputs = asked.inputs

        async def use(answer: Answer) -> bytes:
            whole, usage = self._form.whole(EmbeddingResponse, await answer.read(), asked)
            exchange.count(usage)
            return whole

        return await self._dispatch.ask(exchange, engine, Question(PATH, body, asked), use)

    def _line(self, engine: Engine) -> "Line":
        name = engine.replica_of or engine.name
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line(self._dispatch, self._upstreams, self._settings)
        line.look(engine)
        return line


def _alone(request: EmbeddingRequest) -> bool:
    return request.truncate_prompt_tokens == -1 or any(getattr(request, name) is not None for name in _ALONE)


def _inputs(request: EmbeddingRequest) -> tuple[Sequence[Input], type]:
    given = request.input
    if isinstance(given, str):
        return [given], str
    if isinstance(given[0], str):
        return [text for text in given if isinstance(text, str)], str
    if isinstance(given[0], int):
        return [tuple(each for each in given if isinstance(each, int))], tuple
    return [tuple(ids) for ids in given if isinstance(ids, list)], tuple


async def _count(
    line: Line, counter: Counter, inputs: Sequence[Input], cut: int | None, context: int | None
) -> list[int]:
    """How many tokens of each input the engine is going to work on, of which it keeps ``cut`` at most.

    Raises:
        ApiError: 400, an input has more than the ``context`` that the engine has.
        Miscounted: the router cannot tell.
    """
    if isinstance(inputs[0], str):
        tokens = await line.count(counter, [text for text in inputs if isinstance(text, str)])
    else:
        tokens = [len(ids) for ids in inputs]
    for index, count in enumerate(tokens):
        if cut is not None:
            tokens[index] = min(count, cut)
        elif context and count > context:
            raise wording.context_exceeded(context, count, 0, param=path(index, len(inputs)))
    return tokens


def _surely_fits(inputs: Sequence[Input], context: int | None) -> bool:
    """Whether it is one short text of ASCII: no tokenizer makes more tokens of it than it has letters."""
    text = inputs[0]
    if len(inputs) > 1 or not isinstance(text, str) or not text.isascii():
        return False
    return not context or len(text) + _SPECIAL <= context
