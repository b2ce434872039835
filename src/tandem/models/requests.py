"""What callers may send, field by field.

Each model is the OpenAI specification's request (https://platform.openai.com/docs/api-reference: embeddings,
completions, chat) and, in a mixin of its own, the sampling extensions that vLLM documents
(https://docs.vllm.ai/en/latest/serving/openai_compatible_server/). Anything else is an unknown parameter. An explicit
null counts as absent.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

# One wrong item is enough: without fail_fast, each shape would complain of every item of a long list.
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[StrictStr], Field(min_length=1, fail_fast=True)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
Prompt = StrictStr | Texts | TokenIds | TokenLists
MAX_INPUTS = 2048

# Accepted from callers as OpenAI accepts them, and of no meaning to an engine: not passed on.
_NOT_FORWARDED = {
    "user",
    "metadata",
    "modalities",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "verbosity",
}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Annotated[StrictStr, Field(min_length=1)]
    user: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: object) -> object:
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if value is not None}
        return values

    def forwarded(self, model: str) -> bytes:
        """The body for the engine: what the caller set, under the name that the engine serves the model by."""
        self.model = model
        return self.model_dump_json(exclude_unset=True, exclude=_NOT_FORWARDED).encode()


class EmbeddingRequest(_Request):
    """``POST /v1/embeddings``. Four input shapes: a text, texts, token ids, lists of token ids."""

    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None

    # vLLM's
    truncate_prompt_tokens: Annotated[StrictInt, Field(ge=-1)] | None = None


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None


class _Sampling(_Request):
    """What completions and chat share, OpenAI's first, then vLLM's documented extensions."""

    frequency_penalty: Annotated[float, Field(ge=-2, le=2, strict=True)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, strict=True)] | None = None
    seed: StrictInt | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=4)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None

    add_special_tokens: StrictBool | None = None
    allowed_token_ids: list[StrictInt] | None = None
    bad_words: list[StrictStr] | None = None
    ignore_eos: StrictBool | None = None
    include_stop_str_in_output: StrictBool | None = None
    length_penalty: float | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    prompt_logprobs: StrictInt | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    response_format: dict[str, Any] | None = None
    skip_special_tokens: StrictBool | None = None
    spaces_between_special_tokens: StrictBool | None = None
    stop_token_ids: list[StrictInt] | None = None
    structured_outputs: dict[str, Any] | None = None
    top_k: StrictInt | None = None
    truncate_prompt_tokens: Annotated[StrictInt, Field(ge=-1)] | None = None
    use_beam_search: StrictBool | None = None


class CompletionRequest(_Sampling):
    """``POST /v1/completions``."""

    prompt: Prompt
    best_of: Annotated[StrictInt, Field(ge=1, le=20)] | None = None
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    suffix: StrictStr | None = None


class ChatMessage(BaseModel):
    """One message. Further keys are left to the engine: they differ by role and by model family."""

    model_config = ConfigDict(extra="allow")

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: StrictStr | list[dict[str, Any]] | None = None
    name: StrictStr | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: StrictStr | None = None


class ChatCompletionRequest(_Sampling):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    logprobs: StrictBool | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    metadata: dict[str, StrictStr] | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: StrictBool | None = None
    prompt_cache_key: StrictStr | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    safety_identifier: StrictStr | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: StrictBool | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    add_generation_prompt: StrictBool | None = None
    chat_template: StrictStr | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: StrictBool | None = None
    documents: list[dict[str, StrictStr]] | None = None
    include_reasoning: StrictBool | None = None
