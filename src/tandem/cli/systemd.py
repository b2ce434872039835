"""`tandem systemd`: the unit of a service, printed or installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tandem.deploy.systemd import Service


def systemd(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- ARGUMENTS]", help="Arguments of `tandem up`, such as: -- --demo", show_default=False
        ),
    ] = None,
    user: Annotated[
        bool, typer.Option("--user", help="A unit of your own service manager instead of the system's.")
    ] = False,
    install: Annotated[bool, typer.Option("--install", help="Write it to its place and enable it.")] = False,
) -> None:
    """Print a hardened systemd unit for this service, as it is set here, or install it."""
    from tandem.deploy import systemd as units

    _check(arguments or [])
    service = _service(arguments or [], user=user)
    text = units.unit(service)
    if not install:
        typer.echo(text, nl=False)
    elif user:
        _install_for_user(text)
    else:
        _install_for_system(text, service)


def _check(arguments: Sequence[str]) -> None:
    """Read them as `tandem up` will: what it does not take is refused here, and not when the service starts."""
    from tandem.cli.up import up
    from tandem.errors import SettingsError

    alone = typer.Typer(rich_markup_mode=None)
    alone.command("up")(up)
    if typer.main.get_command(alone).make_context("tandem up", list(arguments)).params["detach"]:
        raise SettingsError("systemd watches the service itself: it must stay attached", "Leave out --detach")


def _service(arguments: Sequence[str], *, user: bool) -> "Service":
    import sys

    from tandem import settings
    from tandem.deploy.systemd import STATE, Service
    from tandem.engines import hardware
    from tandem.engines import install as engines
    from tandem.router import exposure

    machine = hardware.detect()
    found = settings.load(gpu=machine.gpu).settings
    vllm = engines.find(found.engine_python)
    # The command of this very environment, whatever it is called by.
    command = (str(Path(sys.executable).with_name("tandem")), "up", *arguments)
    cache = found.hf_home.expanduser().absolute() if found.hf_home else None if user else STATE / "huggingface"
    config = settings.config_file()
    environment = {
        "TANDEM_ENGINE_PYTHON": str(vllm.python.absolute()),
        **({"TANDEM_CONFIG": str(config)} if config else {}),
        **({"HF_HOME": str(cache)} if cache else {}),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    readable = [Path(sys.executable), Path(sys.executable).resolve(), vllm.python, vllm.python.resolve()]
    readable += [path for path in (config, cache) if path]
    readable += [
        path for path in (Path(engine.model).expanduser() for engine in found.engines.values()) if path.exists()
    ]
    return Service(
        command=command,
        environment=environment,
        drain_timeout=found.router.drain_timeout,
        gpu=machine.gpu,
        loopback=exposure.loopback(found.router.host) and "--host" not in " ".join(arguments),
        readable=[path.absolute() for path in readable],
        user=user,
    )


def _install_for_user(text: str) -> None:
    import os

    from tandem.deploy.systemd import UNIT

    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    _write({config / "systemd" / "user" / UNIT: text})
    _run("systemctl", "--user", "daemon-reload")
    _run("systemctl", "--user", "enable", UNIT)
    typer.echo(f"Start it with `systemctl --user start {UNIT}`; `loginctl enable-linger` keeps it after you log out.")


def _install_for_system(text: str, service: "Service") -> None:
    import os

    from tandem.deploy.systemd import SYSUSERS, UNIT, USER
    from tandem.errors import SetupError

    if os.geteuid() != 0:
        raise SetupError(
            "a unit of the system can only be installed by root",
            "Run it with sudo, or install one of your own with `tandem systemd --user --install`",
        )
    for path in service.readable:
        if closed := _closed_to_others(path):
            raise SetupError(
                f"the service's user {USER} could not read {path}: {closed} is closed to others",
                "Install Tandem and the engines in a place for all, such as /usr/local/lib/tandem "
                "(`tandem install --into /usr/local/lib/tandem/engines`), or use --user",
            )
    _write({Path("/etc/sysusers.d/tandem.conf"): SYSUSERS, Path("/etc/systemd/system") / UNIT: text})
    _run("systemd-sysusers", "tandem.conf")
    _run("systemctl", "daemon-reload")
    _run("systemctl", "enable", UNIT)
    typer.echo(
        f"Start it with `systemctl start {UNIT}`; who joins the group {USER} may use `tandem status` and `stop`."
    )


def _closed_to_others(path: Path) -> Path | None:
    """The first folder on the way to ``path`` that only its owner and group can pass; None where all can."""
    for folder in reversed(path.parents):
        if folder.exists() and not folder.stat().st_mode & 0o001:
            return folder
    return None


def _write(files: Mapping[Path, str]) -> None:
    from tandem.errors import SetupError

    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as exc:
            raise SetupError(f"{path} cannot be written: {exc.strerror}") from exc
        typer.echo(f"Wrote {path}")


def _run(*command: str) -> None:
    import subprocess

    from tandem.errors import SetupError

    try:
        ran = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as exc:
        raise SetupError(f"{command[0]} is not installed: this system is not run by systemd") from exc
    if ran.returncode:
        said = (ran.stderr or ran.stdout).strip()
        raise SetupError(
            f"`{' '.join(command)}` failed: {said}", "Is this system run by systemd, and are you logged in?"
        )
