"""What vLLM spells otherwise, or lacks, and OpenAI honours: a request -> an engine's body, and how to read its answer.

Pure. Each translation has its other half in :mod:`tandem.router.answers`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tandem.models.requests import (
    GUIDED,
    MAX_TOKENS,
    NOT_FORWARDED,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
)

Generation = CompletionRequest | ChatCompletionRequest

# vLLM's greedy sampling begins below this temperature, and it then makes one choice only.
_GREEDY = 1e-5
_CONSTRAINTS = frozenset({"structured_outputs", *GUIDED})
_MEDIA = ("messages", "image_url")

_values: Callable[[bytes], dict[str, Any]] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Asked(msgspec.Struct, frozen=True):
    """What the caller asked for, as far as the form of the answer depends on it.

    Attributes:
        model: the name that the caller used.
        inputs: how many vectors an embedding answer must have.
        usage: ``stream_options.include_usage``.
        best: for ``best_of``, how many choices to return, and of how many; None without.
        prompts: for ``best_of`` with ``echo``, where each prompt ends: in tokens, or, for text, in characters.
        logprobs: whether the caller wants those that come.
        nothing: ``max_tokens`` 0: the token that the engine makes all the same does not count.
        echo: whether the prompt is part of the text.
        prompt: the parameter that holds it: ``input``, ``prompt`` or ``messages``.
        wanted: how many tokens the answer may have, where the caller, or else the API, says so.
        constraint: the parameter that constrains the form of the answer; ``response_format`` where none does.
        media: the first part of a message that is no text: its path and its type.
    """

    model: str
    inputs: int = 1
    usage: bool = False
    best: tuple[int, int] | None = None
    prompts: tuple[int | str, ...] = ()
    logprobs: bool = True
    nothing: bool = False
    echo: bool = False
    prompt: str = "prompt"
    wanted: int = 0
    constraint: str = "response_format"
    media: tuple[str, str] = _MEDIA


def embedding(request: EmbeddingRequest, body: bytes, model: str) -> tuple[bytes, Asked]:
    """The engine's body for an embedding request.

    Args:
        body: in which it came.
        model: the name that the engine serves its model by.
    """
    given = request.input
    several = isinstance(given, list) and not isinstance(given[0], int)
    asked = Asked(request.model, inputs=len(given) if several else 1, prompt="input")
    return _body(request, body, {"model": model}), asked


def generation(request: Generation, body: bytes, model: str) -> tuple[bytes, Asked]:
    """The engine's body for a completion or a chat; arguments as :func:`embedding` has them.

    - ``top_p`` 0, which vLLM refuses, is greedy sampling; greedy sampling with several choices, which it refuses, too,
      is sampling among the single most probable token.
    - The engine always counts tokens of a stream; whether the caller sees that, is the answer's concern.
    - ``guided_*``, which vLLM since 0.12 no longer reads, become ``structured_outputs``.
    - ``best_of`` and ``max_tokens`` 0: see :class:`Asked`.
    - To go on with the last message excludes the prompt for a new one, which vLLM would add.
    """
    constraints = _CONSTRAINTS & request.model_fields_set
    asked = _asked(request, next(iter(constraints), "response_format"))
    changes: dict[str, Any] = {"model": model}
    if request.stream:
        given = request.stream_options.model_dump(exclude_unset=True) if request.stream_options else {}
        changes["stream_options"] = given | {"include_usage": True}
    if isinstance(request, ChatCompletionRequest) and request.continue_final_message:
        request.add_generation_prompt = changes["add_generation_prompt"] = False  # its length is counted, too
    if isinstance(request, CompletionRequest):
        if asked.best:
            changes["n"] = asked.best[1]
            changes["logprobs"] = request.logprobs or 0
        if asked.nothing:
            changes["echo"] = True  # the one way in which vLLM takes a max_tokens of 0
    if request.top_p == 0 or (request.temperature is not None and request.temperature < _GREEDY):
        changes["temperature"], changes["top_p"] = 0.0, 1.0
        if changes.get("n", request.n or 1) > 1:
            changes["temperature"], changes["top_k"] = 1.0, 1
    for name in constraints:
        if name in GUIDED:
            changes["structured_outputs"] = {GUIDED[name]: getattr(request, name)}
    return _body(request, body, changes), asked


def _asked(request: Generation, constraint: str) -> Asked:
    usage = bool(request.stream_options and request.stream_options.include_usage)
    if isinstance(request, ChatCompletionRequest):
        if request.tool_choice not in (None, "none", "auto") and constraint not in request.model_fields_set:
            constraint = "tools"
        return Asked(
            request.model,
            usage=usage,
            prompt="messages",
            wanted=request.max_completion_tokens or request.max_tokens or 0,
            constraint=constraint,
            media=_media(request),
        )
    n, of = request.n or 1, request.best_of or request.n or 1
    echo = bool(request.echo)
    return Asked(
        request.model,
        usage=usage,
        best=(n, of) if of > n else None,
        prompts=_ends(request.prompt) if echo and of > n else (),
        logprobs=request.logprobs is not None,
        nothing=request.max_tokens == 0,
        echo=echo,
        wanted=MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        constraint=constraint,
    )


def _media(request: ChatCompletionRequest) -> tuple[str, str]:
    for i, message in enumerate(request.messages):
        for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if part.type not in {"text", "refusal"}:
                return f"messages.[{i}].content.[{j}].type", part.type
    return _MEDIA


def _ends(prompt: Any) -> tuple[int | str, ...]:
    """For each prompt, its length in tokens, or itself."""
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (len(prompt),)
    return tuple(each if isinstance(each, str) else len(each) for each in prompt)


def _body(request: EmbeddingRequest | Generation, given: bytes, changes: Mapping[str, object]) -> bytes:
    """``given`` as it came, value by value, but for the changes, and without what is not for an engine."""
    nulls = b"null" in given
    if not nulls and changes == {"model": request.model} and NOT_FORWARDED.isdisjoint(request.model_fields_set):
        return given
    try:
        values = _values(_without_nulls(request) if nulls else given)
    except msgspec.DecodeError:  # numbers that are none, which only Pydantic reads
        values = _values(_without_nulls(request))
    for name in NOT_FORWARDED & values.keys():
        del values[name]
    values.update(changes)
    return _encode(values)


def _without_nulls(request: EmbeddingRequest | Generation) -> bytes:
    """What Pydantic has read: at every depth, an explicit null counts as absent."""
    body = request.model_dump_json(by_alias=True, exclude_unset=True).encode()
    if extras := request.model_extra:  # Pydantic does not write what it was told to let through just this once
        return _encode(msgspec.json.decode(body) | extras)
    return body
