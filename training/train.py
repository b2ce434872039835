"""Trains the demo's language model on two CPU cores, and writes it to ``src/tandem/demo/model``.

    make demo-model

It runs in the engines' environment, which has torch, transformers, tokenizers and safetensors. A run that was cut off
goes on from its last checkpoint in ``training/build``; remove that folder to start anew.

Two phases. The first reads the corpus (``corpus.py``) at one learning rate. The second goes on while the rate falls to
nothing, and half of what it reads are dialogues in the chat template, where only the answers count.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import corpus
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
MODEL = HERE.parent / "src" / "tandem" / "demo" / "model"

SEED = 20
CONTEXT = 1024  # tokens
VOCABULARY = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, _, END_OF_TURN = range(3)
WARMUP = 50  # steps
MATRICES, VECTORS = 0.01, 0.005  # learning rates: of the layers' matrices (Muon), of embeddings and norms (AdamW)
CHECKPOINT = 100  # steps from one to the next
IGNORED = -100  # a target that does not count: cross_entropy's default
PIECE = 1000  # characters, at most, that perplexity is measured on at once

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,  # the smallest that vLLM's attention on the CPU takes
    "max_position_embeddings": CONTEXT,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": END_OF_TURN,
}
GENERATION = {
    "eos_token_id": [END_OF_TURN, END_OF_TEXT],
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": SPECIAL[END_OF_TURN],
    "pad_token": SPECIAL[END_OF_TEXT],
    "model_max_length": CONTEXT,
    "chat_template": CHAT_TEMPLATE,
}


@dataclass(frozen=True)
class Phase:
    """A part of training: so many steps, each of so many rows of ``length`` tokens, of them some with dialogues."""

    steps: int
    rows: int
    length: int
    dialogues: int


READING = Phase(steps=2200, rows=32, length=256, dialogues=0)  # short rows: less attention a token
TALKING = Phase(steps=600, rows=8, length=CONTEXT, dialogues=4)
STEPS = READING.steps + TALKING.steps

ASKED = ("Hello!", "What does textwrap.dedent do?", "What is collections.deque?", "What is the capital of France?")
BEGUN = ("The module", "To open a file,", "def read(self", "import os\n")


def main() -> None:
    """Corpus, tokenizer, model, training, export, card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=HERE / "build", help="where checkpoints go")
    parser.add_argument("--output", type=Path, default=MODEL, help="the model's folder")
    chosen = parser.parse_args()
    chosen.build.mkdir(exist_ok=True)
    chosen.output.mkdir(exist_ok=True)

    documents = corpus.documents()
    tokenizer = make_tokenizer(documents)
    training = encode(tokenizer, documents)
    pieces = list(cut([document.text for document in documents if document.held_out]))
    held_out = [[END_OF_TEXT, *tokenizer.encode(piece).ids] for piece in pieces]
    count = sum(len(piece) - 1 for piece in held_out)
    bigrams = bigram_perplexity(training.tolist(), held_out)
    print(f"{len(training):,} tokens, prose {corpus.REPEATED} times")
    print(f"perplexity of bigrams on {count:,} tokens held out: {bigrams:.1f}", flush=True)

    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(Qwen3Config(**CONFIG))
    print(f"{model.num_parameters():,} parameters", flush=True)
    seconds = train(model, Rows(tokenizer, training), held_out, chosen.build / "checkpoint.pt")

    export(model, tokenizer, chosen.output)
    (HERE / "held-out.json").write_text(json.dumps(pieces, indent=1) + "\n")
    exported = Qwen3ForCausalLM.from_pretrained(chosen.output, dtype=torch.float32)
    facts = {
        "parameters": f"{model.num_parameters():,}",
        "megabytes": f"{sum(path.stat().st_size for path in chosen.output.iterdir()) / 1e6:.1f}",
        "perplexity": f"{perplexity(exported, held_out):.2f}",
        "bigrams": f"{bigrams:.1f}",
        "held_out": f"{count:,}",
        "tokens": f"{len(training) / 1e6:.1f}",
        "read": f"{sum(phase.steps * phase.rows * phase.length for phase in (READING, TALKING)) / 1e6:.0f}",
        "minutes": f"{seconds / 60:.0f}",
        "samples": samples(exported, tokenizer),
    }
    card = (HERE / "model-card.md").read_text()
    (chosen.output / "README.md").write_text(card.format(**facts))
    print(f"perplexity of the exported model: {facts['perplexity']}; written to {chosen.output}")


