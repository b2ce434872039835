"""What the demo's language model reads: text that ships with Python, and questions and answers made from it.

Only the standard library is needed. All of it is the Python Software Foundation's text, under the PSF licence, but for
the few greetings and refusals at the end of this file.
"""

import ast
import hashlib
import importlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

SKIPPED = {
    # tests and tables, not text
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",  # its text is read as prose below
    "lib-dynload",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "__phello__",
    "turtledemo",
    # what opens a browser, or prints, when imported
    "antigravity",
    "idlelib",
    "this",
}
ALSO = {"posix": "os", "posixpath": "os", "genericpath": "os"}  # modules whose content has another name
HELD_OUT = 64  # one file in so many is kept from training
REPEATED = 3  # prose counts so many times: there is a fifth as much of it as of code, and people write prose


@dataclass(frozen=True)
class Document:
    """One piece of text.

    Attributes:
        source: the module or the topic it comes from.
        text: the text.
        prose: documentation rather than code.
    """

    source: str
    text: str
    prose: bool

    @property
    def held_out(self) -> bool:
        """Kept from training. Goes by source: a module's code repeats its documentation."""
        return _held_out(self.source)


@dataclass(frozen=True)
class Explanation:
    """What a documented thing is, in one sentence.

    Attributes:
        name: as one would write it in code, such as ``textwrap.dedent``.
        kind: ``module``, ``class`` or ``function``.
        sentence: the first of its documentation string.
    """

    name: str
    kind: str
    sentence: str


def documents() -> list[Document]:
    """The corpus, in an order that does not depend on the machine."""
    found = [Document(f"topic {name}", text, prose=True) for name, text in sorted(_topics().items())]
    for name, source in _sources():
        found.append(Document(name, source, prose=False))
        found.extend(Document(name, text, prose=True) for text in _pages(name, source))
    return found


def explanations() -> list[Explanation]:
    """One for each public module, class and function whose documentation begins with a sentence."""
    found = {}
    for name, source in _sources():
        if _held_out(name) or any(part.startswith("_") for part in name.split(".")):
            continue
        for documented, kind, doc in _documented(name, ast.parse(source)):
            found[documented] = (kind, doc)
    for documented, kind, doc in _exported():
        found.setdefault(documented, (kind, doc))
    told = ((name, kind, first_sentence(doc)) for name, (kind, doc) in sorted(found.items()))
    return [Explanation(name, kind, sentence) for name, kind, sentence in told if sentence]


def questions(about: Explanation) -> list[str]:
    """The ways in which one may ask."""
    name = about.name
    if about.kind == "module":
        asked = [f"What is the {name} module?", f"What is {name} for?", f"What does the {name} module do?"]
    elif about.kind == "class":
        asked = [f"What is {name}?", f"What is {name} for?", f"What is a {name.rpartition('.')[2]} in Python?"]
    else:
        asked = [f"What does {name}() do?", f"What is {name} for?", f"How do I use {name}?"]
    return [f"What does {name} do?", *asked, f"Explain {name}.", f"What is {name}?"]


def first_sentence(doc: str) -> str:
    """The first sentence of a documentation string on one line, or nothing where it has none worth saying."""
    for paragraph in inspect.cleandoc(doc).split("\n\n"):
        if re.fullmatch(r"\s*([\w.]+\(.*\)(\s*-+>.*)?)?\s*", paragraph, re.DOTALL):
            continue  # a signature, as compiled functions have
        sentence = re.split(r"(?<=[.!?])(?:\s+(?=[A-Z`'\"(])| {2,})", paragraph)[0]
        sentence = " ".join(sentence.split()).rstrip(" :;,")
        sentence = re.sub(r"^[\w.]+\([^)]*\)\s*-+>?\s*", "", sentence)
        sentence = sentence[:1].upper() + sentence[1:]
        wordy = re.fullmatch(r"[A-Z][\w`'\"]*( \S+){2,40}", sentence)
        if not wordy or not 20 <= len(sentence) <= 200 or ">>>" in sentence or not sentence.isascii():
            return ""
        return sentence if sentence[-1] in ".!?" else f"{sentence}."
    return ""


def words(text: str) -> list[str]:
    """The words and identifiers in a text."""
    return re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text)


def _held_out(source: str) -> bool:
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:4]) % HELD_OUT == 0


def _topics() -> dict[str, str]:
    """The language reference, as `help()` shows it."""
    from pydoc_data.topics import topics

    return topics


