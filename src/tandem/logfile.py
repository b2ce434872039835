"""Log files that are rotated by size: the writing end, a pipe into one, and the reading end.

``NAME.log`` is the newest; when it has reached its size it becomes ``NAME.log.1``, that ``NAME.log.2`` and so on, and
the oldest goes. No line is lost or torn by that. The reading end follows a log through it.
"""

import asyncio
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

LINE_END = re.compile(rb"[\r\n]+")  # progress bars end their lines with a carriage return
LONGEST_LINE = 2**16  # bytes; of a longer line, only the file has the rest
_CHUNK = 2**16
_PIPE = 2**20  # bytes a pipe may hold while nobody reads, the most that users get (pipe(7))


@dataclass(frozen=True)
class Rotation:
    """When a log is rotated, and how much of it is kept.

    Attributes:
        size: bytes that a file has before it is rotated.
        files: rotated files that are kept beside it.
    """

    size: int = 20 * 2**20
    files: int = 5


class RotatingLog:
    """Appends to a log, and rotates it between two lines."""

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self._path = path
        self._rotation = rotation
        self._open()

    def write(self, chunk: bytes) -> None:
        """Append ``chunk`` as it is. What cannot be written, because the disk is full, is dropped.

        A line that is longer than two files may be is torn.
        """
        with suppress(OSError):
            while chunk:
                end = self._fitting(chunk)
                if end:
                    self._append(chunk[:end])
                    chunk = chunk[end:]
                if chunk or self._size >= 2 * self._rotation.size:
                    self._rotate()

    def _fitting(self, chunk: bytes) -> int:
        """How much of ``chunk`` belongs into this file: lines that fit, and the end of one that was begun here."""
        room = self._rotation.size - self._size
        if len(chunk) <= room:
            return len(chunk)
        end = chunk.rfind(b"\n", 0, max(0, room)) + 1
        if end or (self._size and self._whole):
            return end
        return chunk.find(b"\n") + 1 or len(chunk)

    def close(self) -> None:
        self._file.close()

    def _open(self) -> None:
        # Unbuffered, so that the file is whole whenever someone looks.
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._whole = True  # whether the last line has its end

    def _append(self, data: bytes) -> None:
        self._size += self._file.write(data)
        self._whole = data.endswith(b"\n")

    def _rotate(self) -> None:
        for number in range(self._rotation.files, 0, -1):
            with suppress(FileNotFoundError):
                rotated(self._path, number - 1).replace(rotated(self._path, number))
        if self._rotation.files == 0:
            self._path.unlink()
        self._file.close()
        self._open()


class LogPipe:
    """A pipe whose writing end processes may have as their output, and whose other end goes into a log."""

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self._log = RotatingLog(path, rotation)
        self._reading, self.fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        with suppress(OSError):  # a system may allow less
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _PIPE)

    def carry(self) -> None:
        """Write all that has come so far."""
        with suppress(BlockingIOError):
            while chunk := os.read(self._reading, _CHUNK):
                self._log.write(chunk)

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._reading, self.carry)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        asyncio.get_running_loop().remove_reader(self._reading)
        self.carry()
        os.close(self._reading)
        os.close(self.fd)
        self._log.close()


class Lines:
    """Splits what a process prints into lines, each of bounded length."""

    def __init__(self) -> None:
        self._rest = b""
        self._cut = False  # whether the rest of this line is being dropped

    def split(self, chunk: bytes) -> list[str]:
        """The lines that ``chunk`` completes, without empty ones."""
        *ended, rest = LINE_END.split(self._rest + chunk)
        if self._cut and ended:
            ended[0], self._cut = b"", False
        self._rest = b"" if self._cut else rest
        if len(self._rest) > LONGEST_LINE:
            ended.append(self._rest)
            self._rest, self._cut = b"", True
        return [text for line in ended if (text := line[:LONGEST_LINE].decode(errors="replace").rstrip())]

    def last(self) -> list[str]:
        """What was printed without an end of its line."""
        return self.split(b"\n")


class Reader:
    """Reads a log as it grows, through its rotations."""

    def __init__(self, path: Path, lines: int | None) -> None:
        """Begin ``lines`` lines before its end, at its beginning for None; one that is not there yet is waited for."""
        self._path = path
        self._split = Lines()
        self._file: BinaryIO | None = None
        self._last = lines

    def new(self) -> list[str]:
        """The lines that were written since the last call, those of rotated files first."""
        if self._file is None:
            return self._begin()
        lines = []
        while True:
            lines += self._rest()
            following = self._following()
            if following is None:
                return lines
            lines += self._rest()  # what came between the two looks; from now on nothing more comes here
            self._file.close()
            self._file = following

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self) -> list[str]:
        paths = files(self._path)
        if not paths:
            self._last = None  # once it is there, it is read from its beginning
            return []
        self._file = paths[0].open("rb")
        lines = self._rest()
        for path in paths[1:]:
            if self._last is not None and len(lines) >= self._last:
                break
            if path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:  # else it has become that just now
                older = Lines()
                lines = [*older.split(path.read_bytes()), *older.last(), *lines]
        return lines if self._last is None else lines[max(0, len(lines) - self._last) :]

    def _rest(self) -> list[str]:
        assert self._file is not None  # noqa: S101 - its callers have looked
        lines = []
        while chunk := self._file.read(_CHUNK):
            lines += self._split.split(chunk)
        return lines

    def _following(self) -> BinaryIO | None:
        """The file after the one that is read; None if that is the newest."""
        assert self._file is not None  # noqa: S101 - its callers have looked
        mine = os.fstat(self._file.fileno()).st_ino
        try:
            paths = files(self._path)
            inodes = [path.stat().st_ino for path in paths]
            if not paths or inodes[0] == mine:
                return None
            place = inodes.index(mine) if mine in inodes else len(paths)
            file = paths[place - 1].open("rb")
        except FileNotFoundError:  # it is being rotated just now: the next call sees it
            return None
        if os.fstat(file.fileno()).st_ino == inodes[place - 1]:
            return file
        file.close()
        return None


def rotated(path: Path, number: int) -> Path:
    """The file that a log has become after so many rotations."""
    return path.with_name(f"{path.name}.{number}") if number else path


def files(path: Path) -> list[Path]:
    """A log's files that are there, the newest first."""
    numbered = re.compile(re.escape(path.name) + r"\.(\d+)")
    numbers = [int(found[1]) for other in path.parent.iterdir() if (found := numbered.fullmatch(other.name))]
    return [file for number in (0, *sorted(numbers)) if (file := rotated(path, number)).exists()]


# vLLM writes "11-21 09:14:33", everything else here "2026-11-21 09:14:33,123" or with a T between.
_WHEN = re.compile(r"(?:\d{4}-)?(\d\d-\d\d)[ T](\d\d:\d\d:\d\d)")


def in_order(logs: Sequence[tuple[str, Sequence[str]]]) -> Iterator[tuple[str, str]]:
    """The lines of several logs by the times in them, each with its log's name.

    A line without a time belongs to the one before it.
    """
    keyed = []
    for name, lines in logs:
        when = ""
        for line in lines:
            if found := _WHEN.search(line[:100]):
                when = found[1] + found[2]
            keyed.append((when, name, line))
    for _, name, line in sorted(keyed, key=lambda entry: entry[0]):
        yield name, line
