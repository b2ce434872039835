"""Rows that nothing can be made of: named, and passed over where that is asked for."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tandem import BadRequestError, SettingsError
from tandem.client.files import Task

from . import service as ways
from .calls import TEXTS
from .runs import embed, expected, left, put, refusing, stopped, vectors
from .service import DIM, Service


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
