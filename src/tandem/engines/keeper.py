"""Holds one engine, and lets nothing of it survive. Standard library only; run as a script, one process an engine.

vLLM's server starts grandchildren (EngineCore, workers) that outlive it when it is killed. The keeper makes itself
their reaper (``PR_SET_CHILD_SUBREAPER``), so that each of them stays its descendant whatever becomes of its parent,
and waits for two things at once: the end of the server (a pidfd), and the end of its standard input, a pipe that only
the supervisor holds open, so that it closes however the supervisor dies. On either it kills every descendant, removes
the shared memory they leave, and ends the way the server ended. SIGTERM is passed on to the server alone: it then
finishes its requests, which a signal to the whole group would cut off.

Source: prctl(2), pidfd_open(2), vllm#55510.
"""

import ctypes
import itertools
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies, shm_overview(7)
# Python's shared memory and semaphores, and torch's, directly in that folder; a deleted one has more on its line.
_MAPPED = re.compile(r" /dev/shm/((?:psm_|sem\.|torch_)[^/\s]+)$", re.MULTILINE)
# Whoever makes a semaphore has it mapped by a name that is gone (sem_open of glibc links it to the other): its inode.
_MADE = re.compile(r" (\d+)\s+/dev/shm/sem\.\S+ \(deleted\)$", re.MULTILINE)
_MARK = re.compile(r"__KMP_REGISTERED_LIB_(\d+)_\d+")  # OpenMP's, of one process
_NOTE = "shared-memory"
_TRACKER = b"multiprocessing.resource_tracker"
_TRACKER_SECONDS = 2.0


def main() -> int:
    """Run ``sys.argv[1:]`` and keep it; returns the exit code to end with."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    me = os.getpid()
    # SIGTERM waits until the keeper keeps: before that it would end the keeper alone, and a server just forked would
    # start up without one.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def begin() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        # Should the keeper itself be killed, the server at least goes with it.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != me:  # it has been already
            os.kill(os.getpid(), signal.SIGKILL)

    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=begin)
    shared_memory = left_by(server.pid)

    def end(*_: object) -> None:
        # Now: what the server started a moment ago may die with it before anybody looks again.
        _look(shared_memory)
        server.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pidfd = os.pidfd_open(server.pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN)
    _note(shared_memory)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for seconds in itertools.chain((0.1, 0.4, 2), itertools.repeat(5)):
        # A process that is already dead cannot be asked what it had mapped, so they are asked while they live.
        if poll.poll(seconds * 1000):  # goes on after a signal (PEP 475)
            break
        _look(shared_memory)
    _kill_descendants(server, shared_memory)
    put_away(shared_memory)
    code = server.wait()
    return 128 - code if code < 0 else code


def _look(shared_memory: set[Path]) -> None:
    """Add what each process of the engine would leave, were it killed now, and write it down where that is news."""
    known = len(shared_memory)
    for pid in descendants(os.getpid()):
        shared_memory |= left_by(pid)
    if len(shared_memory) > known:
        _note(shared_memory)


def _kill_descendants(server: subprocess.Popen[bytes], shared_memory: set[Path]) -> None:
    """Kill until none is left (one that was about to fork may have done so), noting what each would leave.

    Python's resource trackers get a moment: they end by themselves once all others have, and put away what those left.
    """
    me = os.getpid()
    patience = time.monotonic() + _TRACKER_SECONDS
    while pids := descendants(me):
        for pid in pids:
            shared_memory |= left_by(pid)
            if time.monotonic() < patience and _TRACKER in _command(pid):
                continue
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
        _reap(server)


def descendants(root: int) -> list[int]:
    """Every living process below ``root``."""
    parents = {pid: parent for pid, (parent, _) in _living().items()}
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {root})


def kill_session(session: int, tmp: str = "") -> None:
    """Kill every process of ``session``, whose leader, a keeper, was killed itself; remove the memory they shared.

    Args:
        tmp: the folder for temporary files that its engine was started with.
    """
    kill_all(lambda: [pid for pid, (_, own) in _living().items() if own == session], noted(tmp))


def kill_all(find: Callable[[], Collection[int]], shared_memory: Collection[Path] = ()) -> set[int]:
    """Kill what ``find`` finds until that is nothing, and remove the memory they shared; what was killed.

    Args:
        shared_memory: more of it that may be left.
    """
    left = set(shared_memory)
    killed: set[int] = set()
    while pids := find():
        for pid in pids:
            left |= left_by(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.add(pid)
        time.sleep(0.01)
    put_away(left, killed)
    return killed


def put_away(shared_memory: Collection[Path], killed: Collection[int] = ()) -> None:
    """Remove what was shared, but for the mark of a process that lives: its number may be another's by now.

    Args:
        killed: processes that have just been, and may be on their way out still.
    """
    living = _living().keys() - set(killed)
    for path in shared_memory:
        mark = _MARK.fullmatch(path.name)
        if not (mark and int(mark[1]) in living):
            path.unlink(missing_ok=True)


def noted(tmp: str) -> set[Path]:
    """What the keeper of the engine with this folder wrote down, for whoever clears up after one that was killed."""
    try:
        names = Path(tmp, _NOTE).read_text().splitlines() if tmp else []
    except OSError:
        return set()
    return {_SHARED_MEMORY / name for name in names if _MARK.fullmatch(name) or _MAPPED.search(f" /dev/shm/{name}")}


def _note(shared_memory: Collection[Path]) -> None:
    """Write down what would be left, should this process be killed, too."""
    tmp = os.environ.get("TMPDIR", "")
    try:
        new = Path(tmp, f"{_NOTE}.new")
        if tmp:
            new.write_text("".join(f"{path.name}\n" for path in shared_memory))
            new.replace(Path(tmp, _NOTE))
    except OSError:
        return  # the folder is full or gone: nobody is worse off than without a note


def _living() -> dict[int, tuple[int, int]]:
    """Parent and session of every process; a zombie counts as dead, but not while threads of it live."""
    found: dict[int, tuple[int, int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                # "pid (name) state ppid pgrp session …"; the name may hold anything, so count from its closing bracket.
                stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # Children stay with a process of which only the first thread has ended; field 20 is how many it has.
            if stat[0] not in "ZX" or int(stat[17]) > 1:
                found[int(entry.name)] = (int(stat[1]), int(stat[3]))
    return found


def left_by(pid: int) -> set[Path]:
    """What ``pid`` would leave in /dev/shm, were it killed: what it has mapped there, and OpenMP's mark.

    Only what libraries make there for the life of a process: models, too, may lie in /dev/shm.
    """
    mark = _SHARED_MEMORY / f"__KMP_REGISTERED_LIB_{pid}_{os.getuid()}"
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return {mark}
    names = set(_MAPPED.findall(maps))
    if made := {int(inode) for inode in _MADE.findall(maps)}:
        names |= {each.name for each in os.scandir(_SHARED_MEMORY) if each.inode() in made}
    return {mark} | {_SHARED_MEMORY / name for name in names}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _reap(server: subprocess.Popen[bytes]) -> None:
    """Collect what has died: orphans that were handed to this process, and the server, whose status is kept."""
    while True:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None:
            return
        if dead.si_pid == server.pid:
            server.wait()
        else:
            os.waitpid(dead.si_pid, 0)


if __name__ == "__main__":
    sys.exit(main())
