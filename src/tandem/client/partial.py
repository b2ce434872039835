"""What a run that writes a file has done so far, kept so that a kill at any point loses and doubles nothing.

It lies in a folder beside the file-to-be::

    OUT.partial/
      job.json       what the run is about; without it the folder holds nothing that counts
      done.json      how far it is: the length of each file that counts, and where the input goes on
      vectors.npy …  files that only grow

A step appends to the files and waits until that is on disk; then ``done.json`` is replaced by one that tells of it, in
one move. Whatever a killed run has appended beyond that is cut off by the next one. The folder is locked by whoever
works in it; the lock goes with the process, however that dies.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from tandem.client.rows import Position
from tandem.errors import SetupError


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is.

    Attributes:
        rows: vectors written.
        skipped: bad rows passed over.
        position: where the input goes on.
        sizes: bytes of each file that count.
        whole_numbers: whether all ids are whole numbers of 64 bits.
        finished: whether the input is at its end: only moving files to their places is left.
    """

    rows: int = 0
    skipped: int = 0
    position: Position = Position()
    sizes: dict[str, int] = {}
    whole_numbers: bool = True
    finished: bool = False


class Partial:
    """The folder of one run, whose lock this process holds: see :func:`claimed`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._job, self._done = path / "job.json", path / "done.json"
        self._open = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self.done = Done()

    def job(self) -> bytes | None:
        """What the interrupted run was about; None where there is none. Reads how far it was, too."""
        try:
            told = self._job.read_bytes()
            self.done = msgspec.json.decode(self._done.read_bytes(), type=Done)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as exc:
            raise self._damaged(str(exc)) from exc
        return told

    def begin(self, job: bytes, heads: Mapping[str, bytes]) -> None:
        """Start anew: with files of these names, which begin with these bytes."""
        self.clear()
        for name, head in heads.items():
            (self.path / name).write_bytes(head)
            synced(self.path / name)
        self.done = Done(sizes={name: len(head) for name, head in heads.items()})
        self._replace(self._done, msgspec.json.encode(self.done))
        self._replace(self._job, job)
        synced(self.path.parent)

    def go_on(self) -> None:
        """Cut off what the interrupted run did not tell of, and be ready for more."""
        for name, size in self.done.sizes.items():
            try:
                file = self._open.enter_context((self.path / name).open("r+b", buffering=0))
            except OSError as exc:
                raise self._damaged(f"{name}: {exc.strerror}") from exc
            if file.seek(0, os.SEEK_END) < size:
                raise self._damaged(f"{name} is shorter than it was")
            file.truncate(size)
            file.seek(size)
            self._files[name] = file

    def append(self, parts: Mapping[str, bytes | memoryview], done: Done) -> None:
        """One step: these bytes at the files' ends, then ``done``, whose sizes are filled in here."""
        sizes = dict(self.done.sizes)
        for name, part in parts.items():
            sizes[name] += _written(self._files[name], memoryview(part).cast("B"))
        for name in parts:
            os.fsync(self._files[name].fileno())
        done = msgspec.structs.replace(done, sizes=sizes)
        self._replace(self._done, msgspec.json.encode(done))
        self.done = done

    def clear(self) -> None:
        """Take away whatever is in it; first that which makes it count."""
        self._open.close()
        self._files.clear()
        self._job.unlink(missing_ok=True)
        for path in self.path.iterdir():
            path.unlink()
        self.done = Done()

    def close(self) -> None:
        """Close all files."""
        self._open.close()

    def _replace(self, path: Path, content: bytes) -> None:
        new = path.with_suffix(".new")
        new.write_bytes(content)
        synced(new)
        new.replace(path)
        synced(self.path)

    def _damaged(self, why: str) -> SetupError:
        return SetupError(
            f"{self.path}, which an interrupted run has left, is damaged: {why}", "Start over with --force"
        )


@contextmanager
def claimed(out: Path) -> Iterator[Partial]:
    """The folder beside ``out``, for this process alone until the block ends.

    Raises:
        SetupError: it cannot be made, or another process works in it.
    """
    path = out.with_name(f"{out.name}.partial")
    with ExitStack() as held:
        try:
            path.mkdir(exist_ok=True)
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(folder), path.stat())
        except BlockingIOError:
            mine = False
        except OSError as exc:
            raise SetupError(f"{path} cannot be used: {exc.strerror}", "Choose another OUT") from exc
        if not mine:  # locked, or taken away by its owner just now
            raise SetupError(f"another process is writing {out}", "Wait for its end, or choose another OUT")
        partial = Partial(path)
        held.callback(partial.close)
        try:
            yield partial
        finally:
            with suppress(OSError):  # there is something in it that counts
                path.rmdir()


def publish(file: Path, target: Path) -> None:
    """Move a file that is whole to its place, in one move. Does nothing where that was done before."""
    if file.exists():
        synced(file)
        file.replace(target)
        synced(target.parent)


def copy(file: Path, target: Path) -> None:
    """Copy a file to its place, perhaps in another file system, so that it is whole there or not there at all."""
    new = target.with_name(f"{target.name}.new")
    shutil.copyfile(file, new)
    publish(new, target)


def synced(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _written(file: BinaryIO, part: memoryview) -> int:
    written = 0
    while written < len(part):
        written += file.write(part[written:])
    return written
