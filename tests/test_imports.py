"""What is imported when: the command and the package must feel instant."""

import subprocess
import sys

import pytest

import tandem

HEAVY = {"fastapi", "pydantic", "httpx2", "uvicorn", "numpy", "msgspec", "rich", "prometheus_client", "asyncio"}
SERVERS = {
    *("fastapi", "fastokens", "httptools", "orjson", "pydantic", "rich", "tokenizers", "typer", "uvicorn", "uvloop"),
    "vllm",
}


def loaded(code: str) -> set[str]:
    """What a fresh interpreter has loaded after ``code``."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(told.stdout.split())


@pytest.mark.process
@pytest.mark.parametrize("code", ["import tandem", "from tandem.cli import app", "import tandem; dir(tandem)"])
def test_nothing_heavy_is_loaded_before_it_is_used(code: str) -> None:
    """Neither the package nor the whole command line loads a library that only running commands need."""
    assert HEAVY.isdisjoint(loaded(code))


@pytest.mark.process
def test_the_client_needs_nothing_of_the_server() -> None:
    """A client that talks HTTP loads no package that only the server extra brings, and no vLLM."""
    assert SERVERS.isdisjoint(loaded("from tandem import VLLMClient; VLLMClient().close()"))


def test_public_names_are_there() -> None:
    """Each by its own name, and no others."""
    for name in tandem.__all__:
        assert name in dir(tandem)
        value = getattr(tandem, name)
        assert name == "__version__" or value.__name__ == name
    with pytest.raises(AttributeError, match="VLLMKlient"):
        _ = tandem.VLLMKlient  # type: ignore[attr-defined]
