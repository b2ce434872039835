"""A child under its keeper: what it prints is carried, and nothing of it survives."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tandem.engines import keeper
from tandem.engines import process as process_module
from tandem.engines.process import EngineProcess, environment
from tandem.engines.spec import Spec
from tandem.logfile import Rotation

from .conftest import MakeSpec
from .fakes import alive, gone

pytestmark = pytest.mark.process


async def started(spec: Spec, until: str = "Starting to load") -> tuple[EngineProcess, list[int], Path]:
    """A fake engine that has printed ``until``; it, the pids of server and grandchild, its shared memory."""
    spec.tmp.mkdir(parents=True, exist_ok=True)
    seen = asyncio.Event()
    process = await EngineProcess.start(
        spec.launch.argv,
        environment(spec.inherited, spec.launch.env),
        log=spec.log,
        rotation=spec.rotation,
        on_line=lambda line: seen.set() if until in line else None,
    )
    await asyncio.wait_for(seen.wait(), 10)
    pids = [int(pid) for line in process.lines if line.startswith("pids") for pid in line.split()[1:]]
    shared = Path(f"/dev/shm/psm_tandem_test_{pids[0]}")
    async with asyncio.timeout(10):
        while str(shared) not in Path(f"/proc/{pids[1]}/maps").read_text():
            await asyncio.sleep(0.01)
    return process, pids, shared


async def running(spec: Spec, script: str, word: str) -> tuple[EngineProcess, str]:
    """A script in an engine's place that has printed ``word`` and one word more; it, and that."""
    spec.tmp.mkdir(parents=True, exist_ok=True)
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    process = await EngineProcess.start(
        [sys.executable, "-c", textwrap.dedent(script)],
        environment(spec.inherited, {"TMPDIR": str(spec.tmp)}),
        log=spec.log,
        rotation=spec.rotation,
        on_line=lambda line: told.set_result(line) if line.startswith(word) else None,
    )
    return process, (await asyncio.wait_for(told, 10)).split()[1]


def keeper_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def open_files() -> set[tuple[str, str]]:
    """This process's, each with what it is."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder that is being read
            found.add((each.name, str(each.readlink())))
    return found


async def test_an_orderly_stop_lets_the_server_finish(make_spec: MakeSpec) -> None:
    """SIGTERM reaches the server alone, which puts its own things away; the exit code is its own."""
    process, pids, shared = await started(make_spec(), "listening")
    assert process.pid == pids[0]
    assert await process.stop(grace=10) == 0
    assert "stopping" in process.lines
    assert await gone(*pids)
    assert not shared.exists()


async def test_what_starts_just_before_the_end_leaves_nothing(make_spec: MakeSpec) -> None:
    """A process that the keeper has not met in its rounds, and that dies with the server, before anybody can ask it."""
    late = """
        import os, subprocess, sys, time
        from pathlib import Path

        time.sleep(0.7)  # the keeper has been round, and comes again two seconds later
        dies_too = "import ctypes, signal, time; ctypes.CDLL(None).prctl(1, signal.SIGKILL); print(flush=True)"
        child = subprocess.Popen([sys.executable, "-c", dies_too + "; time.sleep(60)"], stdout=subprocess.PIPE)
        child.stdout.readline()
        Path(f"/dev/shm/__KMP_REGISTERED_LIB_{child.pid}_{os.getuid()}").touch()
        print("late", child.pid, flush=True)
        time.sleep(60)
    """
    process, said = await running(make_spec(), late, "late")
    pid = int(said)
    assert await process.stop(grace=10) == 128 + signal.SIGTERM
    assert await gone(pid)
    assert not list(Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{pid}_*"))


async def test_a_semaphore_goes_with_whoever_made_it(make_spec: MakeSpec) -> None:
    """It has it mapped by a name that is gone; the process that would put it away is killed, too."""
    makes = """
        import multiprocessing, time

        lock = multiprocessing.get_context("spawn").Lock()
        print("made", lock._semlock.name, flush=True)
        time.sleep(60)
    """
    spec = make_spec()
    process, name = await running(spec, makes, "made")
    semaphore = Path(f"/dev/shm/sem.{name.removeprefix('/')}")
    assert semaphore.exists()
    async with asyncio.timeout(10):  # until the keeper has been round
        while semaphore.name not in (spec.tmp / "shared-memory").read_text():
            await asyncio.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    assert await asyncio.wait_for(process.wait(), 5) == 128 + signal.SIGKILL
    assert not semaphore.exists()


def test_a_mark_stays_while_its_process_lives() -> None:
    """Its number may be another's by now; but whoever was just killed may take a moment to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mark = Path(f"/dev/shm/__KMP_REGISTERED_LIB_{process.pid}_{os.getuid()}")
        mark.touch()
        try:
            keeper.put_away([mark])
            assert mark.exists()
            keeper.put_away([mark], {process.pid})
            assert not mark.exists()
        finally:
            mark.unlink(missing_ok=True)
            process.kill()


