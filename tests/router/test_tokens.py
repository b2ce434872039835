"""Tokens are counted as the engine counts them, or it is known that they are not."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from tandem.fleet import Engine, State
from tandem.router.tokens import Counter, QuickCounter, ThoroughCounter, counter_of
from tandem.router.upstream import Upstreams

from .conftest import Script, ScriptedEngine, answer, reset

CUT, PADDED = 8, 16
SPECIAL = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3}


def saved(tokenizer: Tokenizer, folder: Path) -> str:
    """With special tokens around each text, and set to pad and to cut, as MiniLM's is; the folder that it is in."""
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, SPECIAL[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer.enable_padding(length=PADDED, pad_id=SPECIAL["[PAD]"], pad_token="[PAD]")
    tokenizer.enable_truncation(CUT)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def words() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({**SPECIAL, "word": 4, "Hello": 5}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def pieces() -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    return tokenizer


@pytest.fixture(params=[(words, False), (pieces, False), (pieces, True)], ids=["words", "pieces", "pieces, quick"])
def kind(request: pytest.FixtureRequest) -> tuple[Callable[[], Tokenizer], bool]:
    """What makes a tokenizer, and whether the quick counter is to use it, which does not know all."""
    made: tuple[Callable[[], Tokenizer], bool] = request.param
    return made


@pytest.fixture
def folder(kind: tuple[Callable[[], Tokenizer], bool], tmp_path: Path) -> str:
    """One that holds a tokenizer that pads and cuts."""
    return saved(kind[0](), tmp_path)


@pytest.fixture
def counter(kind: tuple[Callable[[], Tokenizer], bool], folder: str) -> Counter:
    return loaded(folder, quick=kind[1])


def loaded(folder: str, *, quick: bool = False) -> Counter:
    counter = counter_of(folder, quick=quick)
    assert isinstance(counter, QuickCounter if quick else ThoroughCounter)
    return counter


def plain(folder: str) -> Tokenizer:
    """The tokenizer as the engine uses it."""
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


async def test_the_files_own_padding_is_not_counted(tmp_path: Path) -> None:
    """Two words are four tokens, the special ones included, and not the 16 that the file says; nothing is two."""
    counter = loaded(saved(words(), tmp_path))
    assert await counter.count(["word word", "", "word"]) == [4, 2, 3]


async def test_the_files_own_limit_is_not_heeded(tmp_path: Path) -> None:
    """500 words are 502 tokens, and not the 8 that the file cuts to."""
    counter = loaded(saved(words(), tmp_path))
    assert await counter.count(["word " * 500]) == [502]


async def test_texts_are_counted_one_by_one(folder: str, counter: Counter) -> None:
    """A batch's longest text is of no concern to the others."""
    texts = ["word", "the quick brown fox " * 30, "", "Ünïcödé 🙂 你好", "  tabs\tand\r\nlines ", "\x00\x7f"]
    assert await counter.count(texts) == [len(plain(folder).encode(text).ids) for text in texts]


async def test_nothing_is_counted_as_nothing(counter: Counter) -> None:
    assert await counter.count([]) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["[SEP]", " [CLS]x", "the\u00a0fox's"])
    )
)
def test_the_quick_counter_makes_the_same_tokens(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Whatever the text, and whatever looks like a special token in it."""
    folder = saved(pieces(), tmp_path_factory.getbasetemp())
    text = "".join(texts)
    assert loaded(folder, quick=True).ids(text) == plain(folder).encode(text).ids


def test_the_quick_counter_starts_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take the engines' cores."""
    monkeypatch.delenv("FASTOKENS_BPE_THREADS", raising=False)
    loaded(saved(pieces(), tmp_path), quick=True)
    assert os.environ["FASTOKENS_BPE_THREADS"] == "1"


@pytest.mark.parametrize(
    ("quick", "texts", "elsewhere"),
    [
        (False, ["word"], [False]),
        (False, ["the quick word " * 3000, "word"], [True]),
        (False, ["brown word fox "] * 2048, [True]),
        (True, ["word"], [False]),
        (True, ["the quick word " * 3000, "word"], [True, False]),
        (True, ["brown word fox "] * 2048, [False] * 2048),
    ],
)
async def test_much_text_is_counted_in_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool, texts: list[str], elsewhere: list[bool]
) -> None:
    """With the same result, whether it is much because of its texts' length or of their number."""
    folder = saved(pieces(), tmp_path)
    counter, whole = loaded(folder, quick=quick), plain(folder)
    threads: list[str] = []
    count = counter._count

    def noted(given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return count(given)

    monkeypatch.setattr(counter, "_count", noted)
    assert await counter.count(texts) == [len(encoded.ids) for encoded in whole.encode_batch(texts)]
    here = threading.current_thread().name
    assert [name != here for name in threads] == elsewhere


async def test_others_have_their_turn_while_many_texts_are_counted_here(tmp_path: Path) -> None:
    counter = loaded(saved(pieces(), tmp_path), quick=True)
    counting = asyncio.create_task(counter.count(["brown word fox "] * 20_000))
    turns = 0
    while not counting.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10


@pytest.mark.parametrize("content", [None, b"", b"{}", b"no JSON", b"\xff\xfe", b'{"model": {"type": "Unheard-of"}}'])
def test_without_a_tokenizer_that_can_be_used_there_is_no_counter(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And one line says which file was looked for."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    assert counter_of(str(tmp_path), quick=True) is None
    assert counter_of(str(tmp_path), quick=False) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / "tokenizer.json") in record.getMessage()


def test_a_folder_that_is_not_there_has_no_tokenizer(tmp_path: Path) -> None:
    assert counter_of(str(tmp_path / "none"), quick=False) is None


def test_what_the_quick_counter_does_not_know_it_does_not_count(tmp_path: Path) -> None:
    """And nothing is said of it: the other one knows it."""
    assert counter_of(saved(words(), tmp_path), quick=True) is None


# Agreement with the engine


def tokenizing(engine: ScriptedEngine, tokens: Callable[[str], Any]) -> Script:
    """An answer of /tokenize that depends on the text."""

    async def play(writer: Any) -> None:
        text = engine.asked[-1][2]["prompt"]
        await answer({"count": 1, "max_model_len": 9, "tokens": tokens(text), "token_strs": None})(writer)

    return play


async def agreement(engine: ScriptedEngine, counter: Counter) -> bool | None:
    at = Engine(name="e", kind="embedding", model="org/emb", url=engine.url, state=State.READY)
    upstreams = Upstreams(connect_timeout=1)
    try:
        return await counter.agrees(at, upstreams)
    finally:
        upstreams.close()


async def test_an_engine_that_makes_the_same_tokens_agrees(
    engine: ScriptedEngine, folder: str, counter: Counter
) -> None:
    """It is asked by the name that it serves its model by, on one connection."""
    whole = plain(folder)
    engine.scripts["/tokenize"] = tokenizing(engine, lambda text: whole.encode(text).ids)
    assert await agreement(engine, counter) is True
    assert {path for path, _, _ in engine.asked} == {"/tokenize"}
    assert {asked["model"] for _, _, asked in engine.asked} == {"org/emb"}
    assert engine.connections == 1


async def test_an_engine_that_makes_other_tokens_does_not_agree(
    engine: ScriptedEngine, folder: str, counter: Counter
) -> None:
    """Of one text only, and as many as the router would: the numbers differ."""
    whole = plain(folder)
    engine.scripts["/tokenize"] = tokenizing(
        engine, lambda text: [9] * len(whole.encode(text).ids) if "http" in text else whole.encode(text).ids
    )
    assert await agreement(engine, counter) is False


async def test_an_engine_without_special_tokens_does_not_agree(
    engine: ScriptedEngine, folder: str, counter: Counter
) -> None:
    whole = plain(folder)
    engine.scripts["/tokenize"] = tokenizing(engine, lambda text: whole.encode(text, add_special_tokens=False).ids)
    assert await agreement(engine, counter) is False


async def test_an_engine_that_pads_and_cuts_does_not_agree(
    engine: ScriptedEngine, folder: str, counter: Counter
) -> None:
    raw = Tokenizer.from_file(f"{folder}/tokenizer.json")
    engine.scripts["/tokenize"] = tokenizing(engine, lambda text: raw.encode(text).ids)
    assert await agreement(engine, counter) is False


@pytest.mark.parametrize(
    "said",
    [
        answer({"detail": "Not Found"}, 404),
        answer({"error": {"message": "no"}}, 400),
        answer({}),
        answer({"tokens": None}),
        answer({"tokens": ["Hello"]}),
        answer([1, 2]),
        answer(None, raw=b"no JSON"),
        answer(None, raw=b'{"x": ' + b"[" * 50_000),
        answer(None, raw=b"\xff"),
        answer(None, raw=b""),
    ],
)
async def test_an_engine_that_does_not_tokenize_does_not_agree(
    engine: ScriptedEngine, counter: Counter, said: Script
) -> None:
    """It has no such route, or says what cannot be understood."""
    engine.scripts["/tokenize"] = said
    assert await agreement(engine, counter) is False


@pytest.mark.parametrize("status", [429, 503])
async def test_of_an_engine_that_has_too_much_to_do_nothing_is_known(
    engine: ScriptedEngine, tmp_path: Path, status: int
) -> None:
    """A moment's trouble is no word on how it counts."""
    engine.scripts["/tokenize"] = answer({"error": {"message": "busy"}}, status)
    assert await agreement(engine, loaded(saved(words(), tmp_path))) is None


async def test_of_an_engine_that_breaks_off_nothing_is_known(engine: ScriptedEngine, counter: Counter) -> None:
    engine.scripts["/tokenize"] = reset()
    assert await agreement(engine, counter) is None


async def test_of_an_engine_that_is_not_there_nothing_is_known(counter: Counter, free_port: int) -> None:
    scripted = ScriptedEngine()
    scripted.url = f"http://127.0.0.1:{free_port}"
    assert await agreement(scripted, counter) is None


async def test_an_engine_that_is_silent_is_not_waited_for(
    engine: ScriptedEngine, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known of it, either."""
    monkeypatch.setattr("tandem.router.tokens._PATIENCE", 0.1)

    async def never(writer: Any) -> None:
        await writer.drain()

    engine.scripts["/tokenize"] = never
    assert await agreement(engine, counter) is None


def test_a_counters_tokenizer_is_its_own(folder: str, kind: tuple[Callable[[], Tokenizer], bool]) -> None:
    """What is switched off is switched off here, not in the file."""
    before = Path(folder, "tokenizer.json").read_bytes()
    loaded(folder, quick=kind[1])
    assert Path(folder, "tokenizer.json").read_bytes() == before
    encoded: Encoding = Tokenizer.from_file(f"{folder}/tokenizer.json").encode("word")
    assert len(encoded.ids) == PADDED
