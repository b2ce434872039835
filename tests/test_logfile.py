"""Logs are rotated by size without losing a line, and followed through it."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tandem import logfile
from tandem.logfile import LogPipe, Reader, RotatingLog, Rotation, in_order


def read(path: Path) -> list[bytes]:
    """Each file of a log, the oldest first."""
    return [file.read_bytes() for file in reversed(logfile.files(path))]


@pytest.mark.parametrize("seed", range(20))
def test_no_line_is_lost_or_torn(tmp_path: Path, seed: int) -> None:
    """Whatever the pieces in which lines come, every file holds whole lines, and none is much too large."""
    chance = random.Random(seed)  # noqa: S311 - it guards nothing
    lines = [b"%d " % number + b"x" * chance.randrange(60) + b"\n" for number in range(300)]
    text = b"".join(lines)
    log = RotatingLog(tmp_path / "a.log", Rotation(size=200, files=1000))
    while text:
        length = chance.randrange(1, 300)
        log.write(text[:length])
        text = text[length:]
    log.close()
    files = read(tmp_path / "a.log")
    assert b"".join(files) == b"".join(lines)
    assert all(file.endswith(b"\n") and len(file) <= 200 + 64 for file in files)
    assert len(files) > 10


def test_so_many_files_are_kept(tmp_path: Path) -> None:
    """The oldest go; with none to keep, there is one file that begins anew."""
    for files, kept in ((2, [b"b\n", b"c\n", b"d\n"]), (0, [b"d\n"])):
        log = RotatingLog(tmp_path / f"{files}.log", Rotation(size=2, files=files))
        for letter in (b"a\n", b"b\n", b"c\n", b"d\n"):
            log.write(letter)
        log.close()
        assert read(tmp_path / f"{files}.log") == kept


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n", b"three\n"):
        log = RotatingLog(tmp_path / "a.log", Rotation(size=8, files=1))
        log.write(line)
        log.close()
    assert read(tmp_path / "a.log") == [b"one\ntwo\n", b"three\n"]


def test_an_endless_line_is_bounded(tmp_path: Path) -> None:
    """In the file by tearing it, in memory by cutting it."""
    log = RotatingLog(tmp_path / "a.log", Rotation(size=100, files=3))
    for _ in range(100):
        log.write(b"x" * 50)
    log.close()
    assert all(len(file) <= 250 for file in read(tmp_path / "a.log"))
    lines = logfile.Lines()
    heard = [line for _ in range(10) for line in lines.split(b"x" * 50_000)] + lines.split(b"y\nnext\n")
    assert [len(line) for line in heard] == [logfile.LONGEST_LINE, 4]


def test_lines_end_at_progress_bars_too() -> None:
    lines = logfile.Lines()
    assert lines.split(b"a\r50%\r\n\nb") == ["a", "50%"]
    assert lines.last() == ["b"]


def test_a_reader_follows_through_rotations(tmp_path: Path) -> None:
    """However many there were between two looks; what was torn between two writes is one line."""
    path = tmp_path / "a.log"
    log = RotatingLog(path, Rotation(size=20, files=100))
    reader = Reader(path, None)
    chance = random.Random(7)  # noqa: S311 - it guards nothing
    seen: list[str] = []
    for number in range(500):
        log.write(b"line ")
        if chance.random() < 0.2:
            seen += reader.new()
        log.write(b"%d\n" % number)
    seen += reader.new()
    assert seen == [f"line {number}" for number in range(500)]
    reader.close()
    log.close()


def test_a_reader_that_was_left_behind_goes_on_with_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = RotatingLog(path, Rotation(size=2, files=1))
    log.write(b"a\n")
    reader = Reader(path, None)
    assert reader.new() == ["a"]
    for letter in (b"b\n", b"c\n", b"d\n"):
        log.write(letter)
    assert reader.new() == ["c", "d"]
    reader.close()
    log.close()


def test_a_reader_begins_so_many_lines_before_the_end(tmp_path: Path) -> None:
    """Also where they lie in rotated files; and it waits for a log that is not there yet, and reads all of it."""
    path = tmp_path / "a.log"
    early = Reader(path, 2)
    assert early.new() == []
    log = RotatingLog(path, Rotation(size=8, files=9))
    log.write(b"one\ntwo\nthree\nfour\n")
    log.close()
    for lines, seen in ((0, []), (1, ["four"]), (3, ["two", "three", "four"]), (9, ["one", "two", "three", "four"])):
        reader = Reader(path, lines)
        assert reader.new() == seen
        reader.close()
    assert early.new() == ["one", "two", "three", "four"]
    early.close()


async def test_a_pipe_carries_what_processes_write(tmp_path: Path) -> None:
    """All of it, also what was written just before the end."""
    path = tmp_path / "a.log"
    with LogPipe(path, Rotation(size=100, files=9)) as pipe:
        os.write(pipe.fd, b"first\n")
        async with asyncio.timeout(10):
            while not path.read_bytes():
                await asyncio.sleep(0)
        os.write(pipe.fd, b"last\n" * 100)
    assert b"".join(read(path)) == b"first\n" + b"last\n" * 100


def test_lines_of_several_logs_come_in_the_order_of_their_times() -> None:
    """As vLLM, Tandem and JSON write them; a traceback stays behind its first line."""
    engine = [
        "(Worker pid=1) ERROR 11-21 09:14:33 [x.py:1] failed",
        "Traceback",
        "(Worker pid=1) INFO 11-21 09:14:36 x",
    ]
    router = ["2026-11-21 09:14:32,001 INFO a", "2026-11-21 09:14:35,001 INFO b"]
    service = ['{"time": "2026-11-21T09:14:34.000+00:00"}']
    shown = in_order([("engine", engine), ("router", router), ("tandem", service)])
    assert [line for _, line in shown] == [router[0], engine[0], engine[1], service[0], router[1], engine[2]]
