"""The engine's queue, with vLLM's place taken by a model that counts letters; the real one is asked in integration."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tandem import (
    BadRequestError,
    ClientClosedError,
    ClientTimeoutError,
    InprocessVLLMEmbedder,
    ServerError,
    SettingsError,
    SetupError,
    VLLMClient,
    VLLMConfig,
)

LIMIT = 10


class VLLMClientError(Exception):
    """vLLM's own name for what a caller did wrong."""


class _Tensor:
    def __init__(self, array: Any) -> None:
        self._array = array

    def float(self) -> "_Tensor":
        return self

    def numpy(self) -> Any:
        return self._array


class Llm:
    """A token for each letter, and a vector of (tokens, first token, 0)."""

    def __init__(self, **arguments: Any) -> None:
        if arguments["model"] == "missing":
            raise OSError("no such model")
        self.arguments = arguments
        self.model_config = SimpleNamespace(max_model_len=LIMIT)
        self.steps: list[int] = []
        self.working, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.ended = threading.Event()
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda timeout: self.ended.set()))
        Llm.last = self

    last: "Llm"

    def get_tokenizer(self) -> Any:
        def tokenize(texts: Any, *, truncation: bool, max_length: int | None = None, **_: Any) -> dict[str, Any]:
            if isinstance(texts, str):
                return {"input_ids": [ord(letter) for letter in texts][:max_length]}
            return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

        return tokenize

    def encode(self, prompts: Any, parameters: Any, *, pooling_task: str, use_tqdm: bool) -> list[Any]:
        self.steps.append(len(prompts))
        self.working.set()
        assert self.go_on.wait(10)
        found = []
        for ids in (prompt["prompt_token_ids"] for prompt in prompts):
            if ids[0] == ord("!"):
                raise VLLMClientError("no exclamations")
            if ids[0] == ord("?"):
                raise RuntimeError("the engine core is dead")
            vector = np.array([len(ids), ids[0], 0][: parameters.dimensions], dtype=np.float32)
            found.append(SimpleNamespace(outputs=SimpleNamespace(data=_Tensor(vector)), prompt_token_ids=ids))
        return found


