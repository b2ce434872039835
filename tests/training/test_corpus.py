"""What the demo's language model reads."""

import corpus
import pytest


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("Remove it.", ""),  # too short to be an answer
        ("Return the square root of x.\n\nMore.", "Return the square root of x."),
        ("chain(*iterables) --> chain object\n\nMake one of many iterables.", "Make one of many iterables."),
        ("gcd(a, b) - the greatest common divisor", "The greatest common divisor."),
        ("Return the string\n    obtained so.  repl can be more.", "Return the string obtained so."),
        ("read the file, e.g. for `x`. Then close it", "Read the file, e.g. for `x`."),
        ("Arguments of the thing:\n\n- one", "Arguments of the thing."),
        (">>> 1 + 1 is two", ""),
        ("", ""),
    ],
)
def test_first_sentence(doc: str, sentence: str) -> None:
    assert corpus.first_sentence(doc) == sentence


def test_the_corpus_is_the_standard_library() -> None:
    """Code and prose, nothing of the tests, of tables or of what this machine has installed; some of it held out."""
    documents = corpus.documents()
    sources = {document.source for document in documents}
    assert {"textwrap", "asyncio.tasks", "topic assert"} <= sources
    assert not any(source.startswith(("test.", "encodings", "site-packages", "_sysconfigdata")) for source in sources)
    held_out = {document.source for document in documents if document.held_out}
    assert 0 < len(held_out) < len(sources) / 30
    assert not {document.source for document in documents if not document.held_out} & held_out


def test_explanations() -> None:
    """Of modules, classes and functions, written in Python or in C, under the names that people use."""
    known = {each.name: each for each in corpus.explanations()}
    assert known["textwrap.dedent"].sentence == "Remove any common leading whitespace from every line in `text`."
    assert (known["len"].kind, known["math"].kind, known["collections.deque"].kind) == ("function", "module", "class")
    assert {"str.join", "os.path.join", "re.sub", "asyncio.gather"} <= known.keys()
    assert all(each.sentence[0].isupper() and each.sentence[-1] in ".!?" for each in known.values())
