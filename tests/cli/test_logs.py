"""`tandem logs`, of a service that runs and of one that does not."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tandem.logfile import RotatingLog, Rotation
from tandem.rundir import RunDir

from . import shell

run = partial(shell.run, "logs")


@pytest.fixture
def run_dir(short_path: Path) -> RunDir:
    """A service's that has ended."""
    run_dir = RunDir(short_path)
    run_dir.make()
    run_dir.log("embedding").write_text("INFO 11-21 09:00:01 [a.py:1] loading\nINFO 11-21 09:00:03 [a.py:1] ready\n")
    run_dir.log("router").write_text("2026-11-21 09:00:02,000 INFO tandem.router: listening\n")
    return run_dir


def test_the_logs_of_all_in_order(run_dir: RunDir) -> None:
    """Each line with the name of whose it is; following those of a service that has ended comes to an end."""
    shown = (
        "embedding | INFO 11-21 09:00:01 [a.py:1] loading\n"
        "router    | 2026-11-21 09:00:02,000 INFO tandem.router: listening\n"
        "embedding | INFO 11-21 09:00:03 [a.py:1] ready\n"
    )
    assert run("--run-dir", str(run_dir.path)) == run("-f", "--run-dir", str(run_dir.path)) == (0, shown)


def test_on_a_terminal_each_name_has_its_colour(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    first, second, third = run("--run-dir", str(run_dir.path))[1].splitlines()
    marks = [re.findall(r"\x1b\[(\d+)m", line.partition("|")[0])[0] for line in (first, second, third)]
    assert marks[0] == marks[2] != marks[1]


def test_one_log_and_its_last_lines(run_dir: RunDir) -> None:
    code, said = run("embedding", "-n", "1", "--run-dir", str(run_dir.path))
    assert (code, said) == (0, "embedding | INFO 11-21 09:00:03 [a.py:1] ready\n")


def test_what_is_in_a_log_does_not_steer_the_terminal(run_dir: RunDir) -> None:
    """Neither escape sequences nor Rich's own markup."""
    run_dir.log("embedding").write_text("\x1b[2Jgone [red]not[/red]\n")
    assert "\ufffd[2Jgone [red]not[/red]\n" in run("embedding", "--run-dir", str(run_dir.path))[1]


def test_an_engine_that_is_unknown(run_dir: RunDir) -> None:
    code, said = run("embeding", "--run-dir", str(run_dir.path))
    assert (code, said) == (
        2,
        f"error: there is no log of embeding in {run_dir.logs}. There are those of embedding, router\n",
    )


def test_where_no_service_has_run(short_path: Path) -> None:
    code, said = run("--run-dir", str(short_path))
    assert code == 1
    assert "no service has run there" in said


@pytest.mark.process
def test_it_follows_a_service_through_rotations_until_that_ends(run_dir: RunDir) -> None:
    """Every line is shown once, and then the command ends by itself."""
    log = RotatingLog(run_dir.log("embedding"), Rotation(size=400, files=100))
    command = [sys.executable, "-m", "tandem", "logs", "embedding", "-f", "-n", "1", "--run-dir", str(run_dir.path)]
    with (
        run_dir.claim(),
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"NO_COLOR": "1"}) as following,
    ):
        assert following.stdout is not None
        assert following.stdout.readline() == "embedding | INFO 11-21 09:00:03 [a.py:1] ready\n"
        for number in range(200):
            log.write(b"line %d\n" % number)
        seen = [following.stdout.readline() for _ in range(200)]
        assert seen == [f"embedding | line {number}\n" for number in range(200)]
        log.write(b"the end\n")
        run_dir.pid_file.unlink()
        assert following.stdout.read() == "embedding | the end\n"
        assert following.wait(10) == 0
    log.close()
