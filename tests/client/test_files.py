"""Files of vectors: complete and in order, in every format."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tandem import ClientConnectionError, SettingsError, VLLMConfig
from tandem.client import files, parquet
from tandem.client.files import Progress, Task, embed_file

from . import service as ways
from .calls import TEXTS
from .runs import config, embed, expected, left, put, vectors
from .service import DIM, Service


def test_parquet(service: Service, tmp_path: Path, out: Path) -> None:
    """Ids, texts and vectors, in the input's order; the model in the metadata; nothing else is left."""
    source = put(tmp_path / "in.jsonl", TEXTS, ids=True)
    done = embed(Task(source=source, out=out, id="id", with_text=True, weights="org/m"), service)
    assert (done.rows, done.skipped) == (50, 0)
    found = pq.read_table(out)
    assert found.column_names == ["id", "text", "vector"]
    assert found.column("id").to_pylist() == [f"id {i}" for i in range(50)]
    assert found.column("text").to_pylist() == TEXTS
    assert np.array_equal(vectors(out), expected(TEXTS))
    assert found.schema.metadata[b"tandem.weights"] == b"org/m"
    assert left(tmp_path) == {"in.jsonl", "out.parquet"}


def test_npy(service: Service, source: Path, tmp_path: Path) -> None:
    """An array that NumPy loads, or maps, and the ids beside it: rows counted from 0."""
    out = tmp_path / "out.npy"
    embed(Task(source=source, out=out), service)
    assert np.array_equal(np.load(out, mmap_mode="r"), expected(TEXTS))
    assert [*map(json.loads, (tmp_path / "out.ids.jsonl").read_text().splitlines())] == list(range(50))
    assert left(tmp_path) == {"in.jsonl", "out.npy", "out.ids.jsonl"}


def test_the_head_of_npy_is_as_long_for_any_number_of_rows() -> None:
    """So it can be written first, and put right at the end."""
    for size in (1, 384, 3584, 100_000):
        assert len({len(files._head(rows, size)) for rows in (0, 1, 999, 10**9, 10**15)}) == 1


def test_parquet_in_parquet_out(service: Service, tmp_path: Path, out: Path) -> None:
    """In many row groups; whole numbers stay what they are."""
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"body": TEXTS, "key": range(100, 150)}), source, row_group_size=7)
    embed(Task(source=source, out=out, field="body", id="key"), service)
    assert pq.read_table(out).column("id").to_pylist() == list(range(100, 150))
    assert np.array_equal(vectors(out), expected(TEXTS))


def test_ids_of_several_kinds_become_texts(service: Service, tmp_path: Path, out: Path) -> None:
    """A column has one type; whole numbers that 64 bits do not hold count as texts."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 1, "text": "a"}\n{"id": "x", "text": "b"}\n{"id": 99999999999999999999, "text": "c"}\n')
    embed(Task(source=source, out=out, id="id"), service)
    assert pq.read_table(out).column("id").to_pylist() == ["1", "x", "99999999999999999999"]


def test_row_groups_are_bounded(service: Service, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By rows and by bytes; the rows are the same."""
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 7)
    embed(Task(source=source, out=out), service)
    assert pq.ParquetFile(out).num_row_groups == 8
    assert np.array_equal(vectors(out), expected(TEXTS))


@pytest.mark.parametrize("name", ["out.parquet", "out.npy"])
def test_no_rows(name: str, service: Service, tmp_path: Path) -> None:
    """An empty file gives (0, dim)."""
    out = tmp_path / name
    assert embed(Task(source=put(tmp_path / "in.jsonl", []), out=out), service).rows == 0
    assert vectors(out).shape == (0, DIM)


