"""What earlier services left, and who may read what."""

import socket
from pathlib import Path

import pytest

from tandem.doctor import leftovers
from tandem.doctor.finding import Level
from tandem.engines import orphans
from tandem.engines.orphans import Orphan
from tandem.rundir import RunDir
from tandem.settings import RouterSettings


def test_a_run_folder(short_path: Path) -> None:
    """Not there, there, in use, left by a killed service, open to all."""
    run_dir = RunDir(short_path / "run")
    assert "will be made" in leftovers.run_folder(run_dir).says
    with run_dir.claim():
        assert "where a service runs (pid" in leftovers.run_folder(run_dir).says
    assert "no service runs" in leftovers.run_folder(run_dir).says
    run_dir.pid_file.write_text("1\n")
    assert "left by a service that was killed" in leftovers.run_folder(run_dir).says
    run_dir.path.chmod(0o755)
    assert leftovers.run_folder(run_dir).level is Level.WARNING


def test_a_control_socket_that_is_open_to_all_is_a_problem(short_path: Path) -> None:
    run_dir = RunDir(short_path)
    assert list(leftovers.sockets(run_dir)) == []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir.socket))
        for mode, level in ((0o600, Level.OK), (0o660, Level.OK), (0o666, Level.PROBLEM)):
            run_dir.socket.chmod(mode)
            (finding,) = leftovers.sockets(run_dir)
            assert finding.level is level


def test_secrets_are_their_owner_s_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:secret\n")
    keys.chmod(0o600)
    assert leftovers.secret("API keys", keys).level is Level.OK
    keys.chmod(0o640)
    finding = leftovers.secret("API keys", keys)
    assert (finding.level, finding.mend) == (Level.WARNING, f"`chmod 600 {keys}`")


def test_orphans_are_a_problem_for_each_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And an address that anyone can reach without a key is what a start would be refused for."""
    left = [Orphan(7, tmp_path / "a"), Orphan(8, tmp_path / "b"), Orphan(9, tmp_path / "a")]
    monkeypatch.setattr(leftovers, "orphans", lambda: left)
    found = list(leftovers.examine(RouterSettings(host="0.0.0.0"), RunDir(tmp_path / "run")))
    assert [finding.mend for finding in found if finding.subject == "orphans"] == ["`kill -9 7 9`", "`kill -9 8`"]
    (address,) = [finding for finding in found if finding.subject == "address"]
    assert address.level is Level.PROBLEM
    monkeypatch.setattr(leftovers, "orphans", orphans.orphans)
    found = list(leftovers.examine(RouterSettings(), RunDir(tmp_path / "run")))
    assert all(finding.level is Level.OK for finding in found if finding.subject != "orphans")