def test_a_process_lives_as_long_as_any_of_its_threads() -> None:
    """Its first one may be a zombie by then; what it has started is its own until the last has ended."""
    script = """
        import ctypes, subprocess, sys, threading, time

        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        threading.Thread(target=time.sleep, args=(60,)).start()
        print(child.pid, flush=True)
        ctypes.CDLL(None).pthread_exit(None)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            deadline = time.monotonic() + 10
            while ") Z " not in Path(f"/proc/{process.pid}/stat").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert {process.pid, child} <= set(keeper.descendants(os.getpid()))
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


async def test_a_server_that_does_not_stop_is_killed(make_spec: MakeSpec) -> None:
    process, pids, shared = await started(make_spec("embedding", "--slow-stop", "60"), "listening")
    assert await process.stop(grace=0.2) == 128 + signal.SIGKILL
    assert await gone(*pids)
    assert not shared.exists()


async def test_a_killed_server_leaves_nothing(make_spec: MakeSpec) -> None:
    """SIGKILL of the server: its grandchild, in a session of its own, and its shared memory go too."""
    process, pids, shared = await started(make_spec())
    assert shared.exists()
    os.kill(pids[0], signal.SIGKILL)
    assert await asyncio.wait_for(process.wait(), 5) == 128 + signal.SIGKILL
    assert await gone(*pids)
    assert not shared.exists()
    assert not list(Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{pids[0]}_*"))


async def test_a_killed_keeper_leaves_nothing(make_spec: MakeSpec) -> None:
    """The server goes with it, and what is left in its session is cleared by the supervisor."""
    process, pids, shared = await started(make_spec("embedding", "--one-session"))
    os.kill(keeper_of(pids[0]), signal.SIGKILL)
    assert await asyncio.wait_for(process.wait(), 5) == 128 + signal.SIGKILL
    assert await gone(*pids)
    assert not shared.exists()
    assert not list(Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{pids[0]}_*"))


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_keeper_that_is_ended_as_it_starts_the_server_leaves_none(signum: int, code: int, tmp_path: Path) -> None:
    """It has forked, and the fork is not the server yet: killed with it, or ended as soon as it is."""
    script = f"""
        import os, runpy, subprocess, time

        class Popen(subprocess.Popen):
            def __init__(self, args, *, preexec_fn, **others):
                def begin():
                    os.kill(os.getppid(), {int(signum)})
                    time.sleep(0.1)
                    preexec_fn()

                super().__init__(args, preexec_fn=begin, **others)

        subprocess.Popen = Popen
        runpy.run_path({keeper.__file__!r}, run_name="__main__")
    """
    started = tmp_path / "started"
    server = f"import pathlib, time; time.sleep(2); pathlib.Path({str(started)!r}).touch()"
    command = [sys.executable, "-c", textwrap.dedent(script), sys.executable, "-c", server]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        assert process.wait(10) == code
    time.sleep(2.5)
    assert not started.exists()


def test_a_stop_of_the_keeper_s_whole_group_as_it_starts_the_server_is_orderly(tmp_path: Path) -> None:
    """The fork is ended before it is the server; the keeper sees to what it may have left all the same."""
    script = f"""
        import os, runpy, signal, subprocess

        class Popen(subprocess.Popen):
            def __init__(self, args, *, preexec_fn, **others):
                def begin():
                    os.killpg(0, signal.SIGTERM)
                    preexec_fn()

                super().__init__(args, preexec_fn=begin, **others)

        subprocess.Popen = Popen
        runpy.run_path({keeper.__file__!r}, run_name="__main__")
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(script), sys.executable, "-c", "import time; time.sleep(60)"]
    ran = subprocess.run(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True, timeout=20
    )
    assert (ran.returncode, ran.stderr) == (128 + signal.SIGTERM, b"")


async def test_without_a_log_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran by then would have nobody to end it."""

    async def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(asyncio, "create_subprocess_exec", never)
    with pytest.raises(FileNotFoundError):
        await EngineProcess.start(
            ["true"], {}, log=tmp_path / "gone" / "log", rotation=Rotation(), on_line=lambda line: None
        )


async def test_what_still_holds_a_killed_engine_s_output_is_not_waited_for(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the pipe left open for it."""
    monkeypatch.setattr(process_module, "_LAST_LINES", 0.1)
    before = open_files()
    spec = make_spec()
    holds = """
        import subprocess, sys, time

        held = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        print("held", held.pid, flush=True)
        time.sleep(60)
    """
    process, held = await running(spec, holds, "held")
    os.kill(keeper_of(process.pid or 0), signal.SIGKILL)
    assert await asyncio.wait_for(process.wait(), 5) == 128 + signal.SIGKILL
    assert not open_files() - before
    os.kill(int(held), signal.SIGKILL)


