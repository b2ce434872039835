"""Processes of engines whose service is gone: keeper and supervisor were killed together.

An engine's processes are known by the folder for temporary files that they were started with, ``RUN/tmp/NAME``, which
:mod:`tandem.engines.launch` sets; vLLM's own processes, which write over their environment when they name themselves,
by the session that they share with one that did not.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.engines import keeper
from tandem.rundir import RunDir


@dataclass(frozen=True)
class Orphan:
    """A process of an engine, and the run folder of the service that started it."""

    pid: int
    run_dir: Path


def orphans(proc: Path = Path("/proc")) -> list[Orphan]:
    """All orphans of this user's services, by pid. Processes of services that run are none."""
    return [orphan for orphan in _engines(proc) if not RunDir(orphan.run_dir).alive()]


def sweep(run_dir: RunDir) -> set[int]:
    """Clear what is left of the service that had ``run_dir`` before: processes, shared memory, temporary files.

    For whoever has claimed the folder, and has started nothing yet. Others' processes are left alone, those of other
    run folders, too.

    Returns:
        The processes that were killed.
    """
    tmp = run_dir.path / "tmp"
    shared_memory = {path for folder in tmp.glob("*") for path in keeper.noted(str(folder))}
    folder = run_dir.path.resolve()
    killed = keeper.kill_all(
        lambda: [orphan.pid for orphan in _engines(Path("/proc")) if orphan.run_dir.resolve() == folder], shared_memory
    )
    shutil.rmtree(tmp, ignore_errors=True)
    return killed


def _engines(proc: Path) -> list[Orphan]:
    """Every process of an engine that a service of this user has started."""
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
    by_session = {sessions[pid]: folder for pid, folder in folders.items()}
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
