"""Engine answers become OpenAI's: its keys and no others, its errors, nothing of the engine's disk."""

import json
from typing import Any

import pytest

from tandem.errors import ApiError
from tandem.models.responses import ChatCompletion, ChatCompletionChunk, Completion, EmbeddingResponse
from tandem.router import answers
from tandem.router.translate import Asked

LOGPROBS = {"text_offset": [0], "token_logprobs": [-0.5], "tokens": ["x"], "top_logprobs": None}
FORM = answers.Form()
USAGE = {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2}
SAID_USAGE = {**USAGE, "prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": 1}}
EXTRA = {"kv_transfer_params": None, "metrics": {}, "service_tier": None}


def through(kind: Any, body: object) -> Any:
    inputs = len(body["data"]) if isinstance(body, dict) and "data" in body else 1
    return json.loads(FORM.whole(kind, json.dumps(body).encode(), Asked("asked-for", inputs=inputs))[0])


def test_embeddings() -> None:
    """Vectors stay as the engine wrote them, floats or base64."""
    said = {
        "id": "embd-1",
        "created": 1,
        "object": "list",
        "model": "org/m",
        "data": [
            {"index": 0, "object": "embedding", "embedding": [0.5, -1e-05]},
            {"index": 1, "embedding": "AAAA"},
        ],
        "usage": {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0},
    }
    assert through(EmbeddingResponse, said) == {
        "object": "list",
        "model": "asked-for",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1e-05]},
            {"object": "embedding", "index": 1, "embedding": "AAAA"},
        ],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


def test_completions() -> None:
    choice = {"index": 0, "text": "x", "finish_reason": "stop", "stop_reason": 7, "logprobs": LOGPROBS}
    said = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], **EXTRA}
    assert through(Completion, {**said, "usage": SAID_USAGE}) == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "asked-for",
        "choices": [{"index": 0, "text": "x", "finish_reason": "stop", "logprobs": LOGPROBS}],
        "usage": {**USAGE, "completion_tokens_details": {"reasoning_tokens": 1}},
    }


@pytest.mark.parametrize(
    ("extra", "kept"),
    [
        ({"tool_calls": [], "reasoning": None, "annotations": None}, {}),
        ({"tool_calls": [{"id": "1"}], "reasoning": "hm"}, {"tool_calls": [{"id": "1"}], "reasoning": "hm"}),
    ],
)
def test_chat(extra: dict[str, object], kept: dict[str, object]) -> None:
    """Tool calls and reasoning where there are some; no empty lists in their place."""
    message = {"role": "assistant", "content": "x", **extra}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "token_ids": None}
    said = {"id": "1", "created": 1, "model": "m", "choices": [choice], "usage": USAGE, **EXTRA}
    assert through(ChatCompletion, said) == {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "asked-for",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x", "refusal": None, **kept},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


def test_chunks() -> None:
    """`usage` only where the engine was asked for it, null or not."""
    said = {"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": "x"}}], "metrics": {}}
    event, _ = FORM.chunk(ChatCompletionChunk, json.dumps(said).encode(), Asked("asked-for"))
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert json.loads(event[6:]) == {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "asked-for",
        "choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": None, "finish_reason": None}],
    }
    text = {**said, "choices": [{"index": 0, "text": "x"}], "usage": None}
    with_usage, _ = FORM.chunk(Completion, json.dumps(text).encode(), Asked("m", usage=True))
    assert json.loads(with_usage[6:])["usage"] is None
    counted = json.dumps({**said, "choices": [], "usage": USAGE}).encode()
    hidden, usage = FORM.chunk(Completion, counted, Asked("m"))
    assert hidden == b""
    assert usage is not None
    assert usage.total_tokens == 5
    shown, _ = FORM.chunk(Completion, counted, Asked("m", usage=True))
    assert json.loads(shown[6:])["usage"] == USAGE


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"data": 3}', b'{"model": "\xff"}', b"[" * 100_000])
def test_nonsense_is_a_502(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        FORM.whole(EmbeddingResponse, body, Asked("m"))
    assert (caught.value.status, caught.value.type) == (502, "server_error")


@pytest.mark.parametrize(
    ("status", "said", "answered"),
    [
        (400, {"message": "n must be 1 when using greedy sampling, got 2.", "code": 400}, (400, "Invalid value for 'n': it must be 1 when the model samples greedily.", "n", None)),
        (404, {"message": "LoRA /srv/models/x/y.bin is gone"}, (502, "The engine gave an answer that could not be understood.", None, "bad_gateway")),
        (None, {"message": "Token id 9 is out of vocabulary", "code": 400}, (400, "Invalid 'prompt': the token id 9 is not in the model's vocabulary.", "prompt", "invalid_value")),
        (500, {"message": "EngineCore encountered an issue at /srv/x/y"}, (502, "The engine broke off its answer.", None, "upstream_broke_off")),
        (None, {"message": "dead", "code": 500}, (502, "The engine had an error while processing your request. Please try again.", None, "engine_error")),
        (503, {"message": "The engine is currently busy"}, (503, "The engine that serves this model is currently overloaded. Please try again later.", None, "overloaded")),
    ],
)  # fmt: skip
def test_engine_errors(status: int | None, said: dict[str, object], answered: tuple[object, ...]) -> None:
    """What is the caller's fault is told without the engine's internals; what is the engine's is a 502."""
    refusal = answers.error(json.dumps({"error": said}).encode(), Asked("m"), status)
    assert (refusal.status, refusal.message, refusal.param, refusal.code) == answered


def test_an_error_without_a_body() -> None:
    assert answers.error(b"nope", Asked("m"), 422).status == 400
    assert answers.error(b"nope", Asked("m"), 429).status == 503
    assert answers.error(b"nope", Asked("m"), 500).status == 502


def test_every_error_has_the_four_keys() -> None:
    body = json.loads(answers.body(ApiError(400, "m")))
    assert body == {"error": {"message": "m", "type": "invalid_request_error", "param": None, "code": None}}
