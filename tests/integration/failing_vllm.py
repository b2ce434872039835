"""Starts real vLLM servers that are to fail, one after the other. Run by the engines' interpreter.

Importing vLLM takes most of the time that a failed start takes: it is imported once here, and each server is a fork
of this process, which runs vLLM's own entry point from its first line. Its EngineCore and workers are forks, too,
instead of fresh interpreters; everything else is as it always is.

Reads a case a line, JSON: ``argv``; ``log``, the file for its output; ``kill``, the process (``Worker`` …) to be ended
with SIGKILL once it has logged something; ``small_shm``, give it a /dev/shm of 1 MiB; ``online``, let it ask
the model hub; ``raises``, ``[module, class, method, error, text]``, for what only a card can bring about: the
method raises it. Answers with the exit code.
"""

import ctypes
import importlib
import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
import time
from pathlib import Path

_LONGEST = 60  # seconds that a start may take to fail
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000


def main() -> None:
    import huggingface_hub.constants  # noqa: F401 - loaded before the first fork, as are the next two
    import vllm.entrypoints.launchers.api_server.entry
    import vllm.model_executor.models.qwen3  # noqa: F401

    of_kind = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: of_kind("fork")
    for line in sys.stdin:
        case = json.loads(line)
        server = os.fork()
        if server == 0:
            serve(case)
        if case.get("kill"):
            os.kill(once_logged(Path(case["log"]), case["kill"]), signal.SIGKILL)
        # One that comes up instead is ended by this alarm, and with it the test.
        signal.signal(signal.SIGALRM, lambda *_, server=server: os.killpg(server, signal.SIGKILL))
        signal.alarm(_LONGEST)
        _, status = os.waitpid(server, 0)
        signal.alarm(0)
        code = os.waitstatus_to_exitcode(status)
        # As the keeper ends: above 128, the signal.
        print(128 - code if code < 0 else code, flush=True)


def serve(case: dict) -> None:
    """Be the server of one case; does not return."""
    os.setsid()
    log = os.open(case["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    if case.get("small_shm"):
        mount_small_shm()
    if case.get("online"):
        importlib.import_module("huggingface_hub.constants").HF_HUB_OFFLINE = False
    if case.get("raises"):
        module, owner, method, error, text = case["raises"]
        kinds = {"ValueError": ValueError, "RuntimeError": RuntimeError}

        def fail(*_: object, **__: object) -> None:
            raise kinds[error](text) if error in kinds else getattr(importlib.import_module("torch"), error)(text)

        setattr(getattr(importlib.import_module(module), owner), method, fail)
    sys.argv = ["api_server.py", *case["argv"]]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
    sys.exit(0)


def mount_small_shm() -> None:
    """Give this process and its children a /dev/shm of their own, 1 MiB large (user_namespaces(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "user namespaces are not allowed here, and the test needs one")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    if libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, b"size=1m"):
        raise OSError(ctypes.get_errno(), "cannot mount on /dev/shm")


def once_logged(log: Path, process: str) -> int:
    """The pid of ``process``, once it has logged something."""
    while True:
        if log.exists() and (logged := re.search(rf"\({process} pid=(\d+)\)", log.read_text())):
            return int(logged[1])
        time.sleep(0.01)


if __name__ == "__main__":
    main()
