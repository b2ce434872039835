"""What callers get: the OpenAI specification's keys and no others.

msgspec structs, not Pydantic models: the router decodes an engine's answer into them and encodes it again, which drops
whatever else the engine says, in a few microseconds for a stream's event. Large parts that the router does not look
into stay as the engine wrote them (:class:`msgspec.Raw`). Docs are made from the same structs.

Source: https://platform.openai.com/docs/api-reference
"""

from typing import Literal

from msgspec import UNSET, Raw, Struct, UnsetType, field


def _null() -> Raw:
    return Raw(b"null")


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class Embedding(Struct):
    """One vector: floats, or base64 of little-endian float32."""

    index: int
    embedding: Raw
    object: Literal["embedding"] = "embedding"


class EmbeddingResponse(Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class PromptTokensDetails(Struct):
    cached_tokens: int | None | UnsetType = UNSET


class CompletionTokensDetails(Struct):
    reasoning_tokens: int | None | UnsetType = UNSET


class Usage(Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None | UnsetType = UNSET
    completion_tokens_details: CompletionTokensDetails | None | UnsetType = UNSET


class CompletionLogprobs(Struct):
    """One item a token in each list. With ``echo``, the prompt's are there, too, and its first has no probability."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: Raw
    top_logprobs: Raw = field(default_factory=_null)


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(Struct):
    """A text completion; without ``usage``, a chunk of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None | UnsetType = UNSET
    usage: Usage | None | UnsetType = UNSET


class ChatLogprobs(Struct):
    content: Raw = field(default_factory=_null)
    refusal: Raw = field(default_factory=_null)


class Message(Struct):
    """A chat's answer. ``reasoning``, by either name that engines give it, is the one key beyond the specification."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[Raw] | None | UnsetType = UNSET
    reasoning: str | None | UnsetType = UNSET
    reasoning_content: str | None | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletion(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None | UnsetType = UNSET


class Delta(Struct):
    role: str | None | UnsetType = UNSET
    content: str | None | UnsetType = UNSET
    refusal: str | None | UnsetType = UNSET
    tool_calls: list[Raw] | None | UnsetType = UNSET
    reasoning: str | None | UnsetType = UNSET
    reasoning_content: str | None | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None | UnsetType = UNSET
    usage: Usage | None | UnsetType = UNSET


class Model(Struct):
    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "tandem"


class ModelList(Struct):
    data: list[Model]
    object: Literal["list"] = "list"


class ErrorDetail(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Struct):
    error: ErrorDetail


class ServiceHealth(Struct):
    """One part of the service. ``status`` is ``healthy`` or an engine's state.

    Of an engine that is not ready, ``elapsed`` is the seconds since its start began, ``estimate`` the seconds that its
    last start took, and ``last_line`` what it logged last.
    """

    status: str
    model: str | UnsetType = UNSET
    detail: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    since: float | UnsetType = UNSET
    elapsed: float | UnsetType = UNSET
    estimate: float | UnsetType = UNSET
    last_line: str | UnsetType = UNSET
    restarts: int | UnsetType = UNSET


class Health(Struct):
    """``healthy`` when every part is."""

    status: Literal["healthy", "unhealthy"]
    services: dict[str, ServiceHealth]
