"""Files of vectors: complete, in order and once, whatever happened on the way."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tandem import BadRequestError, ClientConnectionError, SettingsError, SetupError, VLLMConfig
from tandem.client import files, parquet, partial
from tandem.client.files import Progress, Task, embed_file
from tandem.client.partial import Done

from . import service as ways
from .service import DIM, Handler, Service, vector

TEXTS = [f"text {i} " + "x" * (i * 37 % 101) for i in range(50)]


def put(path: Path, texts: list[str], *, ids: bool = False) -> Path:
    rows = ({"text": text} | ({"id": f"id {i}"} if ids else {}) for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return put(tmp_path / "in.jsonl", TEXTS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def config(service: Service, **settings: Any) -> VLLMConfig:
    return VLLMConfig(**{"base_url": service.url, "model": "m", "batch_size": 2, "timeout_s": 20, **settings})


def embed(task: Task, service: Service, **settings: Any) -> Done:
    return embed_file(task, config(service, **settings), lambda _: None)


def expected(texts: list[str]) -> NDArray[np.float32]:
    return np.array([vector(text) for text in texts]).reshape(len(texts), DIM)


def vectors(out: Path) -> NDArray[np.float32]:
    if out.suffix == ".npy":
        found: NDArray[np.float32] = np.load(out)
        return found
    column = pq.read_table(out).column("vector").combine_chunks()
    assert column.type == pa.list_(pa.float32(), DIM)
    flat: NDArray[np.float32] = column.flatten().to_numpy()
    return flat.reshape(-1, DIM)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refusing(bad: set[str], *, named: bool = True) -> ways.Way:
    """A service that refuses these texts: by their place, or without saying which."""

    def way(handler: Handler, asked: dict[str, Any]) -> None:
        at = next((i for i, text in enumerate(asked["input"]) if text in bad), None)
        if at is None:
            ways.well(handler, asked)
            return
        where = {"param": f"input[{at}]"} if named else {}
        name = f"input[{at}]" if named else "It"
        ways.error(400, f"{name} has 9000 tokens, and the model takes 512.", **where)(handler, asked)

    return way


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


@pytest.mark.parametrize("named", [True, False])
def test_bad_rows_are_skipped_to_a_side_file(named: bool, service: Service, tmp_path: Path, out: Path) -> None:
    """Those that cannot be read, and those that the server refuses, whether or not it says which of a batch."""
    bad = {TEXTS[5], TEXTS[6], TEXTS[49]}
    service.always = refusing(bad, named=named)
    source, skipped = put(tmp_path / "in.jsonl", TEXTS), tmp_path / "bad.jsonl"
    lines = source.read_text().splitlines()
    lines[20] = '{"text": '
    source.write_text("\n".join(lines))
    done = embed(Task(source=source, out=out, skip_bad=skipped), service, batch_size=8)
    good = [i for i in range(50) if i not in (5, 6, 20, 49)]
    assert (done.rows, done.skipped) == (46, 4)
    assert pq.read_table(out).column("id").to_pylist() == good
    assert np.array_equal(vectors(out), expected([TEXTS[i] for i in good]))
    told = [*map(json.loads, skipped.read_text().splitlines())]
    assert [(row["row"], row["line"], row["content"]) for row in told] == [(i, i + 1, lines[i]) for i in (5, 6, 20, 49)]
    assert ('field "text" has 9000 tokens' if named else "It has 9000 tokens") in told[0]["reason"]
    assert told[2]["reason"].startswith("no valid JSON")


def test_a_batch_of_nothing_but_bad_texts(service: Service, source: Path, tmp_path: Path, out: Path) -> None:
    """Leaves no vector, and an empty file."""
    service.always = refusing(set(TEXTS))
    done = embed(Task(source=source, out=out, skip_bad=tmp_path / "bad"), service, batch_size=50)
    assert (done.rows, done.skipped) == (0, 50)
    assert vectors(out).shape == (0, DIM)


def test_a_bad_row_ends_the_run_where_none_may_be_skipped(service: Service, source: Path, out: Path) -> None:
    """With its line and its reason, and what came before is kept: with --skip-bad it goes on there."""
    service.always = refusing({TEXTS[37]})
    with pytest.raises(BadRequestError, match=r'in\.jsonl, line 38: .*field "text" has 9000 tokens') as refused:
        embed(Task(source=source, out=out), service)
    assert refused.value.index == 37
    assert not out.exists()
    asked = len(service.texts)
    done = embed(Task(source=source, out=out, skip_bad=out.with_name("bad")), service)
    assert (done.rows, done.skipped) == (49, 1)
    assert TEXTS[0] not in [text for texts in service.texts[asked:] for text in texts]
    pq.write_table(pa.table({"text": ["a", ""]}), out.with_name("in.parquet"))
    with pytest.raises(BadRequestError, match=r"in\.parquet, row 2: field \"text\" is empty"):
        embed(Task(source=out.with_name("in.parquet"), out=out, force=True), service)


def test_refusals_that_are_no_text_s_fault_end_the_run(service: Service, source: Path, out: Path) -> None:
    """Also where bad rows may be skipped: a wrong key, model, address or setting is none of a row's."""
    for status, detail in ((401, {}), (404, {"code": "model_not_found"}), (404, {}), (400, {"param": "dimensions"})):
        service.always = ways.error(status, "no", **detail)
        with pytest.raises(BadRequestError) as refused:
            embed(Task(source=source, out=out, skip_bad=out.with_name("bad")), service)
        assert refused.value.index is None
    assert left(out.parent) == {"in.jsonl"}


