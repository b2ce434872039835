"""Processes of engines whose service is gone: keeper and supervisor were killed together.

An engine's processes are known by the folder for temporary files that they were started with, ``RUN/tmp/NAME``, which
:mod:`tandem.engines.launch` sets; vLLM's own processes, which write over their environment when they name themselves,
by the session that they share with one that did not.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.rundir import RunDir


@dataclass(frozen=True)
class Orphan:
    """One such process, and the run folder of the service that started it."""

    pid: int
    run_dir: Path


def orphans(proc: Path = Path("/proc")) -> list[Orphan]:
    """All orphans of this user's services, by pid. Processes of services that run are none."""
    folders: dict[int, Path] = {}
    sessions: dict[int, int] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            state, *fields = (entry / "stat").read_text().rpartition(")")[2].split()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if state in "ZX":
            continue
        pid = int(entry.name)
        sessions[pid] = int(fields[2])
        if (folder := _run_folder(_parsed(environment))) is not None:
            folders[pid] = folder
    gone = {folder for folder in set(folders.values()) if not RunDir(folder).alive()}
    by_session = {sessions[pid]: folder for pid, folder in folders.items() if folder in gone}
    return [Orphan(pid, by_session[session]) for pid, session in sorted(sessions.items()) if session in by_session]


def _parsed(environment: bytes) -> Mapping[str, str]:
    pairs = (entry.partition(b"=") for entry in environment.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _run_folder(environment: Mapping[str, str]) -> Path | None:
    """The run folder of the service that set this environment for an engine; None for any other process."""
    tmp = environment.get("TMPDIR", "")
    folder = Path(tmp)
    if not tmp or environment.get("VLLM_RPC_BASE_PATH") != tmp or folder.parent.name != "tmp":
        return None
    # Somebody else's vLLM may have such a folder, too; a run folder has more in it.
    return folder.parent.parent if RunDir(folder.parent.parent).logs.is_dir() else None
