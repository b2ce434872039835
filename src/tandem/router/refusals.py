"""The engine's own refusals in OpenAI's words: one table. Pure.

vLLM's sentences name its flags, its environment and its classes, and change from release to release (those of 0.24 to
0.33 are covered); what a caller gets is the same whoever refused. Each row's pattern is searched for, in order, in the
message without its tail ``(parameter=…, value=…)``. Where OpenAI has public wording for the case, that is used.
"""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tandem.errors import ApiError
from tandem.router import wording
from tandem.router.translate import Asked

_TAIL = re.compile(r"\(parameter=[\w.\[\]' ]+(?:, value=.*)?\)\s*$", re.DOTALL)
# Pydantic's report, as vLLM prints it: of several complaints, the first.
_REPORT = re.compile(
    r"\d+ validation errors?:\n\s+\{'type': '(?P<type>\w+)', 'loc': (?P<loc>'[^']*'|\([^)]*\)), "
    r"'msg': (?P<msg>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
)
# Words of a chat template or of a grammar's compiler are passed on unless they tell of the engine's inside: its flags
# and settings, libraries and disk ("/a/b" where a word begins; "user/assistant" is none), and Python's own complaints.
_INSIDE = re.compile(
    r"(?:^|[\s`'\"(])--[a-z]|vllm|max_model_len|max_num_|pydantic|jinja|transformers|torch|xgrammar|\b0x|"
    r"(?:^|[\s`'\"(=:])[~.]{0,2}/[\w.~-]+/|<path>|https?://|\.py\b|\n|\w\(\)|__|\w(?:Error|Exception)\b|NoneType|"
    r"\bself\b|\b(?:dict|list|tuple|set|str|int|float|bool|type|function|module|Undefined) object\b|object of type|"
    r"is undefined|has no attribute|has no element|unsupported operand|not supported between|unhashable|can only concatenate|"
    r"indices must be|index out of range|not (?:iterable|subscriptable|callable)|not JSON serializable",
    re.IGNORECASE,
)
_POINTER = re.compile(r"'#?/(?:\$defs|definitions|properties|items|anyOf|allOf|oneOf)/[^']*'")  # into a caller's schema
_LONGEST = 300
# Of a sentence, so much is looked at: an engine repeats what a caller sent, however long, and searching takes time.
_READ = 4000


@dataclass(frozen=True)
class Rule:
    """A row: what the engine says, and what is said instead.

    ``message`` and ``param`` may name the pattern's groups and the fields of :class:`Asked` in braces.
    """

    name: str
    pattern: re.Pattern[str]
    message: str | Callable[[Mapping[str, str], Asked], ApiError]
    param: str | None = None
    code: str | None = None


def refusal(message: str, asked: Asked) -> ApiError:
    """The 400 for an engine's refusal, such as ``n must be 1 when using greedy sampling, got 2.``."""
    said = sentence(message)
    for rule in RULES:
        if found := rule.pattern.search(said):
            groups = {name: value or "" for name, value in found.groupdict().items()}
            if callable(rule.message):
                return rule.message(groups, asked)
            fields = {"prompt": asked.prompt, "constraint": asked.constraint, "media": asked.media[1]} | groups
            fields["media_path"] = asked.media[0]
            param = rule.param.format_map(fields) if rule.param else None
            return ApiError(400, rule.message.format_map(fields), param=param, code=rule.code)
    if report := _REPORT.search(said):
        return _reported(report)
    if asked.prompt == "messages" and said and not _INSIDE.search(said):
        return ApiError(400, said[:_LONGEST], param="messages")
    return ApiError(400, "The model's engine refused the request.")


def sentence(message: str) -> str:
    """What the engine says, out of what it wraps that in."""
    if len(message) > _READ:  # the beginning says what is wrong, and where a value stands in the way, the end does
        message = f"{message[: _READ // 2]} … {message[-_READ // 2 :]}"
    if (report := _REPORT.search(message)) and report["type"] in {"value_error", "assertion_error"}:
        message = str(ast.literal_eval(report["msg"])).removeprefix("Value error, ")
    tail = message.rfind("(parameter=")
    if tail >= 0 and _TAIL.match(message, tail):
        message = message[:tail]
    return message.strip()


_FORMS = (
    "the message is not of the form that its role demands",
    "a tool call is not of the form that its type demands",
)


