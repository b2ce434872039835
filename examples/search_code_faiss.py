"""Index a folder of code with FAISS, and ask it questions.

    python examples/search_code_faiss.py index src code.faiss
    python examples/search_code_faiss.py search code.faiss "where are texts cut into batches?"

Needs `pip install vllm-tandem faiss-cpu`, and a service: `tandem up`, or `tandem up --demo`.
"""

import json
from pathlib import Path

import faiss
from code_folder import arguments, pieces

from tandem import VLLMClient, VLLMConfig


def index(client: VLLMClient, folder: Path, pattern: str, file: Path) -> None:
    places, texts = pieces(folder, pattern)
    vectors = client.embed_chunks(texts)
    found = faiss.IndexFlatIP(vectors.shape[1])  # of vectors of length 1, the inner product is the cosine
    found.add(vectors)
    faiss.write_index(found, str(file))
    file.with_suffix(".json").write_text(json.dumps(places))
    print(f"{len(places)} pieces are in {file}.")


def search(client: VLLMClient, file: Path, question: str, count: int) -> None:
    places = json.loads(file.with_suffix(".json").read_text())
    query = client.embed_single(question, kind="query")
    scores, rows = faiss.read_index(str(file)).search(query[None], min(count, len(places)))
    for score, row in zip(scores[0], rows[0], strict=True):
        print(f"{score:.3f}  {places[row]}")


def main() -> None:
    given = arguments("Index a folder of code with FAISS, and search it.")
    with VLLMClient(VLLMConfig(base_url=given.base_url, model=given.model, normalize=True)) as client:
        if given.command == "index":
            index(client, given.folder, given.pattern, given.file)
        else:
            search(client, given.file, given.question, given.count)


if __name__ == "__main__":
    main()
