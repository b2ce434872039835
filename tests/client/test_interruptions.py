"""Runs that are cut off: the next goes on where it may, and nothing is lost, doubled or overwritten."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tandem import SettingsError, SetupError
from tandem.client import partial
from tandem.client.files import Progress, Task, embed_file

from . import service as ways
from .calls import TEXTS
from .runs import config, embed, expected, left, put, stopped, vectors
from .service import DIM, Service, vector


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
