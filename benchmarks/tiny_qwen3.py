"""A Qwen3 that costs next to nothing, so that what is around a model is measured.

Random weights, one layer with two heads and 128 dimensions, since even a second one is on a CPU what merged batches
wait for; for more dimensions, a projection as Sentence Transformers have it (a Dense module), which costs less than a
wide model's layers. Its tokenizer is a byte-level BPE, trained on this repository's documents. Run by the interpreter
that has vLLM, which brings transformers: ``python benchmarks/tiny_qwen3.py FOLDER DIMENSIONS``.
"""

import json
import sys
from pathlib import Path

_VOCABULARY = 2048
_CONTEXT = 1024
_WIDTH = 128  # of its layers


def main(folder: Path, dimensions: int) -> None:
    """Write the model into ``folder``."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    end = "<|end|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, special_tokens=[end], initial_alphabet=alphabet)
    tokenizer.train([str(path) for path in Path(__file__).parents[1].glob("**/*.md")], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=_VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=_CONTEXT,
        eos_token_id=fast.eos_token_id,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    if dimensions != _WIDTH:
        _project(folder, dimensions)


def _project(folder: Path, dimensions: int) -> None:
    """Have vectors of ``dimensions`` made of the model's."""
    import torch
    from safetensors.torch import save_file

    (folder / "1_Dense").mkdir()
    modules = [("", "Transformer"), ("1_Dense", "Dense")]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Dense" / "config.json").write_text(
        json.dumps({"in_features": _WIDTH, "out_features": dimensions, "bias": False})
    )
    save_file({"linear.weight": torch.randn(dimensions, _WIDTH)}, folder / "1_Dense" / "model.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
