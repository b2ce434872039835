"""What vLLM refuses is told in OpenAI's words, release by release; no sentence of the installed one is left out."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tandem.engines import install
from tandem.router.refusals import RULES, refusal, sentence
from tandem.router.translate import Asked

RECORDED = Path(__file__).parent / "recorded"
CASES: list[dict[str, Any]] = json.loads((RECORDED / "refusals-cases.json").read_text())

# What an engine goes through with a request, from its body to its first step.
SOURCES = (
    "entrypoints/generate/base/*.py",
    "entrypoints/generate/beam_search/online.py",
    "entrypoints/openai/chat_completion/*.py",
    "entrypoints/openai/completion/*.py",
    "entrypoints/openai/engine/*.py",
    "entrypoints/openai/parser/*.py",
    "entrypoints/pooling/base/*.py",
    "entrypoints/pooling/embed/*.py",
    "entrypoints/serve/engine/*.py",
    "entrypoints/serve/utils/api_utils.py",
    "inputs/*.py",
    "multimodal/audio.py",
    "multimodal/media/*.py",
    "multimodal/processing/context.py",
    "multimodal/registry.py",
    "multimodal/video.py",
    "multimodal/video_decoders/*.py",
    "parser/abstract_parser.py",
    "pooling_params.py",
    "renderers/**/*.py",
    "sampling_params.py",
    "tasks.py",
    "tokenizers/hf.py",
    "tokenizers/mistral.py",
    "tool_parsers/utils.py",
    "v1/engine/async_llm.py",
    "v1/engine/input_processor.py",
    "v1/structured_output/*.py",
)
# Answered with 404 or 5xx, or caught by vLLM itself: no refusals.
FAULTS = {
    *("AssertionError", "AttributeError", "Exception", "FileNotFoundError", "ImportError", "KeyError", "RuntimeError"),
    *("TimeoutError", "EngineDeadError", "EngineGenerateError", "GenerationError", "QueueOverflowError"),
    *("MaxQueuedTokensError", "RetryableRequestError", "UnexpectedAstError", "VLLMNotFoundError"),
}
# What stands in a placeholder; 7, if nothing else is said.
VALUES = {
    "field_name": "top_logprobs",
    "invalid_keys": "['7']",
    "invalid_parameters": "['step_tag_id']",
    "invalid_token_ids": "[7]",
    "parameter": "response_format",
    "parameter_name": "n",
    "prompt_type": "decoder",
    "qualifier": "at least ",
    "self.max_output_tokens_param": "max_tokens",
    "self.max_total_tokens_param": "max_model_len",
    "self.truncate_prompt_tokens_param": "truncate_prompt_tokens",
    "str(mds)": "[7]",
    "supported_values": "high, low",
    "valid_range": "[1, 7]",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['vllm']}: {case['said'][:60]}")
def test_words(case: Mapping[str, Any]) -> None:
    """A sentence of vLLM's becomes one of OpenAI's, with the parameter at fault and the code."""
    told = refusal(case["said"], asked(case))
    assert (told.status, told.type) == (400, "invalid_request_error")
    assert [told.message, told.param, told.code] == [case["message"], case["param"], case["code"]]


def test_every_rule_has_a_case() -> None:
    """No row of the table is dead: each is the first that fits some sentence of vLLM's."""
    used = {rule_for(case["said"]) for case in CASES}
    assert [rule.name for rule in RULES if rule.name not in used] == []


def test_callers_read_nothing_of_the_engine() -> None:
    """What callers read names no flag, variable, file or library, and fills one line."""
    inside = re.compile(r"--[a-z]|vllm|max_model_len|pydantic|jinja|(?:^|\s)/\w|\.py\b|\n|[{}]", re.IGNORECASE)
    assert [case["message"] for case in CASES if inside.search(case["message"])] == []
    assert [case["message"] for case in CASES if not case["message"].strip() or len(case["message"]) > 400] == []


def test_every_sentence_of_the_installed_vllm_is_known() -> None:
    """Each has a rule, or a reason why no caller of ours meets it; and no reason outlives its sentence."""
    unreachable = reasons()
    used = set()
    unknown = []
    for template, where in sentences(installed_vllm()):
        if rule_for(filled(template)):
            continue
        prefixes = [prefix for prefix in unreachable if template.startswith(prefix)]
        used.update(prefixes)
        if not prefixes:
            unknown.append(f"{where}: {template}")
    assert (unknown, sorted(unreachable.keys() - used)) == ([], [])