def stopped(task: Task, service: Service, after: int, **settings: Any) -> None:
    """A run whose service is gone after so many requests."""
    service.ways = [ways.well] * after
    service.always = ways.refusing(500, b"gone")
    with pytest.raises(Exception, match="gone"):
        embed(task, service, **{"retries": 0, "max_concurrent_requests": 1, **settings})
    service.always = ways.well
    service.ways.clear()


def test_what_is_done_is_not_done_again(service: Service, source: Path, out: Path) -> None:
    """A run that was interrupted goes on: few texts are asked for twice, and the result is that of a single run."""
    stopped(Task(source=source, out=out), service, 20)
    before = len(service.asked)
    told: list[Progress] = []
    embed_file(Task(source=source, out=out), config(service), told.append)
    assert told[0].rows == 32
    assert sum(map(len, service.texts[before:])) == 1 + 50 - 32
    assert np.array_equal(vectors(out), expected(TEXTS))


@pytest.mark.parametrize(
    ("change", "settings", "complaint"),
    [
        ({"field": "body"}, {}, "had other settings: field was 'text', and is 'body'"),
        ({"id": "text"}, {}, "id was None, and is 'text'"),
        ({"with_text": True}, {}, "with_text was False, and is True"),
        ({"weights": "org/other"}, {}, "weights was '', and is 'org/other'"),
        ({}, {"model": "n"}, "model was 'm', and is 'n'"),
        ({}, {"normalize": True}, "normalize was False, and is True"),
        ({}, {"document_prefix": "p"}, "prefix was '', and is 'p'"),
        ({}, {"dimensions": 4}, "dimensions was None, and is 4"),
    ],
)
def test_other_settings_do_not_go_on(
    change: dict[str, Any], settings: dict[str, Any], complaint: str, service: Service, source: Path, out: Path
) -> None:
    """They are named, with what to do; started over, they are used."""
    stopped(Task(source=source, out=out), service, 20)
    with pytest.raises(SettingsError, match=rf"{complaint}\. Go on with those it had, or start over with --force"):
        embed(Task(source=source, out=out, **change), service, **settings)
    if "field" not in change:
        embed(Task(source=source, out=out, force=True, **change), service, **settings)
        assert pq.read_metadata(out).num_rows == 50


def test_an_input_that_has_changed_does_not_go_on(service: Service, source: Path, out: Path) -> None:
    """Longer, or of the same length and age with other bytes in what was read; started over, it is read anew."""
    stopped(Task(source=source, out=out), service, 20)
    age, content = source.stat().st_mtime_ns, source.read_text()
    for changed in (content + '{"text": "more"}\n', content.replace("text 3 ", "tEXT 3 ")):
        source.write_text(changed)
        os.utime(source, ns=(age, age))
        with pytest.raises(SettingsError, match=r"in\.jsonl has changed since the run that was interrupted"):
            embed(Task(source=source, out=out), service)
    embed(Task(source=source, out=out, force=True), service)
    assert np.array_equal(vectors(out)[3], vector(TEXTS[3].replace("text 3 ", "tEXT 3 ")))


def test_a_model_that_has_changed_does_not_go_on(service: Service, source: Path, out: Path) -> None:
    """Whatever its name: the vector of a text that both runs ask for tells."""
    stopped(Task(source=source, out=out), service, 20)
    service.always = ways.changed(lambda body: [item.update(embedding=[1.0] * DIM) for item in body["data"]])
    with pytest.raises(SettingsError, match="the model m gives other vectors than before the interruption"):
        embed(Task(source=source, out=out), service)


def test_what_another_version_has_left_does_not_go_on(service: Service, source: Path, out: Path) -> None:
    stopped(Task(source=source, out=out), service, 20)
    (out.with_name("out.parquet.partial") / "job.json").write_text('{"input": []}')
    with pytest.raises(SettingsError, match=r"was left by another version of Tandem\. Start over with --force"):
        embed(Task(source=source, out=out), service)


