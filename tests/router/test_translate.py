"""Requests become what vLLM understands, and what the caller asked for is kept for reading the answer."""

import json
from typing import Any

import pytest

from tandem.models.requests import (
    GUIDED,
    NOT_FORWARDED,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from tandem.router import checks, translate
from tandem.router.translate import Asked

HI = [{"role": "user", "content": "hi"}]


def embedding(**given: Any) -> tuple[dict[str, Any], Asked]:
    """The engine's body for an embedding request, and what was asked."""
    came = json.dumps({"model": "alias", **given}).encode()
    request = checks.parse(EmbeddingRequest, came)
    body, asked = translate.embedding(request, came, "org/m")
    return json.loads(body), asked


def completion(**given: Any) -> tuple[dict[str, Any], Asked]:
    """Likewise, for a completion of the prompt "a"."""
    came = json.dumps({"model": "alias", "prompt": "a", **given}).encode()
    request = checks.parse(CompletionRequest, came)
    body, asked = translate.generation(request, came, "org/m")
    return json.loads(body), asked


def chat(**given: Any) -> tuple[dict[str, Any], Asked]:
    """Likewise, for a chat of one message."""
    came = json.dumps({"model": "alias", "messages": HI, **given}).encode()
    request = checks.parse(ChatCompletionRequest, came)
    body, asked = translate.generation(request, came, "org/m")
    return json.loads(body), asked


PLAIN = {"model": "org/m", "prompt": "a"}
PLAIN_CHAT = {"model": "org/m", "messages": HI}


# What passes


def test_the_engine_is_asked_by_its_own_name_and_the_caller_answered_by_theirs() -> None:
    """And nothing is added that the caller did not send."""
    for (body, asked), plain in (
        (embedding(input="a"), {"model": "org/m", "input": "a"}),
        (completion(), PLAIN),
        (chat(), PLAIN_CHAT),
    ):
        assert body == plain
        assert asked.model == "alias"


@pytest.mark.parametrize(
    ("given", "inputs"),
    [("a b c", 1), (["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2), (["a"], 1), ([[7]], 1), ([0], 1)],
)
def test_an_embedding_answer_must_have_a_vector_for_each_input(given: object, inputs: int) -> None:
    """In all four shapes, which pass as they are."""
    body, asked = embedding(input=given)
    assert body["input"] == given
    assert asked.inputs == inputs


def test_what_engines_understand_passes_as_it_is() -> None:
    """OpenAI's parameters and vLLM's, chats with their parts and tools."""
    sampling = {
        "frequency_penalty": 0.5,
        "logit_bias": {"5": -1.0},
        "max_tokens": 7,
        "n": 2,
        "presence_penalty": -0.5,
        "seed": -3,
        "stop": ["x"],
        "temperature": 0.5,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "stop_token_ids": [1],
        "top_k": 5,
        "ignore_eos": True,
        "skip_special_tokens": False,
    }
    assert completion(**sampling, echo=True, logprobs=2)[0] == {**PLAIN, **sampling, "echo": True, "logprobs": 2}
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}}
    talk = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "bob"},
        {"role": "assistant", "content": "I say", "reasoning": "hm"},
        {"role": "user", "content": "go on"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    whole = {"messages": talk, "tools": tools, "tool_choice": "auto", "logprobs": True, "top_logprobs": 3}
    whole |= {"response_format": schema, "chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}
    assert chat(**sampling, **whole)[0] == {"model": "org/m", **sampling, **whole}
    form = {"input": "a", "dimensions": 8, "encoding_format": "base64"}
    assert embedding(**form)[0] == {"model": "org/m", **form}


NOT_UNDERSTOOD: dict[str, Any] = {
    "user": "u",
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "prompt_cache_key": "k",
    "prompt_cache_options": {"a": 1},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "auto",
    "store": True,
    "verbosity": "low",
}


def test_what_means_nothing_to_an_engine_stays_here() -> None:
    """All of it; what no caller may send with effect (``suffix``), or is written otherwise, as well."""
    assert chat(**NOT_UNDERSTOOD)[0] == PLAIN_CHAT
    assert completion(user="u", best_of=1, suffix="")[0] == PLAIN
    assert embedding(input="a", user="u")[0] == {"model": "org/m", "input": "a"}
    assert {*NOT_UNDERSTOOD, "best_of", "suffix", *GUIDED} >= NOT_FORWARDED  # else a case is missing above


def test_null_is_absent() -> None:
    """Whatever the parameter; to an engine, a null is not always the same as nothing."""
    kinds = ((EmbeddingRequest, embedding), (CompletionRequest, completion), (ChatCompletionRequest, chat))
    for kind, through in kinds:
        nulls = {name: None for name in kind.model_fields if name not in {"model", "input", "prompt", "messages"}}
        given = {"input": "a"} if kind is EmbeddingRequest else {}
        assert through(**given, **nulls) == through(**given)


def test_extras_pass_where_they_are_allowed() -> None:
    """At whatever depth; those of the request that are null do not."""
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}, "extra": 2}}
    given = {"prompt": "a", "extra": {"x": None}, "nothing": None, "response_format": schema, "user": "u"}
    came = json.dumps({"model": "alias", **given}).encode()
    request = checks.parse(CompletionRequest, came, strict=False)
    body = json.loads(translate.generation(request, came, "org/m")[0])
    assert body == {**PLAIN, "extra": {"x": None}, "response_format": schema}


