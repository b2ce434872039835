"""Which processes are left of a service that is gone."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tandem.engines.orphans import Orphan, orphans, sweep
from tandem.engines.process import EngineProcess, environment
from tandem.rundir import RunDir

from .fakes import alive, fake_spec, gone


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
    process(proc, 30, 30, TMPDIR="/tmp")
    process(proc, 40, 40, TMPDIR="/tmp/mine", VLLM_RPC_BASE_PATH="/tmp/mine")
    with alive.claim():
        assert orphans(proc) == [Orphan(10, gone.path), Orphan(11, gone.path)]


async def left_behind(run_dir: RunDir) -> tuple[list[int], EngineProcess]:
    """The server and the grandchild of an engine whose keeper was killed, the grandchild alone alive; nobody clears up
    until the engine is waited for."""
    spec = fake_spec(run_dir.path, "embedding", "--one-session")
    spec.tmp.mkdir(parents=True)
    run_dir.make()
    heard = asyncio.Event()
    engine = await EngineProcess.start(
        spec.launch.argv,
        environment(spec.inherited, {**spec.launch.env, "VLLM_RPC_BASE_PATH": str(spec.tmp)}),
        log=spec.log,
        rotation=spec.rotation,
        on_line=lambda line: heard.set() if "listening" in line else None,
    )
    await asyncio.wait_for(heard.wait(), 10)
    pids = [int(pid) for pid in next(line for line in engine.lines if line.startswith("pids")).split()[1:]]
    os.kill(os.getsid(pids[1]), signal.SIGKILL)
    assert await gone(pids[0])
    return pids, engine


@pytest.mark.process
async def test_the_next_start_clears_its_own_and_touches_no_others(short_path: Path) -> None:
    """Processes, shared memory and temporary files of the service that had the folder; another one's are left."""
    mine, other = RunDir(short_path / "mine"), RunDir(short_path / "other")
    (server, grandchild), one = await left_behind(mine)
    others, two = await left_behind(other)
    marks = Path("/dev/shm")
    with mine.claim():
        assert sweep(mine) == {grandchild}
        assert await gone(grandchild)
        assert not (marks / f"psm_tandem_test_{server}").exists()
        assert not list(marks.glob(f"__KMP_REGISTERED_LIB_{server}_*"))
        assert not (mine.path / "tmp").exists()
        assert alive(others[1])
        assert (marks / f"psm_tandem_test_{others[0]}").exists()
        assert sweep(mine) == set()
    for engine in (one, two):
        await asyncio.wait_for(engine.wait(), 10)
    assert await gone(*others)


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
