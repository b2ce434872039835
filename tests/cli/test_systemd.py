"""`tandem systemd`: what it prints, and where it installs it."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tandem.cli import systemd
from tandem.engines import install
from tandem.engines.install import Vllm

from . import shell


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without settings; a vLLM that is never run; a systemctl that notes what it is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(install, "find", lambda _: Vllm(Path("/usr/bin/python3"), (0, 32, 0), "cpu"))
    (tmp_path / "bin").mkdir()
    for name in ("systemctl", "systemd-sysusers"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho {name} $@ >> {tmp_path}/told\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


run = partial(shell.run, "systemd")


def test_it_prints_a_unit_for_the_settings_of_this_folder(tmp_path: Path) -> None:
    """This very command, its arguments, settings and interpreter; engines offline."""
    (tmp_path / "tandem.toml").write_text("[router]\nhost = '0.0.0.0'\napi_key = 'x'\ndrain_timeout = 30\n")
    code, said = run("--", "--demo")
    assert code == 0
    assert f"\nExecStart={Path(sys.executable).with_name('tandem')} up --demo\n" in said
    assert f"\nEnvironment=TANDEM_CONFIG={tmp_path}/tandem.toml\n" in said
    assert "\nEnvironment=TANDEM_ENGINE_PYTHON=/usr/bin/python3\n" in said
    assert "\nEnvironment=HF_HUB_OFFLINE=1\n" in said
    assert "\nTimeoutStopSec=120\n" in said
    assert "IPAddressDeny" not in said
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [("--nope", "No such option: --nope"), ("--port=x", "Invalid value for '--port'"), ("-d", "it must stay attached")],
)
def test_arguments_that_the_service_would_not_take_are_refused(argument: str, complaint: str) -> None:
    """Here, and not when the unit is started; detached, systemd would lose it."""
    code, said = run("--", "--demo", argument)
    assert code == 2
    assert complaint in said
    assert "ExecStart" not in said


def test_a_user_s_unit_is_installed_and_enabled(tmp_path: Path) -> None:
    code, said = run("--user", "--install")
    assert code == 0
    unit = tmp_path / "config/systemd/user/tandem.service"
    assert f"Wrote {unit}" in said
    assert unit.read_text() == run("--user")[1]
    assert (tmp_path / "told").read_text() == (
        "systemctl --user daemon-reload\nsystemctl --user enable tandem.service\n"
    )


def test_the_system_s_unit_needs_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, said = run("--install")
    assert code == 1
    assert "can only be installed by root. Run it with sudo" in said
    assert not (tmp_path / "told").exists()


def test_what_the_service_s_user_could_not_read_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is written: pytest's folders are closed to others."""
    (tmp_path / "tandem.toml").write_text("[router]\nport = 8300\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    tmp_path.chmod(0o700)
    code, said = run("--install")
    assert code == 1
    assert "the service's user tandem could not read" in said
    assert systemd._closed_to_others(tmp_path / "tandem.toml") in (tmp_path, *tmp_path.parents)
    assert not (tmp_path / "told").exists()


def test_the_system_s_unit_is_written_and_enabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user is made first."""
    written: dict[Path, str] = {}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(systemd, "_write", written.update)
    monkeypatch.setattr(systemd, "_closed_to_others", lambda _: None)
    code, said = run("--install")
    assert code == 0
    assert [str(path) for path in written] == ["/etc/sysusers.d/tandem.conf", "/etc/systemd/system/tandem.service"]
    assert (tmp_path / "told").read_text().splitlines() == [
        "systemd-sysusers tandem.conf",
        "systemctl daemon-reload",
        "systemctl enable tandem.service",
    ]
    assert "systemctl start tandem.service" in said


def test_a_system_without_systemd_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = run("--user", "--install")
    assert code == 1
    assert "systemctl is not installed" in said
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "Failed to connect"))
    assert "failed: Failed to connect" in run("--user", "--install")[1]