def test_extras_of_embedding_requests_pass_where_they_are_allowed() -> None:
    came = b'{"model": "alias", "input": "a", "extra": 1}'
    request = checks.parse(EmbeddingRequest, came, strict=False)
    assert json.loads(translate.embedding(request, came, "org/m")[0]) == {"model": "org/m", "input": "a", "extra": 1}


# Streams


@pytest.mark.parametrize(
    ("options", "usage"),
    [
        ({}, False),
        ({"stream_options": None}, False),
        ({"stream_options": {}}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": None}}, False),
        ({"stream_options": {"include_usage": True}}, True),
    ],
)
def test_a_stream_always_counts_and_tells_only_whom_it_concerns(options: dict[str, Any], usage: bool) -> None:
    for through in (completion, chat):
        body, asked = through(stream=True, **options)
        assert body["stream"] is True
        assert body["stream_options"]["include_usage"] is True
        assert asked.usage is usage


def test_what_else_is_asked_of_a_stream_stays() -> None:
    body, _ = chat(stream=True, stream_options={"continuous_usage_stats": True})
    assert body["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}


def test_without_a_stream_no_options_are_sent() -> None:
    """vLLM refuses them."""
    for through in (completion, chat):
        body, asked = through(stream=False)
        assert "stream_options" not in body
        assert not asked.usage


# best_of


@pytest.mark.parametrize(
    ("given", "best"),
    [
        ({"best_of": 3}, (1, 3)),
        ({"best_of": 5, "n": 2}, (2, 5)),
        ({"best_of": 2, "n": 1}, (1, 2)),
    ],
)
def test_best_of_makes_more_choices_than_are_returned(given: dict[str, int], best: tuple[int, int]) -> None:
    """The engine makes them all, with the log-probabilities by which they are ranked."""
    body, asked = completion(**given)
    assert body == {**PLAIN, "n": best[1], "logprobs": 0}
    assert asked.best == best
    assert not asked.logprobs


@pytest.mark.parametrize("given", [{}, {"best_of": 1}, {"best_of": 3, "n": 3}, {"n": 3}])
def test_best_of_no_more_than_n_is_nothing_special(given: dict[str, int]) -> None:
    body, asked = completion(**given)
    assert body == {**PLAIN, **({"n": given["n"]} if "n" in given else {})}
    assert asked.best is None


@pytest.mark.parametrize("logprobs", [0, 5])
def test_log_probabilities_that_the_caller_wants_stay_as_wanted(logprobs: int) -> None:
    """0 is a wish, too: for those of the tokens that were chosen."""
    for given in ({}, {"best_of": 3}):
        body, asked = completion(logprobs=logprobs, **given)
        assert body["logprobs"] == logprobs
        assert asked.logprobs
    assert not completion()[1].logprobs


@pytest.mark.parametrize(
    ("prompt", "ends"),
    [("ab", ("ab",)), (["ab", "c"], ("ab", "c")), ([1, 2, 3], (3,)), ([[1, 2], [3]], (2, 1))],
)
def test_best_of_with_echo_knows_where_each_prompt_ends(prompt: object, ends: tuple[int | str, ...]) -> None:
    """The prompt's own log-probabilities are not to count in the ranking."""
    assert completion(prompt=prompt, best_of=2, echo=True)[1].prompts == ends
    assert completion(prompt=prompt, best_of=2)[1].prompts == ()
    assert completion(prompt=prompt, echo=True)[1].prompts == ()


# No tokens at all


@pytest.mark.parametrize("echo", [None, False, True])
def test_no_tokens_are_asked_for_with_echo(echo: bool | None) -> None:
    """The one way in which vLLM takes a ``max_tokens`` of 0; whether the caller sees the prompt, the answer decides."""
    body, asked = completion(max_tokens=0, echo=echo)
    assert body == {**PLAIN, "max_tokens": 0, "echo": True}
    assert asked.nothing
    assert asked.echo is bool(echo)


def test_some_tokens_are_not_nothing() -> None:
    for given in ({}, {"max_tokens": 1}, {"max_tokens": None}):
        body, asked = completion(**given)
        assert "echo" not in body
        assert not asked.nothing


@pytest.mark.parametrize(("given", "wanted"), [({}, 16), ({"max_tokens": 0}, 0), ({"max_tokens": 7}, 7)])
def test_a_completion_has_sixteen_tokens_unless_the_caller_says_otherwise(given: dict[str, int], wanted: int) -> None:
    assert completion(**given)[1].wanted == wanted


def test_a_chat_has_as_many_as_the_context_holds_unless_the_caller_says_otherwise() -> None:
    assert chat()[1].wanted == 0
    assert chat(max_tokens=7)[1].wanted == 7
    assert chat(max_completion_tokens=8)[1].wanted == 8


# Greedy sampling


@pytest.mark.parametrize("given", [{"top_p": 0}, {"top_p": 0.0, "temperature": 1.5}, {"top_p": 0, "temperature": 0}])
def test_top_p_of_nothing_is_greedy(given: dict[str, float]) -> None:
    """vLLM refuses it."""
    for through, plain in ((completion, PLAIN), (chat, PLAIN_CHAT)):
        assert through(**given)[0] == {**plain, "temperature": 0.0, "top_p": 1.0}


@pytest.mark.parametrize(
    "given", [{"top_p": 0}, {"temperature": 0}, {"temperature": 1e-6}, {"temperature": 0, "top_k": 9}]
)
@pytest.mark.parametrize("several", [{"n": 2}, {"n": 2, "top_p": 0}])
def test_several_greedy_choices_are_samples_of_the_most_probable_token(
    given: dict[str, float], several: dict[str, int]
) -> None:
    """Which is the same, and vLLM does not refuse it."""
    for through, plain in ((completion, PLAIN), (chat, PLAIN_CHAT)):
        body, _ = through(**{**given, **several})
        assert body == {**plain, "n": 2, "temperature": 1.0, "top_p": 1.0, "top_k": 1}


def test_best_of_greedy_choices_are_several() -> None:
    body, asked = completion(best_of=3, temperature=0)
    assert (body["n"], body["temperature"], body["top_k"]) == (3, 1.0, 1)
    assert asked.best == (1, 3)


@pytest.mark.parametrize("given", [{"temperature": 0.5, "n": 2}, {"n": 2}, {"temperature": 0.5, "top_p": 0.5}])
def test_sampling_that_is_not_greedy_stays_as_it_is(given: dict[str, float]) -> None:
    assert completion(**given)[0] == {**PLAIN, **given}
    assert chat(**given)[0] == {**PLAIN_CHAT, **given}


@pytest.mark.parametrize("n", [{}, {"n": 1}])
def test_one_greedy_choice_is_greedy(n: dict[str, int]) -> None:
    """No top_k is made up for it."""
    body, _ = completion(temperature=0, **n)
    assert body["temperature"] == 0
    assert "top_k" not in body


# Constraints


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guided_json", {"type": "object"}),
        ("guided_json", '{"type": "object"}'),
        ("guided_regex", "a+"),
        ("guided_choice", ["a", "b"]),
        ("guided_grammar", "root ::= 'a'"),
    ],
)
def test_older_names_of_constraints_become_the_newer(name: str, value: object) -> None:
    """``guided_*`` is no longer read by vLLM, nor refused: the answer would be unconstrained."""
    for through, plain in ((completion, PLAIN), (chat, PLAIN_CHAT)):
        body, asked = through(**{name: value})
        assert body == {**plain, "structured_outputs": {name.removeprefix("guided_"): value}}
        assert asked.constraint == name


