"""The embeddings route."""

from tandem.fleet import Fleet
from tandem.models.requests import EmbeddingRequest
from tandem.models.responses import EmbeddingResponse
from tandem.router import answers, checks
from tandem.router.ask import ask, read
from tandem.router.exchange import Exchange
from tandem.router.upstream import Upstreams
from tandem.settings import RouterSettings

PATH = "/v1/embeddings"


class Embeddings:
    """Its handler."""

    def __init__(self, fleet: Fleet, upstreams: Upstreams, settings: RouterSettings) -> None:
        self._fleet = fleet
        self._upstreams = upstreams
        self._settings = settings

    async def __call__(self, exchange: Exchange) -> None:
        checks.content_type(exchange.header(b"content-type"))
        request = checks.parse(EmbeddingRequest, await exchange.body(self._settings.max_body_bytes))
        engine = checks.engine_for(self._fleet.now, request.model, "embedding", PATH)
        exchange.model = engine.model
        name = request.model
        body = request.forwarded(engine.model)

        async def forward() -> bytes:
            async with ask(self._upstreams, engine, PATH, body) as answer:
                return answers.answer(EmbeddingResponse, await read(answer), name)

        await exchange.answer(200, await exchange.while_connected(forward()))