@pytest.fixture(autouse=True)
def _fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm, config, exceptions = (ModuleType(name) for name in ("vllm", "vllm.config", "vllm.exceptions"))
    vars(vllm).update(LLM=Llm, PoolingParams=lambda dimensions: SimpleNamespace(dimensions=dimensions))
    vars(config).update(PoolerConfig=lambda **given: given)
    vars(exceptions).update(VLLMClientError=VLLMClientError)
    for module in (vllm, config, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")


@pytest.fixture
def embedder() -> Iterator[InprocessVLLMEmbedder]:
    with InprocessVLLMEmbedder("m") as made:
        yield made


def test_vectors_and_tokens(embedder: InprocessVLLMEmbedder) -> None:
    """Float32, contiguous, in order; and how many tokens they were made of."""
    found, tokens = embedder.embed_batch_with_stats(["ab", "c"])
    assert np.array_equal(found, [[2, 97, 0], [1, 99, 0]])
    assert (found.dtype, found.flags.c_contiguous, tokens) == (np.float32, True, 3)
    assert np.array_equal(embedder.embed_batch(["c"]), [[1, 99, 0]])
    assert embedder.embed_batch([]).shape == (0, 3)
    assert embedder.embed_batch_with_stats([])[1] == 0


def test_settings_reach_the_engine() -> None:
    """Pooling, normalisation and whatever else vLLM takes; the runner is ours, unless the caller knows better."""
    with InprocessVLLMEmbedder("m", pooling_type="LAST", engine_normalize=False, dtype="bfloat16"):
        given = Llm.last.arguments
    assert given["pooler_config"] == {"pooling_type": "LAST", "use_activation": False}
    assert (given["runner"], given["convert"], given["dtype"]) == ("pooling", "embed", "bfloat16")
    with InprocessVLLMEmbedder("m", dimensions=2, normalize=True) as shorter:
        assert shorter.embed_batch(["c"]).shape == (1, 2)
        assert np.linalg.norm(shorter.embed_batch(["c"])) == pytest.approx(1)
        assert shorter.embed_batch([]).shape == (0, 2)


def test_what_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown pooling type, a model that is not there, and no vLLM at all."""
    with pytest.raises(SettingsError, match="pooling_type"):
        InprocessVLLMEmbedder("m", pooling_type="MAX")
    with pytest.raises(SetupError, match="no such model"):
        InprocessVLLMEmbedder("missing")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SetupError, match="tandem install") as met:
        VLLMClient(VLLMConfig(mode="inprocess", model="m"))
    assert isinstance(met.value.__cause__, ImportError)


def test_long_texts_are_cut_off_with_a_warning(
    embedder: InprocessVLLMEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    """Which says how much of it is left out."""
    found, tokens = embedder.embed_batch_with_stats(["a" * 40, "b"])
    assert np.array_equal(found[:, 0], [LIMIT, 1])
    assert tokens == LIMIT + 1
    (record,) = caplog.records
    assert "A text of 40 tokens was cut off after 10" in record.getMessage()
    assert "the last 30 of them (75%)" in record.getMessage()


def test_callers_share_steps(embedder: InprocessVLLMEmbedder) -> None:
    """What comes while the engine works is its next step, together, and everybody gets their own."""
    llm = Llm.last
    llm.go_on.clear()
    first = embedder.submit(["first"], None)
    assert llm.working.wait(10)
    others = [embedder.submit([letter, letter * 2], None) for letter in "abcdef"]
    llm.go_on.set()
    assert first.result(10).tokens == 5
    for letter, other in zip("abcdef", others, strict=True):
        assert [vector.tolist() for vector in other.result(10).vectors] == [[1, ord(letter), 0], [2, ord(letter), 0]]
    assert llm.steps == [1, 12]


def test_a_bad_text_is_its_callers_own(embedder: InprocessVLLMEmbedder) -> None:
    """Who shares a step with it still gets vectors."""
    llm = Llm.last
    llm.go_on.clear()
    embedder.submit(["first"], None)
    assert llm.working.wait(10)
    good, bad = embedder.submit(["a"], None), embedder.submit(["!"], None)
    llm.go_on.set()
    assert good.result(10).tokens == 1
    with pytest.raises(BadRequestError, match="no exclamations"):
        bad.result(10)
    with pytest.raises(BadRequestError) as refused:
        embedder.embed_batch(["!"])
    assert refused.value.index == 0


def test_an_engine_that_fails_says_so(embedder: InprocessVLLMEmbedder) -> None:
    """Whatever vLLM raises comes to whoever waits, from its cause."""
    with pytest.raises(ServerError, match="the engine core is dead") as met:
        embedder.embed_batch(["?"])
    assert isinstance(met.value.__cause__, RuntimeError)


def test_closing_answers_what_waits() -> None:
    """And ends the engine, once; afterwards nobody is let in."""
    embedder = InprocessVLLMEmbedder("m")
    llm = Llm.last
    llm.go_on.clear()
    waiting = [embedder.submit([letter], None) for letter in "abc"]
    with ThreadPoolExecutor(1) as threads:
        assert llm.working.wait(10)
        closing = threads.submit(embedder.close)
        llm.go_on.set()
        closing.result(10)
    assert [each.result(10).tokens for each in waiting] == [1, 1, 1]
    assert llm.ended.is_set()
    embedder.close()
    with pytest.raises(ClientClosedError):
        embedder.embed_batch(["a"])


def test_the_client_asks_it_for_threads_and_tasks() -> None:
    """`mode="inprocess"` is the same client in front of another transport; its deadline holds there, too."""
    with VLLMClient(VLLMConfig(mode="inprocess", model="m", engine={"pooling_type": "CLS"})) as client:
        llm = Llm.last
        assert llm.arguments["pooler_config"]["pooling_type"] == "CLS"
        assert np.array_equal(client.embed_chunks(["ab", "c"], 1), [[2, 97, 0], [1, 99, 0]])

        async def tasks() -> Any:
            return await asyncio.gather(*(client.embed_single_async(letter) for letter in "abc"))

        assert np.array_equal(np.array(asyncio.run(tasks()))[:, 1], [97, 98, 99])
        assert len(list(client.embed_iter(["a"] * 10))) == 10
    assert llm.ended.is_set()
    asyncio.run(client.aclose())


def test_the_deadline_holds() -> None:
    """Who has waited long enough is let go, and nobody works for them any more."""
    with VLLMClient(VLLMConfig(mode="inprocess", model="m", timeout_s=0.05)) as client:
        llm = Llm.last
        llm.go_on.clear()
        with pytest.raises(ClientTimeoutError):
            client.embed_single("a")
        for _ in range(2):
            with pytest.raises(ClientTimeoutError):
                client.embed_single("b")
        with pytest.raises(ClientTimeoutError):
            asyncio.run(client.embed_single_async("c"))
        llm.go_on.set()
    assert llm.steps == [1]


def test_usage_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM tells its makers of each start, unless it is told not to."""
    monkeypatch.delenv("VLLM_NO_USAGE_STATS")
    with InprocessVLLMEmbedder("m"):
        assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
