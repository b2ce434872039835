"""Which processes are left of a service that is gone."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tandem.engines.orphans import Orphan, orphans
from tandem.engines.process import EngineProcess, environment
from tandem.rundir import RunDir

from .fakes import fake_spec


def process(proc: Path, pid: int, session: int, state: str = "S", **env: str) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (a (name) ) {state} 1 {pid} {session} 0")
    (folder / "environ").write_bytes(b"\0".join(f"{name}={value}".encode() for name, value in env.items()))


def test_orphans_are_known_by_folder_and_session(tmp_path: Path, short_path: Path) -> None:
    """Not others' processes, nor those of a service that runs, nor the dead."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "self").mkdir()
    gone, alive = RunDir(short_path / "gone"), RunDir(short_path / "alive")
    for first, run_dir in ((10, gone), (20, alive)):
        run_dir.make()
        tmp = str(run_dir.tmp("embedding"))
        process(proc, first, first, TMPDIR=tmp, VLLM_RPC_BASE_PATH=tmp)
        process(proc, first + 1, first)  # it named itself, and wrote over its environment
    process(proc, 12, 10, "Z")
    process(proc, 30, 30, TMPDIR="/tmp", HOME="/home/me")
    process(proc, 40, 40, TMPDIR="/tmp/mine", VLLM_RPC_BASE_PATH="/tmp/mine")
    with alive.claim():
        assert orphans(proc) == [Orphan(10, gone.path), Orphan(11, gone.path)]


@pytest.mark.process
async def test_what_a_killed_keeper_leaves_is_found(short_path: Path) -> None:
    """A real one, with its grandchild."""
    spec = fake_spec(short_path, "embedding", "--one-session")
    spec.tmp.mkdir(parents=True)
    RunDir(short_path).make()
    heard = asyncio.Event()
    env = environment(spec.inherited, {**spec.launch.env, "VLLM_RPC_BASE_PATH": str(spec.tmp)})
    engine = await EngineProcess.start(
        spec.launch.argv,
        env,
        log=spec.log,
        rotation=spec.rotation,
        on_line=lambda line: heard.set() if "listening" in line else None,
    )
    await asyncio.wait_for(heard.wait(), 10)
    pids = [int(pid) for pid in next(line for line in engine.lines if line.startswith("pids")).split()[1:]]
    assert {orphan.pid for orphan in orphans() if orphan.run_dir == short_path} >= set(pids)
    os.kill(os.getsid(pids[1]), signal.SIGKILL)
    await asyncio.wait_for(engine.wait(), 10)
    assert [orphan for orphan in orphans() if orphan.run_dir == short_path] == []