@pytest.mark.parametrize(
    "words",
    [
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "System role not supported",
        "Only user, assistant and/or tool roles are supported!",
        "After the optional system message, conversation roles must alternate user/assistant/user/assistant/...",
        "Unexpected role 'system' after role 'user'",
        "Tool call IDs should be alphanumeric strings with length 9!",
    ],
)
def test_words_of_a_template_are_passed_on_in_a_chat(words: str) -> None:
    """A chat template's own words tell its caller what to mend; no other route has a template."""
    told = refusal(words, Asked("m", prompt="messages"))
    assert (told.message, told.param, told.code) == (words, "messages", None)
    for prompt in ("prompt", "input"):
        told = refusal(words, Asked("m", prompt=prompt))
        assert (told.message, told.param, told.code) == ("The model's engine refused the request.", None, None)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "Start the server with --chat-template to allow this.",
        "This needs VLLM_ALLOW_LONG_MAX_MODEL_LEN=1.",
        "The prompt exceeds max_model_len.",
        "No such file: /usr/share/templates/chat.jinja",
        "cannot read ./templates/own/chat.txt",
        "cannot open <path>",
        "See https://errors.pydantic.dev/2.14/v/missing",
        "jinja2.exceptions.SecurityError: access is unsafe",
        "'dict object' has no attribute 'nope'",
        "'str object' has no attribute 'items'",
        "'messages' is undefined",
        "'int' object is not iterable",
        "'NoneType' object is not subscriptable",
        'can only concatenate str (not "int") to str',
        "unsupported operand type(s) for +: 'int' and 'str'",
        "'<' not supported between instances of 'int' and 'str'",
        "Object of type Undefined is not JSON serializable",
        "apply_chat_template() missing 1 required positional argument: 'conversation'",
        "list index out of range",
        "string indices must be integers, not 'str'",
        "<Image object at 0x7f3a>",
        "KeyError: 'role'",
        "Wrong.\nTraceback (most recent call last):",
    ],
)
def test_the_inside_is_told_to_no_one(words: str) -> None:
    """Flags, paths, libraries and Python's own complaints end here, in one sentence."""
    for prompt in ("messages", "prompt", "input"):
        told = refusal(words, Asked("m", prompt=prompt))
        assert (told.message, told.param, told.code) == ("The model's engine refused the request.", None, None)


def test_long_words_are_cut() -> None:
    """A template's words fill a few lines at most."""
    assert len(refusal("too many words, " * 100, Asked("m", prompt="messages")).message) == 300


def asked(case: Mapping[str, Any]) -> Asked:
    """What the caller of a recorded case asked for; the media as a tuple, which JSON has not."""
    given = dict(case["asked"])
    if "media" in given:
        given["media"] = tuple(given["media"])
    return Asked("m", **given)


def rule_for(message: str) -> str | None:
    said = sentence(message)
    return next((rule.name for rule in RULES if rule.pattern.search(said)), None)


def reasons() -> dict[str, str]:
    """How the sentences begin that reach no caller, each with the reason."""
    found, reason = {}, ""
    for line in (RECORDED / "refusals-unreachable.txt").read_text().splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line:
            assert line not in found, line
            found[line] = reason
    return found


def installed_vllm() -> Path:
    """Its package's folder."""
    code = "import importlib.util; print(importlib.util.find_spec('vllm').origin)"
    python = install.find(None).python
    told = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return Path(told.stdout.strip()).parent


def sentences(package: Path) -> Iterator[tuple[str, str]]:
    """Each sentence that vLLM's sources refuse a request with, its placeholders in braces, and where it stands."""
    for pattern in SOURCES:
        for file in sorted(package.glob(pattern)):
            if not file.stem.endswith("derenderer"):  # of another route
                for template, line in raised(ast.parse(file.read_text()), {}):
                    yield template, f"{file.relative_to(package)}:{line}"


def raised(node: ast.AST, names: dict[str, str]) -> Iterator[tuple[str, int]]:
    """The sentences under a node; ``names`` are the texts that variables hold there."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        names = dict(names)
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
        node.value, ast.Constant | ast.JoinedStr | ast.BinOp
    ):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        names[ast.unparse(target)] = text(node.value, names)
    call = node.exc if isinstance(node, ast.Raise) else node
    if isinstance(call, ast.Call):
        name = ast.unparse(call.func).rpartition(".")[2]
        given = [*call.args[:1], *(word.value for word in call.keywords if word.arg in {"message", "errors"})]
        raises = isinstance(node, ast.Raise) and name not in FAULTS
        if given and (raises or name == "create_error_response"):
            yield text(given[0], names), call.lineno
    for child in ast.iter_child_nodes(node):
        yield from raised(child, names)


def text(node: ast.expr, names: Mapping[str, str]) -> str:
    """What an expression says, as far as the source tells."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text(node.left, names) + text(node.right, names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return text(node.func.value, names)
    return names.get(ast.unparse(node), f"{{{ast.unparse(node)}}}")


def filled(template: str) -> str:
    return re.sub(r"\{((?:[^{}]|\{[^{}]*\})*)\}", lambda found: VALUES.get(found[1], "7"), template)
