"""What outlives a run: small JSON files in the state folder, each a mapping by key."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

# Entries of models that nobody has started for long make room for new ones.
_MOST = 256


def state_dir() -> Path:
    """Where what outlives a run lies: one place for every run of this user."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "tandem"


def read(name: str) -> dict[str, Any]:
    """All entries of the file ``name``; none where it is not there, or is of another form."""
    try:
        told = json.loads((state_dir() / name).read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def write(name: str, key: str, value: Any) -> None:
    """Keep ``value`` for the next start. Services that start at the same time do not lose each other's.

    Raises:
        OSError: the state folder cannot be written.
    """
    path = state_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = {each: known for each, known in read(name).items() if each != key}
        kept = dict([*known.items(), (key, value)][-_MOST:])
        new = path.with_suffix(".new")
        new.write_text(json.dumps(kept, indent=2) + "\n")
        new.replace(path)
