"""Index a folder of code in a DuckDB database, and ask it questions. No extension is needed: DuckDB compares vectors.

    python examples/search_code_duckdb.py index src code.duckdb
    python examples/search_code_duckdb.py search code.duckdb "where are texts cut into batches?"

Needs `pip install "vllm-tandem[files]" duckdb`, and a service: `tandem up`, or `tandem up --demo`.
"""

from pathlib import Path

import duckdb
import pyarrow as pa
from code_folder import arguments, pieces

from tandem import VLLMClient, VLLMConfig


def index(client: VLLMClient, folder: Path, pattern: str, file: Path) -> None:
    places, texts = pieces(folder, pattern)
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
    given = arguments("Index a folder of code in DuckDB, and search it.")
    with VLLMClient(VLLMConfig(base_url=given.base_url, model=given.model)) as client:
        if given.command == "index":
            index(client, given.folder, given.pattern, given.file)
        else:
            search(client, given.file, given.question, given.count)


if __name__ == "__main__":
    main()