def _reported(report: re.Match[str]) -> ApiError:
    """Pydantic's complaint about a body that the router let pass."""
    loc = ast.literal_eval(report["loc"])
    parts = loc.split(".") if isinstance(loc, str) else [str(part) for part in loc]
    parts = parts[parts[:1] == ["body"] :]
    # What stands behind one of a message's possible forms is about that form, which need not be the caller's.
    if form := next(
        (index for index, part in enumerate(parts) if part.endswith(("MessageParam", "ToolCallParam"))), None
    ):
        path = f"messages[{parts[1]}]" if parts[0] == "messages" else "messages"
        return ApiError(
            400,
            f"Invalid value for '{path}': {_FORMS[parts[form].endswith('ToolCallParam')]}.",
            param=path,
            code="invalid_value",
        )
    parts = [part for part in parts if re.fullmatch(r"[a-z_][a-z0-9_]*|\d+", part)]
    path = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).lstrip(".")
    kind = report["type"]
    if kind == "missing":
        return wording.missing(path)
    if kind.endswith(("_type", "_parsing")):
        return ApiError(400, f"Invalid type for '{path}'.", param=path, code="invalid_type")
    return ApiError(400, f"Invalid value for '{path}'.", param=path, code="invalid_value")


def _context(groups: Mapping[str, str], asked: Asked) -> ApiError:
    limit, tokens, wanted = int(groups["limit"]), int(groups["tokens"]), int(groups.get("wanted") or asked.wanted)
    return wording.context_exceeded(
        limit,
        None if groups.get("unit") == "characters" else tokens,
        max(wanted, 1) if tokens == limit else wanted,  # even for a max_tokens of 0, vLLM makes one
        param=asked.prompt,
        at_least=bool(groups.get("least")),
    )


def _too_many_logprobs(groups: Mapping[str, str], asked: Asked) -> ApiError:
    value, limit = int(groups["value"]), int(groups["limit"])
    name, most = ("top_logprobs", 20) if asked.prompt == "messages" else ("logprobs", 5)
    if groups["which"] == "prompt":
        name = "prompt_logprobs"
    elif value > most:  # more than a caller can ask for: beam search asks for two for each choice
        name, value, limit = "n", value // 2, limit // 2
    return wording.out_of_range(name, value, "less_than_equal", {"le": limit})


def _above(name: str) -> Callable[[Mapping[str, str], Asked], ApiError]:
    def say(groups: Mapping[str, str], _: Asked) -> ApiError:
        if not groups["limit"]:
            return ApiError(
                400,
                f"Invalid '{name}': integer above maximum value. Expected at most the length of the model's context.",
                param=name,
                code="integer_above_max_value",
            )
        return wording.out_of_range(name, int(groups["value"]), "less_than_equal", {"le": int(groups["limit"])})

    return say


def _logit_bias(groups: Mapping[str, str], _: Asked) -> ApiError:
    first = groups["keys"].split(",")[0].strip().strip("'\"")
    return wording.logit_bias_key(first)


def _grammar(groups: Mapping[str, str], asked: Asked) -> ApiError:
    """A compiler's complaint: its first line, without where in its own source that was, or else what follows it."""
    first, _, rest = re.sub(r"^\[[\d:]+\] \S+: ", "", groups["reason"]).partition("\n")
    if first.endswith("regex parse error:") and (error := re.search(r"^error: (.+)", rest, re.MULTILINE)):
        first = f"{first} {error[1]}"
    reason = first.strip()[:_LONGEST].rstrip(".")
    if not reason or _INSIDE.search(_POINTER.sub("", reason)):
        reason = "it is not valid, or asks for what is not supported"
    schema = asked.constraint in {"response_format", "guided_json"}
    about = f"Invalid schema for {asked.constraint}" if schema else f"Invalid value for '{asked.constraint}'"
    return ApiError(400, f"{about}: {reason}.", param=asked.constraint)


def _media(wrong: str) -> Callable[[Mapping[str, str], Asked], ApiError]:
    def say(_: Mapping[str, str], asked: Asked) -> ApiError:
        path, kind = asked.media
        code = "invalid_image_url" if kind == "image_url" else "invalid_value"
        return ApiError(400, f"Invalid {kind}: {wrong}.", param=path, code=code)

    return say


