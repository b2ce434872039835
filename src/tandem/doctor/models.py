"""Whether each engine's model is on this machine, whole."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from tandem.doctor.finding import Finding, fine, problem, refused, warning
from tandem.engines import weights
from tandem.errors import SetupError
from tandem.settings import Settings

# Any of these is a tokenizer, or what transformers makes one of.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "tekken.json",
    "*.tiktoken",
    "spiece.model",
)
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself bounds it
_DOWNLOAD = "Download the model again"


def examine(settings: Settings, cache: weights.Cache) -> Iterator[Finding]:
    """A finding for each engine's model, and one for each download that was cut off."""
    for name, engine in settings.engines.items():
        subject = f"model of {name}"
        try:
            model = weights.find(engine.model, cache)
        except SetupError as exc:
            yield refused(subject, exc)
            continue
        if model is None:
            missing = weights.missing((engine.model,), cache)
            level = problem if settings.offline else warning
            yield level(subject, missing.cause, missing.mend)
        else:
            yield files(subject, model)
    yield from _cut_off(cache)


def files(subject: str, model: weights.Model) -> Finding:
    """Whether the files of a model are whole, by what they say of their own sizes."""
    size = 0
    for path in sorted(model.path.glob("*.safetensors")):
        try:
            expected = safetensors_size(path)
            actual = path.stat().st_size
        except (OSError, ValueError) as exc:
            return problem(subject, f"{path} is damaged: {exc}", _DOWNLOAD)
        if actual != expected:
            return problem(subject, f"{path} has {actual} bytes, and its header says {expected}", _DOWNLOAD)
        size += actual
    if not any(found for pattern in _TOKENIZERS for found in model.path.glob(pattern)):
        return problem(subject, f"{model.path} has no tokenizer", f"{_DOWNLOAD}, with its tokenizer.json")
    if not size and not any(found for pattern in ("*.bin", "*.pt", "*.gguf") for found in model.path.glob(pattern)):
        return warning(subject, f"{model.path} has no weights in it", f"{_DOWNLOAD}, unless they are to be made up")
    return fine(subject, f"{model.name} in {model.path}" + (f", {size / 2**30:.1f} GiB" if size else ""))


def safetensors_size(path: Path) -> int:
    """How many bytes a safetensors file has by its own header.

    The first eight bytes are the header's length, little-endian; the header is JSON with the offsets of each tensor
    behind it (https://github.com/huggingface/safetensors#format).

    Raises:
        ValueError: it has no such header.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError("it is too short for a header")
        (length,) = struct.unpack("<Q", start)
        if length > _LONGEST_HEADER:
            raise ValueError("it does not begin as a safetensors file does")
        head = file.read(length)
    if len(head) < length:
        raise ValueError("it is cut short within its header")
    try:
        tensors = json.loads(head)
        end = max((tensor["data_offsets"][1] for key, tensor in tensors.items() if key != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ValueError("its header is no JSON of tensors") from exc
    return 8 + int(length) + int(end)


def _cut_off(cache: weights.Cache) -> Iterator[Finding]:
    for folder in sorted({path.parent.parent for path in cache.hub.glob("models--*/blobs/*.incomplete")}):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        says = f"a download of {repository} was cut off"
        yield warning("model cache", says, f"Go on with `hf download {repository}`, or remove {folder}")
