"""A process that embeds a file and kills itself at the n-th line of Tandem's code that it runs.

Run as a script, ``python tests/client/kills.py URL``, with a JSON list of cases on standard input: ``task``, and
``kills``, which says after how many lines each process is killed, one after the other, until one comes to its end.
After each kill, junk is appended to the files that grow, as a write that was cut off leaves it. The processes are forks
of one that has imported everything: hundreds of kills take seconds.
"""

import faulthandler
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tandem import VLLMClient, VLLMConfig
from tandem.client import files, parquet, partial

TRACED = {module.__file__ for module in (files, partial, parquet)}


class Lines:
    """Counts the lines of the traced files that are run, and kills the process at one of them."""

    def __init__(self, last: int | None) -> None:
        self.count, self._last = 0, last

    def __call__(self, frame: FrameType, event: str, _: Any) -> "Lines | None":
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def task(told: dict[str, Any]) -> files.Task:
    paths = {name: Path(told[name]) for name in ("source", "out", "skip_bad") if told.get(name)}
    return files.Task(**{**told, **paths})


def run(url: str, told: dict[str, Any], last: int | None) -> int | None:
    """The lines that one process ran; None if it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(10, exit=True)  # a process that hangs says where
        lines = Lines(last)
        config = VLLMConfig(base_url=url, model="m", batch_size=1, max_concurrent_requests=2)
        sys.settrace(lines)
        files.embed_file(task(told), config, lambda _: None)
        sys.settrace(None)
        os.write(writing, str(lines.count).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        count = pipe.read()
    _, status = os.waitpid(child, 0)
    assert count or os.WTERMSIG(status) == signal.SIGKILL, status
    return int(count) if count else None


def spoil(out: Path) -> None:
    """Append what a write that was cut off may leave; once all is written, none can be."""
    folder = out.with_name(f"{out.name}.partial")
    done = folder / "done.json"
    if not done.exists() or json.loads(done.read_text())["finished"]:
        return
    for path in (folder / name for name in (files.VECTORS, files.IDS, files.TEXTS, files.SKIPPED, "done.new")):
        if path.exists():
            with path.open("ab") as file:
                file.write(b"\0junk\n{" * 5)


def main() -> None:
    url, cases = sys.argv[1], json.load(sys.stdin)
    VLLMClient(VLLMConfig()).close()  # loads what is optional, too
    parquet.arrow()
    print(json.dumps([to_the_end(url, case["task"], case["kills"]) for case in cases]))


def to_the_end(url: str, told: dict[str, Any], kills: list[int]) -> int:
    """How many lines the last process ran; 0 if there was none, since the one before was killed when all was done."""
    out = Path(told["out"])
    for last in kills:
        if (count := run(url, told, last)) is not None:
            return count
        spoil(out)
        if out.exists() and not (out.with_name(f"{out.name}.partial") / "job.json").exists():
            return 0
    count = run(url, told, None)
    assert count
    return count


if __name__ == "__main__":
    main()
