"""What callers may send, field by field.

Each model is the OpenAI specification's request (https://platform.openai.com/docs/api-reference: embeddings,
completions, chat) and, in a mixin of its own, the sampling extensions that vLLM documents
(https://docs.vllm.ai/en/latest/serving/openai_compatible_server/). Anything else is an unknown parameter. An explicit
null counts as absent.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

LARGEST = 2**31 - 1  # of a number that an engine keeps in an int32, or that no model comes near
_SEED = 2**63

Count = Annotated[StrictInt, Field(ge=0, le=LARGEST)]
# One wrong item is enough: without fail_fast, each shape would complain of every item of a long list.
TokenIds = Annotated[list[Count], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[StrictStr], Field(min_length=1, fail_fast=True)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
Prompt = StrictStr | Texts | TokenIds | TokenLists
MAX_INPUTS = 2048
MOST_KEYS = 1024
MAX_TOKENS = 16  # of a completion, where the caller does not say
MAX_PROMPTS = 1024  # vLLM's own bound, VLLM_MAX_COMPLETION_PROMPTS

# vLLM's older names, and what they are in ``structured_outputs``.
GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}

# vLLM's levers for whoever runs it, not for callers: never passed on, whatever the settings.
INTERNAL = frozenset(
    {
        "cache_salt",
        "data_parallel_rank",
        "ec_transfer_params",
        "kv_transfer_params",
        "mm_payload",
        "priority",
        "prompt_embeds",
        "request_id",
        "return_mm_kwargs",
        "routed_experts_prompt_start",
        "session_id",
        "vllm_xargs",
    }
)

# Of no meaning to an engine: what OpenAI accepts, and what :mod:`tandem.router.translate` writes otherwise.
NOT_FORWARDED = {
    "user",
    "metadata",
    "modalities",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "verbosity",
    "best_of",
    "suffix",
    *GUIDED,
}


def _few(values: Any) -> Any:
    """Refuse an object with more keys than anybody needs: each wrong one would be complained of by itself."""
    if isinstance(values, dict) and len(values) > MOST_KEYS:
        raise PydanticCustomError(
            "too_long", "too many keys", {"max_length": MOST_KEYS, "actual_length": len(values), "field_type": "Object"}
        )
    return values


_FEW = BeforeValidator(_few)


class _Shape(BaseModel):
    """An object of the API."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: object) -> object:
        if isinstance(values, dict):
            return {key: value for key, value in _few(values).items() if value is not None}
        return values


class _Closed(_Shape):
    """An object of the API that has no further keys; where some are let through all the same, they are passed on."""

    @model_serializer(mode="wrap")
    def _with_extras(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **(self.model_extra or {})}


class _Open(_Shape):
    """An object of the API in which models and their families have keys of their own; those are left to the engine."""

    model_config = ConfigDict(extra="allow")


class _Request(_Shape):
    model: Annotated[StrictStr, Field(min_length=1, examples=["generation"])]
    user: StrictStr | None = None


class EmbeddingRequest(_Request):
    """``POST /v1/embeddings``. Four input shapes: a text, texts, token ids, lists of token ids."""

    model: Annotated[StrictStr, Field(min_length=1, examples=["embedding"])]
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1, le=LARGEST)] | None = None

    # vLLM's
    add_special_tokens: StrictBool | None = None
    padding: Literal["max_length", "do_not_pad"] | None = None
    truncate_prompt_tokens: Annotated[StrictInt, Field(ge=-1, le=LARGEST)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_activation: StrictBool | None = None


class StreamOptions(_Closed):
    """``stream_options``; ``continuous_usage_stats`` is vLLM's."""

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None
    continuous_usage_stats: StrictBool | None = None


class JsonSchema(_Closed):
    """``response_format.json_schema``."""

    name: Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: StrictStr | None = None
    strict: StrictBool | None = None


class ResponseFormat(_Open):
    """``response_format``; ``structural_tag`` is vLLM's, and its further keys are left to the engine."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None


class _Sampling(_Request):
    """What completions and chat share, OpenAI's first, then vLLM's documented extensions."""

    frequency_penalty: Annotated[float, Field(ge=-2, le=2, strict=True)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], _FEW] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, strict=True)] | None = None
    seed: Annotated[StrictInt, Field(ge=-_SEED, le=_SEED - 1)] | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=4, fail_fast=True)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None

    add_special_tokens: StrictBool | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Annotated[list[Annotated[StrictStr, Field(min_length=1)]], Field(fail_fast=True)] | None = None
    guided_json: dict[str, Any] | StrictStr | None = None
    guided_regex: StrictStr | None = None
    guided_choice: Annotated[list[StrictStr], Field(fail_fast=True)] | None = None
    guided_grammar: StrictStr | None = None
    ignore_eos: StrictBool | None = None
    include_stop_str_in_output: StrictBool | None = None
    length_penalty: float | None = None
    logprob_token_ids: TokenIds | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Count | None = None
    prompt_logprobs: Annotated[StrictInt, Field(ge=-1, le=LARGEST)] | None = None
    repetition_detection: Annotated[dict[str, Count], _FEW] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    response_format: ResponseFormat | None = None
    return_tokens_as_token_ids: StrictBool | None = None
    skip_special_tokens: StrictBool | None = None
    spaces_between_special_tokens: StrictBool | None = None
    stop_token_ids: Annotated[list[Count], Field(fail_fast=True)] | None = None
    stream_interval: Annotated[StrictInt, Field(ge=1, le=LARGEST)] | None = None
    structured_outputs: dict[str, Any] | None = None
    thinking_token_budget: Annotated[StrictInt, Field(ge=-1, le=LARGEST)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=LARGEST)] | None = None
    truncate_prompt_tokens: Annotated[StrictInt, Field(ge=-1, le=LARGEST)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_beam_search: StrictBool | None = None
    watermarking: StrictBool | None = None


class CompletionRequest(_Sampling):
    """``POST /v1/completions``."""

    prompt: Prompt
    best_of: Annotated[StrictInt, Field(ge=1, le=20)] | None = None
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    suffix: StrictStr | None = None


class TextPart(_Open):
    """A part of a message: text."""

    type: Literal["text"]
    text: StrictStr


class RefusalPart(_Open):
    """A part of an assistant's message: its refusal."""

    type: Literal["refusal"]
    refusal: StrictStr


class Url(_Open):
    """Where a picture, a sound or a film is: an address, or a ``data:`` URL."""

    url: StrictStr
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Open):
    """A part of a message: a picture."""

    type: Literal["image_url"]
    image_url: Url


