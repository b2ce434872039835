"""A run folder belongs to one live service, and is found again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tandem import rundir
from tandem.errors import SetupError
from tandem.rundir import RunDir


def test_a_claimed_folder_is_refused_to_others(tmp_path: Path) -> None:
    """While one service holds it, another is told who does; afterwards only the logs are left."""
    run_dir = RunDir(tmp_path / "run")
    with run_dir.claim():
        assert run_dir.alive()
        assert run_dir.pid() == os.getpid()
        run_dir.tmp("embedding").mkdir(parents=True)
        run_dir.socket.touch()
        with pytest.raises(SetupError, match=rf"already running on .*run \(pid {os.getpid()}\)"), run_dir.claim():
            pass
        assert run_dir.pid() == os.getpid()
    assert not run_dir.alive()
    assert list(run_dir.path.iterdir()) == [run_dir.logs]
    assert run_dir.path.stat().st_mode & 0o777 == 0o700


def test_a_folder_left_by_a_killed_service_is_free(tmp_path: Path) -> None:
    """The lock goes with the process, so a stale pid file hinders nobody."""
    code = (
        f"from tandem.rundir import *\nimport os\nwith RunDir(Path({str(tmp_path)!r})).claim(): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert RunDir(tmp_path).pid_file.exists()
    assert not RunDir(tmp_path).alive()
    with RunDir(tmp_path).claim():
        assert RunDir(tmp_path).pid() == os.getpid()


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(SetupError, match="bytes too long for the engines' Unix sockets"),
        RunDir(tmp_path / ("x" * 80)).claim(["embedding"]),
    ):
        pass


def test_the_system_s_folder_is_its_group_s_too(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in the group may use the socket; and it is found without being named."""
    monkeypatch.setattr(rundir, "SYSTEM", short_path / "tandem")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(short_path / "tandem"))
    run_dir = rundir.for_port(8200)
    with run_dir.claim():
        assert run_dir.path.stat().st_mode & 0o777 == 0o750
        assert run_dir.socket_mode == 0o660
        assert [found.path for found in rundir.running()] == [run_dir.path]
    assert RunDir(short_path).socket_mode == 0o600


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot be used"), RunDir(tmp_path / "file").claim():
        pass


def test_the_folder_follows_the_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """systemd's folder, else the user's run-time folder, else one in /tmp with the user's number in its name."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert rundir.for_port(8200).path == tmp_path / "tandem-8200"
    with rundir.for_port(8201).claim():
        rundir.for_port(8202).logs.mkdir(parents=True)
        assert [one.path for one in rundir.running()] == [tmp_path / "tandem-8201"]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert rundir.for_port(8200).path.name == f"tandem-{os.getuid()}-8200"
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/tandem")
    assert rundir.for_port(8200).path == Path("/run/tandem")
