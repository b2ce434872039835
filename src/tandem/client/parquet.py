"""Parquet, read and written a piece at a time. Needs pyarrow, which the extra ``files`` brings."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import msgspec
import numpy as np

from tandem.client.rows import BadRow, Fields, Position, Row, changed, identity
from tandem.errors import SettingsError, SetupError

_PIECE = 2**20  # bytes read at once
_ROWS = 1024  # read at once
_GROUP_ROWS, _GROUP_BYTES = 65_536, 64 * 2**20  # written at once


def arrow() -> tuple[ModuleType, ModuleType]:
    """``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        SetupError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise SetupError(
            "Parquet needs pyarrow, which the files extra brings", 'Run `pip install "vllm-tandem[files]"`'
        ) from exc
    return pyarrow, pyarrow.parquet


class ParquetSource:
    """Rows of a Parquet file, read a piece of a row group at a time."""

    format = "parquet"

    def __init__(self, path: Path, stream: BinaryIO, fields: Fields) -> None:
        self.name, self.identity = str(path), identity(stream)
        self._fields, self._rows = fields, 0
        self._arrow, parquet = arrow()
        try:
            self._file = parquet.ParquetFile(stream, buffer_size=_PIECE, pre_buffer=False)
        except (OSError, self._arrow.ArrowException) as exc:
            raise SettingsError(f"{path} is no Parquet file that can be read: {exc}") from exc
        stream.seek(-8 - self._file.metadata.serialized_size, os.SEEK_END)  # the footer says where everything lies
        self._digest = hashlib.blake2b(stream.read(), digest_size=16).hexdigest()
        self._check_columns()

    def rows(self) -> Iterator[Row | BadRow]:
        names = [self._fields.text, *([self._fields.id] if self._fields.id else [])]
        first = 0
        for group in range(self._file.num_row_groups):
            count = self._file.metadata.row_group(group).num_rows
            if first + count > self._rows:
                yield from self._group(group, names, first)
            first += count

    def position(self) -> Position:
        return Position(rows=self._rows, digest=self._digest)

    def skip(self, to: Position) -> None:
        if to.rows and to.digest != self._digest:
            raise changed(self.name)
        self._rows = to.rows

    def part(self, position: Position) -> float | None:
        count = self._file.metadata.num_rows
        return position.rows / count if count else None

    def _group(self, group: int, names: list[str], first: int) -> Iterator[Row | BadRow]:
        read = self._file.iter_batches(_ROWS, row_groups=[group], columns=names, use_threads=False)
        try:
            for piece in read:
                ahead = min(max(self._rows - first, 0), piece.num_rows)
                columns = [_values(piece.column(name).slice(ahead)) for name in names]
                first += piece.num_rows
                for values in zip(*columns, strict=True):
                    number, self._rows = self._rows, self._rows + 1
                    text = values[0]
                    content = text if isinstance(text, str) else ""
                    yield self._fields.row(number, number + 1, content, text, values[-1])
        except (OSError, self._arrow.ArrowException) as exc:
            raise SetupError(f"{self.name} cannot be read on after row {self._rows}: {exc}") from exc

    def _check_columns(self) -> None:
        schema, types = self._file.schema_arrow, self._arrow.types
        for name in (self._fields.text, self._fields.id):
            if name is None:
                continue
            if schema.names.count(name) != 1:
                known = ", ".join(schema.names) or "none"
                raise SettingsError(
                    f'{self.name} has no column "{name}"', f"Choose with --field and --id from: {known}"
                )
            kind = schema.field(name).type
            plain = kind.value_type if types.is_dictionary(kind) else kind
            text = types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain)
            if not text and (name == self._fields.text or not types.is_integer(plain)):
                raise SettingsError(f'the column "{name}" of {self.name} is of type {kind}, not text')


def write(
    path: Path,
    vectors: BinaryIO,
    ids: BinaryIO,
    texts: BinaryIO | None,
    *,
    size: int,
    whole_numbers: bool,
    about: Mapping[str, str],
) -> None:
    """One file with the columns ``id``, ``text`` (if there are any) and ``vector``, a fixed-size list of float32.

    Args:
        vectors: float32, little-endian, one after the other, from where it stands.
        ids: JSON Lines; so are ``texts``.
        size: dimensions of a vector.
        whole_numbers: whether all ids are whole numbers of 64 bits; else they become texts.
        about: the file's metadata.
    """
    pa, parquet = arrow()
    id_type = pa.int64() if whole_numbers else pa.string()
    columns = {"id": id_type, **({"text": pa.string()} if texts else {}), "vector": pa.list_(pa.float32(), size)}
    schema = pa.schema(list(columns.items()), metadata=dict(about))
    settings = {
        # Vectors hardly shrink, and nobody looks for ranges of their numbers.
        "compression": {name: "none" if name == "vector" else "zstd" for name in columns},
        "write_statistics": ["id"],
        "use_dictionary": False,
    }
    with parquet.ParquetWriter(path, schema, **settings) as writer:
        for group in _groups(ids, texts, size):
            numbers = np.fromfile(vectors, "<f4", len(group) * size)
            arrays = [pa.array([each if whole_numbers else str(each) for each, _ in group], id_type)]
            if texts:
                arrays.append(pa.array([text for _, text in group], pa.string()))
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(numbers), size))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _groups(ids: BinaryIO, texts: BinaryIO | None, size: int) -> Iterator[list[tuple[str | int, str]]]:
    """Ids and texts (empty ones, where there are none) in groups that fit into memory together with their vectors."""
    group: list[tuple[str | int, str]] = []
    held = 0
    for line in ids:
        text = texts.readline() if texts else b'""'
        group.append((msgspec.json.decode(line), msgspec.json.decode(text)))
        held += 4 * size + 4 * (len(line) + len(text))  # a text is there several times before it is written
        if len(group) == _GROUP_ROWS or held >= _GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _values(column: Any) -> list[object]:
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(each) for each in column]
    return values


def _value(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as exc:
        return exc.object
