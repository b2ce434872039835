"""`tandem up --demo`, used through the official SDK, plainly, by many at once, and while a part of it is down."""

import asyncio
import base64
import os
import signal
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import sqrt

import httpx2
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from ..conftest import Service, command, engines, router_alone, router_pid

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

CHAT = [{"role": "user", "content": "Say something."}]


@pytest.fixture
def client(demo: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.address}/v1", api_key="none", max_retries=0) as made:
        yield made


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_it_says_what_it_serves_and_how_to_use_it(demo: Service) -> None:
    """The address, a curl line and exports to paste; each engine's phases on the way; secrets none."""
    assert f"Ready on {demo.address}/v1 (embedding: all-MiniLM-L6-v2, generation: tandem-demo)" in demo.said
    assert f"curl {demo.address}/v1/embeddings" in demo.said
    assert f"export OPENAI_BASE_URL={demo.address}/v1" in demo.said
    for engine in ("embedding", "generation"):
        assert f"{engine}: loading" in demo.said
        assert f"{engine}: ready after" in demo.said
        assert demo.run_dir.log(engine).stat().st_size > 1000


def test_embeddings(client: openai.OpenAI) -> None:
    """One text or many, in order; 384 dimensions; exact usage; the SDK's base64 and plain floats agree."""
    one = client.embeddings.create(model="all-MiniLM-L6-v2", input="The cat sleeps.")
    assert (one.object, one.model, len(one.data)) == ("list", "all-MiniLM-L6-v2", 1)
    assert len(one.data[0].embedding) == 384
    assert one.usage.prompt_tokens == one.usage.total_tokens == 6  # [CLS] the cat sleeps . [SEP]
    texts = ["The cat sleeps.", "A dog barks.", "Interest rates rose."]
    many = client.embeddings.create(model="embedding", input=texts, encoding_format="float")
    assert [item.index for item in many.data] == [0, 1, 2]
    assert cosine(many.data[0].embedding, one.data[0].embedding) > 0.999


def test_embeddings_of_token_ids(client: openai.OpenAI) -> None:
    """Ids, one list or several, give what their text gives."""
    text = client.embeddings.create(model="embedding", input="hello").data[0].embedding
    by_ids = client.embeddings.create(model="embedding", input=[101, 7592, 102]).data[0].embedding
    by_lists = client.embeddings.create(model="embedding", input=[[101, 7592, 102], [101, 102]])
    assert cosine(text, by_ids) > 0.999
    assert cosine(text, by_lists.data[0].embedding) > 0.999
    assert len(by_lists.data) == 2


def test_base64_is_little_endian_float32(http: httpx2.Client) -> None:
    body = {"model": "embedding", "input": "hello"}
    floats = http.post("/v1/embeddings", json={**body, "encoding_format": "float"}).json()["data"][0]["embedding"]
    coded = http.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert struct.unpack("<384f", base64.b64decode(coded)) == pytest.approx(floats, abs=1e-3)


def test_nearest_neighbours_are_right(client: openai.OpenAI) -> None:
    """The vectors mean something: each sentence's nearest is the one that says the same."""
    pairs = [
        ("How do I reset my password?", "I forgot my login and need a new one."),
        ("The central bank raised interest rates.", "Borrowing money has become more expensive."),
        ("The striker scored twice in the final.", "Two goals decided the football match."),
        ("Bake the dough for forty minutes.", "Leave the bread in the oven until golden."),
        ("The function returns a sorted list.", "This method gives back items in order."),
        ("It will rain heavily tomorrow.", "The forecast says wet weather is coming."),
    ]
    vectors = [
        [item.embedding for item in client.embeddings.create(model="embedding", input=list(side)).data]
        for side in zip(*pairs, strict=True)
    ]
    nearest = [max(range(len(pairs)), key=lambda i: cosine(vector, vectors[1][i])) for vector in vectors[0]]
    assert nearest == list(range(len(pairs)))