def test_a_finished_output_is_kept(service: Service, source: Path, out: Path) -> None:
    """Unless --force gives it up: then also the run that goes on, should the first be killed."""
    embed(Task(source=source, out=out), service)
    before = out.read_bytes()
    with pytest.raises(SettingsError, match=r"out\.parquet exists already\. .* --force"):
        embed(Task(source=source, out=out), service)
    put(source, TEXTS[::-1])
    for requests in (20, 1, 20):
        stopped(Task(source=source, out=out, force=requests != 1), service, requests)
        assert out.read_bytes() == before
    embed(Task(source=source, out=out), service)
    assert np.array_equal(vectors(out), expected(TEXTS[::-1]))


def test_files_beside_the_output_are_kept_too(service: Service, source: Path, tmp_path: Path) -> None:
    for name in ("out.ids.jsonl", "bad"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(SettingsError, match=f"{name} exists already"):
            embed(Task(source=source, out=tmp_path / "out.npy", skip_bad=tmp_path / "bad"), service)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_the_file_for_bad_rows_must_be_named_again(service: Service, source: Path, out: Path) -> None:
    """Else those that were skipped before the interruption would go unsaid."""
    service.always = refusing({TEXTS[3]})
    lines = [*source.read_text().splitlines()[:40], "bad"]
    source.write_text("\n".join(lines))
    with pytest.raises(BadRequestError, match="line 4"):
        embed(Task(source=source, out=out), service)
    lines[3] = "{"
    source.write_text("\n".join(lines))
    stopped(Task(source=source, out=out, skip_bad=out.with_name("bad")), service, 18)
    with pytest.raises(SettingsError, match=r"has passed over 1 bad rows\. Name the file for them: --skip-bad"):
        embed(Task(source=source, out=out), service)


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


def test_a_disk_that_is_full(service: Service, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says so; with room again, the same command goes on."""
    task = Task(source=source, out=out)
    with monkeypatch.context() as patched:
        real = partial._written

        def written(file: Any, part: memoryview) -> int:
            if file.tell() > 600:
                raise OSError(28, "No space left on device")
            return real(file, part)

        patched.setattr(partial, "_written", written)
        with pytest.raises(SetupError, match=r"cannot be written: No space left on device\. What is done is kept"):
            embed(task, service)
    assert embed(task, service).rows == 50
    assert np.array_equal(vectors(out), expected(TEXTS))


SCRIPT = Path(__file__).with_name("kills.py")


def killed(service: Service, cases: list[dict[str, Any]]) -> list[int]:
    """Run cases of :mod:`kills`; how many lines the last process of each ran."""
    ran = subprocess.run(
        [sys.executable, SCRIPT, service.url], input=json.dumps(cases), capture_output=True, text=True, timeout=110
    )
    assert ran.returncode == 0, ran.stderr
    counts: list[int] = json.loads(ran.stdout)
    return counts


@pytest.mark.process
@pytest.mark.timeout(120)
@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_kills_at_any_point_lose_and_double_nothing(suffix: str, service: Service, tmp_path: Path) -> None:
    """Killed at random lines of the code that reads, embeds and writes, once or several times in a row: the output is,
    to the byte, that of a run that nobody disturbed."""
    chance = random.Random(7)
    source = put(tmp_path / "in.jsonl", TEXTS[:20], ids=True)
    lines = source.read_text().splitlines()
    lines[9] = "bad"
    source.write_text("\n".join(lines))

    def told(n: int) -> dict[str, Any]:
        (tmp_path / str(n)).mkdir()
        paths = {"source": source, "out": tmp_path / str(n) / f"out{suffix}", "skip_bad": tmp_path / str(n) / "bad"}
        more = {"id": "id", "with_text": suffix == ".parquet"}
        return {**{name: str(path) for name, path in paths.items()}, **more}

    (whole,) = killed(service, [{"task": told(0), "kills": []}])
    singles = [[at] for at in chance.sample(range(1, whole + 1), 25)]
    several = [[chance.randint(1, whole) for _ in range(chance.randint(2, 6))] for _ in range(8)]
    cases = [{"task": told(n), "kills": kills} for n, kills in enumerate(singles + several, 1)]
    killed(service, cases)
    digests = {
        name: {hashlib.sha256((tmp_path / str(n) / name).read_bytes()).hexdigest() for n in range(len(cases) + 1)}
        for name in left(tmp_path / "0")
    }
    assert all(len(found) == 1 for found in digests.values()), digests
    for n in range(1, len(cases) + 1):
        assert left(tmp_path / str(n)) - {f"out{suffix}.partial"} == left(tmp_path / "0")
    assert np.array_equal(vectors(tmp_path / "0" / f"out{suffix}"), expected(TEXTS[:9] + TEXTS[10:20]))


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
