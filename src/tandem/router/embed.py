"""The embeddings route."""

from tandem.models.requests import EmbeddingRequest
from tandem.models.responses import EmbeddingResponse
from tandem.router import checks, translate
from tandem.router.answers import Form
from tandem.router.dispatch import Dispatch, Question
from tandem.router.exchange import Exchange
from tandem.router.upstream import Answer
from tandem.settings import RouterSettings

PATH = "/v1/embeddings"


class Embeddings:
    """Its handler."""

    def __init__(self, dispatch: Dispatch, settings: RouterSettings, form: Form) -> None:
        self._dispatch = dispatch
        self._settings = settings
        self._form = form

    async def __call__(self, exchange: Exchange) -> None:
        request = checks.parse(EmbeddingRequest, await exchange.json_body(self._settings), strict=self._form.strict)
        engine = self._dispatch.engine_for(exchange, request.model, "embedding")
        body, asked = translate.embedding(request, engine.model)
        exchange.inputs = asked.inputs

        async def use(answer: Answer) -> bytes:
            whole, usage = self._form.whole(EmbeddingResponse, await answer.read(), asked)
            exchange.count(usage)
            return whole

        asking = self._dispatch.ask(exchange, engine, Question(PATH, body, asked), use)
        await exchange.answer(200, await exchange.while_connected(asking))
