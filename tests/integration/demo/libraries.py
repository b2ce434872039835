"""What LangChain and LlamaIndex make of texts, run by ``test_libraries.py`` in the environment that has both.

``python libraries.py BASE_URL``, with a JSON list of texts on standard input; prints the vectors by library as JSON.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    import os

    import llama_index.core

    # LlamaIndex carries the vocabulary that LangChain's OpenAIEmbeddings would download.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache")
    from langchain_openai import OpenAIEmbeddings
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    url, texts = sys.argv[1], json.load(sys.stdin)
    langchain = OpenAIEmbeddings(model="embedding", base_url=url, api_key="none", check_embedding_ctx_length=False)
    by_ids = OpenAIEmbeddings(model="embedding", base_url=url, api_key="none")
    llama_index = OpenAILikeEmbedding(model_name="embedding", api_base=url, api_key="none")
    vectors = {
        "langchain": langchain.embed_documents(texts),
        "langchain, one": [langchain.embed_query(text) for text in texts],
        "langchain, ids": by_ids.embed_documents(texts),
        "llama-index": llama_index.get_text_embedding_batch(texts),
        "llama-index, one": [llama_index.get_query_embedding(text) for text in texts],
    }
    print(json.dumps(vectors))


if __name__ == "__main__":
    main()
