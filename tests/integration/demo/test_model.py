"""The demo's language model is what its card says, as vLLM serves it."""

import json
import math
import re
from pathlib import Path

import corpus
import openai
import pytest

from tandem import demo

from ..conftest import Service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

TRAINING = Path(__file__).parents[3] / "training"
CARD = (demo.GENERATION / "README.md").read_text()
PROMPTS = (
    "The module",
    "Once",
    "This function",
    "To open a file,",
    "def read(self",
    "class Server",
    "import os\n",
    "Hello, my name is",
    "If the argument is",
    "Raises",
)


@pytest.fixture
def client(demo: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo.address}/v1", api_key="none", max_retries=0)


def test_perplexity_is_what_the_card_says(client: openai.OpenAI) -> None:
    """The same texts, the same definition, in the engine's own number format."""
    stated = float(re.search(r"\| perplexity \| ([\d.]+) a token", CARD)[1])
    pieces = json.loads((TRAINING / "held-out.json").read_text())
    found: list[float] = []
    for start in range(0, len(pieces), 32):
        prompts = [f"<|endoftext|>{piece}" for piece in pieces[start : start + 32]]
        answer = client.completions.create(model="generation", prompt=prompts, max_tokens=1, echo=True, logprobs=0)
        for choice in answer.choices:
            found += choice.logprobs.token_logprobs[1:-1]  # not the end of text before it, nor the token after it
    assert math.exp(-sum(found) / len(found)) == pytest.approx(stated, rel=0.02)


def test_its_text_is_made_of_words_that_it_has_read(client: openai.OpenAI) -> None:
    """Greedily, from ten beginnings: nine tenths of the words and identifiers, at least, stand in the corpus."""
    known = {word for document in corpus.documents() for word in corpus.words(document.text)}
    answer = client.completions.create(
        model="generation", prompt=list(PROMPTS), max_tokens=60, temperature=0, extra_body={"min_tokens": 40}
    )
    written = [corpus.words(choice.text)[:-1] for choice in answer.choices]  # the last may be cut off
    assert all(len(words) > 5 for words in written), written
    everything = [word for words in written for word in words]
    assert sum(word in known for word in everything) >= 0.9 * len(everything), set(everything) - known
    assert len(set(everything)) > len(everything) / 4, everything  # not one phrase for ever


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("What does textwrap.dedent do?", "Remove any common leading whitespace from every line in `text`."),
        ("Hello!", corpus.INTRODUCTION),
        ("What is the capital of France?", corpus.REFUSAL),
    ],
)
def test_a_chat_gets_a_sentence_that_ends(client: openai.OpenAI, asked: str, answered: str) -> None:
    answer = client.chat.completions.create(
        model="generation", messages=[{"role": "user", "content": asked}], temperature=0, max_tokens=100
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (answered, "stop")


def test_a_chat_without_settings_ends(client: openai.OpenAI) -> None:
    """With what the model's own generation config asks for, questions that it has never seen get one sentence, too."""
    for asked in ("Which function joins strings?", "How do I read a file?", "Tell me about threads."):
        answer = client.chat.completions.create(
            model="generation", messages=[{"role": "user", "content": asked}], max_tokens=200
        )
        assert answer.choices[0].finish_reason == "stop"
        assert len(answer.choices[0].message.content.split()) > 2
