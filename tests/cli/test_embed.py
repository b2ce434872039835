"""`tandem embed`: whom it asks, what it says, and how it ends."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from tandem.cli import rows, talk
from tandem.client.files import Progress
from tandem.control import Hello
from tandem.errors import SetupError
from tandem.fleet import Engine, Snapshot
from tandem.rundir import RunDir

from ..client import service as ways
from ..client.service import DIM, Service, vector
from . import shell

ENGINE = Engine(name="embedding", kind="embedding", model="org/emb", aliases=("emb",))
CODE = Engine(name="code", kind="embedding", model="org/code")
CHAT = Engine(name="generation", kind="generation", model="org/chat")


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("VLLM_URL", "VLLM_MODEL", "VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    Path("in.txt").write_text("a\nb\nc\n")


@pytest.fixture
def running(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """A service of this machine, with these engines."""
    engines = [ENGINE, CHAT]
    raw = msgspec.Raw(b"{}")

    async def status(_: RunDir) -> talk.Status:
        address = service.url.removesuffix("/v1")
        return talk.Status(Hello(1, address, "info", "console", raw, raw), Snapshot(tuple(engines)), {})

    monkeypatch.setattr(talk, "status", status)
    return engines


run = partial(shell.run, "embed")


def asked(service: Service) -> set[str]:
    """The models that were asked for."""
    return {body["model"] for _, _, body in service.asked}


def test_the_service_of_this_machine_is_asked(running: list[Engine], service: Service) -> None:
    """For its embedding engine, by that name; the progress is told in lines."""
    code, said = run("in.txt", "out.npy")
    assert (code, said.splitlines()[-1]) == (0, "3 vectors are in out.npy.")
    assert "3 rows, 100 %" in said
    assert asked(service) == {"embedding"}
    assert np.array_equal(np.load("out.npy"), [vector(text) for text in "abc"])


def test_engines_by_other_names(running: list[Engine], service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only one is meant whatever its name; of several, one must be named."""
    running[:] = [CODE, CHAT]
    assert run("in.txt", "a.npy")[0] == 0
    assert asked(service) == {"code"}
    running[:] = [CODE, msgspec.structs.replace(CODE, name="prose")]
    assert run("in.txt", "b.npy")[1].endswith("has 2 embedding engines. Name a model with --model\n")
    assert run("in.txt", "b.npy", "--model", "prose")[0] == 0
    running[:] = [CHAT]
    assert "has no embedding engines" in run("in.txt", "c.npy")[1]


def test_a_model_that_was_changed_behind_its_name(running: list[Engine], service: Service) -> None:
    """The engine's name stays, and its model is remembered with what an interrupted run has done."""
    service.ways = [ways.well, ways.well]
    service.always = ways.error(400, "no")
    assert run("in.txt", "out.npy", "--batch-size", "1", "--concurrency", "1", "--skip-bad", "bad")[0] == 0
    Path("more.txt").write_text("x\n" * 8 + "\n")
    service.always = ways.well
    code, said = run("more.txt", "more.npy", "--batch-size", "1")
    mend = "Mend it and start over with --force, or go on with --skip-bad FILE"
    assert code == 1
    assert said.endswith(f"error: more.txt, line 9: it is empty: there is nothing to embed. {mend}\n")
    running[0] = msgspec.structs.replace(ENGINE, model="org/new")
    assert "weights was 'org/emb', and is 'org/new'" in run("more.txt", "more.npy", "--skip-bad", "bad2")[1]


