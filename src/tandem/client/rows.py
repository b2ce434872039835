"""What a file of texts consists of, whatever its format: rows, bad rows, and places between them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import msgspec

from tandem.client.batching import checked
from tandem.errors import BadRequestError, SettingsError


class Position(msgspec.Struct, frozen=True):
    """How far an input has been read.

    Attributes:
        rows: good ones and bad ones.
        lines: of text.
        bytes: of text.
        digest: BLAKE2b of those bytes; of Parquet, of the file's footer.
    """

    rows: int = 0
    lines: int = 0
    bytes: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A text to embed.

    Attributes:
        number: its place in the input, from 0, bad rows counted.
        line: where it begins, from 1; in Parquet, the row's number from 1.
        id: as the input has it, else the number.
        content: the whole row as the input has it; of Parquet, the text.
    """

    number: int
    line: int
    id: str | int
    text: str
    content: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row without a text that can be embedded; ``reason`` goes on after "line 12: "."""

    number: int
    line: int
    reason: str
    content: str


class Source(Protocol):
    """An input that is being read.

    Attributes:
        name: for messages.
        format: one of :data:`tandem.client.sources.FORMATS`.
        identity: size in bytes and time of last change in ns; empty of standard input.
    """

    name: str
    format: str
    identity: tuple[int, ...]

    def rows(self) -> Iterator[Row | BadRow]:
        """Those that were not read yet."""

    def position(self) -> Position:
        """The end of the row that was read last."""

    def skip(self, to: Position) -> None:
        """Go to where an earlier run had read to.

        Raises:
            SettingsError: the input is not the one that was read then.
        """

    def part(self, position: Position) -> float | None:
        """How much of the input lies before a position, from 0 to 1; None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which parts of a row matter.

    Attributes:
        text: the field with the text; empty for plain lines, which have none.
        id: the field with the id; None for the row's number.
        longest: characters of the longest text.
    """

    text: str
    id: str | None = None
    longest: int

    @property
    def subject(self) -> str:
        """What a complaint about a text begins with."""
        return f'field "{self.text}"' if self.text else "it"

    def row(self, number: int, line: int, content: str, text: object, id: object) -> Row | BadRow:  # noqa: A002
        """The row, if both values can be used."""
        try:
            checked([text], first=0, prefix="", longest=self.longest)
        except BadRequestError as exc:
            return BadRow(number, line, exc.message.replace("input[0]", self.subject, 1), content)
        if self.id is None:
            id = number  # noqa: A001
        elif not isinstance(id, str | int) or isinstance(id, bool):
            reason = f'field "{self.id}" is neither a text nor a whole number but {type(id).__name__}'
            return BadRow(number, line, reason, content)
        elif isinstance(id, str) and not writable(id):
            return BadRow(number, line, f'field "{self.id}" cannot be written as UTF-8', content)
        assert isinstance(text, str)  # noqa: S101 - that is what was checked
        return Row(number, line, id, text, content)


def changed(name: str) -> SettingsError:
    """The error where an input is not what an interrupted run has read of it."""
    return SettingsError(
        f"{name} has changed since the run that was interrupted", "Bring it back as it was, or start over with --force"
    )


def writable(text: str) -> bool:
    """Whether UTF-8 has a form for it: lone surrogates have none."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True


def identity(stream: BinaryIO) -> tuple[int, ...]:
    """A file's size in bytes and the time of its last change in ns."""
    told = os.fstat(stream.fileno())
    return told.st_size, told.st_mtime_ns
