"""Texts of many callers go to the engine together, and each caller has an answer as if nobody else were there.

Over real sockets, with an engine that tells the truth: a vector is a function of its text, tokens are counted by a real
tokenizer, and it does as told when it is to be slow, to refuse or to fail.
"""

import asyncio
import base64
import hashlib
import json
import logging
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from tandem.fleet import Engine, Fleet, Snapshot, State, now
from tandem.router import retry
from tandem.router.app import Router
from tandem.router.line import PATH, Line
from tandem.router.listener import listen
from tandem.router.server import server
from tandem.router.tokens import QuickCounter, ThoroughCounter, Uncountable
from tandem.router.upstream import Upstreams
from tandem.settings import ApiSettings, RouterSettings

DIMENSIONS = 8
CONTEXT = 64
ALL = 4  # batches that the engine has at once
PLACES = 2  # batches that the engine has at once, and that need not be full
ENOUGH = 16  # texts that make a batch full
MOST = 32  # texts that it has at most

Input = str | list[int]

EMPTY = "The decoder prompt cannot be empty"
LONG = (
    "This model's maximum context length is 64 tokens. However, your prompt contains 70 input tokens, which exceeds "
    "this limit even without any output tokens. Please reduce the length of the input prompt. "
    "(parameter=input_tokens, value=70)"
)
VOCABULARY = "Token id 77777 is out of vocabulary"


def vector_of(given: Input, dimensions: int | None = None) -> list[float]:
    """The engine's vector: eight float32 that nobody else has."""
    digest = hashlib.sha256(repr(given).encode()).digest()
    numbers = np.frombuffer(digest, "<u4").astype(np.float32) / np.float32(2**31) - np.float32(1)
    return [float(number) for number in numbers[:dimensions]]


