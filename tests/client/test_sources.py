"""Rows of files: what is a row, what is none, and how a later run finds the place again."""

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tandem import SettingsError, SetupError
from tandem.client import sources
from tandem.client.rows import BadRow, Fields, Row

FIELDS = Fields(text="text", longest=100)
IDS = Fields(text="text", id="id", longest=100)
PLAIN = Fields(text="", longest=100)


def read(path: Path, format: str, fields: Fields) -> list[Row | BadRow]:  # noqa: A002
    with sources.opened(path, format, fields) as source:
        return list(source.rows())


def written(folder: Path, content: bytes, name: str = "in") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def good(rows: list[Row | BadRow]) -> list[tuple[int, int, str | int, str]]:
    """Number, line, id and text of each; fails on a bad one."""
    found = []
    for row in rows:
        assert isinstance(row, Row), row
        found.append((row.number, row.line, row.id, row.text))
    return found


@pytest.mark.parametrize(
    ("format", "fields", "content", "expected"),
    [
        ("lines", PLAIN, "a\nb ü\r\nc", [(0, 1, 0, "a"), (1, 2, 1, "b ü"), (2, 3, 2, "c")]),
        ("lines", PLAIN, "\ufeffa\n", [(0, 1, 0, "a")]),
        ("jsonl", FIELDS, '{"text": "a"}\n{"n": [1], "text": "b"}', [(0, 1, 0, "a"), (1, 2, 1, "b")]),
        ("jsonl", IDS, '{"id": 7, "text": "a"}\n{"id": "x", "text": "b"}\n', [(0, 1, 7, "a"), (1, 2, "x", "b")]),
        ("csv", IDS, 'id,text\n7,"a\nand, more"\r\n8,b\n', [(0, 2, "7", "a\nand, more"), (1, 4, "8", "b")]),
        ("csv", FIELDS, '\ufefftext\n"a ""b"""\n', [(0, 2, 0, 'a "b"')]),
    ],
)
def test_rows_of_text(
    format: str,  # noqa: A002
    fields: Fields,
    content: str,
    expected: list[tuple[int, int, str | int, str]],
    tmp_path: Path,
) -> None:
    """Each with its number, the line where it begins, and its id."""
    assert good(read(written(tmp_path, content.encode()), format, fields)) == expected


@pytest.mark.parametrize(
    ("format", "fields", "line", "reason"),
    [
        ("jsonl", FIELDS, b'{"text": "a"', "no valid JSON: "),
        ("jsonl", FIELDS, b'{"text": "\xff"}', "no valid JSON: "),
        ("jsonl", FIELDS, b'{"text": "\\ud800"}', ""),
        ("jsonl", FIELDS, b"[" * 100_000, "no valid JSON: "),
        ("jsonl", FIELDS, b"", "no valid JSON: "),
        ("jsonl", FIELDS, b"[1]", "no JSON object but list"),
        ("jsonl", FIELDS, b'{"txt": "a"}', 'there is no field "text"'),
        ("jsonl", IDS, b'{"text": "a"}', 'there is no field "id"'),
        ("jsonl", IDS, b'{"text": "a", "id": true}', 'field "id" is neither a text nor a whole number but bool'),
        ("jsonl", FIELDS, b'{"text": 3}', 'field "text" is no text but int'),
        ("jsonl", FIELDS, b'{"text": null}', 'field "text" is no text but NoneType'),
        ("jsonl", FIELDS, b'{"text": ""}', 'field "text" is empty'),
        ("jsonl", FIELDS, b'{"text": "' + b"x" * 101 + b'"}', 'field "text" has 101 characters'),
        ("csv", IDS, b"1,a,b", "3 cells, where the header has 2"),
        ("csv", IDS, b'1,"a"b', "no valid CSV: "),
        ("csv", IDS, b"1,\xff", "not UTF-8"),
        ("csv", IDS, b"1,", 'field "text" is empty'),
        ("lines", PLAIN, b"", "it is empty"),
        ("lines", PLAIN, b"a\xff", "not UTF-8 at byte 2"),
    ],
)
def test_a_bad_row_is_named_and_does_not_hide_its_neighbours(
    format: str,  # noqa: A002
    fields: Fields,
    line: bytes,
    reason: str,
    tmp_path: Path,
) -> None:
    """Number, line and reason; rows before and after it are what they were."""
    fine = {"jsonl": b'{"text": "fine", "id": 1}', "csv": b"1,fine", "lines": b"fine"}[format]
    head = [b"id,text"] if format == "csv" else []
    before, bad, after = read(written(tmp_path, b"\n".join([*head, fine, line, fine, b""])), format, fields)
    assert isinstance(bad, BadRow)
    assert (bad.number, bad.line) == (1, 2 + len(head))
    assert bad.reason.startswith(reason)
    assert [row.text for row in (before, after) if isinstance(row, Row)] == ["fine", "fine"]


