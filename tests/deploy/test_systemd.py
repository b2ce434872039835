"""The systemd unit, as systemd's own tools see it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tandem.deploy.systemd import SYSUSERS, UNIT, Service, unit

SERVICE = Service(
    command=(sys.executable, "up"),
    environment={"TANDEM_CONFIG": "/etc/tandem/tandem.toml", "HF_HUB_OFFLINE": "1"},
    drain_timeout=20,
    gpu=True,
    loopback=True,
)
EVERYWHERE = [SERVICE, replace(SERVICE, gpu=False), replace(SERVICE, loopback=False), replace(SERVICE, user=True)]


def lines(service: Service) -> list[str]:
    return unit(service).splitlines()


def analyzed(folder: Path, service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze` of the unit; it comes with systemd, and `make test` installs that where it can."""
    path = folder / UNIT
    path.write_text(unit(service))
    manager = ["--user"] if service.user else []
    return subprocess.run(
        ["systemd-analyze", *manager, *arguments, str(path)],
        capture_output=True,
        text=True,
        env={"XDG_RUNTIME_DIR": "/tmp"},
    )


@pytest.mark.process
@pytest.mark.parametrize("service", EVERYWHERE, ids=["gpu", "cpu", "network", "user"])
def test_systemd_has_nothing_to_say_of_it(service: Service, tmp_path: Path) -> None:
    """Every directive is known and takes its value; the command is there."""
    ran = analyzed(tmp_path, service, "verify", "--man=no")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.process
def test_verifying_can_fail(tmp_path: Path) -> None:
    """The check that the one above rests on."""
    assert analyzed(tmp_path, replace(SERVICE, command=("/no/such/tandem", "up")), "verify", "--man=no").returncode


@pytest.mark.process
@pytest.mark.parametrize(
    ("service", "threshold"), [*zip(EVERYWHERE[:3], [20, 17, 23], strict=True)], ids=["gpu", "cpu", "net"]
)
def test_little_is_exposed(service: Service, threshold: int, tmp_path: Path) -> None:
    """`systemd-analyze security`, in tenths of its points of ten: devices and the network count for some."""
    ran = analyzed(tmp_path, service, "security", "--offline=true", f"--threshold={threshold}", "--no-pager")
    assert ran.returncode == 0, ran.stdout


def test_a_gpu_is_let_in_and_no_other_device() -> None:
    assert {"PrivateDevices=no", "DevicePolicy=closed", "DeviceAllow=char-nvidia* rw"} <= set(lines(SERVICE))
    assert "PrivateDevices=yes" in lines(replace(SERVICE, gpu=False))


def test_the_network_is_closed_to_a_service_for_this_machine() -> None:
    assert "IPAddressDeny=any" in lines(SERVICE)
    assert "IPAddressDeny=any" not in lines(replace(SERVICE, loopback=False))


def test_homes_are_read_only_where_something_lies_there() -> None:
    """And out of sight otherwise."""
    assert "ProtectHome=yes" in lines(SERVICE)
    assert "ProtectHome=read-only" in lines(replace(SERVICE, readable=[Path("/home/me/models/x")]))


def test_a_stop_may_take_as_long_as_the_requests_in_flight() -> None:
    """Those of the router, then those of the engines; and only the service itself is told."""
    assert {"TimeoutStopSec=180", "KillMode=mixed"} <= set(lines(replace(SERVICE, drain_timeout=60)))


def test_words_are_quoted_as_systemd_reads_them() -> None:
    """Specifiers and variables stay what they are."""
    service = replace(
        SERVICE, command=("/bin/tandem", "up", "--embedding", "/a model/100%", "$HOME"), environment={"A": "x $y"}
    )
    assert 'ExecStart=/bin/tandem up --embedding "/a model/100%%" "$$HOME"' in lines(service)
    assert 'Environment="A=x $y"' in lines(service)


def test_a_user_s_unit_names_nobody_else() -> None:
    """It runs as that user, in that user's own folders."""
    text = unit(replace(SERVICE, user=True))
    assert "User=" not in text
    assert "/etc/" not in text.replace("/etc/tandem/tandem.toml", "")
    assert "WantedBy=default.target" in text


@pytest.mark.process
def test_the_user_is_one_that_systemd_can_make(tmp_path: Path) -> None:
    (tmp_path / "tandem.conf").write_text(SYSUSERS)
    ran = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(tmp_path / "tandem.conf")], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "tandem" in ran.stdout + ran.stderr