def test_another_service(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """By --base-url or VLLM_URL, with a model by --model or VLLM_MODEL, and a key from the environment."""
    assert run("in.txt", "a.npy", "--base-url", service.url)[1] == (
        "error: no model is named. Name one with --model or VLLM_MODEL\n"
    )
    assert run("in.txt", "a.npy", "--base-url", service.url, "--model", "m")[0] == 0
    monkeypatch.setenv("VLLM_URL", service.url)
    monkeypatch.setenv("VLLM_MODEL", "n")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert run("in.txt", "b.npy")[0] == 0
    assert asked(service) == {"m", "n"}
    assert service.asked[-1][1]["authorization"] == "Bearer secret"
    assert "name two services" in run("in.txt", "c.npy", "--base-url", service.url, "--port", "1")[1]


def test_options_become_the_client_s(service: Service) -> None:
    """Prefixes by kind, dimensions, batches, length 1."""
    options = ["--kind", "query", "--prefix", "find: ", "--dimensions", str(DIM), "--batch-size", "2", "--normalize"]
    assert run("in.txt", "out.npy", "--base-url", service.url, "--model", "m", *options)[0] == 0
    assert sorted(map(len, service.texts)) == [1, 1, 2]
    assert all(text.startswith("find: ") for texts in service.texts for text in texts)
    assert np.allclose(np.linalg.norm(np.load("out.npy"), axis=1), 1)


def test_nobody_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways out are named; also where this installation has no server at all."""

    async def status(_: RunDir) -> None:
        raise SetupError("no service runs on /run/x", "Start one")

    monkeypatch.setattr(talk, "status", status)
    instead = "Start one with `tandem up`, or name another's address with --base-url and its --model"
    assert run("in.txt", "out.npy") == (1, f"error: no service runs on /run/x. {instead}\n")
    monkeypatch.delattr("tandem.cli.talk")
    monkeypatch.setitem(sys.modules, "tandem.cli.talk", None)
    code, said = run("in.txt", "out.npy")
    assert (code, said.endswith(f"this installation has none (the server extra). {instead}\n")) == (1, True)


def test_a_service_that_fails_is_one_line(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened, and that the same command goes on."""
    monkeypatch.setattr("tandem.client.retry._FIRST", 0.001)
    service.always = ways.error(401, "who are you?")
    code, said = run("in.txt", "out.npy", "--base-url", service.url, "--model", "m")
    assert (code, said.count("\n")) == (1, 1)
    assert "wants another key: who are you?" in said
    service.always = ways.refusing(500, b"broken", {"x-should-retry": "false"})
    said = run("in.txt", "out.npy", "--base-url", service.url, "--model", "m")[1]
    assert said.endswith("broken. What is done is kept: the same command goes on from there\n")


def test_plain_lines() -> None:
    """The first, the last, and what a run goes on from."""
    out = io.StringIO()
    with rows.shown(Console(file=out)) as watch:
        for told in (Progress(1000, 1, 0.25), Progress(1500, 1, 0.5), Progress(2000, 2, 1.0)):
            watch(told)
    first, second, last = out.getvalue().splitlines()
    assert first == "Going on after 1,001 rows."
    assert second.startswith("1,000 rows, 1 bad, 25 %")
    assert last.startswith("2,000 rows, 2 bad, 100 %, ")


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    with rows.shown(Console(file=out, force_terminal=True, width=120)) as watch:
        watch(Progress(0, 0, 0.0))
        watch(Progress(10, 0, 0.5))
    assert "10 rows, 50 %" in out.getvalue()
    assert "━" in out.getvalue()


def test_rate_and_time_left() -> None:
    """Of this run's rows alone; of an input whose size nobody knows, no time left."""
    clock = iter([0.0, 0.0, 10.0, 10.0]).__next__
    pace = rows.Pace(Progress(1000, 0, 0.2), clock)
    assert pace.told(Progress(1000, 0, 0.2)) == "1,000 rows, 20 %"
    assert pace.told(Progress(3000, 0, 0.4)) == "3,000 rows, 40 %, 200 rows/s, 0:00:30 left"
    assert pace.told(Progress(3000, 0, None)) == "3,000 rows, 200 rows/s"


@pytest.mark.process
def test_ctrl_c_ends_it_at_once(service: Service) -> None:
    """Also while an answer is awaited; what is done is kept, and the same command goes on."""
    Path("in.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(40)))
    waits, leave = threading.Event(), threading.Event()

    def stuck(handler: ways.Handler, asked: dict[str, Any]) -> None:
        waits.set()
        leave.wait(30)
        handler.close_connection = True

    options = ["embed", "in.jsonl", "out.npy", "--base-url", service.url, "--model", "m", "--batch-size", "1"]
    tandem = [Path(sys.executable).with_name("tandem"), *options, "--concurrency", "1"]
    service.ways = [ways.well] * 18
    service.always = stuck
    process = subprocess.Popen(tandem, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ)
    assert waits.wait(30)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == "Interrupted: the same command goes on from there.\n"
    assert process.returncode == 130
    leave.set()
    service.always = ways.well
    ran = subprocess.run(tandem, capture_output=True, text=True, env=os.environ, timeout=30)
    assert re.search(r"^Going on after (8|16) rows\.", ran.stdout)  # the second step may not have been written yet
    assert len(np.load("out.npy")) == 40
