"""Index a folder of code in a DuckDB database, and ask it questions. No extension is needed: DuckDB compares vectors.

    python examples/search_code_duckdb.py index src code.duckdb
    python examples/search_code_duckdb.py search code.duckdb "where are texts cut into batches?"

Needs `pip install "vllm-tandem[files]" duckdb`, and a service: `tandem up`, or `tandem up --demo`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from tandem import VLLMClient, VLLMConfig

LINES = 15  # in a piece: about as much as small models take at once


def pieces(folder: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Each piece of each file: where it begins, and its text."""
    for path in sorted(folder.rglob(pattern)):
        lines = path.read_text(errors="replace").splitlines()
        for start in range(0, len(lines), LINES):
            if text := "\n".join(lines[start : start + LINES]).strip():
                yield f"{path}:{start + 1}", text


def index(client: VLLMClient, folder: Path, pattern: str, file: Path) -> None:
    places, texts = zip(*pieces(folder, pattern), strict=True)
    vectors = client.embed_chunks(texts)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    with duckdb.connect(str(file)) as database:
        database.register("found", pa.table({"place": places, "text": texts, "vector": column}))
        database.execute("CREATE OR REPLACE TABLE pieces AS SELECT * FROM found")
    print(f"{len(places)} pieces are in {file}.")


def search(client: VLLMClient, file: Path, question: str, count: int) -> None:
    query = client.embed_single(question, kind="query")
    nearest = f"""
        SELECT array_cosine_similarity(vector, ?::FLOAT[{len(query)}]) AS score, place
        FROM pieces ORDER BY score DESC LIMIT ?
    """
    with duckdb.connect(str(file), read_only=True) as database:
        for score, place in database.execute(nearest, [query.tolist(), count]).fetchall():
            print(f"{score:.3f}  {place}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Index a folder of code in DuckDB, and search it.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8200/v1")
    parser.add_argument("--model", default="embedding")
    commands = parser.add_subparsers(dest="command", required=True)
    indexing = commands.add_parser("index")
    indexing.add_argument("folder", type=Path)
    indexing.add_argument("file", type=Path)
    indexing.add_argument("--pattern", default="*.py")
    searching = commands.add_parser("search")
    searching.add_argument("file", type=Path)
    searching.add_argument("question")
    searching.add_argument("--count", type=int, default=5)
    given = parser.parse_args()
    with VLLMClient(VLLMConfig(base_url=given.base_url, model=given.model)) as client:
        if given.command == "index":
            index(client, given.folder, given.pattern, given.file)
        else:
            search(client, given.file, given.question, given.count)


if __name__ == "__main__":
    main()