def test_completions(client: openai.OpenAI) -> None:
    """Plain, several at once, with a seed that repeats, with log-probabilities."""
    asked = {"model": "tandem-demo", "prompt": "Hello", "max_tokens": 8, "seed": 7, "extra_body": {"min_tokens": 8}}
    first, second = client.completions.create(**asked), client.completions.create(**asked)
    assert first.choices[0].text == second.choices[0].text != ""
    assert first.usage is not None
    assert (first.usage.completion_tokens, first.choices[0].finish_reason) == (8, "length")
    several = client.completions.create(**{**asked, "prompt": ["a", "b"]}, n=2, logprobs=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].logprobs is not None
    assert len(several.choices[0].logprobs.tokens or []) == 8


def test_stop_ends_a_completion(client: openai.OpenAI) -> None:
    """A stop sequence taken from the text itself cuts it there."""
    asked = {"model": "generation", "prompt": "Hello", "max_tokens": 40, "seed": 3, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 :][:3]
    stopped = client.completions.create(**asked, stop=[stop]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")


def test_streamed_completions_are_the_same_in_pieces(client: openai.OpenAI) -> None:
    """The pieces make the whole; usage comes last, when asked for."""
    asked = {"model": "tandem-demo", "prompt": "Hello", "max_tokens": 8, "seed": 7, "extra_body": {"min_tokens": 8}}
    whole = client.completions.create(**asked).choices[0].text
    chunks: list[Completion] = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert {chunk.model for chunk in chunks} == {"tandem-demo"}


def test_chat(client: openai.OpenAI) -> None:
    """Plain and streaming; the answer is content, not reasoning, though the family has a parser for that."""
    asked = {"model": "generation", "messages": CHAT, "max_tokens": 8, "seed": 7}
    whole: ChatCompletion = client.chat.completions.create(**asked)
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content


def test_chat_with_tools_needs_no_flags(client: openai.OpenAI) -> None:
    """The command line carries the family's parser, so `tool_choice: auto` is not refused."""
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    got = client.chat.completions.create(model="generation", messages=CHAT, tools=[tool], max_tokens=4)
    assert got.choices[0].message.role == "assistant"


async def test_the_async_client(demo: Service) -> None:
    async with openai.AsyncOpenAI(base_url=f"{demo.address}/v1", api_key="none") as client:
        vector = await client.embeddings.create(model="embedding", input="hello")
        assert len(vector.data[0].embedding) == 384
        stream = await client.chat.completions.create(model="generation", messages=CHAT, max_tokens=4, stream=True)
        assert len([chunk async for chunk in stream]) >= 2


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["all-MiniLM-L6-v2", "tandem-demo"]
    assert client.models.retrieve("embedding").id == "embedding"


def test_errors_are_the_sdk_s_own(client: openai.OpenAI) -> None:
    """Each with type, code and the request's id, whoever refused: the router, or the engine behind it."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="nope", prompt="a")
    assert (unknown.value.code, unknown.value.type) == ("model_not_found", "invalid_request_error")
    assert unknown.value.request_id
    with pytest.raises(openai.PermissionDeniedError):
        client.embeddings.create(model="generation", input="a")
    with pytest.raises(openai.BadRequestError, match="integer above maximum value"):
        client.completions.create(model="generation", prompt="a", n=129)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256 tokens") as too_long:
        client.embeddings.create(model="embedding", input="hello " * 2000)
    assert too_long.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="not in the model's vocabulary"):
        list(client.completions.create(model="generation", prompt=[99_999_999], stream=True))


def test_health_and_metrics(http: httpx2.Client) -> None:
    """Both health routes, and the engines' own series beside the router's."""
    for path in ("/health", "/v1/health"):
        got = http.get(path)
        assert (got.status_code, got.json()["status"]) == (200, "healthy")
        assert set(got.json()["services"]) == {"router", "embedding", "generation"}
    metrics = http.get("/metrics").text
    assert 'tandem_requests_total{model="tandem-demo",route="/v1/completions",status="200"}' in metrics
    for engine in ("embedding", "generation"):
        assert f'vllm:num_requests_running{{engine="{engine}"' in metrics


async def test_merged_embeddings_are_those_of_single_requests(demo: Service) -> None:
    """Of 48 callers at once: the vectors that the engine gives each text alone, and the tokens that it counts."""
    texts = [("word " * (1 + n * 3 % 50)) + f"number {n}, 你好 {'ü' * (n % 5)}" for n in range(48)]
    url = engines(demo)["embedding"]["url"]
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as engine,
        openai.AsyncOpenAI(base_url=f"{demo.address}/v1", api_key="none", max_retries=0) as client,
    ):
        await client.embeddings.create(model="embedding", input="the first request opens the line")
        await asyncio.to_thread(demo.until, lambda: "are merged" in demo.run_dir.log("router").read_text(), "merging")
        alone = [await engine.embeddings.create(model="all-MiniLM-L6-v2", input=text) for text in texts]
        many = await asyncio.gather(*(client.embeddings.create(model="embedding", input=text) for text in texts))
        together = await client.embeddings.create(model="embedding", input=texts, encoding_format="float")
    for one, merged, item in zip(alone, many, together.data, strict=True):
        assert merged.usage.prompt_tokens == one.usage.prompt_tokens
        assert cosine(merged.data[0].embedding, one.data[0].embedding) > 0.999
        assert cosine(item.embedding, one.data[0].embedding) > 0.999
    assert together.usage.total_tokens == sum(one.usage.total_tokens for one in alone)


async def test_many_at_once(demo: Service) -> None:
    """96 callers of every kind together: each gets its own answer, none an error."""
    async with openai.AsyncOpenAI(base_url=f"{demo.address}/v1", api_key="none", max_retries=0) as client:

        async def embed(n: int) -> bool:
            got = await client.embeddings.create(model="embedding", input=[f"text number {n}"] * (1 + n % 3))
            return len(got.data) == 1 + n % 3

        async def complete(n: int) -> bool:
            got = await client.completions.create(model="generation", prompt="a", max_tokens=1 + n % 8, seed=n)
            return got.usage is not None and got.usage.completion_tokens <= 1 + n % 8

        async def chat(n: int) -> bool:
            stream = await client.chat.completions.create(
                model="generation", messages=CHAT, max_tokens=8, seed=n, stream=True
            )
            chunks = [chunk async for chunk in stream]
            return chunks[-1].choices[0].finish_reason in {"length", "stop"}

        async with asyncio.timeout(120):
            done = await asyncio.gather(*(kind(n) for n in range(32) for kind in (embed, complete, chat)))
    assert done == [True] * 96


def test_router_command_fronts_engines_that_run_elsewhere(demo: Service) -> None:
    """It learns their models from themselves, and serves the same."""
    with router_alone({name: engine["url"] for name, engine in engines(demo).items()}) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["all-MiniLM-L6-v2", "tandem-demo"]
        assert len(client.embeddings.create(model="embedding", input="a").data[0].embedding) == 384
        assert client.completions.create(model="tandem-demo", prompt="a", max_tokens=1).choices
        client.close()


def test_status_names_every_engine(demo: Service) -> None:
    said = command("status", "--run-dir", str(demo.run_dir.path))
    assert said.returncode == 0
    assert all(part in said.stdout for part in ("embedding", "generation", "ready", demo.address))
    as_json = command("status", "--json", "--run-dir", str(demo.run_dir.path)).stdout
    assert '"ready":true' in as_json


def test_a_second_service_on_the_same_run_folder_is_refused(demo: Service) -> None:
    ran = command("up", "--demo", "--port", str(demo.port), "--run-dir", str(demo.run_dir.path))
    assert ran.returncode == 1
    assert f"a service is already running on {demo.run_dir.path} (pid {demo.process.pid})" in ran.stderr


def lives(service: Service) -> dict[str, tuple[int, int, float]]:
    """Of each engine its process, how often it was restarted, and since when it is ready."""
    return {name: (each["pid"], each["restarts"], each["since"]) for name, each in engines(service).items()}


def test_the_router_s_death_is_mended_within_seconds(demo: Service, http: httpx2.Client) -> None:
    """The engines run on; callers wait in the socket's queue, and are answered."""
    before = lives(demo)
    os.kill(router_pid(demo), signal.SIGKILL)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        ask = {"model": "embedding", "input": "a"}
        answers = list(threads.map(lambda _: http.post("/v1/embeddings", json=ask).status_code, range(8)))
    assert set(answers) <= {200, 503}
    demo.until(lambda: http.get("/health").status_code == 200, "health", 15)
    assert time.monotonic() - started < 15
    assert lives(demo) == before