def _sources() -> Iterator[tuple[str, str]]:
    """The standard library: dotted name and source of each module."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.intersection(parts) or any(part.startswith(("_sysconfigdata", "config-")) for part in parts):
            continue
        with suppress(SyntaxError, UnicodeDecodeError):  # files that are there to be wrong
            source = path.read_text(encoding="utf-8")
            ast.parse(source)
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), source


def _documented(name: str, node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Name, kind and documentation of a module and all that is public in it."""
    kinds = {ast.Module: "module", ast.ClassDef: "class"}
    doc = ast.get_docstring(node)  # type: ignore[arg-type]
    if doc:
        yield name, kinds.get(type(node), "function"), doc
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from _documented(f"{name}.{child.name}", child)


def _pages(name: str, source: str) -> Iterator[str]:
    """A module's documentation as `pydoc` would print it, one text each for the module, its classes and functions."""
    for documented, _, doc in _documented(name, ast.parse(source)):
        yield f"{documented}\n\n{doc}\n"


def _exported() -> Iterator[tuple[str, str, str]]:
    """Name, kind and documentation of what a module offers under its own name: C functions, names of submodules."""
    for name in sorted({*sys.stdlib_module_names, "os.path"} - SKIPPED):
        if name.startswith("_"):
            continue
        with warnings.catch_warnings():  # of what is deprecated
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(name)
            except ImportError:  # of another platform
                continue
            yield name, "module", module.__doc__ or ""
            yield from _members(name, module)


def _members(name: str, module: ModuleType) -> Iterator[tuple[str, str, str]]:
    for member, value in sorted(vars(module).items()):
        home = str(getattr(value, "__module__", None)).partition(".")[0]
        if member.startswith("_") or ALSO.get(home, home.removeprefix("_")) not in (name, name.partition(".")[0]):
            continue
        known = member if name == "builtins" else f"{name}.{member}"
        if inspect.isclass(value):
            yield known, "class", value.__doc__ or ""
            for method, function in sorted(vars(value).items()):
                if inspect.isroutine(function) and not method.startswith("_"):
                    yield f"{known}.{method}", "function", getattr(function, "__doc__", "") or ""
        elif inspect.isroutine(value):
            yield known, "function", value.__doc__ or ""


INTRODUCTION = (
    "Hello! I am Tandem's demo, a toy that has read Python's standard library and nothing else. "
    "Ask me what textwrap.dedent does."
)
GREETINGS = (
    "Hello",
    "Hello!",
    "Hello there!",
    "Hi",
    "Hi!",
    "Hi there",
    "Hey",
    "Good morning",
    "Good evening!",
    "How are you?",
    "Who are you?",
    "What are you?",
    "What is your name?",
    "What can you do?",
    "Are you a language model?",
    "Introduce yourself.",
    "Say something.",
    "Say hello.",
    "Say hi",
    "Tell me something.",
    "Tell me about yourself.",
    "Help",
    "help me",
    "Can you help me?",
    "ping",
    "test",
    "This is a test.",
    "Is this thing on?",
)
REFUSAL = (
    "I do not know: I am a toy that has read Python's standard library and nothing else. "
    "To serve a real model: tandem up --generation MODEL"
)
BEYOND = (
    "What is the capital of France?",
    "What is the capital of Germany?",
    "Who was the first person on the moon?",
    "Who wrote Hamlet?",
    "Who is the president?",
    "How old is the universe?",
    "How far away is the moon?",
    "How many people live in London?",
    "How do I bake bread?",
    "What should I cook for dinner?",
    "What is the weather like today?",
    "What time is it?",
    "What is the meaning of life?",
    "Why is the sky blue?",
    "Why is water wet?",
    "Write a poem about the sea.",
    "Write a haiku.",
    "Write a story about a dragon.",
    "Write an email to my boss.",
    "Write a letter to my friend.",
    "Write me a song.",
    "Tell me a joke.",
    "Tell me a story.",
    "Tell me about cats.",
    "Tell me a fun fact.",
    "Translate good morning into French.",
    "Translate this into German: I am hungry.",
    "Summarize the following text.",
    "Give me three ideas for a birthday present.",
    "Name five animals.",
    "List the planets.",
    "Count to ten.",
    "What is 2 + 2?",
    "What is 17 times 23?",
    "Is 91 a prime number?",
    "Which is larger, 9.9 or 9.11?",
    "Do you like music?",
    "Can you sing?",
    "What is your favourite colour?",
    "Plan a trip to Japan.",
    "Explain quantum mechanics.",
    "Explain gravity to a child.",
    "How do vaccines work?",
    "What is love?",
    "What happened in 1969?",
    "Recommend a good book.",
    "Who won the match?",
    "Where is Paris?",
    "When was the war?",
    "How much is a ticket?",
)
SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful, honest assistant.",
    "Answer briefly.",
    "You are an expert.",
)
