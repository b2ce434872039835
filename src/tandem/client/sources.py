"""The rows of a file, one after the other: JSON Lines, CSV, plain lines, Parquet.

A source knows how far it has been read, and finds that place again later, if the input is still the same. What reads
text reads each byte once, in order, so that standard input is as good as a file.
"""

import csv
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from tandem.client.parquet import ParquetSource
from tandem.client.rows import BadRow, Fields, Position, Row, Source, changed, identity, writable
from tandem.errors import SettingsError

FORMATS = ("jsonl", "csv", "lines", "parquet")
_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "lines",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_LONGEST_LINE = 64 * 2**20  # bytes: more than a million characters take, however they are written
_LONGEST_CELL = 16 * 2**20  # characters: a quotation mark that is never closed must not take the file's rest with it
_PIECE = 2**20  # bytes read at once
_BOM = b"\xef\xbb\xbf"


def format_of(path: Path | None, said: str | None) -> str:
    """The format as said, else by the file's ending.

    Raises:
        SettingsError: neither says it.
    """
    known = ", ".join(FORMATS)
    if said is not None:
        if said not in FORMATS:
            raise SettingsError(f"--format {said} is unknown", f"Known are {known}")
        return said
    if path is None:
        raise SettingsError("the format of standard input is not known", f"Name it with --format: {known}")
    if path.suffix.lower() not in _ENDINGS:
        raise SettingsError(f"{path} has an ending that names no format", f"Name it with --format: {known}")
    return _ENDINGS[path.suffix.lower()]


@contextmanager
def opened(path: Path | None, format: str, fields: Fields) -> Iterator[Source]:  # noqa: A002 - as the option is called
    """The source of an input.

    Args:
        path: None for standard input.
        format: one of :data:`FORMATS`.

    Raises:
        SettingsError: it cannot be read, is not of that format, or has no such field.
        SetupError: Parquet needs a package that is not there.
    """
    if format == "parquet":
        if path is None:
            raise SettingsError("Parquet cannot be read from standard input", "Its end is needed first: name a file")
        with _readable(path) as stream:
            yield ParquetSource(path, stream, fields)
    elif path is None:
        yield _Text("standard input", sys.stdin.buffer, (), format, fields)
    else:
        with _readable(path) as stream:
            yield _Text(str(path), stream, identity(stream), format, fields)