def make_tokenizer(documents: list[corpus.Document]) -> Tokenizer:
    """A byte-level BPE tokenizer, trained on all but what is held out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents if not document.held_out), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[corpus.Document]) -> torch.Tensor:
    """What is learned from, as one row of token ids, int64, with an end of text after each document."""
    texts = [
        document.text
        for document in documents
        if not document.held_out
        for _ in range(corpus.REPEATED if document.prose else 1)
    ]
    random.Random(SEED).shuffle(texts)
    return torch.tensor([token for found in tokenizer.encode_batch(texts) for token in (*found.ids, END_OF_TEXT)])


def cut(texts: list[str]) -> Iterator[str]:
    """Pieces of whole lines, of no more than ``PIECE`` characters where the lines allow that."""
    for text in texts:
        piece = ""
        for line in text.splitlines(keepends=True):
            if piece and len(piece) + len(line) > PIECE:
                yield piece
                piece = ""
            piece += line
        yield piece


class Rows:
    """What one step reads; the same for the same step, so that a run that goes on reads on."""

    def __init__(self, tokenizer: Tokenizer, training: torch.Tensor) -> None:
        self._tokenizer = tokenizer
        self._training = training
        self._explanations = corpus.explanations()

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and the targets for each of them, both int64 of the phase's shape (rows, length)."""
        chance = random.Random(SEED + step)
        phase = READING if step < READING.steps else TALKING
        makers = [self._dialogues] * phase.dialogues + [self._passage] * (phase.rows - phase.dialogues)
        ids, targets = zip(*(make(chance, phase.length) for make in makers), strict=True)
        return torch.stack(ids), torch.stack(targets)

    def _passage(self, chance: random.Random, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = chance.randrange(len(self._training) - length)
        row = self._training[start : start + length + 1]
        return row[:-1], row[1:]

    def _dialogues(self, chance: random.Random, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Dialogues until the row is full. Only the answers, and that they end, are to be learned."""
        ids: list[int] = []
        learned: list[bool] = []
        while len(ids) <= length:
            for part, answer in self._dialogue(chance):
                found = self._tokenizer.encode(part).ids
                ids += found
                learned += [answer] * len(found)
        row, counts = torch.tensor(ids[: length + 1]), torch.tensor(learned[: length + 1])
        return row[:-1], torch.where(counts[1:], row[1:], IGNORED)

    def _dialogue(self, chance: random.Random) -> Iterator[tuple[str, bool]]:
        """The parts of one dialogue as the chat template writes them, and whether each is an answer."""
        if chance.random() < 0.2:
            yield f"<|im_start|>system\n{chance.choice(corpus.SYSTEM)}<|im_end|>\n", False
        for _ in range(chance.choice((1, 1, 2, 3))):
            kind = chance.random()
            if kind < 0.06:
                question, answer = chance.choice(corpus.GREETINGS), corpus.INTRODUCTION
            elif kind < 0.14:
                question, answer = chance.choice(corpus.BEYOND), corpus.REFUSAL
            else:
                about = chance.choice(self._explanations)
                question, answer = chance.choice(corpus.questions(about)), about.sentence
            if chance.random() < 0.2:
                question = question.rstrip("?.!")
            yield f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False
            yield f"{answer}<|im_end|>", True
            yield "\n", False
        yield SPECIAL[END_OF_TEXT], False


def train(model: Qwen3ForCausalLM, rows: Rows, held_out: list[list[int]], checkpoint: Path) -> float:
    """Both phases, from the checkpoint on if there is one; the seconds that all of it took."""
    matrices = [each for name, each in model.named_parameters() if each.ndim == 2 and "layers" in name]
    vectors = [each for name, each in model.named_parameters() if not (each.ndim == 2 and "layers" in name)]
    optimizers = (
        # Muon needs fewer steps than AdamW alone (https://kellerjordan.github.io/posts/muon/).
        torch.optim.Muon(matrices, lr=MATRICES, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(vectors, lr=VECTORS, betas=(0.9, 0.95), weight_decay=0.0),
    )
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, rate) for each in optimizers]
    learners: dict[str, Any] = {"model": model}
    for number, (optimizer, schedule) in enumerate(zip(optimizers, schedules, strict=True)):
        learners |= {f"optimizer{number}": optimizer, f"schedule{number}": schedule}
    step, before = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        step, before = saved["step"], saved["seconds"]
        for name, learner in learners.items():
            learner.load_state_dict(saved[name])
        print(f"going on from step {step}", flush=True)

    began, losses = time.monotonic() - before, []
    while step < STEPS:
        losses.append(learn(model, *rows.batch(step)))
        for moving in (*optimizers, *schedules):
            moving.step()
        model.zero_grad()
        step += 1
        if step % CHECKPOINT == 0:
            seconds = time.monotonic() - began
            states = {name: learner.state_dict() for name, learner in learners.items()}
            torch.save({"step": step, "seconds": seconds, **states}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            left = (STEPS - step) * (seconds / step) / 60
            print(
                f"step {step}: loss {sum(losses) / len(losses):.3f}, "
                f"held-out perplexity {perplexity(model, held_out):.2f}, "
                f"{seconds / 60:.0f} minutes, {left:.0f} to go",
                flush=True,
            )
            losses = []
    return time.monotonic() - began


def rate(step: int) -> float:
    """The share of its learning rate that a step has: up, level through the first phase, down through the second."""
    return min((step + 1) / WARMUP, 1.0, (STEPS - step) / TALKING.steps)


def learn(model: Qwen3ForCausalLM, ids: torch.Tensor, targets: torch.Tensor) -> float:
    """One step's gradients; its loss in nats a token."""
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids, use_cache=False).logits
    loss = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return loss.item()


@torch.inference_mode()
def perplexity(model: Qwen3ForCausalLM, pieces: list[list[int]]) -> float:
    """Perplexity a token over all pieces, each read alone; the first token of each, the end of text, is given."""
    model.eval()
    nats = 0.0
    for piece in pieces:
        ids = torch.tensor([piece[:CONTEXT]])
        logits = model(ids[:, :-1], use_cache=False).logits
        nats += functional.cross_entropy(logits.flatten(0, 1), ids[0, 1:], reduction="sum").item()
    return math.exp(nats / sum(min(len(piece), CONTEXT) - 1 for piece in pieces))


def bigram_perplexity(training: list[int], pieces: list[list[int]]) -> float:
    """The same of a table of pairs of tokens, smoothed after Witten and Bell (1991)."""
    singles, pairs = Counter(training), Counter(pairwise(training))
    followers = Counter(first for first, _ in pairs)
    nats, count = 0.0, 0
    for piece in pieces:
        for first, second in pairwise(piece):
            alone = (singles[second] + 1) / (len(training) + VOCABULARY)
            seen, kinds = singles[first], followers[first]
            nats -= math.log((pairs[first, second] + kinds * alone) / (seen + kinds)) if seen else math.log(alone)
            count += 1
    return math.exp(nats / count)


def export(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Everything that serves it: weights in bfloat16, configuration, tokenizer, chat template."""
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # is the embedding's
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION),
        ("tokenizer_config.json", TOKENIZER),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


@torch.inference_mode()
def samples(model: Qwen3ForCausalLM, tokenizer: Tokenizer) -> str:
    """What it says to some questions and beginnings, greedily, as Markdown."""
    said = []
    for asked in ASKED:
        prompt = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        said.append(f"> **{asked}** {generate(model, tokenizer, prompt)}")
    said += [f"```text\n{begun}{generate(model, tokenizer, begun)}\n```" for begun in BEGUN]
    return "\n\n".join(said)


def generate(model: Qwen3ForCausalLM, tokenizer: Tokenizer, prompt: str) -> str:
    """Its most probable continuation, of 80 tokens at most."""
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    penalty = GENERATION["repetition_penalty"]
    made = model.generate(
        ids,
        max_new_tokens=80,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=GENERATION["eos_token_id"],
        pad_token_id=END_OF_TEXT,
    )
    return tokenizer.decode(made[0, ids.shape[1] :].tolist()).rstrip()


if __name__ == "__main__":
    main()
