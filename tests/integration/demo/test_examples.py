"""The examples, run as a reader would, against the demo."""

import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Service, clean_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

EXAMPLES = Path(__file__).parents[3] / "examples"
CODE = {
    "stack.py": "class Stack:\n    def push(self, item):\n        self.items.append(item)\n",
    "weather.py": "def forecast(city):\n    '''Whether it will rain tomorrow.'''\n    return weather_service(city)\n",
    "mail.py": "def send_email(to, subject):\n    server = smtplib.SMTP('localhost')\n    server.send_message(to)\n",
}


def test_each_example_is_run_here() -> None:
    """No example is without a test."""
    examples = {path.name for path in EXAMPLES.glob("*.py")} - {"code_folder.py"}  # which both share
    assert examples == {"search_code_faiss.py", "search_code_duckdb.py"}


@pytest.mark.parametrize(("example", "file"), [("faiss", "code.faiss"), ("duckdb", "code.duckdb")])
def test_code_is_found_by_what_it_does(example: str, file: str, demo: Service, tmp_path: Path) -> None:
    """A folder is indexed, and the nearest of each question is the file that answers it."""
    (tmp_path / "code").mkdir()
    for name, code in CODE.items():
        (tmp_path / "code" / name).write_text(code)

    def run(*arguments: str) -> list[str]:
        script = EXAMPLES / f"search_code_{example}.py"
        ran = subprocess.run(
            [sys.executable, script, "--base-url", f"{demo.address}/v1", *arguments],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()

    assert run("index", "code", file) == [f"3 pieces are in {file}."]
    for question, name in (
        ("put an element on top of a stack", "stack.py"),
        ("will it rain?", "weather.py"),
        ("send a message by mail", "mail.py"),
    ):
        assert run("search", file, question, "--count", "2")[0].endswith(f"code/{name}:1"), question
