"""Index a folder of code with FAISS, and ask it questions.

    python examples/search_code_faiss.py index src code.faiss
    python examples/search_code_faiss.py search code.faiss "where are texts cut into batches?"

Needs `pip install vllm-tandem faiss-cpu`, and a service: `tandem up`, or `tandem up --demo`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import faiss

from tandem import VLLMClient, VLLMConfig

LINES = 15  # in a piece: about as much as small models take at once


def pieces(folder: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Each piece of each file: where it begins, and its text."""
    for path in sorted(folder.rglob(pattern)):
        lines = path.read_text(errors="replace").splitlines()
        for start in range(0, len(lines), LINES):
            if text := "\n".join(lines[start : start + LINES]).strip():
                yield f"{path}:{start + 1}", text


def index(client: VLLMClient, folder: Path, pattern: str, out: Path) -> None:
    places, texts = zip(*pieces(folder, pattern), strict=True)
    vectors = client.embed_chunks(texts)
    found = faiss.IndexFlatIP(vectors.shape[1])  # of vectors of length 1, the inner product is the cosine
    found.add(vectors)
    faiss.write_index(found, str(out))
    out.with_suffix(".json").write_text(json.dumps(places))
    print(f"{len(places)} pieces are in {out}.")


def search(client: VLLMClient, file: Path, question: str, count: int) -> None:
    places = json.loads(file.with_suffix(".json").read_text())
    query = client.embed_single(question, kind="query")
    scores, rows = faiss.read_index(str(file)).search(query[None], min(count, len(places)))
    for score, row in zip(scores[0], rows[0], strict=True):
        print(f"{score:.3f}  {places[row]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Index a folder of code with FAISS, and search it.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8200/v1")
    parser.add_argument("--model", default="embedding")
    commands = parser.add_subparsers(dest="command", required=True)
    indexing = commands.add_parser("index")
    indexing.add_argument("folder", type=Path)
    indexing.add_argument("out", type=Path)
    indexing.add_argument("--pattern", default="*.py")
    searching = commands.add_parser("search")
    searching.add_argument("file", type=Path)
    searching.add_argument("question")
    searching.add_argument("--count", type=int, default=5)
    given = parser.parse_args()
    with VLLMClient(VLLMConfig(base_url=given.base_url, model=given.model, normalize=True)) as client:
        if given.command == "index":
            index(client, given.folder, given.pattern, given.out)
        else:
            search(client, given.file, given.question, given.count)


if __name__ == "__main__":
    main()