async def test_nothing_survives_the_supervisor(make_spec: MakeSpec) -> None:
    """SIGKILL of the process that started the keeper: all is gone at once."""
    spec = make_spec()
    spec.tmp.mkdir(parents=True)
    code = f"""
        import asyncio, os
        from pathlib import Path
        from tandem.engines.process import EngineProcess
        from tandem.logfile import Rotation
        async def main():
            engine = await EngineProcess.start(
                {spec.launch.argv!r}, {{**os.environ, **{dict(spec.launch.env)!r}}},
                log=Path({str(spec.log)!r}), rotation=Rotation(), on_line=lambda line: print(line, flush=True))
            await engine.wait()
        asyncio.run(main())
    """
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(code), stdout=asyncio.subprocess.PIPE
    )
    assert supervisor.stdout is not None
    pids = [int(pid) for pid in (await supervisor.stdout.readline()).split()[1:]]
    await supervisor.stdout.readline()
    supervisor.kill()
    await supervisor.wait()
    assert await gone(*pids)
    async with asyncio.timeout(10):  # the keeper, which nobody waits for here, puts it away last
        while Path(f"/dev/shm/psm_tandem_test_{pids[0]}").exists():
            await asyncio.sleep(0.02)
    assert len(pids) == 2


async def test_a_keeper_s_note_names_nothing_but_what_engines_leave(tmp_path: Path) -> None:
    """Whoever can write into that folder gets nothing else removed; nor is the mark of a process that lives."""
    names = ["psm_abc", "sem.mp-1", "../etc/passwd", "psm_x/../../etc", "mine", f"__KMP_REGISTERED_LIB_{os.getpid()}_0"]
    (tmp_path / "shared-memory").write_text("\n".join(names))
    found = keeper.noted(str(tmp_path))
    assert {path.name for path in found} == {"psm_abc", "sem.mp-1", names[-1]}
    assert keeper.noted(str(tmp_path / "none")) == set()
    mark = tmp_path / names[-1]
    mark.touch()
    keeper.put_away({mark})
    assert mark.exists()


async def test_a_model_in_shared_memory_is_left_alone(make_spec: MakeSpec) -> None:
    """Some keep weights there, and an engine maps them; only what libraries make for themselves is removed."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        weights = Path(folder, "psm_model.safetensors")
        weights.write_bytes(b"x" * 4096)
        process, pids, _ = await started(make_spec("embedding", "--map", str(weights)))
        assert str(weights) in Path(f"/proc/{pids[0]}/maps").read_text()
        process.kill()
        await asyncio.wait_for(process.wait(), 10)
        assert weights.exists()


def test_the_keeper_needs_nothing_but_python() -> None:
    """It runs without site-packages, and says how a child that cannot be started failed."""
    ran = subprocess.run(
        [sys.executable, "-I", "-S", keeper.__file__, "/no/such/program"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "No such file or directory: '/no/such/program'" in ran.stderr


async def test_lines_are_split_at_progress_bars_too(tmp_path: Path) -> None:
    """A carriage return ends a line; the log file gets every byte as it was."""
    heard: list[str] = []
    code = r"import sys; sys.stdout.buffer.write(b'a\r50%\rb\n\n\xff\nlast')"
    process = await EngineProcess.start(
        [sys.executable, "-c", code], os.environ, log=tmp_path / "log", rotation=Rotation(), on_line=heard.append
    )
    assert await process.wait() == 0
    assert heard == list(process.lines) == ["a", "50%", "b", "\ufffd", "last"]
    assert (tmp_path / "log").read_bytes() == b"a\r50%\rb\n\n\xff\nlast"


@pytest.mark.parametrize(
    ("inherited", "merged"), [({}, "/new"), ({"LD_PRELOAD": "/old"}, "/new:/old")], ids=["none", "some"]
)
def test_what_is_preloaded_already_stays_preloaded(inherited: dict[str, str], merged: str) -> None:
    assert environment(inherited, {"LD_PRELOAD": "/new"}) == {"LD_PRELOAD": merged}


def test_alive_knows_this_process() -> None:
    """The check that the tests above rest on can say yes."""
    assert alive(os.getpid())