def test_constraints_of_the_newer_name_pass_as_they_are() -> None:
    body, asked = chat(structured_outputs={"regex": "a+", "whitespace_pattern": None})
    assert body == {**PLAIN_CHAT, "structured_outputs": {"regex": "a+", "whitespace_pattern": None}}
    assert asked.constraint == "structured_outputs"
    assert chat()[1].constraint == "response_format"


# Chats


def test_going_on_with_the_last_message_excludes_a_new_one() -> None:
    """vLLM adds the prompt for a new one by default, and then refuses."""
    talk = [*HI, {"role": "assistant", "content": "I s"}]
    body, _ = chat(messages=talk, continue_final_message=True)
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert "add_generation_prompt" not in chat()[0]


def test_a_message_that_calls_tools_passes() -> None:
    """Whose content is null, which counts as absent."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    talk = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "1", "tool_call_id": "c1"},
    ]
    body, _ = chat(messages=talk)
    assert body["messages"][1] == {"role": "assistant", "tool_calls": calls}
    assert body["messages"][2] == talk[2]


@pytest.mark.parametrize(
    ("parts", "media"),
    [
        ([{"type": "text", "text": "a"}], ("messages", "image_url")),
        (
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "http://x"}}],
            ("messages.[1].content.[1].type", "image_url"),
        ),
        (
            [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}],
            ("messages.[1].content.[0].type", "input_audio"),
        ),
    ],
)
def test_the_first_part_that_is_no_text_is_known(parts: list[Any], media: tuple[str, str]) -> None:
    """For the refusal, should the model not take it."""
    body, asked = chat(messages=[*HI, {"role": "user", "content": parts}])
    assert body["messages"][1]["content"] == parts
    assert asked.media == media


def test_what_holds_the_prompt_is_known() -> None:
    """For refusals that name it."""
    assert [embedding(input="a")[1].prompt, completion()[1].prompt, chat()[1].prompt] == ["input", "prompt", "messages"]
