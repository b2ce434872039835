"""What both examples share: a folder of code cut into pieces, and the command line."""

import argparse
from pathlib import Path

LINES = 15  # in a piece: about as much as small models take at once


def pieces(folder: Path, pattern: str) -> tuple[list[str], list[str]]:
    """Where each piece of each file begins, and its text."""
    places, texts = [], []
    for path in sorted(folder.rglob(pattern)):
        lines = path.read_text(errors="replace").splitlines()
        for start in range(0, len(lines), LINES):
            if text := "\n".join(lines[start : start + LINES]).strip():
                places.append(f"{path}:{start + 1}")
                texts.append(text)
    if not texts:
        raise SystemExit(f"{folder} has no code in files named {pattern}")
    return places, texts


def arguments(description: str) -> argparse.Namespace:
    """``index FOLDER FILE`` or ``search FILE QUESTION``."""
    parser = argparse.ArgumentParser(description=description)
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
    return parser.parse_args()