def test_a_line_that_no_memory_need_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a bad row, read past a piece at a time, in each format."""
    monkeypatch.setattr(sources, "_LONGEST_LINE", 2**20)
    for format, fine in (("jsonl", b'{"text": "a"}\n'), ("csv", b"a\n"), ("lines", b"a\n")):  # noqa: A001
        head = b"text\n" if format == "csv" else b""
        path = written(tmp_path, head + fine + b"x" * (2**20 * 3 + 5) + b"\n" + fine)
        first, bad, last = read(path, format, FIELDS)
        assert isinstance(bad, BadRow)
        assert (bad.reason, len(bad.content)) == ("longer than 1 MiB", 1000)
        assert isinstance(first, Row)
        assert isinstance(last, Row)
        assert last.number == 2


def table(folder: Path, columns: dict[str, pa.Array], group: int = 3) -> Path:
    path = folder / "in.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def test_rows_of_parquet(tmp_path: Path) -> None:
    """Texts of every type that has them, and ids; what is null or no UTF-8 is a bad row."""
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        texts = pa.array(["a", None, "b", "", "c"]).cast(kind)
        rows = read(table(tmp_path, {"text": texts, "id": pa.array([5, 6, 7, 8, 9])}), "parquet", IDS)
        assert [row.number for row in rows] == [0, 1, 2, 3, 4]
        assert [(row.id, row.text) for row in rows if isinstance(row, Row)] == [(5, "a"), (7, "b"), (9, "c")]
    broken = pa.array([b"a", b"\xff"]).view(pa.string())
    rows = read(table(tmp_path, {"text": broken}), "parquet", FIELDS)
    assert [type(row) for row in rows] == [Row, BadRow]


@pytest.mark.parametrize("format", ["jsonl", "csv", "lines", "parquet"])
def test_a_later_run_goes_on_from_any_place(format: str, tmp_path: Path) -> None:  # noqa: A002
    """Wherever the first stopped, the second reads the rest and nothing twice; another input is refused."""
    texts = [f"text {i}" + ("\nmore" if i % 3 == 0 and format in ("csv", "parquet") else "") for i in range(10)]

    def put(name: str, texts: list[str]) -> Path:
        if format == "parquet":
            return table(tmp_path, {"text": pa.array(texts)}).rename(tmp_path / name)
        write = {"jsonl": lambda t: json.dumps({"text": t}), "csv": lambda t: f'"{t}"', "lines": lambda t: t}[format]
        lines = [*(["text"] if format == "csv" else []), *map(write, texts)]
        return written(tmp_path, "\n".join(lines).encode(), name)

    fields = PLAIN if format == "lines" else FIELDS
    path, other = put("one", texts), put("other", ["Text 0" + texts[0][6:], *texts[1:]])
    whole = read(path, format, fields)
    for stop in range(len(texts) + 1):
        with sources.opened(path, format, fields) as source:
            rows = source.rows()
            head = [next(rows) for _ in range(stop)]
            place = source.position()
            share = source.part(place)
        with sources.opened(path, format, fields) as source:
            source.skip(place)
            assert source.position().rows == stop
            assert [*head, *source.rows()] == whole
            assert source.part(source.position()) == 1
        assert share is not None
        assert 0 <= share <= 1
        if stop:
            with (
                sources.opened(other, format, fields) as source,
                pytest.raises(SettingsError, match=r"other has changed since the run that was interrupted\. Bring it"),
            ):
                source.skip(place)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as any text; how much of it there is, nobody knows."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    with sources.opened(None, "lines", PLAIN) as source:
        assert good(list(source.rows())) == [(0, 1, 0, "a"), (1, 2, 1, "b")]
        assert (source.name, source.identity, source.part(source.position())) == ("standard input", (), None)


@pytest.mark.parametrize(
    ("name", "said", "complaint"),
    [
        ("in.json", None, "in.json has an ending that names no format. Name it with --format: jsonl, csv, lines"),
        (None, None, "the format of standard input is not known"),
        ("in.csv", "tsv", "--format tsv is unknown"),
    ],
)
def test_a_format_that_nobody_names(name: str | None, said: str | None, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        sources.format_of(Path(name) if name else None, said)


def test_formats_by_ending() -> None:
    """Unless one is said."""
    found = [sources.format_of(Path(f"a.{end}"), None) for end in ("jsonl", "NDJSON", "csv", "txt", "parquet", "pq")]
    assert found == ["jsonl", "jsonl", "csv", "lines", "parquet", "parquet"]
    assert sources.format_of(Path("a.csv"), "lines") == "lines"


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    """No such file, no such column, none of text, no Parquet; Parquet from standard input."""
    no_text = table(tmp_path, {"text": pa.array([1, 2]), "body": pa.array(["a", "b"])})
    cases = [
        (tmp_path / "none", "jsonl", FIELDS, "none cannot be read: No such file"),
        (tmp_path, "jsonl", FIELDS, "cannot be read: Is a directory"),
        (
            written(tmp_path, b"id,body\n"),
            "csv",
            FIELDS,
            'in has no column "text". Choose with --field and --id from: ',
        ),
        (written(tmp_path, b"", "empty"), "csv", FIELDS, 'empty has no column "text"'),
        (written(tmp_path, b"text,text\n", "two"), "csv", FIELDS, 'two has 2 columns "text"'),
        (written(tmp_path, b'"te"xt\n', "bad"), "csv", FIELDS, "bad begins with no CSV header"),
        (written(tmp_path, b"PAR1nonsense", "p"), "parquet", FIELDS, "p is no Parquet file that can be read"),
        (no_text, "parquet", FIELDS, 'the column "text" of .* is of type int64, not text'),
        (no_text, "parquet", Fields(text="body", id="x", longest=9), 'has no column "x". Choose .* from: text, body'),
        (None, "parquet", FIELDS, "Parquet cannot be read from standard input"),
    ]
    for path, format, fields, complaint in cases:  # noqa: A001
        with pytest.raises(SettingsError, match=complaint), sources.opened(path, format, fields):
            pass


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = written(tmp_path, b"", "in.parquet")
    with pytest.raises(SetupError, match=r'files extra.*pip install "vllm-tandem\[files\]"'):
        read(path, "parquet", FIELDS)