class _Text:
    """Rows of a stream of bytes: JSON Lines, CSV or plain lines, in UTF-8."""

    def __init__(self, name: str, stream: BinaryIO, identity: tuple[int, ...], format: str, fields: Fields) -> None:  # noqa: A002
        self.name, self.format, self.identity = name, format, identity
        self._fields, self._rows = fields, 0
        self._lines = _Lines(stream)
        self._records = {"jsonl": self._json, "csv": self._csv, "lines": self._plain}[format]
        self._header = self._columns() if format == "csv" else []

    def rows(self) -> Iterator[Row | BadRow]:
        records = self._records()
        while True:
            self._lines.record.clear()
            line = self._lines.count + 1
            found = next(records, None)
            if found is None:
                return
            number, self._rows = self._rows, self._rows + 1
            content = b"".join(self._lines.record).decode(errors="replace").rstrip("\r\n")
            if isinstance(found, str):
                yield BadRow(number, line, found, content)
            else:
                yield self._fields.row(number, line, content, *found)

    def position(self) -> Position:
        return Position(self._rows, self._lines.count, self._lines.read, self._lines.digest.hexdigest())

    def skip(self, to: Position) -> None:
        if to.rows and not self._lines.skip(to):
            raise changed(self.name)
        self._rows = to.rows

    def part(self, position: Position) -> float | None:
        return position.bytes / self.identity[0] if self.identity and self.identity[0] else None

    def _plain(self) -> Iterator[tuple[object, object] | str]:
        for line in self._each(self._lines):
            try:
                yield line if isinstance(line, str) else (line.decode().rstrip("\n").removesuffix("\r"), None)
            except UnicodeDecodeError as exc:
                yield _not_utf8(exc)

    def _json(self) -> Iterator[tuple[object, object] | str]:
        for line in self._each(self._lines):
            yield line if isinstance(line, str) else self._decoded(line)

    def _decoded(self, line: bytes) -> tuple[object, object] | str:
        try:
            found = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            return f"no valid JSON: {exc}"
        if not isinstance(found, dict):
            return f"no JSON object but {type(found).__name__}"
        for name in (self._fields.text, self._fields.id):
            if name is not None and name not in found:
                return f'there is no field "{name}"'
        return found[self._fields.text], found.get(self._fields.id)

    def _csv(self) -> Iterator[tuple[object, object] | str]:
        place = self._header.index(self._fields.text)
        id_place = self._header.index(self._fields.id) if self._fields.id else place
        for cells in self._each(self._reader()):
            if isinstance(cells, str):
                yield cells
            elif len(cells) != len(self._header):
                yield f"{len(cells)} cells, where the header has {len(self._header)}"
            elif not all(map(writable, cells)):
                yield "not UTF-8"
            else:
                yield cells[place], cells[id_place]

    def _columns(self) -> list[str]:
        try:
            header = next(self._reader(), [])
        except (csv.Error, _LineTooLongError) as exc:
            raise SettingsError(f"{self.name} begins with no CSV header: {exc}") from exc
        for name in (self._fields.text, self._fields.id):
            if name is not None and header.count(name) != 1:
                has = f"has {header.count(name)} columns" if name in header else "has no column"
                known = ", ".join(header) or "none"
                raise SettingsError(f'{self.name} {has} "{name}"', f"Choose with --field and --id from: {known}")
        return header

    def _reader(self) -> Iterator[list[str]]:
        csv.field_size_limit(_LONGEST_CELL)  # the module has no other place for it
        # A generator would end with the first line that is too long.
        return csv.reader(map(_cautiously, self._lines), strict=True)

    def _each(self, read: Iterator[Any]) -> Iterator[Any]:
        """Each of them, or why it could not be read."""
        while True:
            try:
                yield next(read)
            except StopIteration:
                return
            except _LineTooLongError as exc:
                yield str(exc)
            except csv.Error as exc:
                yield f"no valid CSV: {exc}"


class _LineTooLongError(Exception):
    """A line that no memory need hold."""


class _Lines:
    """Lines of a stream, counted and hashed as they are read; those of the present record are kept."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.count = self.read = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self.record: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._piece()
        if not line:
            raise StopIteration
        self.count += 1
        if self.count == 1:
            line = line.removeprefix(_BOM)
        if len(line) < _LONGEST_LINE or line.endswith(b"\n"):
            self.record.append(line)
            return line
        self.record.append(line[:1000])
        while (rest := self._piece()) and not rest.endswith(b"\n"):
            pass
        raise _LineTooLongError(f"longer than {_LONGEST_LINE // 2**20} MiB")

    def skip(self, to: Position) -> bool:
        """Read up to a position; whether what was read is what was read then."""
        while self.read < to.bytes and (piece := self._stream.read(min(to.bytes - self.read, _PIECE))):
            self._count(piece)
        self.count = to.lines
        return self.read == to.bytes and self.digest.hexdigest() == to.digest

    def _piece(self) -> bytes:
        piece = self._stream.readline(_LONGEST_LINE)
        self._count(piece)
        return piece

    def _count(self, piece: bytes) -> None:
        self.read += len(piece)
        self.digest.update(piece)


@contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = path.open("rb")
    except OSError as exc:
        raise SettingsError(f"{path} cannot be read: {exc.strerror}") from exc
    with stream:
        yield stream


def _cautiously(line: bytes) -> str:
    return line.decode(errors="surrogateescape")


def _not_utf8(exc: UnicodeDecodeError) -> str:
    return f"not UTF-8 at byte {exc.start + 1}"
