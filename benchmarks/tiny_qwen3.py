"""A Qwen3 that costs next to nothing, so that what is around a model is measured.

Random weights, any number of dimensions, two layers with two heads; its tokenizer is a byte-level BPE, trained on this
repository's documents. Run by the interpreter that has vLLM, which brings transformers:
``python benchmarks/tiny_qwen3.py FOLDER DIMENSIONS``.
"""

import sys
from pathlib import Path

_VOCABULARY = 2048
_CONTEXT = 1024


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
        hidden_size=dimensions,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=_CONTEXT,
        eos_token_id=fast.eos_token_id,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
