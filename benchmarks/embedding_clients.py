"""One client of an embeddings service, measured: run by ``client.py``, each in an environment that has it.

``python embedding_clients.py NAME URL VECTORS`` asks for vectors in batches of 64, first to warm up, then for VECTORS,
and prints the CPU seconds, user and system, that the latter took this process. Every client gets the same texts, keeps
its defaults, and has one request in flight. ``... serve PORT`` is the service: an answer that was made beforehand, to
whatever is asked.
"""

import array
import asyncio
import base64
import json
import random
import resource
import sys
from collections.abc import Callable
from typing import Any

BATCH = 64
DIMENSIONS = 3584
MODEL = "m"
TEXTS = [f"def function_{i}(argument): return argument + {i}" for i in range(BATCH)]

Ask = Callable[[], Any]


def tandem(url: str) -> Ask:
    from tandem import VLLMClient, VLLMConfig

    client = VLLMClient(VLLMConfig(base_url=url, model=MODEL))
    return lambda: client.embed_batch(TEXTS)


def tandem_tasks(url: str) -> Ask:
    from tandem import VLLMClient, VLLMConfig

    client, runner = VLLMClient(VLLMConfig(base_url=url, model=MODEL)), asyncio.Runner()
    return lambda: runner.run(client.embed_batch_async(TEXTS))


def openai(url: str) -> Ask:
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none")
    return lambda: client.embeddings.create(model=MODEL, input=TEXTS).data


def openai_tasks(url: str) -> Ask:
    from openai import AsyncOpenAI

    client, runner = AsyncOpenAI(base_url=url, api_key="none"), asyncio.Runner()

    async def ask() -> Any:
        return (await client.embeddings.create(model=MODEL, input=TEXTS)).data

    return lambda: runner.run(ask())


def langchain(url: str) -> Ask:
    from langchain_openai import OpenAIEmbeddings
    from pydantic import SecretStr

    client = OpenAIEmbeddings(
        base_url=url, api_key=SecretStr("none"), model=MODEL, chunk_size=BATCH, check_embedding_ctx_length=False
    )
    return lambda: client.embed_documents(TEXTS)


CLIENTS: dict[str, Callable[[str], Ask]] = {
    "tandem": tandem,
    "tandem, async": tandem_tasks,
    "openai": openai,
    "openai, async": openai_tasks,
    "langchain-openai": langchain,
}


def measure(name: str, url: str, vectors: int) -> float:
    """CPU seconds for so many vectors."""
    ask = CLIENTS[name](url)
    for _ in range(3):
        found = ask()
        first = getattr(found[0], "embedding", found[0])
        assert (len(found), len(first)) == (BATCH, DIMENSIONS)
    began = _cpu()
    for _ in range(vectors // BATCH):
        ask()
    return _cpu() - began


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def answer() -> bytes:
    """The service's whole answer, head and body: 64 vectors, all different."""
    chance = random.Random(0)  # noqa: S311
    vectors = [array.array("f", (chance.gauss() for _ in range(DIMENSIONS))) for _ in range(BATCH)]
    packed = [base64.b64encode(each.tobytes()) for each in vectors]
    data = [{"index": i, "object": "embedding", "embedding": each.decode()} for i, each in enumerate(packed)]
    usage = {"prompt_tokens": 640, "total_tokens": 640, "completion_tokens": 0, "prompt_tokens_details": None}
    body = {"id": "embd-1", "object": "list", "created": 1, "model": MODEL, "data": data, "usage": usage}
    content = json.dumps(body, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content) + content


def serve(port: int) -> None:
    """The service, until it is ended."""
    import httptools
    import uvloop

    ready = answer()

    class Connection(asyncio.Protocol):
        def __init__(self) -> None:
            self._parser = httptools.HttpRequestParser(self)

        def connection_made(self, transport: Any) -> None:
            self._transport = transport

        def data_received(self, data: bytes) -> None:
            self._parser.feed_data(data)

        def on_message_complete(self) -> None:
            self._transport.write(ready)

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(forever())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        print(measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))