_EMPTY = "Expected a string with minimum length 1, but got an empty string instead."
_EMPTY_ARRAY = "empty array. Expected an array with minimum length 1, but got an empty array instead."
_UNSUPPORTED = "unsupported_parameter"
_NOT_WITH_MODEL = "Unsupported parameter: '{name}' is not supported with this model."
_TEXT_ONLY = "Invalid content type. {media} is only supported by certain models."


def _table(*rows: tuple[Any, ...]) -> tuple[Rule, ...]:
    return tuple(Rule(name, re.compile(pattern, re.DOTALL), *rest) for name, pattern, *rest in rows)


RULES = _table(
    # Lengths
    ("context", r"maximum context length is (?P<limit>\d+) tokens\. However, (?:you requested (?P<wanted>\d+) output tokens and )?your prompt contains (?P<least>at least )?(?P<tokens>\d+) (?P<unit>input tokens|characters)", _context),
    ("context_input", r"Input length \((?P<tokens>\d+)\) exceeds model's maximum context length \((?P<limit>\d+)\)", _context),
    ("context_engine", r"The \w+ prompt \(length (?P<tokens>\d+)\) (?:is longer than|plus the number of requested output tokens).*?maximum\s+model length of (?P<limit>\d+)", _context),
    # max_tokens itself was checked: the prompt leaves no room for a single token
    ("context_full", r"max_tokens must be at least 1, got", "This model's maximum context length is reached by your {prompt} alone, which leaves no room for an answer. Please reduce the length of the {prompt}.", "{prompt}", "context_length_exceeded"),
    ("max_tokens", r"(?P<field>max_tokens|max_completion_tokens)=(?P<value>\d+) cannot be greater than max_model_len=(?:max_total_tokens=)?(?P<limit>\d+)", "{field} is too large: {value}. This model supports at most {limit} completion tokens, whereas you provided {value}.", "{field}", "invalid_value"),
    ("truncate", r"truncate_prompt_tokens(?:=(?P<value>\d+) cannot be greater than max_model_len(?: - max_\w+)? ?= ?(?P<limit>\d+)| value is greater than max_model_len)", _above("truncate_prompt_tokens")),
    ("min_tokens", r"min_tokens must be less than or equal to max_tokens=(?P<limit>\d+), got (?P<value>\d+)", _above("min_tokens")),
    # Prompts
    ("empty_prompt", r"Either prompt or prompt_embeds must be provided and non-empty|The \w+ prompt cannot be empty|You must pass at least one prompt|Cannot apply chat template to an empty conversation", "Invalid '{prompt}': input cannot be empty.", "{prompt}"),
    ("inputs_few", r"model requires at least (?P<least>\d+) inputs", "Invalid 'input': this model expects an array of at least {least} texts.", "input", "invalid_value"),
    ("vocabulary", r"Token id (?P<id>-?\d+) is out of vocabulary", "Invalid '{prompt}': the token id {id} is not in the model's vocabulary.", "{prompt}", "invalid_value"),
    ("vocabulary_int", r"number too large to fit in target type|out of range integral type conversion|int(?:eger)? too (?:big|large) to convert|can't convert negative", "Invalid '{prompt}': a token id is not in the model's vocabulary.", "{prompt}", "invalid_value"),
    ("prompts", r"^prompt list length (?P<value>\d+) exceeds the maximum allowed count of (?P<limit>\d+)", "Invalid 'prompt': array too long. Expected an array with maximum length {limit}, but got an array with length {value} instead.", "prompt", "array_above_max_length"),
    # Sampling
    ("greedy", r"n must be 1 when using greedy sampling", "Invalid value for 'n': it must be 1 when the model samples greedily.", "n"),
    ("top_k", r"top_k must be (?:0 \(disable\)|an integer)", "Invalid value for 'top_k': expected an integer >= -1.", "top_k", "invalid_value"),
    ("repetition", r"max_pattern_size, min_pattern_size must be|min_count must be", "Invalid value for 'repetition_detection': 'min_count' must be at least 2, and 'max_pattern_size' at least 'min_pattern_size'.", "repetition_detection", "invalid_value"),
    ("range", r"\b(?P<field>n|beam_width|temperature|top_p|presence_penalty|frequency_penalty|repetition_penalty|min_p|min_tokens|stream_interval|thinking_token_budget)`? (?P<bounds>must be (?:in [\[(][^\])]*[\])]|[^,.]+))", "Invalid value for '{field}': it {bounds}.", "{field}", "invalid_value"),
    ("stop", r"stop cannot contain an empty string", "Invalid 'stop': empty string. " + _EMPTY, "stop", "empty_string"),
    ("bad_words", r"bad_words cannot contain an empty string", "Invalid 'bad_words': empty string. " + _EMPTY, "bad_words", "empty_string"),
    ("bad_words_blank", r"bad_words entries must tokenize to at least one token", "Invalid value for 'bad_words': each needs to be more than white space.", "bad_words", "invalid_value"),
    ("bad_words_many", r"Too many bad words after tokenization: (?P<value>\d+)\. The max number is (?P<limit>\d+)", "Invalid 'bad_words': array too long. Expected at most {limit} token sequences, but got {value} instead.", "bad_words", "array_above_max_length"),
    ("bad_words_vocabulary", r"tokens were specified as bad", "Invalid value for 'bad_words': a word has tokens that are not in the model's vocabulary.", "bad_words", "invalid_value"),
    ("logit_bias", r"logit_bias contains key\(s\) that cannot be converted to integer token IDs: \[(?P<keys>.*)\]", _logit_bias),
    ("token_ids", r"token_id\(s\) \[(?P<id>-?\d+).*?\] in (?P<field>logit_bias|stop_token_ids|logprob_token_ids)\s+contain out-of-vocab token ids\. Vocabulary size: (?P<limit>\d+)", "Invalid token id in '{field}': {id}. Expected a value < {limit}.", "{field}", "invalid_value"),
    ("allowed_empty", r"allowed_token_ids (?:is not None and|must not be) empty", "Invalid 'allowed_token_ids': " + _EMPTY_ARRAY, "allowed_token_ids", "empty_array"),
    ("allowed_vocabulary", r"allowed_token_ids contains out-of-vocab token id", "Invalid value for 'allowed_token_ids': a token id is not in the model's vocabulary.", "allowed_token_ids", "invalid_value"),
    ("allowed_beams", r"Beam allowlists", "Unsupported parameter: 'allowed_token_ids' is not supported with 'use_beam_search'.", "allowed_token_ids", _UNSUPPORTED),
    ("stop_token_ids", r"stop_token_ids must contain only integers", "Invalid type for 'stop_token_ids': expected integers.", "stop_token_ids", "invalid_type"),
    ("speculative", r"The min_p and logit_bias sampling parameters are not yet supported with speculative decoding", "Unsupported parameter: 'logit_bias' and 'min_p' are not supported with this model.", "logit_bias", _UNSUPPORTED),
    ("diffusion", r"The (?P<names>[\w, ]+) sampling parameters are not yet supported with diffusion models", "Unsupported parameter: {names} are not supported with this model.", None, _UNSUPPORTED),
    # Log-probabilities
    ("logprobs", r"Requested (?P<which>sample|prompt) logprobs of (?P<value>\d+), which is greater than max allowed: (?P<limit>\d+)", _too_many_logprobs),
    ("prompt_logprobs", r"`prompt_logprobs` are not available when `stream=True`", "The 'prompt_logprobs' parameter is not available when 'stream' is enabled.", "prompt_logprobs"),
    ("logprobs_range", r"`?(?P<field>prompt_logprobs|top_logprobs|logprobs)`? must be (?:a positive value|non-negative|an integer)", "Invalid value for '{field}': expected an integer >= 0.", "{field}", "invalid_value"),
    ("top_logprobs", r"when using `top_logprobs`, `logprobs` must be set to true", "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs"),
    ("logprob_ids_alone", r"when using `logprob_token_ids`, `logprobs` must be set", "The 'logprob_token_ids' parameter is only allowed when 'logprobs' is enabled.", "logprob_token_ids"),
    ("logprob_ids_count", r"logprobs must equal len\(logprob_token_ids\)\. Got logprobs=(?P<value>-?\d+), len\(logprob_token_ids\)=(?P<count>\d+)", "Invalid value for 'logprobs': with 'logprob_token_ids', it must be their number, {count}, but got {value} instead.", "logprobs", "invalid_value"),
    ("logprob_ids_many", r"Requested logprob_token_ids of length (?P<value>\d+), which is greater than max allowed: (?P<limit>\d+)", "Invalid 'logprob_token_ids': array too long. Expected an array with maximum length {limit}, but got an array with length {value} instead.", "logprob_token_ids", "array_above_max_length"),
    ("logprob_ids_beams", r"`logprob_token_ids` is not supported with beam search", "Unsupported parameter: 'logprob_token_ids' is not supported with 'use_beam_search'.", "logprob_token_ids", _UNSUPPORTED),
    ("logprob_ids_nothing", r"`logprob_token_ids` is not supported when `echo=True` and `max_tokens=0`", "Unsupported parameter: 'logprob_token_ids' is not supported with a 'max_tokens' of 0.", "logprob_token_ids", _UNSUPPORTED),
    ("logprobs_unsupported", r"produces incorrect logprobs for\s+prompt tokens|Output logprobs are not supported", _NOT_WITH_MODEL.format(name="logprobs"), "logprobs", _UNSUPPORTED),
    # Streams, beams, suffix
    ("stream_options", r"Stream options can only be defined when `stream=True`", "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"),
    ("beam_stream", r"Streaming is not currently supported with beam search", "Unsupported parameter: 'stream' is not supported with 'use_beam_search'.", "stream", _UNSUPPORTED),
    ("beam_echo", r"`echo` with `logprobs` is not supported with beam search", "Unsupported parameter: 'echo' with 'logprobs' is not supported with 'use_beam_search'.", "echo", _UNSUPPORTED),
    ("suffix", r"suffix is (?:only supported for models|not currently supported|not supported with)|Echo is unsupported with suffix|suffix requires text prompt", "Unrecognized request argument supplied: suffix", "suffix"),
    ("prompt_embeds", r"--enable-prompt-embeds|^`?prompt_embeds|with prompt embeds|prompt_embeds (?:placeholder|not supported)", _NOT_WITH_MODEL.format(name="prompt_embeds"), "prompt_embeds", _UNSUPPORTED),
    # The form of the answer
    ("schema_missing", r"When response_format type is 'json_schema', the 'json_schema' field must be provided", "Missing required parameter: 'response_format.json_schema'.", "response_format.json_schema", "missing_required_parameter"),
    ("constraints", r"You can only use one kind of (?:constraints for )?structured\s+outputs|You must use one kind of structured outputs constraint", "Invalid value for '{constraint}': expected exactly one kind of constraint.", "{constraint}", "invalid_value"),
    ("constraint_and_tools", r"You can only either use constraints for structured outputs or tools, not both", "Invalid value for 'tool_choice': a named tool cannot be combined with '{constraint}'.", "tool_choice"),
    ("structural_tag", r"Invalid (?:response_format |structured_outputs )?structural tag specification|Invalid (?:response_format |structured_outputs )?structural_tag specification|structural_tag cannot be an empty string|Trigger .* not found in triggers|No structural tags found", "Invalid value for '{constraint}': the structural tag is not valid.", "{constraint}", "invalid_value"),
    ("schema_depth", r"The JSON schema is nested too deeply.*?at most (?P<limit>\d+) levels", "Invalid schema for {constraint}: objects and arrays may nest at most {limit} levels.", "{constraint}"),
    ("constraint_unsupported", r"Structured outputs? (?:requires a tokenizer|are not yet supported)|Non-tekken Mistral|only supports fast Hugging Face tokenizers|Mistral tokenizer is not supported for", "Unsupported parameter: '{constraint}' is not supported with this model.", "{constraint}", _UNSUPPORTED),
    ("schema_features", r"JSON schema contains features not supported|structured outputs backend\s+does not support|No compatible structured output backend|Structured output processing only supports one backend|Request-level structured output backend", "Invalid value for '{constraint}': it asks for what is not supported with this model.", "{constraint}", "unsupported_value"),
    ("regex_time", r"Regex compilation timed out", "Invalid value for '{constraint}': a regular expression takes too long to compile.", "{constraint}"),
    ("regex_features", r"^Regex (?:uses unsupported feature|does not have a anchored)|^(?:Backreferences|Look-Around assertion|Unicode word boundaries) (?:is|are) unsupported", "Invalid value for '{constraint}': regular expressions must do without anchors, look-arounds, backreferences and Unicode word boundaries.", "{constraint}", "unsupported_value"),
    ("grammar", r"^(?:Grammar error|Invalid grammar specification|Failed to transform (?:json schema|regex|choices)[^:]*|Failed to convert the grammar from Lark to EBNF|Invalid JSON grammar specification|Error parsing regex|Failed to compile regex[^:]*|Error serializing structured outputs jsonschema|Invalid EBNF)[:.]?\s*(?P<reason>.*)", _grammar),
    ("choices", r"^Choice '.*' cannot be an empty list", "Invalid '{constraint}': " + _EMPTY_ARRAY, "{constraint}", "empty_array"),
    ("constraint_value", r"structured_outputs\.(?P<key>\w+) (?P<wrong>cannot be an empty string|must be True|must not contain a NUL)", "Invalid value for '{constraint}': its {key} {wrong}.", "{constraint}", "invalid_value"),
    # Tools
    ("tools_empty", r"`tools` must not be an empty array", "Invalid 'tools': " + _EMPTY_ARRAY, "tools", "empty_array"),
    ("tool_choice_alone", r"When using `tool_choice`, `tools` must be set", "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.", "tool_choice"),
    ("tool_choice", r"Invalid value for `tool_choice`|Invalid value for `function`|Expected field `name` in `function`|Invalid `name` in `function`", "Invalid value for 'tool_choice': expected 'none', 'auto', 'required', or an object that names a function.", "tool_choice", "invalid_value"),
    ("tool_unknown", r"The tool specified in `tool_choice` does not match any of the specified `tools`|Tool '.*' has not been passed in `tools`|tools contains no function tool", "Invalid value for 'tool_choice': no such function was specified in the 'tools' parameter.", "tool_choice"),
    ("tools_unsupported", r"\"auto\" tool choice requires --enable-auto-tool-choice|tool_choice=.* requires --tool-call-parser", _NOT_WITH_MODEL.format(name="tools"), "tools", _UNSUPPORTED),
    ("tool_schema", r"`\$defs` in the parameters of tool '(?P<name>.*)' must be an object", "Invalid schema for function '{name}': '$defs' must be an object.", "tools", "invalid_function_parameters"),
    ("tool_definition", r"Tool definition '(?P<name>.*)' has multiple schemas", "Invalid schema for a function in 'tools': the definition '{name}' has several schemas.", "tools", "invalid_function_parameters"),
    ("tool_type", r"tool type .* not supported|Unsupported tool type", "Invalid value for 'tools': only tools of the type 'function' are supported.", "tools", "invalid_value"),
    # Messages
    ("text_only", r"is not a multimodal model|The model is not multimodal|Not a multimodal model|You must set `--enable-mm-embeds`", _TEXT_ONLY, "{media_path}"),
    ("media_many", r"At most (?P<limit>\d+) (?P<modality>\w+)\(s\) may be provided in one prompt", "Invalid 'messages': expected at most {limit} parts of the type {modality}.", "messages"),
    ("roles", r"[Uu]nsupported (?:\w+ )?message role", "Invalid value for 'messages': a role is not supported with this model.", "messages", "invalid_value"),
    ("part_type", r"[Uu]nsupported (?:chat )?content part type|(?:Missing|Invalid) 'type' field in multimodal part|validation errors? for (?:ValidatorIterator|ChatCompletionContentPart)|[Uu]nsupported \w+ render part kind|Unexpected content part|content part must be mapping|message content must be a string|response content must be text|reasoning_content must be a string", "Invalid value for 'messages': the content of a message is not of a form that this model supports.", "messages", "invalid_value"),
    ("placeholder", r"may not contain the reserved placeholder", "Invalid value for 'messages': a text contains what is reserved for prompt embeddings.", "messages", "invalid_value"),
    ("tool_calls", r"chat completions only support assistant tool_calls of type 'function'|assistant tool_calls entries must be objects|Validating messages' `tool_calls` raised|Unexpected tool_call value|tool call function (?:name|arguments) must|expected mapping, got", "Invalid value for 'messages': tool calls must be of the type 'function', each with a name and arguments.", "messages", "invalid_value"),
    ("documents", r"Unsupported document type", "Invalid value for 'documents': expected objects.", "documents", "invalid_value"),
    ("media_large", r"item with \d+ embedding tokens|exceeds? (?:the )?maximum (?:of \d+ pixels|allowed duration)|decode exceeded .* memory limit|would allocate .* limit|Maximum file size exceeded|video is longer than|Request decoded media exceeds", _media("it is too large")),
    ("media", r"The URL must be|Only base64 data URLs|Invalid data URL|cannot identify image file|Cannot load local files|must be a subpath|Failed to (?:load|open|fetch|decode) (?:image|audio|video|media)|Failed to apply \w+ on data|placeholders? in input prompt|multi_modal_(?:data|uuids)|Mixing raw|No (?:audio|video) (?:streams? )?found|[Cc]orrupted (?:audio|video)|[Ii]nvalid or unsupported (?:audio|video)|^video has|known source fps|Could not (?:open video|determine (?:the number of )?video)|DeepStream decode|frames with (?:unexpected shape|inconsistent shapes)|no frame indices|Cannot expand|Unsupported audio shape|Only JPEG format", _media("it could not be loaded")),
    ("media_truncated", r"would split or drop a\(n\) \w+ item", "Invalid value for 'truncate_prompt_tokens': it would cut through a part of the messages.", "truncate_prompt_tokens"),
    ("media_settings", r"Per-request (?P<field>mm_processor_kwargs|media_io_kwargs) are disabled", "Unsupported parameter: '{field}' is not supported with this model.", "{field}", _UNSUPPORTED),
    # Templates
    ("template", r"Chat template is passed with request|chat_template is not supported for Mistral|appears path-like|looks like a file path|is not a valid chat template type", _NOT_WITH_MODEL.format(name="chat_template"), "chat_template", _UNSUPPORTED),
    ("no_template", r"default chat template is no longer allowed|does not have a (?:default )?chat template|Cannot use chat template functions", "This is not a chat model and thus not supported in the v1/chat/completions endpoint. Did you mean to use v1/completions?", "model"),
    ("continue", r"Cannot set both `?(?:continue_final_message|add_generation_prompt)`?|continue_final_message and add_generation_prompt are not compatible", "The 'continue_final_message' parameter is only allowed when 'add_generation_prompt' is false.", "continue_final_message"),
    ("continue_other", r"Cannot set `continue_final_message` to True when the last message is not", "Invalid value for 'continue_final_message': the last message must be the assistant's.", "continue_final_message"),
    ("continue_unset", r"Cannot set `add_generation_prompt` to True when the last message is", "Invalid value for 'messages': the last one must not be the assistant's, unless 'continue_final_message' is set.", "messages"),
    ("continue_unsupported", r"continue_final_message is set but|does not support continue_final_message", _NOT_WITH_MODEL.format(name="continue_final_message"), "continue_final_message", _UNSUPPORTED),
    ("template_settings", r"Found unexpected chat template kwargs|got multiple values for (?:keyword )?argument|return_assistant_tokens_mask=True|chat_template_kwargs\.\S+ is not accepted|cohere_format=|grounding value", "Invalid value for 'chat_template_kwargs': a key, or its value, is not allowed there.", "chat_template_kwargs", "invalid_value"),
    ("reasoning_effort", r"reasoning_effort=['\"]?(?P<value>\w+)['\"]? is not supported by .*?Supported values are: \[?(?P<list>[^\[\]\n]+?)\]?\.?$", "Unsupported value: 'reasoning_effort' does not support '{value}' with this model. Supported values are: {list}.", "reasoning_effort", "unsupported_value"),
    ("reasoning_effort_value", r"Harmony does not support reasoning_effort|thinking_effort values|reasoning_effort must be", "Unsupported value: 'reasoning_effort' does not support that value with this model.", "reasoning_effort", "unsupported_value"),
    ("reasoning_budget", r"thinking_token_budget is (?:set but|not yet supported)", _NOT_WITH_MODEL.format(name="thinking_token_budget"), "thinking_token_budget", _UNSUPPORTED),
    # Embeddings
    ("pooling", r"Task '?\w+'? only supports .* parameters, does not support \['(?P<name>\w+)'", "Unsupported parameter: '{name}' is not supported with this model.", "{name}", _UNSUPPORTED),
    ("dimensions", r"does not support [Mm]atryoshka", "This model does not support specifying dimensions.", "dimensions"),
    ("dimensions_range", r"only supports dimensions in range \[1, (?P<limit>\d+)\]|Dimensions must be less than or equal to the model's embedding size \((?P<size>\d+)\)", "Invalid value for 'dimensions': it must be less than or equal to {limit}{size}.", "dimensions"),
    ("dimensions_list", r"only supports (?:Matryoshka dimensions (?P<list>\[.*?\])|(?P<older>\[.*?\]) matryoshka dimensions)", "Invalid value for 'dimensions': it must be one of {list}{older}.", "dimensions"),
    ("dimensions_positive", r"Dimensions must be greater than 0", "Invalid value for 'dimensions': it must be greater than 0.", "dimensions"),
)  # fmt: skip