def tokenizer() -> Tokenizer:
    """Words, between two special tokens."""
    made = Tokenizer(WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return made


COUNTING = tokenizer()


def tokens_of(given: Input, cut: int | None = None) -> int:
    """How many the engine counts."""
    count = len(COUNTING.encode(given).ids) if isinstance(given, str) else len(given)
    return count if cut is None else min(count, cut)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the engine's tokenizer, set to pad and to cut as tokenizers' files are."""
    place = tmp_path_factory.mktemp("tokenizer")
    made = tokenizer()
    made.enable_padding(length=16, pad_id=3, pad_token="[PAD]")
    made.enable_truncation(8)
    made.save(str(place / "tokenizer.json"))
    return place


@dataclass
class Call:
    """A request for embeddings, as the engine has it."""

    body: dict[str, Any]
    headers: dict[str, str]
    let: asyncio.Event = field(default_factory=asyncio.Event)  # it may be answered
    left: asyncio.Event = field(default_factory=asyncio.Event)  # whoever asked has broken it off
    answered: bool = False

    @property
    def inputs(self) -> list[Input]:
        given = self.body["input"]
        several = isinstance(given, list) and not isinstance(given[0], int)
        return list(given) if several else [given]

    @property
    def waits(self) -> bool:
        return not (self.answered or self.left.is_set())


class TruthfulEngine:
    """An engine for embeddings.

    Attributes:
        calls: all requests for embeddings, in the order in which they came.
        held: answers wait for being let go one by one.
        refused: texts with which it refuses a request, and what it then says.
        trouble: what happens to the next requests instead of an answer: a status, or ``reset``.
        broken: what happens to all of them.
        counts_more: how many tokens too many it says that it counted.
        tokens: how ``/tokenize`` makes them.
        vectors: how an answer's vectors are written, where not truthfully.
    """

    def __init__(self) -> None:
        self.url = ""
        self.tokenize_asked = 0
        self.tokens: Callable[[str], list[int]] = lambda text: COUNTING.encode(text).ids
        self.forget()

    def forget(self) -> None:
        """As new."""
        self.calls: list[Call] = []
        self.held = False
        self.refused: dict[str, str] = {}
        self.trouble: deque[int | str] = deque()
        self.broken: int | str | None = None
        self.counts_more = 0
        self.vectors: list[object] | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["TruthfulEngine"]:
        listening = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = listening.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            listening.close()

    @property
    def texts(self) -> list[Input]:
        """All that it was asked for, in order."""
        return [given for call in self.calls for given in call.inputs]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)

    async def until_asked(self, number: int) -> None:
        """So many requests have come."""
        await self.until(lambda: len(self.calls) >= number)

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        """Let all go, from now on."""
        self.held = False
        for call in self.calls:
            call.let.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                if first.split()[1] == "/tokenize":
                    self.tokenize_asked += 1
                    ids = self.tokens(body["prompt"])
                    self._whole(writer, {"count": len(ids), "max_model_len": CONTEXT, "tokens": ids})
                    continue
                call = Call(body, headers)
                self.calls.append(call)
                if not self.held:
                    call.let.set()
                leaving, going = asyncio.ensure_future(reader.read(1)), asyncio.ensure_future(call.let.wait())
                await asyncio.wait({leaving, going}, return_when=asyncio.FIRST_COMPLETED)
                going.cancel()
                if leaving.done():
                    call.left.set()
                    return
                leaving.cancel()
                await asyncio.wait({leaving, going})
                call.answered = True
                if not self._answer(writer, call):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def _answer(self, writer: asyncio.StreamWriter, call: Call) -> bool:
        """False where the connection was reset instead."""
        trouble = self.trouble.popleft() if self.trouble else self.broken
        if trouble == "reset":
            writer.transport.abort()
            return False
        body = call.body
        message = next((said for text, said in self.refused.items() if text in call.inputs), None)
        if trouble is not None or message is not None:
            status = 400 if trouble is None else int(trouble)
            said = {"message": message or "it is broken", "type": "X", "param": None, "code": status}
            self._whole(writer, {"error": said}, status)
            return True
        dimensions = body.get("dimensions")
        embeddings: list[object] = [vector_of(given, dimensions) for given in call.inputs]
        if body.get("encoding_format") == "base64":
            embeddings = [base64.b64encode(np.array(each, "<f4").tobytes()).decode() for each in embeddings]
        embeddings = self.vectors or embeddings
        tokens = sum(tokens_of(given, body.get("truncate_prompt_tokens")) for given in call.inputs) + self.counts_more
        data = [{"index": n, "object": "embedding", "embedding": each} for n, each in enumerate(embeddings)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
        named = {"id": "embd-1", "object": "list", "created": 1, "model": body["model"]}
        self._whole(writer, {**named, "data": data, "usage": usage})
        return True

    @staticmethod
    def _whole(writer: asyncio.StreamWriter, body: object, status: int = 200) -> None:
        payload = json.dumps(body).encode()
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(payload)}\r\n\r\n".encode() + payload)


@dataclass
class Service:
    """A router, its engine, and whoever calls."""

    engine: TruthfulEngine
    client: httpx2.AsyncClient
    fleet: Fleet
    router: Router

    def ask(
        self, given: str | Sequence[Input] | Sequence[int], headers: dict[str, str] | None = None, **more: Any
    ) -> asyncio.Task[httpx2.Response]:
        """A caller who is on the way."""
        body = {"model": "embedding", "input": given, **more}
        return asyncio.create_task(self.client.post(PATH, json=body, headers=headers))

    async def fill(self) -> list[asyncio.Task[httpx2.Response]]:
        """Callers that have taken all places at the engine, which holds its answers."""
        self.engine.hold()
        before = len(self.engine.calls)
        callers = []
        for n in range(PLACES):
            callers.append(self.ask(f"filler {n}"))
            await self.engine.until_asked(before + n + 1)
        return callers

    def line(self) -> Line:
        line: Line = self.router._handlers[PATH]._lines["embedding"]  # type: ignore[attr-defined]
        return line

    async def until_waiting(self, callers: int) -> None:
        """So many wait for an answer, wherever it is."""
        await self.engine.until(lambda: len(self.line()._waiting) == callers)

    async def opened(self) -> None:
        """The router has compared itself with the engine, and merges."""
        async with asyncio.timeout(10):
            while self.engine.calls[-1:] == [] or "encoding_format" not in self.engine.calls[-1].body:
                (await self.ask("is it open")).raise_for_status()
        self.engine.forget()

    async def idle(self) -> None:
        """Nothing is left of any request, and the next one is served at once."""
        line = self.line()
        await self.engine.until(lambda: not line._sent)
        assert not line._waiting
        assert not line._queue._groups
        assert not line._queue._turns
        self.engine.forget()
        async with asyncio.timeout(2):
            right(await self.ask("the next one"), ["the next one"])
        assert self.engine.texts == ["the next one"]


@asynccontextmanager
async def merging(folder: Path | str, *, strict: bool = True, **settings: Any) -> AsyncIterator[Service]:
    """A router in front of an engine whose tokenizer is in ``folder``."""
    wanted = RouterSettings(**{"drain_timeout": 1, **settings})
    async with TruthfulEngine().serving() as engine:
        at = Engine(
            name="embedding",
            kind="embedding",
            model="org/emb",
            url=engine.url,
            state=State.READY,
            started=1.0,
            tokenizer=str(folder),
            context=CONTEXT,
        )
        fleet = Fleet(Snapshot((at,)))
        with listen("127.0.0.1", 0) as listener:
            router = Router(fleet, Upstreams(connect_timeout=1), wanted, ApiSettings(strict=strict))
            made = server(router, wanted)
            running = asyncio.create_task(made.serve([listener]))
            host, port = listener.getsockname()
            limits = httpx2.Limits(max_connections=None)
            try:
                async with httpx2.AsyncClient(
                    base_url=f"http://{host}:{port}", trust_env=False, timeout=8, limits=limits
                ) as client:
                    yield Service(engine, client, fleet, router)
            finally:
                engine.release()
                made.should_exit = True
                await running


@pytest.fixture
async def service(folder: Path) -> AsyncIterator[Service]:
    """One that merges."""
    async with merging(folder) as made:
        await made.opened()
        yield made


def right(
    response: httpx2.Response,
    inputs: Sequence[Input],
    *,
    encoding: str = "float",
    dimensions: int | None = None,
    cut: int | None = None,
    model: str = "embedding",
) -> None:
    """It is the answer to exactly these inputs, to the bit."""
    assert response.status_code == 200, response.text
    tokens = sum(tokens_of(given, cut) for given in inputs)
    said = response.json()
    data = said.pop("data")
    assert said == {"object": "list", "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    assert [set(item) for item in data] == [{"object", "index", "embedding"}] * len(inputs)
    assert [item["index"] for item in data] == list(range(len(inputs)))
    for item, given in zip(data, inputs, strict=True):
        numbers = item["embedding"]
        found = base64.b64decode(numbers) if encoding == "base64" else np.array(numbers).astype("<f4").tobytes()
        assert found == np.array(vector_of(given, dimensions), "<f4").tobytes()


def wrong(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error, which has OpenAI's form."""
    assert response.status_code == status, response.text
    said = response.json()
    assert set(said) == {"error"}
    error: dict[str, Any] = said["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# Merged


async def test_those_who_were_answered_together_go_together_again(service: Service) -> None:
    """The first to come back does not go alone while the engine is at work; it waits for the others, a moment."""
    service.engine.hold()
    busy = service.ask("busy")
    await service.engine.until_asked(1)
    callers = [service.ask(f"text {n}") for n in range(8)]
    await service.engine.until_asked(2)
    service.engine.release()
    await asyncio.gather(busy, *callers)
    assert len(service.engine.calls) == 2
    await service.idle()


async def test_single_texts_of_many_callers_go_together(service: Service) -> None:
    """In fewer requests than there are callers; each gets its own vector and is told its own use, as it wants them."""
    texts = [f"text {'word ' * (n % 7)}{n}" for n in range(64)]
    forms = ["float" if n % 2 else "base64" for n in range(64)]
    asking = [service.ask(text, encoding_format=form) for text, form in zip(texts, forms, strict=True)]
    for response, text, form in zip(await asyncio.gather(*asking), texts, forms, strict=True):
        right(response, [text], encoding=form)
    assert sorted(map(str, service.engine.texts)) == sorted(texts)
    assert len(service.engine.calls) < 48
    assert all(len(call.inputs) <= MOST for call in service.engine.calls)
    await service.idle()


async def test_what_the_engine_is_asked_is_what_was_asked(service: Service) -> None:
    """Texts as texts, by the engine's own name for the model, and base64 of whatever form the callers want."""
    right(await service.ask(["a b", "c"], user="me", encoding_format="float"), ["a b", "c"])
    assert [call.body for call in service.engine.calls] == [
        {"model": "org/emb", "input": ["a b", "c"], "encoding_format": "base64"}
    ]


async def test_a_lone_request_does_not_wait_for_others(service: Service) -> None:
    """An idle engine is asked at once, and one by one as long as it has room."""
    callers = await service.fill()
    assert [call.inputs for call in service.engine.calls] != []
    assert all(len(call.inputs) == 1 for call in service.engine.calls)
    service.engine.release()
    for response in await asyncio.gather(*callers):
        assert response.status_code == 200


async def test_those_who_come_while_the_engine_is_busy_leave_together(service: Service) -> None:
    """As many as are enough for a batch go as one."""
    fillers = await service.fill()
    callers = [service.ask(f"text {n}") for n in range(ENOUGH)]
    await service.until_waiting(PLACES + ENOUGH)
    service.engine.release()
    for n, response in enumerate(await asyncio.gather(*callers)):
        right(response, [f"text {n}"])
    await asyncio.gather(*fillers)
    assert len(service.engine.calls) == PLACES + 1
    await service.idle()


async def test_a_request_of_many_texts_keeps_its_order(service: Service) -> None:
    """Whatever was asked for between its pieces."""
    inputs = [[f"caller {caller} text {n}" for n in range(45 + caller)] for caller in range(6)]
    answers = await asyncio.gather(*(service.ask(each) for each in inputs))
    for response, each in zip(answers, inputs, strict=True):
        right(response, each)
    assert Counter(map(str, service.engine.texts)) == Counter(text for each in inputs for text in each)
    assert all(len(call.inputs) <= MOST for call in service.engine.calls)


async def test_a_text_that_several_want_at_once_is_asked_for_once(service: Service) -> None:
    """Within a request and between requests, waiting or under way; each is told its use as if it were alone."""
    fillers = await service.fill()
    callers = [service.ask(["same", f"own {n}", "same", "filler 0"]) for n in range(8)]
    await service.until_waiting(PLACES + 8)
    service.engine.release()
    for n, response in enumerate(await asyncio.gather(*callers)):
        right(response, ["same", f"own {n}", "same", "filler 0"])
    for n, response in enumerate(await asyncio.gather(*fillers)):
        right(response, [f"filler {n}"])
    assert set(Counter(map(str, service.engine.texts)).values()) == {1}
    await service.idle()


async def test_one_who_joins_what_is_under_way_is_told_its_time(service: Service) -> None:
    """Its own, in Server-Timing: it was not queued for longer than the whole request took."""
    fillers = await service.fill()
    joining = service.ask("filler 0")
    await service.until_waiting(PLACES + 1)
    service.engine.release()
    response = await joining
    right(response, ["filler 0"])
    parts = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    spent = {name: float(milliseconds) for name, milliseconds in parts.items()}
    assert all(0 <= milliseconds < 10_000 for milliseconds in spent.values()), spent
    await asyncio.gather(*fillers)


async def test_different_dimensions_never_share_a_batch(service: Service) -> None:
    fillers = await service.fill()
    wanted = [None, 2, 5]
    callers = [(n, size, service.ask([f"text {n}", "same"], dimensions=size)) for n in range(8) for size in wanted]
    await service.until_waiting(PLACES + len(callers))
    service.engine.release()
    for n, size, asking in callers:
        right(await asking, [f"text {n}", "same"], dimensions=size)
    await asyncio.gather(*fillers)
    merged = [call for call in service.engine.calls if len(call.inputs) > 1]
    assert {call.body.get("dimensions") for call in merged} == set(wanted)
    assert service.engine.texts.count("same") == len(wanted)
    await service.idle()


async def test_token_ids_go_with_token_ids(service: Service) -> None:
    """One list or several; never with texts, and each list counts as long as it is."""
    fillers = await service.fill()
    one = [service.ask([n, 7, 8]) for n in range(5)]
    several = [service.ask([[n, 7], [n, 7, 8], [9]], encoding_format="base64") for n in range(5)]
    texts = [service.ask(f"text {n}") for n in range(5)]
    await service.until_waiting(PLACES + 15)
    service.engine.release()
    for n in range(5):
        right(await one[n], [[n, 7, 8]])
        right(await several[n], [[n, 7], [n, 7, 8], [9]], encoding="base64")
        right(await texts[n], [f"text {n}"])
    await asyncio.gather(*fillers)
    assert all(len({type(given) for given in call.inputs}) == 1 for call in service.engine.calls)
    assert len(service.engine.calls) < PLACES + 15
    assert sum(isinstance(given, list) for given in service.engine.texts) == 11  # of 20: the others are the same
    await service.idle()


async def test_texts_that_are_cut_are_counted_as_cut(service: Service) -> None:
    """``truncate_prompt_tokens`` lets through what would be too long, and has batches of its own."""
    long, short = "word " * 100, "word"
    asking = [service.ask([long, short, f"{n}"], truncate_prompt_tokens=cut) for n, cut in enumerate((5, 9, 5))]
    for n, (response, cut) in enumerate(zip(await asyncio.gather(*asking), (5, 9, 5), strict=True)):
        right(response, [long, short, f"{n}"], cut=cut)
    await service.idle()


@pytest.mark.parametrize(
    "more", [{"add_special_tokens": True}, {"truncation_side": "left"}, {"truncate_prompt_tokens": -1}]
)
async def test_what_only_the_engine_can_count_goes_alone(service: Service, more: dict[str, Any]) -> None:
    asking = [service.ask(f"text {n}", **more) for n in range(8)]
    for response in await asyncio.gather(*asking):
        assert response.status_code == 200
    assert len(service.engine.calls) == 8
    assert all(call.body.items() >= more.items() for call in service.engine.calls)


async def test_a_single_text_goes_between_the_pieces_of_many(service: Service) -> None:
    """300 texts of another caller are before it, and it is in one of the next two batches."""
    service.engine.hold()
    many = service.ask([f"text {n}" for n in range(300)])
    await service.engine.until_asked(ALL - 1)
    single = service.ask("mine")
    await service.until_waiting(2)
    seen = len(service.engine.calls)
    for n in range(2):
        service.engine.calls[n].let.set()
        await service.engine.until_asked(seen + n)
    await service.engine.until(lambda: "mine" in service.engine.texts)
    place = next(n for n, call in enumerate(service.engine.calls) if "mine" in call.inputs)
    assert place < ALL + 1
    service.engine.calls[place].let.set()
    right(await single, ["mine"])
    assert not many.done()
    service.engine.release()
    right(await many, [f"text {n}" for n in range(300)])
    await service.idle()


async def test_one_caller_does_not_take_the_last_place(service: Service) -> None:
    """However much it asks for: one is kept for the next, who is then served at once."""
    service.engine.hold()
    many = service.ask([f"text {n}" for n in range(300)])
    await service.engine.until_asked(ALL - 1)
    await asyncio.sleep(0.05)
    assert len(service.engine.calls) == ALL - 1
    single = service.ask("mine")
    await service.engine.until_asked(ALL)
    assert "mine" in service.engine.calls[-1].inputs
    service.engine.release()
    await asyncio.gather(many, single)


async def test_one_slow_answer_does_not_end_the_merging(service: Service) -> None:
    """How fast the engine is, one short text does not tell, however long it took."""
    service.engine.hold()
    slow = service.ask("slow")
    await service.engine.until_asked(1)
    await asyncio.sleep(0.6)
    service.engine.release()
    await slow
    fillers = await service.fill()
    callers = [service.ask(f"text {n}") for n in range(MOST)]
    await service.until_waiting(PLACES + MOST)
    service.engine.release()
    await asyncio.gather(*fillers, *callers)
    assert len(service.engine.calls) < 1 + PLACES + MOST


async def test_a_setting_allows_more_inputs_and_batches_stay_small(folder: Path) -> None:
    """5,000 in one request; one more is refused."""
    texts = [f"t{n}" for n in range(5001)]
    async with merging(folder, max_inputs=5000) as service:
        await service.opened()
        right(await service.ask(texts[:5000], encoding_format="base64"), texts[:5000], encoding="base64")
        assert all(len(call.inputs) <= MOST for call in service.engine.calls)
        assert len(service.engine.calls) >= 5000 / MOST
        await service.idle()
        error = wrong(await service.ask(texts), 400)
        assert (error["param"], error["code"]) == ("input", "array_above_max_length")


# Refused


@pytest.mark.parametrize(("said", "about"), [(EMPTY, "empty"), (LONG, "maximum context length"), (VOCABULARY, "77777")])
async def test_only_its_own_caller_hears_of_a_refused_text(service: Service, said: str, about: str) -> None:
    """By that caller's own index; those whose texts were in the same batch have their vectors."""
    service.engine.refused = {"bad": said}
    fillers = await service.fill()
    good = [service.ask([f"good {n}", f"more {n}"]) for n in range(5)]
    bad = service.ask(["fine", "fine too", "bad"])
    alone = service.ask("bad")
    await service.until_waiting(PLACES + 7)
    service.engine.release()
    for n, response in enumerate(await asyncio.gather(*good)):
        right(response, [f"good {n}", f"more {n}"])
    error = wrong(await bad, 400)
    assert (error["param"], error["type"]) == ("input[2]", "invalid_request_error")
    assert about in error["message"]
    assert "'input'" not in error["message"]
    assert wrong(await alone, 400)["param"] == "input"
    assert any(len(call.inputs) > 2 and "bad" in call.inputs for call in service.engine.calls)
    await asyncio.gather(*fillers)
    await service.idle()


@pytest.mark.parametrize("inputs", [["bad"], ["fine", "bad"], ["bad", "fine", "bad", *map(str, range(60))]])
async def test_a_refused_text_is_named_to_a_caller_who_is_alone(service: Service, inputs: list[str]) -> None:
    service.engine.refused = {"bad": VOCABULARY}
    error = wrong(await service.ask(inputs), 400)
    place = f"input[{inputs.index('bad')}]" if len(inputs) > 1 else "input"
    assert error["message"] == f"Invalid '{place}': the token id 77777 is not in the model's vocabulary."
    assert error["param"] == place
    await service.idle()


async def test_several_refused_texts_are_each_told_to_their_own(service: Service) -> None:
    """All of a batch may be wrong."""
    service.engine.refused = {f"bad {n}": EMPTY for n in range(MOST)}
    fillers = await service.fill()
    callers = [service.ask(["fine", f"bad {n}"] if n % 2 else f"bad {n}") for n in range(MOST)]
    await service.until_waiting(PLACES + MOST)
    service.engine.release()
    for n, response in enumerate(await asyncio.gather(*callers)):
        assert wrong(response, 400)["param"] == ("input[1]" if n % 2 else "input")
    await asyncio.gather(*fillers)
    await service.idle()


async def test_too_long_inputs_are_refused_before_the_engine_is_asked(service: Service) -> None:
    """With the index of the first, and none of the request is sent; as long as the context is just right."""
    words = CONTEXT - 2
    right(await service.ask(["word " * words]), ["word " * words])
    service.engine.forget()
    error = wrong(await service.ask(["fine", "word " * words, "word " * (words + 1), "word " * 999]), 400)
    assert error["param"] == "input[2]"
    assert f"maximum context length is {CONTEXT} tokens" in error["message"]
    assert f"({CONTEXT + 1} in your prompt" in error["message"]
    assert wrong(await service.ask("word " * 999), 400)["param"] == "input"
    assert wrong(await service.ask([[1] * CONTEXT, [1] * (CONTEXT + 1)]), 400)["param"] == "input[1]"
    assert service.engine.calls == []
    await service.idle()


# Callers who leave


async def test_unsent_texts_of_one_who_left_are_not_sent(service: Service) -> None:
    """But for those that somebody else wants, too."""
    fillers = await service.fill()
    leaving = service.ask(["nobody's", "somebody's", "nobody's own"])
    staying = service.ask(["somebody's", "mine"])
    await service.until_waiting(PLACES + 2)
    leaving.cancel()
    await service.until_waiting(PLACES + 1)
    service.engine.release()
    right(await staying, ["somebody's", "mine"])
    await asyncio.gather(*fillers)
    assert sorted(map(str, service.engine.texts[PLACES:])) == ["mine", "somebody's"]
    await service.idle()


async def test_a_batch_that_nobody_wants_is_broken_off(service: Service) -> None:
    """The engine notices at once, and what waited takes its place; other batches go on."""
    fillers = await service.fill()
    waiting = service.ask("waiting")
    await service.until_waiting(PLACES + 1)
    place = next(n for n, call in enumerate(service.engine.calls) if call.inputs == ["filler 1"])
    fillers[1].cancel()
    async with asyncio.timeout(5):
        await service.engine.calls[place].left.wait()
    await service.engine.until_asked(PLACES + 1)
    assert service.engine.calls[-1].inputs == ["waiting"]
    assert sum(call.left.is_set() for call in service.engine.calls) == 1
    service.engine.release()
    right(await waiting, ["waiting"])
    right(await fillers[0], ["filler 0"])
    await service.idle()


async def test_a_batch_that_somebody_wants_goes_on(service: Service) -> None:
    """Although the one for whom it was sent has left; and a text of that one may be asked for again."""
    fillers = await service.fill()
    leaving, staying = service.ask(["left", "both"]), service.ask(["both", "mine"])
    await service.until_waiting(PLACES + 2)
    service.engine.calls[0].let.set()
    await service.engine.until_asked(PLACES + 1)
    merged = service.engine.calls[-1]
    leaving.cancel()
    await service.until_waiting(PLACES)
    again = service.ask(["left"])
    await service.until_waiting(PLACES + 1)
    assert merged.waits
    service.engine.release()
    right(await staying, ["both", "mine"])
    right(await again, ["left"])
    await asyncio.gather(*fillers)
    await service.idle()


async def test_a_text_broken_off_is_asked_for_again(service: Service) -> None:
    service.engine.hold()
    leaving = service.ask("text")
    await service.engine.until_asked(1)
    leaving.cancel()
    async with asyncio.timeout(5):
        await service.engine.calls[0].left.wait()
    service.engine.release()
    right(await service.ask("text"), ["text"])
    await service.idle()


async def test_callers_who_leave_together_are_all_let_go(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """In one moment, each with a batch of its own and with different parameters: all batches are broken off."""
    service.engine.hold()
    callers = [service.ask(f"text {n}", dimensions=n + 1) for n in range(PLACES)]
    await service.engine.until_asked(PLACES)
    for caller in callers:
        caller.cancel()
    async with asyncio.timeout(5):
        for call in service.engine.calls:
            await call.left.wait()
    assert "failed" not in caplog.text
    await service.idle()


async def test_what_is_not_sent_again_after_a_refusal_can_be_asked_for(service: Service) -> None:
    """A batch is refused when one of its callers has gone: whoever asks for that one's texts has them asked for."""
    service.engine.refused = {"bad": EMPTY}
    fillers = await service.fill()
    callers = []
    for number, inputs in enumerate((["bad"], ["good"], ["gone", "gone, too"]), 1):
        callers.append(service.ask(inputs))
        await service.until_waiting(PLACES + number)
    bad, good, leaving = callers
    service.engine.calls[0].let.set()
    await service.engine.until_asked(PLACES + 1)
    assert service.engine.calls[-1].inputs == ["bad", "good", "gone", "gone, too"]
    leaving.cancel()
    await service.until_waiting(PLACES + 1)
    service.engine.release()
    assert wrong(await bad, 400)["param"] == "input"
    right(await good, ["good"])
    await asyncio.gather(*fillers)
    async with asyncio.timeout(2):
        right(await service.ask("gone"), ["gone"])
    await service.idle()


async def test_a_callers_own_deadline_is_its_own(service: Service) -> None:
    """It is told in time, and those who share the batch wait on."""
    service.engine.hold()
    patient = service.ask("text")
    await service.engine.until_asked(1)
    hurried = service.ask("text", headers={"x-request-timeout": "0.1"})
    error = wrong(await hurried, 504)
    assert error["code"] == "timeout"
    assert service.engine.calls[0].waits
    service.engine.release()
    right(await patient, ["text"])
    assert len(service.engine.calls) == 1
    await service.idle()


# Faults


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that failed is asked again soon."""
    monkeypatch.setattr(retry.Breaker, "PAUSE", 0.02)
    monkeypatch.setattr(retry.Breaker, "LONGEST", 0.05)
    monkeypatch.setattr("tandem.router.admission._NEWS", 0.02)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("trouble", [500, 503, "reset"])
async def test_one_fault_is_not_noticed(service: Service, trouble: int | str) -> None:
    """The batch is asked for again, whole."""
    fillers = await service.fill()
    callers = [service.ask([f"text {n}", "same"]) for n in range(7)]
    await service.until_waiting(PLACES + 7)
    service.engine.trouble = deque([trouble])
    service.engine.release()
    for n, response in enumerate(await asyncio.gather(*callers)):
        right(response, [f"text {n}", "same"])
    for n, response in enumerate(await asyncio.gather(*fillers)):
        right(response, [f"filler {n}"])
    await service.idle()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("number", [1, 12])
@pytest.mark.parametrize(("broken", "statuses"), [(500, {502, 503}), (503, {503}), ("reset", {502, 503}), (404, {502})])
async def test_a_lasting_fault_is_told_to_everybody(
    service: Service, broken: int | str, statuses: set[int], number: int
) -> None:
    """In OpenAI's form, as no fault of theirs, and nothing waits on."""
    service.engine.broken = broken
    callers = [service.ask([f"text {n}", "same"]) for n in range(number)]
    for response in await asyncio.gather(*callers):
        assert response.status_code in statuses, response.text
        error = wrong(response, response.status_code)
        assert error["type"] in {"server_error", "service_unavailable_error"}
        assert error["param"] is None
    assert not service.line()._waiting
    await service.engine.until(lambda: not service.line()._sent)
    assert not service.line()._queue._groups


@pytest.mark.usefixtures("quick")
async def test_an_engine_that_is_gone_is_told_of(service: Service, free_port: int) -> None:
    """Nothing listens where it was."""
    service.fleet.put(replace(service.fleet.now.engines[0], url=f"http://127.0.0.1:{free_port}"))
    for response in await asyncio.gather(*(service.ask(f"text {n}") for n in range(6))):
        error = wrong(response, 503)
        assert error["type"] == "service_unavailable_error"


@pytest.mark.parametrize(
    "said",
    [[[0.5, 0.5]], ["AAAAAA==", "AAAAAA=="], [""], [None], ['AAAA"AA='], ["no base64"]],
    ids=["numbers", "too many", "empty", "null", "quoted", "no base64"],
)
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_what_is_no_answer_is_a_fault(service: Service, said: list[object], encoding: str) -> None:
    """The engine's, whatever form the caller wants."""
    service.engine.vectors = said
    assert wrong(await service.ask("text", encoding_format=encoding), 502)["code"] == "bad_gateway"
    await service.idle()


async def test_new_callers_are_told_at_once_that_the_engine_is_away(service: Service) -> None:
    """They do not wait behind those whom its end has hit, and who wait for it to come back."""
    fillers = await service.fill()
    here = service.fleet.now.engines[0]
    service.engine.broken = "reset"
    service.fleet.put(replace(here, state=State.RESTARTING, expected=now() + 300))
    service.engine.release()
    await asyncio.sleep(0.2)
    new = service.ask("new")
    done, _ = await asyncio.wait({new}, timeout=1)
    service.engine.broken = None
    service.fleet.put(replace(here, started=2.0))
    for n, response in enumerate(await asyncio.gather(*fillers)):
        right(response, [f"filler {n}"])
    assert done
    assert wrong(new.result(), 503)["code"] == "model_not_ready"


async def test_so_many_callers_wait_and_no_more(folder: Path) -> None:
    """``max_queue``: the others are told so at once, merged or not."""
    async with merging(folder, max_in_flight=2, max_queue=3) as service:
        await service.opened()
        service.engine.hold()
        callers = [service.ask(f"text {n}") for n in range(40)]
        done, _ = await asyncio.wait(callers, timeout=1)
        service.engine.release()
        await asyncio.gather(*callers)
        assert done
        for caller in done:
            assert wrong(caller.result(), 503)["code"] == "overloaded"


async def test_vectors_of_another_size_than_asked_for_are_a_fault(service: Service) -> None:
    service.engine.vectors = [base64.b64encode(bytes(4 * 7)).decode()]
    assert wrong(await service.ask("text", dimensions=4), 502)["code"] == "bad_gateway"
    await service.idle()


# Not merged


async def unmerged(service: Service) -> None:
    """Twelve callers make twelve requests, each as it was sent."""
    service.engine.forget()
    asking = [service.ask(["same", f"text {n}"], dimensions=3) for n in range(12)]
    for n, response in enumerate(await asyncio.gather(*asking)):
        right(response, ["same", f"text {n}"], dimensions=3)
    bodies = sorted((call.body for call in service.engine.calls), key=lambda body: int(body["input"][1].split()[1]))
    assert bodies == [{"model": "org/emb", "input": ["same", f"text {n}"], "dimensions": 3} for n in range(12)]


async def test_without_a_tokenizer_nothing_is_merged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And a line says so, once."""
    async with merging(tmp_path) as service:
        (await service.ask("first")).raise_for_status()
        await service.engine.until(lambda: "are not merged" in caplog.text)
        await unmerged(service)
        assert caplog.text.count("are not merged") == 1


async def test_where_no_folder_is_known_nothing_is_merged() -> None:
    async with merging("") as service:
        (await service.ask("first")).raise_for_status()
        await unmerged(service)
        assert service.engine.tokenize_asked == 0


async def test_an_engine_that_tokenizes_otherwise_is_asked_one_by_one(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line names it, once, and it is not asked again how it tokenizes."""
    async with merging(folder) as service:
        service.engine.tokens = lambda text: [*COUNTING.encode(text).ids, 2]
        (await service.ask("first")).raise_for_status()
        await service.engine.until(lambda: "cannot count as embedding does" in caplog.text)
        asked = service.engine.tokenize_asked
        await unmerged(service)
        assert service.engine.tokenize_asked == asked
        assert caplog.text.count("cannot count") == 1


async def test_an_engine_that_comes_to_count_otherwise_is_asked_one_by_one_from_then_on(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch that shows it is still handed back, and a line says why."""
    service.engine.counts_more = 1
    response = await service.ask(["text", "another"])
    assert response.status_code == 200
    assert response.json()["data"][0]["embedding"]
    assert "not merged any more" in caplog.text
    await unmerged(service)
    await unmerged(service)


@pytest.mark.parametrize("given", ["a text", [7, 8, 9]])
async def test_what_goes_alone_is_no_list_of_one(service: Service, given: Input) -> None:
    """An engine makes less ado of it."""
    right(await service.ask([given]), [given])
    (call,) = service.engine.calls
    assert call.body["input"] == given


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tokenizer that the quick counter knows, too, and the engine counts with."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(["text of another odd engine"] * 4, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setitem(globals(), "COUNTING", made)
    return tmp_path


async def test_a_quick_counter_that_is_wrong_once_is_not_used_again(
    pieces: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets a wrong number; the thorough one takes its place, and requests are merged as before."""
    count = QuickCounter._count
    monkeypatch.setattr(QuickCounter, "_count", lambda self, text: count(self, text) + ("odd" in text))
    async with merging(pieces) as service:
        await service.opened()
        assert isinstance(service.line().counter, QuickCounter)
        right(await service.ask(["text", "an odd text"]), ["text", "an odd text"])
        assert "tokenizers is to count instead" in caplog.text
        await service.opened()
        assert isinstance(service.line().counter, ThoroughCounter)
        right(await service.ask(["another", "an odd text"]), ["another", "an odd text"])
        service.engine.counts_more = 1
        assert (await service.ask(["text", "another"])).status_code == 200
        assert "not merged any more" in caplog.text
        assert caplog.text.count("tokenizers is to count instead") == 1


async def test_a_quick_counter_that_does_not_agree_with_the_engine_is_not_used(
    pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QuickCounter, "ids", lambda _, text: [1] * len(text))
    async with merging(pieces) as service:
        await service.opened()
        assert isinstance(service.line().counter, ThoroughCounter)


class Panic(BaseException):
    """What Rust's panics are in Python: no Exception."""


@pytest.mark.parametrize(
    "fault", [ValueError("pcre2: match limit"), Panic("called `Option::unwrap()` on a `None` value")]
)
async def test_a_quick_counter_that_fails_is_not_used_again(
    pieces: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: BaseException
) -> None:
    """The request goes alone, and the thorough one takes its place."""
    async with merging(pieces) as service:
        await service.opened()
        counter = service.line().counter
        encode = counter._encode

        def failing(text: str, **more: Any) -> Any:
            if "odd" in text:
                raise fault
            return encode(text, **more)

        monkeypatch.setattr(counter, "_encode", failing)
        right(await service.ask(["text", "an odd text"]), ["text", "an odd text"])
        assert f"fastokens has failed ({type(fault).__name__}: {fault}): tokenizers is to count instead" in caplog.text
        await service.opened()
        assert isinstance(service.line().counter, ThoroughCounter)
        right(await service.ask(["another", "an odd text"]), ["another", "an odd text"])


async def test_a_quick_counter_that_fails_while_it_is_compared_is_not_used(
    pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise Uncountable("fault")

    monkeypatch.setattr(QuickCounter, "_encoded", failing)
    async with merging(pieces) as service:
        await service.opened()
        assert isinstance(service.line().counter, ThoroughCounter)


async def test_what_was_counted_by_one_that_is_out_of_use_says_nothing_of_the_next(
    pieces: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Four full batches and a request that waits, all counted wrong. With the first the counter goes; the others find
    another in its place, when they come back, or already when they leave, and do not count against it.
    """
    count = QuickCounter._count
    monkeypatch.setattr(QuickCounter, "_count", lambda self, text: count(self, text) + ("odd" in text))
    wanted = [[f"odd {n} {each}" for each in range(16)] for n in range(4)] + [["an odd text", "that waits"]]
    async with merging(pieces) as service:
        await service.opened()
        service.engine.hold()
        asking = []
        for n, texts in enumerate(wanted):
            asking.append(service.ask(texts))
            await service.engine.until_asked(min(n + 1, 4))
        await service.until_waiting(5)
        service.engine.calls[0].let.set()
        await service.engine.until(lambda: "is to count instead" in caplog.text)
        nudge = service.ask("it is compared when somebody asks")
        await service.engine.until(lambda: isinstance(service.line().counter, ThoroughCounter))
        assert all("that waits" not in call.inputs for call in service.engine.calls)
        service.engine.release()
        for each, texts in zip([*asking, nudge], [*wanted, ["it is compared when somebody asks"]], strict=True):
            right(await each, texts)
        assert caplog.text.count("where the engine counts") == 1
        assert isinstance(service.line().counter, ThoroughCounter)


async def test_token_ids_are_no_fault_of_the_quick_counter(pieces: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It has not counted them."""
    async with merging(pieces) as service:
        await service.opened()
        service.engine.counts_more = 1
        assert (await service.ask([[1, 2], [3]])).status_code == 200
        assert "fastokens" not in caplog.text
        assert "not merged any more" in caplog.text


async def test_a_text_that_goes_alone_is_counted_by_the_engine(service: Service) -> None:
    """Nobody else is in its batch, so what the engine says of that is its use."""
    service.engine.counts_more = 7
    response = await service.ask("a short text")
    assert response.json()["usage"]["prompt_tokens"] == tokens_of("a short text") + 7
    await service.idle()


@pytest.mark.parametrize("joins", [False, True], ids=["a long one", "one that another has asked for"])
async def test_a_text_that_goes_alone_and_was_counted_is_compared(
    service: Service, caplog: pytest.LogCaptureFixture, joins: bool
) -> None:
    """Everybody gets the engine's count, if that is another."""
    text = "a short text" if joins else "ä text"  # of which nobody knows beforehand that it fits
    service.engine.counts_more = 7
    service.engine.hold()
    asking = [service.ask(text)]
    await service.engine.until_asked(1)
    if joins:
        asking.append(service.ask(text))
        await service.until_waiting(2)
    service.engine.release()
    used = [(await each).json()["usage"]["prompt_tokens"] for each in asking]
    assert used == [tokens_of(text) + 7] * len(asking)
    assert "not merged any more" in caplog.text


async def test_an_engine_that_was_started_again_is_compared_with_again(service: Service) -> None:
    """It may be another one by now; until that is known, its requests go one by one."""
    service.engine.tokens = lambda _: [1]
    before = service.engine.tokenize_asked
    service.fleet.put(replace(service.fleet.now.engines[0], started=2.0))
    right(await service.ask("text"), ["text"])
    await service.engine.until(lambda: service.engine.tokenize_asked > before)
    await unmerged(service)


@pytest.mark.usefixtures("quick")
async def test_an_engine_is_asked_again_until_it_tells_how_it_tokenizes(
    folder: Path, caplog: pytest.LogCaptureFixture, free_port: int
) -> None:
    """Nobody could reach it the first time."""
    caplog.set_level(logging.INFO, "tandem.router")
    async with merging(folder, queue_timeout=0.1) as service:
        here = service.fleet.now.engines[0]
        service.fleet.put(replace(here, url=f"http://127.0.0.1:{free_port}"))
        assert (await service.ask("text")).status_code == 503
        service.fleet.put(replace(here, started=0.5))
        await service.engine.until(lambda: not service.line()._checking)
        assert "merged" not in caplog.text
        await service.opened()
        assert caplog.text.count("are merged") == 1


async def test_with_the_form_opened_up_nothing_is_merged_and_all_is_told(folder: Path) -> None:
    """``api.strict`` off: what the engine says beyond OpenAI's keys is each caller's own."""
    async with merging(folder, strict=False) as service:
        for _ in range(3):
            asking = [service.ask(f"text {n}", unheard_of=n) for n in range(6)]
            for n, response in enumerate(await asyncio.gather(*asking)):
                said = response.json()
                assert (said["id"], said["created"], said["model"]) == ("embd-1", 1, "embedding")
                assert said["usage"]["prompt_tokens"] == tokens_of(f"text {n}")
                assert said["usage"]["completion_tokens"] == 0
        assert len(service.engine.calls) == 18
        assert sorted(call.body["unheard_of"] for call in service.engine.calls[:6]) == list(range(6))


# All of it at once


@dataclass
class Caller:
    """One of many, and what its answer must be."""

    inputs: list[Input]
    encoding: str
    dimensions: int | None
    leaves: bool
    asking: asyncio.Task[httpx2.Response]


def one_of_many(service: Service, chance: random.Random) -> Caller:
    vocabulary = [f"text {n}" for n in range(60)]
    number = chance.choice([1, 1, 1, 2, 3, 30])
    inputs: list[Input]
    if chance.random() < 0.15:
        inputs = [[chance.randrange(100) for _ in range(chance.randrange(1, 9))] for _ in range(number)]
    else:
        inputs = [*chance.choices(vocabulary, k=number)]
        if chance.random() < 0.1:
            inputs[chance.randrange(number)] = chance.choice(["bad 1", "bad 2"])
        if chance.random() < 0.05:
            inputs[chance.randrange(number)] = "word " * 100
    encoding, dimensions = chance.choice(["float", "base64"]), chance.choice([None, None, 4])
    given = inputs[0] if number == 1 else inputs
    more: dict[str, Any] = {"dimensions": dimensions} if dimensions else {}
    asking = service.ask(given, encoding_format=encoding, **more)
    return Caller(inputs, encoding, dimensions, chance.random() < 0.1, asking)


@pytest.mark.parametrize("seed", range(3))
async def test_each_of_many_gets_its_own_answer_or_its_own_error(service: Service, seed: int) -> None:
    """200 callers, with duplicates, token ids, sizes, refusals, faults, and some who leave; then nothing is left."""
    chance = random.Random(seed)  # noqa: S311 - seeded, and guards nothing
    service.engine.refused = {"bad 1": EMPTY, "bad 2": LONG}
    service.engine.trouble = deque([500])
    callers = []
    for n in range(200):
        callers.append(one_of_many(service, chance))
        if n % 20 == 0:
            await asyncio.sleep(chance.random() * 0.02)
            leaving = [caller for caller in callers if caller.leaves]
            for caller in leaving:
                caller.asking.cancel()
    for caller in callers:
        if caller.leaves:
            caller.asking.cancel()
            await asyncio.wait({caller.asking})
            continue
        response = await caller.asking
        path = "input[{}]" if len(caller.inputs) > 1 else "input"
        long = [path.format(n) for n, given in enumerate(caller.inputs) if tokens_of(given) > CONTEXT]
        bad = [path.format(n) for n, given in enumerate(caller.inputs) if str(given).startswith("bad")]
        if long:
            assert wrong(response, 400)["param"] == long[0]
        elif bad:
            assert wrong(response, 400)["param"] in bad
        else:
            right(response, caller.inputs, encoding=caller.encoding, dimensions=caller.dimensions)
    assert all(len(call.inputs) <= MOST for call in service.engine.calls)
    assert len({call.body.get("dimensions") for call in service.engine.calls}) == 2
    await service.idle()
