"""What popular clients really send goes through.

``recorded/clients.json`` holds requests as the libraries sent them to a recording server: by name and version the
openai SDKs (Python, JavaScript), LangChain, LlamaIndex, the Vercel AI SDK, LiteLLM and Open WebUI.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import ApiError
from tandem.models.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from tandem.router.checks import parse

RECORDED = json.loads((Path(__file__).parent / "recorded" / "clients.json").read_text())
MODELS: dict[str, type[ChatCompletionRequest | CompletionRequest | EmbeddingRequest]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
}
# Settings for Ollama, which a user of Open WebUI may set, and neither OpenAI nor vLLM knows.
REFUSED = {"repeat_penalty", "mirostat", "num_ctx", "think"}


def parsed(sent: dict[str, Any]) -> None:
    assert sent["headers"]["content-type"].startswith("application/json")
    parse(MODELS[sent["path"]], json.dumps(sent["body"]).encode())


def _refused(body: dict[str, Any]) -> bool:
    """Whether OpenAI refuses it, too: unknown settings, text after the completion, a choice without tools."""
    return bool(REFUSED & body.keys()) or "suffix" in body or ("tool_choice" in body and "tools" not in body)


@pytest.mark.parametrize("client", sorted({sent["client"] for sent in RECORDED}))
def test_requests_pass(client: str) -> None:
    mine = [sent for sent in RECORDED if sent["client"] == client and sent["path"] in MODELS]
    for sent in mine:
        if not _refused(sent["body"]):
            parsed(sent)
    assert mine


def test_parameters_for_other_servers_are_refused_by_name() -> None:
    sent = next(sent for sent in RECORDED if sent["path"] in MODELS and REFUSED & sent["body"].keys())
    with pytest.raises(ApiError) as refused:
        parsed(sent)
    assert (refused.value.status, refused.value.code) == (400, "unknown_parameter")
