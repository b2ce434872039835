"""What earlier services left behind, and who may read what this one keeps."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tandem.doctor.finding import Finding, fine, problem, refused, warning
from tandem.engines.orphans import orphans
from tandem.errors import SettingsError
from tandem.router import exposure
from tandem.rundir import RunDir
from tandem.settings import RouterSettings


def examine(router: RouterSettings, run_dir: RunDir) -> Iterator[Finding]:
    """Every finding about processes, the run folder, keys and the address."""
    left = orphans()
    for folder in sorted({orphan.run_dir for orphan in left}):
        pids = " ".join(str(orphan.pid) for orphan in left if orphan.run_dir == folder)
        yield problem("orphans", f"processes of a service on {folder} that is gone: {pids}", f"`kill -9 {pids}`")
    if not left:
        yield fine("orphans", "no engine has outlived its service")
    yield run_folder(run_dir)
    yield from sockets(run_dir)
    try:
        exposure.check(router)
    except SettingsError as exc:
        yield refused("address", exc)
    else:
        yield fine("address", f"{router.address}, {'callers need a key' if router.keys else 'no key needed'}")
    for name, path in {"API keys": router.api_keys_file, "TLS key": router.tls_key}.items():
        if path is not None and path.exists():
            yield secret(name, path)


def run_folder(run_dir: RunDir) -> Finding:
    """Whether the run folder can be used, and is this user's alone."""
    path = run_dir.path
    if not path.exists():
        parent = next(parent for parent in path.parents if parent.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            return problem("run folder", f"{path} cannot be made in {parent}", "Choose another with --run-dir")
        return fine("run folder", f"{path} will be made")
    status = path.stat()
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        return problem("run folder", f"{path} belongs to another user", "Choose another with --run-dir")
    if run_dir.alive():
        return fine("run folder", f"{path}, where a service runs (pid {run_dir.pid()})")
    if stat.S_IMODE(status.st_mode) & 0o007:
        return warning("run folder", f"{path} is open to all users ({_mode(path)})", f"`chmod 700 {path}`")
    if run_dir.pid_file.exists():
        return fine("run folder", f"{path}, left by a service that was killed; the next start clears it")
    return fine("run folder", f"{path}, where no service runs")


def sockets(run_dir: RunDir) -> Iterator[Finding]:
    """Whether only those who may stop the service can reach its control socket."""
    if run_dir.socket.exists():
        if stat.S_IMODE(run_dir.socket.stat().st_mode) & 0o007:
            mode = _mode(run_dir.socket)
            mend = f"`chmod 600 {run_dir.socket}`"
            yield problem("control socket", f"{run_dir.socket} is open to all users ({mode})", mend)
        else:
            yield fine("control socket", f"{run_dir.socket} ({_mode(run_dir.socket)})")


def secret(name: str, path: Path) -> Finding:
    """Whether a file with secrets is its owner's alone."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return warning(name, f"{path} can be read by other users ({_mode(path)})", f"`chmod 600 {path}`")
    return fine(name, f"{path} ({_mode(path)})")


def _mode(path: Path) -> str:
    return f"mode {stat.S_IMODE(path.stat().st_mode):04o}"