def test_settings_of_the_client_count(service: Service, source: Path, out: Path) -> None:
    """Prefixes, normalisation, dimensions, batches."""
    embed(
        Task(source=source, out=out, kind="query"),
        service,
        query_prefix="find: ",
        document_prefix="not this",
        normalize=True,
        dimensions=DIM,
        batch_size=5,
    )
    wanted = expected([f"find: {text}" for text in TEXTS])
    assert np.allclose(vectors(out), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    assert max(map(len, service.texts)) == 5
    assert {body["dimensions"] for _, _, body in service.asked} == {DIM}


def test_progress_is_told(service: Service, source: Path, out: Path) -> None:
    """Before the first row, and after each step, until all is done."""
    told: list[Progress] = []
    embed_file(Task(source=source, out=out), config(service), told.append)
    assert told[0] == Progress(0, 0, 0.0)
    assert told[-1] == Progress(50, 0, 1.0)
    assert [each.rows for each in told] == [0, 16, 32, 48, 50]


def test_files_beside_the_output_are_kept(service: Service, source: Path, tmp_path: Path) -> None:
    for name in ("out.ids.jsonl", "bad"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(SettingsError, match=f"{name} exists already"):
            embed(Task(source=source, out=tmp_path / "out.npy", skip_bad=tmp_path / "bad"), service)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        ({"out": "out.txt"}, "ends neither in .parquet nor in .npy"),
        ({"out": "none/out.npy"}, "is no place for a file"),
        ({"out": "out.npy", "with_text": True}, "--with-text needs an output that holds texts"),
        ({"out": "out.npy", "skip_bad": "in.jsonl"}, "must be different files"),
        ({"out": "out.npy", "format": "lines", "field": "text"}, "plain lines have no fields"),
    ],
)
def test_tasks_that_make_no_sense(
    task: dict[str, Any], complaint: str, service: Service, source: Path, tmp_path: Path
) -> None:
    """Are refused before anything is asked or made."""
    paths = {name: tmp_path / task[name] for name in ("out", "skip_bad") if name in task}
    with pytest.raises(SettingsError, match=complaint):
        embed(Task(**{"source": source, **task, **paths}), service)
    assert service.asked == []
    assert left(tmp_path) == {"in.jsonl"}


def test_nobody_answers(source: Path, out: Path, free_port: int) -> None:
    """The client's own error, and nothing is left."""
    with pytest.raises(ClientConnectionError):
        embed_file(
            Task(source=source, out=out),
            VLLMConfig(base_url=f"http://127.0.0.1:{free_port}/v1", model="m", retries=0),
            lambda _: None,
        )
    assert left(out.parent) == {"in.jsonl"}


MEMORY = """
import json, re, sys
from pathlib import Path
from tandem import VLLMConfig
from tandem.client import parquet
from tandem.client.files import Task, embed_file
parquet._GROUP_BYTES = 2**20
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
config = VLLMConfig(base_url=sys.argv[1], model="m", batch_size=1)
first = []
done = embed_file(Task(source=None, out=Path(sys.argv[2]), format="jsonl", with_text=True), config,
                  lambda told: first.append(peak()) if told.rows >= 40 and not first else None)
print(json.dumps([done.rows, first[0], peak()]))
"""


@pytest.mark.process
def test_memory_does_not_grow_with_the_file(service: Service, out: Path) -> None:
    """Of 100 MB through standard input, texts included, less than a third shows in the process."""
    text = "word " * 20_000
    asked = [{"text": f"{i} {text}"} for i in range(1000)]
    told = "".join(json.dumps(row) + "\n" for row in asked)
    service.always = lambda handler, asked: handler.reply(ways.answer({**asked, "input": ["a"] * len(asked["input"])}))
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, service.url, out], input=told, capture_output=True, text=True, timeout=50
    )
    assert ran.returncode == 0, ran.stderr
    rows, before, after = json.loads(ran.stdout)
    assert rows == 1000
    assert pq.read_table(out, columns=["text"]).column("text")[999].as_py() == asked[999]["text"]
    assert (after - before) * 1024 < len(told) / 3
