"""Whether prompt and answer fit into a model's context. vLLM shortens the answer in silence; OpenAI refuses."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import msgspec

from tandem.fleet import Engine
from tandem.models.requests import MAX_TOKENS, ChatCompletionRequest, CompletionRequest
from tandem.router import checks, wording
from tandem.router.connection import UpstreamError
from tandem.router.upstream import UNREADABLE, Upstreams

_SPECIAL = 8  # special tokens that a tokenizer may add to a text
_TEMPLATE = 4096  # bytes that a chat template may add to its messages
_PATIENCE = 5.0  # seconds, for all prompts of a request
# What the length of a chat's prompt depends on.
_TEMPLATED = {
    "messages",
    "tools",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
}


class _Tokenized(msgspec.Struct):
    count: int
    max_model_len: int


class Contexts:
    """Counts where it must. No token of a text is shorter than a byte, so most requests fit by their length alone."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams

    def check(
        self, engine: Engine, request: CompletionRequest | ChatCompletionRequest, body_bytes: int
    ) -> Awaitable[None] | None:
        """Refuse what does not fit. An engine that does not tell how long a prompt is decides for itself.

        Args:
            engine: the one that is going to be asked.
            body_bytes: the length of the caller's body.

        Returns:
            What has to be awaited where it must be counted.

        Raises:
            ApiError: 400, prompt and answer have more tokens than the context.
        """
        if not engine.context or request.truncate_prompt_tokens is not None:
            return None
        chat = isinstance(request, ChatCompletionRequest)
        name, wanted = _wanted(request)
        if wanted > engine.context:
            raise wording.too_many_tokens(name, wanted, engine.context)
        # Without a wish for tokens, the engine itself refuses a chat that leaves room for none.
        if not wanted or body_bytes + wanted + (_TEMPLATE if chat else _SPECIAL) <= engine.context:
            return None
        return self._check(engine, request, wanted)

    async def _check(self, engine: Engine, request: CompletionRequest | ChatCompletionRequest, wanted: int) -> None:
        with suppress(TimeoutError, UpstreamError, *UNREADABLE):
            async with asyncio.timeout(_PATIENCE):
                if isinstance(request, ChatCompletionRequest):
                    question = request.model_dump_json(by_alias=True, include=_TEMPLATED, exclude_unset=True)
                    await self._count(engine, msgspec.json.decode(question), wanted, param="messages")
                else:
                    await self._completion(engine, request, wanted)

    async def _completion(self, engine: Engine, request: CompletionRequest, wanted: int) -> None:
        given: Any = request.prompt
        prompts = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        special = {} if request.add_special_tokens is None else {"add_special_tokens": request.add_special_tokens}
        for prompt in prompts:
            if not isinstance(prompt, str):
                checks.context(len(prompt), wanted, engine.context, param="prompt")
            elif len(prompt.encode()) + _SPECIAL + wanted > engine.context:
                await self._count(engine, {"prompt": prompt, **special}, wanted, param="prompt")

    async def _count(self, engine: Engine, question: dict[str, Any], wanted: int, *, param: str) -> None:
        body = msgspec.json.encode({"model": engine.model, **question})
        answer = await self._upstreams.to(engine.url).request("POST", "/tokenize", body)
        try:
            if answer.status == 200:
                counted = msgspec.json.decode(await answer.read(), type=_Tokenized)
                checks.context(counted.count, wanted, counted.max_model_len, param=param)
        finally:
            answer.close()


def _wanted(request: CompletionRequest | ChatCompletionRequest) -> tuple[str, int]:
    """How many tokens the answer may have, and which parameter says so."""
    if isinstance(request, CompletionRequest):
        return "max_tokens", MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if request.max_completion_tokens:
        return "max_completion_tokens", request.max_completion_tokens
    return "max_tokens", request.max_tokens or 0