class AudioData(_Open):
    """A sound, in base64."""

    data: StrictStr
    format: Literal["wav", "mp3"]


class AudioPart(_Open):
    """A part of a message: a sound."""

    type: Literal["input_audio"]
    input_audio: AudioData


class AudioUrlPart(_Open):
    """A part of a message, vLLM's: a sound, by its address."""

    type: Literal["audio_url"]
    audio_url: Url


class VideoUrlPart(_Open):
    """A part of a message, vLLM's: a film, by its address."""

    type: Literal["video_url"]
    video_url: Url


def _tag(part: object) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return f"({kind})" if isinstance(kind, str) else None


# In brackets, the tags are no identifiers, and so no part of the path to a value at fault.
Part = Annotated[
    Annotated[TextPart, Tag("(text)")]
    | Annotated[ImagePart, Tag("(image_url)")]
    | Annotated[AudioPart, Tag("(input_audio)")]
    | Annotated[RefusalPart, Tag("(refusal)")]
    | Annotated[AudioUrlPart, Tag("(audio_url)")]
    | Annotated[VideoUrlPart, Tag("(video_url)")],
    Discriminator(_tag),
]


class CalledFunction(_Open):
    """What a tool call calls; ``arguments`` is JSON as text."""

    name: StrictStr
    arguments: StrictStr


class ToolCall(_Open):
    """A call that an earlier answer made."""

    id: StrictStr
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(_Open):
    """One message. Further keys are left to the engine: they differ by role and by model family."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: StrictStr | Annotated[list[Part], Field(min_length=1, fail_fast=True)] | None = None
    name: StrictStr | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, fail_fast=True)] | None = None
    tool_call_id: StrictStr | None = None


class Function(_Open):
    """``tools[].function``."""

    name: Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class Tool(_Open):
    """``tools[]``: a function that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Closed):
    """``tool_choice.function``."""

    name: StrictStr


class NamedToolChoice(_Closed):
    """``tool_choice`` that names the function to call."""

    type: Literal["function"]
    function: NamedFunction


class ChatCompletionRequest(_Sampling):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    logprobs: StrictBool | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    metadata: Annotated[dict[str, StrictStr], _FEW] | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(fail_fast=True)] | None = None
    parallel_tool_calls: StrictBool | None = None
    prompt_cache_key: StrictStr | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: StrictStr | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    safety_identifier: StrictStr | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    store: StrictBool | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128, fail_fast=True)] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    # Of the specification, and nothing that an engine can do: refused where they are set.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    moderation: Any = None
    prediction: Any = None
    web_search_options: Any = None

    add_generation_prompt: StrictBool | None = None
    chat_template: StrictStr | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: StrictBool | None = None
    documents: Annotated[list[Annotated[dict[str, StrictStr], _FEW]], Field(fail_fast=True)] | None = None
    echo: StrictBool | None = None
    include_reasoning: StrictBool | None = None
    media_io_kwargs: Annotated[dict[str, dict[str, Any]], _FEW] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
