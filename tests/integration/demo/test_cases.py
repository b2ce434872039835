"""``cases.json``: requests as raw HTTP through the real service, and what the OpenAI API answers to each.

Of an expectation that is a list, any item will do; ``*`` stands for anything. Beside them stand what the caller may
see of an answer: its keys, exactly.
"""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ..conftest import Service, engines, router_alone

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

CASES = json.loads((Path(__file__).with_name("cases.json")).read_text())
KEY = "sk-a-key-of-the-tests"
MODELS = {"$GEN": "tandem-demo", "$EMB": "all-MiniLM-L6-v2"}

USAGE = {"prompt_tokens", "completion_tokens", "total_tokens"}
DETAILS = {"prompt_tokens_details", "completion_tokens_details"}
COMPLETION = {"id", "object", "created", "model", "choices"}


@pytest.fixture(scope="module")
def client(demo: Service) -> Iterator[httpx2.Client]:
    """The demo's engines behind a router that wants a key."""
    addresses = {name: engine["url"] for name, engine in engines(demo).items()}
    with (
        router_alone(addresses, TANDEM_API_KEY=KEY) as address,
        httpx2.Client(base_url=address, trust_env=False, timeout=120) as made,
    ):
        yield made


def filled(value: Any) -> Any:
    """``value`` with what its placeholders stand for."""
    if isinstance(value, str):
        for name, model in MODELS.items():
            value = value.replace(name, model)
        return value
    if isinstance(value, list):
        return [filled(item) for item in value]
    if isinstance(value, dict):
        if len(value) == 1 and next(iter(value)) in {"$repeat", "$repeat_str"}:
            ((how, (item, count)),) = value.items()
            return item * count if how == "$repeat_str" else [item] * count
        return {key: filled(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case(case: dict[str, Any], client: httpx2.Client) -> None:
    headers = {"Authorization": f"Bearer {KEY}"} if case.get("key", True) else {}
    content = case["raw"].replace("tiny", MODELS["$GEN"]) if "raw" in case else None
    got = client.request(
        case["method"],
        filled(case["path"]),
        json=filled(case.get("json")),
        content=content,
        headers=headers | case.get("headers", {}),
    )
    expected = case["expect"]
    assert got.status_code in any_of(expected["status"]), got.text
    assert got.headers["x-request-id"].startswith("req_")
    if got.status_code >= 400:
        error = got.json()["error"]
        assert got.json() == {"error": error}
        assert list(error) == ["message", "type", "param", "code"]
        for field in ("type", "code", "param"):
            assert error[field] in any_of(expected[field]) or "*" in any_of(expected[field]), error
        assert expected.get("message_contains", "") in error["message"]
    assert set(expected.get("headers_present", ())) <= {name.lower() for name in got.headers}
    for check in expected.get("checks", ()):
        name, _, argument = check.partition(":")
        CHECKS[name](got, case, argument)


def any_of(expected: Any) -> list[Any]:
    return expected if isinstance(expected, list) else [expected]


def events(got: httpx2.Response) -> list[Any]:
    """A stream's events; the last must be ``[DONE]``, once."""
    assert got.headers["content-type"].startswith("text/event-stream")
    blocks = got.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    assert [block for block in blocks if block == "data: [DONE]"] == blocks[-1:]
    return [json.loads(block[6:]) for block in blocks[:-1]]


def usage(found: dict[str, Any]) -> None:
    assert USAGE <= set(found) <= USAGE | DETAILS
    assert found["prompt_tokens"] + found["completion_tokens"] == found["total_tokens"]


def models_schema(got: httpx2.Response, *_: Any) -> None:
    assert got.json().keys() == {"object", "data"}
    assert [model["id"] for model in got.json()["data"]] == ["all-MiniLM-L6-v2", "tandem-demo"]
    assert all(model.keys() == {"id", "object", "created", "owned_by"} for model in got.json()["data"])


def model_schema(got: httpx2.Response, *_: Any) -> None:
    assert got.json().keys() == {"id", "object", "created", "owned_by"}


def emb_schema(got: httpx2.Response, *_: Any) -> None:
    assert got.json().keys() == {"object", "data", "model", "usage"}
    assert got.json()["usage"].keys() == {"prompt_tokens", "total_tokens"}
    for item in got.json()["data"]:
        assert item.keys() == {"object", "index", "embedding"}
        assert len(item["embedding"]) == 384


def emb_order(got: httpx2.Response, _: Any, number: str) -> None:
    assert [item["index"] for item in got.json()["data"]] == list(range(int(number)))


def emb_b64_equals_float(got: httpx2.Response, case: dict[str, Any], _: str) -> None:
    again = {**filled(case["json"]), "encoding_format": "float"}
    assert got.request is not None
    floats = httpx2.post(got.request.url, json=again, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False)
    decoded = struct.unpack("<384f", base64.b64decode(got.json()["data"][0]["embedding"]))
    assert decoded == pytest.approx(floats.json()["data"][0]["embedding"], abs=1e-3)


def comp_schema(got: httpx2.Response, *_: Any) -> None:
    assert got.json().keys() - {"system_fingerprint"} == COMPLETION | {"usage"}
    assert got.json()["object"] == "text_completion"
    for index, choice in enumerate(got.json()["choices"]):
        assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}
        assert choice["index"] == index
    usage(got.json()["usage"])


def comp_choices(got: httpx2.Response, _: Any, number: str) -> None:
    assert len(got.json()["choices"]) == int(number)


def completion_tokens(got: httpx2.Response, _: Any, number: str) -> None:
    assert got.json()["usage"]["completion_tokens"] == int(number)
    assert got.json()["choices"][0]["finish_reason"] == "length"


def text(got: httpx2.Response, _: Any, wanted: str) -> None:
    assert got.json()["choices"][0]["text"] == wanted


def starts_with_prompt(got: httpx2.Response, case: dict[str, Any], _: str) -> None:
    assert got.json()["choices"][0]["text"].startswith(case["json"]["prompt"])


def digits(got: httpx2.Response, *_: Any) -> None:
    found = got.json()["choices"][0]["text"]
    assert len(found) == 3
    assert found.isdecimal()


def alike(got: httpx2.Response, *_: Any) -> None:
    assert len({choice["text"] for choice in got.json()["choices"]}) == 1


def logprobs_shape(got: httpx2.Response, _: Any, number: str) -> None:
    found = got.json()["choices"][0]["logprobs"]
    assert found.keys() == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
    assert {len(values) for values in found.values()} == {len(found["tokens"])}
    assert all(int(number) <= len(top) <= int(number) + 1 for top in found["top_logprobs"])


def sse_framing(got: httpx2.Response, *_: Any) -> None:
    assert events(got)


def sse_chunk_keys(got: httpx2.Response, *_: Any) -> None:
    for chunk in events(got):
        assert chunk.keys() - {"system_fingerprint"} == COMPLETION
        assert all(choice.keys() == {"index", "text", "logprobs", "finish_reason"} for choice in chunk["choices"])


def sse_chat_keys(got: httpx2.Response, *_: Any) -> None:
    chunks = events(got)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk.keys() - {"system_fingerprint"} == COMPLETION
        for choice in chunk["choices"]:
            assert choice.keys() == {"index", "delta", "logprobs", "finish_reason"}
            assert choice["delta"].keys() <= {"role", "content"}


def sse_usage(got: httpx2.Response, *_: Any) -> None:
    *chunks, last = events(got)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    usage(last["usage"])


def sse_no_usage(got: httpx2.Response, *_: Any) -> None:
    assert all("usage" not in chunk for chunk in events(got))
    assert all(chunk["choices"] for chunk in events(got))


def chat_schema(got: httpx2.Response, *_: Any) -> None:
    assert got.json().keys() - {"system_fingerprint"} == COMPLETION | {"usage"}
    assert got.json()["object"] == "chat.completion"
    for choice in got.json()["choices"]:
        assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
        assert choice["message"].keys() - {"tool_calls"} == {"role", "content", "refusal"}
    usage(got.json()["usage"])


def chat_logprobs(got: httpx2.Response, _: Any, number: str) -> None:
    for token in got.json()["choices"][0]["logprobs"]["content"]:
        assert token.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(token["top_logprobs"]) == int(number)


def json_content(got: httpx2.Response, *_: Any) -> None:
    assert json.loads(got.json()["choices"][0]["message"]["content"]).keys() == {"a"}


def tool_call(got: httpx2.Response, _: Any, name: str) -> None:
    (choice,) = got.json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call.keys() == {"id", "type", "function"}
    assert call["function"]["name"] == name
    assert json.loads(call["function"]["arguments"]).keys() == {"b"}


def hdr(got: httpx2.Response, _: Any, name: str) -> None:
    assert got.headers[name]


CHECKS: dict[str, Callable[[httpx2.Response, dict[str, Any], str], None]] = {
    check.__name__: check
    for check in (
        *(models_schema, model_schema, emb_schema, emb_order, emb_b64_equals_float, comp_schema, comp_choices),
        *(completion_tokens, text, starts_with_prompt, digits, alike, logprobs_shape, sse_framing, sse_chunk_keys),
        *(sse_chat_keys, sse_usage, sse_no_usage, chat_schema, chat_logprobs, json_content, tool_call, hdr),
    )
} | {"emb_count": emb_order}
