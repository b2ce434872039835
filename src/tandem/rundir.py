"""The run folder: control socket, pid file and lock, logs, temporary files of one running service."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem.errors import SetupError

# A Unix socket's path holds 108 bytes with its closing zero (unix(7)); vLLM names its sockets in the folder for
# temporary files by a UUID, so a slash and 36 bytes come on top.
_LONGEST_TMP = 108 - 1 - 37


# Where systemd makes the folder of the system's service (deploy/systemd.py); its group may use it, too.
SYSTEM = Path("/run/tandem")


class RunDir:
    """Paths in one service's run folder. Making one touches nothing; :meth:`claim` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = path / "control.sock"
        self.pid_file = path / "tandem.pid"
        self.logs = path / "logs"
        self.service_log = self.logs / "tandem.log"
        self._shared = path == SYSTEM

    def log(self, name: str) -> Path:
        """The log file of one engine, or of the router."""
        return self.logs / f"{name}.log"

    def tmp(self, name: str) -> Path:
        """Where one engine's sockets and temporary files go; emptied whenever it stops."""
        return self.path / "tmp" / name

    @property
    def socket_mode(self) -> int:
        """Who may reach the control socket: this user, and of the system's service the group, too."""
        return 0o660 if self._shared else 0o600

    def make(self) -> None:
        """Make the folder, for this user alone; that of the system's service for the group, too.

        Raises:
            SetupError: it cannot be made, or belongs to another user.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o750 if self._shared else 0o700)
        except OSError as exc:
            raise SetupError(
                f"the run folder {self.path} cannot be used: {exc.strerror}", "Choose another with --run-dir"
            ) from exc

    def fits(self, engines: Iterable[str]) -> None:
        """Whether engines of these names can have their sockets here.

        Raises:
            SetupError: the folder's path is too long for that.
        """
        excess = max((len(os.fsencode(self.tmp(name))) - _LONGEST_TMP for name in engines), default=0)
        if excess > 0:
            raise SetupError(
                f"the run folder's path is {excess} bytes too long for the engines' Unix sockets: {self.path}",
                "Choose a shorter one with --run-dir",
            )

    @contextmanager
    def claim(self, engines: Iterable[str] = ()) -> Iterator[None]:
        """Make the folder this process's own until the block ends, then take away all but the logs.

        The lock on the pid file goes with the process, however that dies, so a left-over file hinders nobody.

        Raises:
            SetupError: another live service has it, it belongs to another user, or its path is too long.
        """
        self.fits(engines)
        self.make()
        with self.pid_file.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise SetupError(
                    f"a service is already running on {self.path} (pid {self.pid() or 'unknown'})",
                    "`tandem status` shows it, `tandem stop` ends it; another one needs another --port or --run-dir",
                ) from exc
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            try:
                yield
            finally:
                self.socket.unlink(missing_ok=True)
                shutil.rmtree(self.path / "tmp", ignore_errors=True)
                self.pid_file.unlink(missing_ok=True)

    def pid(self) -> int | None:
        """The process that claimed the folder, as its pid file says; None without one."""
        try:
            return int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None

    def alive(self) -> bool:
        """Whether a service holds the folder now."""
        try:
            with self.pid_file.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def for_port(port: int) -> RunDir:
    """The run folder of the service on ``port`` where none is set: systemd's, else the user's, else one in /tmp."""
    if (systemd := os.environ.get("RUNTIME_DIRECTORY")) and not systemd.count(":"):
        return RunDir(Path(systemd))
    return RunDir(_parent() / f"{_prefix()}{port}")


def running() -> list[RunDir]:
    """Run folders of live services: this user's, wherever :func:`for_port` would have put them, and the system's."""
    named = re.compile(re.escape(_prefix()) + r"\d+")
    try:
        folders = sorted(p for p in _parent().iterdir() if named.fullmatch(p.name))
    except OSError:
        folders = []
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        folders.append(Path(runtime) / SYSTEM.name)
    return [run_dir for run_dir in map(RunDir, [*folders, SYSTEM]) if run_dir.alive()]


def _parent() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())


def _prefix() -> str:
    # In a folder that users share, the name says whose it is.
    return "tandem-" if os.environ.get("XDG_RUNTIME_DIR") else f"tandem-{os.getuid()}-"
