"""What is imported when: the command and the package must feel instant."""

import subprocess
import sys

import pytest

HEAVY = {"fastapi", "pydantic", "httpx2", "uvicorn", "numpy", "msgspec", "rich", "prometheus_client", "asyncio"}


@pytest.mark.process
@pytest.mark.parametrize("code", ["import tandem", "from tandem.cli import app"])
def test_nothing_heavy_is_loaded_before_it_is_used(code: str) -> None:
    """Neither the package nor the whole command line loads a library that only running commands need."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert HEAVY.isdisjoint(told.stdout.split())
