"""`tandem bench` against a real HTTP server in a process of its own."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ..cli import shell
from .conftest import Service

pytestmark = [pytest.mark.process, pytest.mark.timeout(30)]

BRIEF = ("--seconds", "0.2", "--warm-up", "0.05", "--rounds", "1", "--timeout", "5")
QUICK = (*BRIEF, "--clients", "4")


@pytest.fixture(autouse=True)
def _without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


run = partial(shell.run, "bench")


def measured(folder: Path, *arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """The JSON report of a run that ends with ``code``, and everything printed."""
    ended, said = run(*arguments, "--json", str(folder / "report.json"), "--html", str(folder / "report.html"))
    assert ended == code, said
    return json.loads((folder / "report.json").read_text()), said


def test_closed_loop(service: Service, tmp_path: Path) -> None:
    """So many clients as were asked for, none of which meets an error; the models are found by asking."""
    found, _ = measured(tmp_path, "embeddings", "--url", service.url, *QUICK, "--texts", "3")
    (one,) = found["cases"][0]["rounds"]
    assert one["peak_in_flight"] == 4
    assert one["errors"] == []
    assert one["figures"]["texts_per_second"] == pytest.approx(3 * one["figures"]["requests_per_second"])
    assert found["sides"]["A"]["models"] == {"embeddings": "org/gen"}
    assert len(service.bodies[-1]["input"]) == 3


def test_open_loop(service: Service, tmp_path: Path) -> None:
    """Requests come at about the rate that was asked for, and it is told how late they were sent."""
    found, _ = measured(
        tmp_path, "completions", "--url", service.url, *BRIEF, "--rate", "200", "--seed", "3", "--max-tokens", "5"
    )
    (one,) = found["cases"][0]["rounds"]
    assert 10 < one["requests"] < 100
    assert one["figures"]["lateness_p50"] >= 0
    assert one["figures"]["tokens_per_answer"] == 3
    assert service.bodies[-1]["max_tokens"] == 5
    assert service.bodies[-1]["ignore_eos"] is True


def test_streams(service: Service, tmp_path: Path) -> None:
    """Events are counted without `[DONE]`; the first one and the gaps between them are timed."""
    found, _ = measured(tmp_path, "streams", "--url", service.url, *QUICK)
    figures = found["cases"][0]["rounds"][0]["figures"]
    assert figures["events_per_answer"] == 3
    assert 0 < figures["first_event_p50"] <= figures["latency_p50"]
    assert figures["gap_p50"] >= 0


def test_without_a_scenario_all_that_the_targets_need_are_run(service: Service, tmp_path: Path) -> None:
    """Embeddings, completions and streams; the page is written, too."""
    found, _ = measured(tmp_path, "--url", service.url, *QUICK)
    assert [case["name"] for case in found["cases"]] == ["embeddings", "completions", "streams"]
    assert (tmp_path / "report.html").read_text().count("<svg") == 11


def test_two_services_are_compared_round_by_round(service: Service, tmp_path: Path) -> None:
    """A, B, B, A; each with its own table column, and a ratio."""
    found, said = measured(tmp_path, "overhead", "--url", service.url, "--vs", service.url, *QUICK, "--rounds", "2")
    assert [case["name"] for case in found["cases"]] == ["overhead, 1 connection", "overhead, 4 connections"]
    assert [one["side"] for one in found["cases"][0]["rounds"]] == ["A", "B", "B", "A"]
    assert found["cases"][0]["ratios"]["requests_per_second"]["median"] > 0
    assert "A / B" in said


@pytest.mark.parametrize(
    ("scenario", "how", "options", "kind"),
    [
        ("embeddings", "status", {"status": 503}, "HTTP 503"),
        ("embeddings", "reset", {}, "connection closed"),
        ("embeddings", "not_http", {}, "not HTTP"),
        ("embeddings", "silent", {}, "timeout"),
        ("embeddings", "half_body", {}, "connection closed"),
        ("completions", "bad_json", {}, "not a completion"),
        ("streams", "half_stream_clean", {"events": 1}, "stream without [DONE]"),
        ("streams", "error_event", {"code": 500, "events": 1}, "error in a stream"),
        ("streams", "stalls_mid_stream", {"events": 1}, "timeout"),
    ],
)
def test_errors_are_counted_by_kind_and_said_first(
    service: Service, tmp_path: Path, scenario: str, how: str, options: dict[str, Any], kind: str
) -> None:
    """Whatever goes wrong is told, with an example, and `--check` does not pass."""
    service.misbehave(how, after=1, **options)
    asked = (scenario, "--url", service.url, *QUICK, "--timeout", "0.3", "--check")
    found, said = measured(tmp_path, *asked, code=1)
    (errors,) = found["cases"][0]["rounds"][0]["errors"]
    assert errors["kind"] == kind
    assert found["errors"] == errors["count"] > 0
    assert said.index(f"{kind}: {errors['count']} (such as: ") < said.index("targets")


def test_check_passes_when_every_target_is_met(service: Service) -> None:
    """Each is printed with what was wanted, measured, and the verdict."""
    code, said = run("embeddings", "--url", service.url, *QUICK, "--clients", "50", "--check")
    assert code == 0, said
    assert "embeddings/s" in said
    assert said.count(" pass") == 4
    assert said.count("not asked") == 2


def test_check_fails_when_one_is_missed(service: Service) -> None:
    """Four users are not fifty; the numbers are shown all the same."""
    code, said = run("embeddings", "--url", service.url, *QUICK, "--check")
    assert code == 1
    assert said.count(" fail") == 1
    assert run("embeddings", "--url", service.url, *QUICK)[0] == 0


def test_a_completion_of_fewer_than_100_tokens_is_not_measured(service: Service) -> None:
    """The service answers with three, so nothing is known about a hundred."""
    code, said = run("completions", "--url", service.url, *QUICK, "--clients", "50", "--check")
    assert code == 1
    assert said.count("not measured") == 1


def test_a_soak_has_rows_and_watches_who_listens(service: Service, tmp_path: Path) -> None:
    """Requests of every kind, memory of the process on that port, and a verdict."""
    found, _ = measured(tmp_path, "soak", "--url", service.url, "--hours", "0.0006", "--rate", "50", "--check")
    rows = found["soak"]["rows"]
    assert {row["pids"][0] for row in rows} == {service.process.pid}
    assert all(row["resident"] > 2**20 for row in rows)
    assert sum(row["requests"] for row in rows) > 20
    assert found["soak"]["kinds"] == ["completions", "embeddings", "streams"]
    assert found["soak"]["memory"]["verdict"] == "flat"
    assert "Memory is flat" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("how", "options"), [("good", {}), ("silent", {})])
def test_ctrl_c_ends_it_with_what_was_measured_and_130(
    service: Service, tmp_path: Path, how: str, options: dict[str, Any]
) -> None:
    """At once, even while nothing is answered; both reports are written and say that they were cut short."""
    service.misbehave(how, after=100, **options)
    command = [sys.executable, "-m", "tandem", "bench", "embeddings", "--url", service.url, "--seconds", "600"]
    command += ["--warm-up", "0", "--json", str(tmp_path / "report.json"), "--html", str(tmp_path / "report.html")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while service.tell("/counters")["asked"] < 120 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=20)
    assert process.returncode == 130, complaint
    assert "Cut short: this is what was measured until then." in said
    assert "Traceback" not in complaint
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["cut"] is True
    assert found["errors"] == 0
    assert found["cases"][0]["rounds"][0]["requests"] >= 50
    assert "Cut short" in (tmp_path / "report.html").read_text()


def test_ctrl_c_while_a_service_does_not_say_what_it_serves(service: Service, tmp_path: Path) -> None:
    """It may be silent for minutes, while an engine compiles: nobody has to wait for it."""
    service.misbehave("silent", after=0)
    command = [sys.executable, "-m", "tandem", "bench", "embeddings", "--url", service.url]
    command += ["--json", str(tmp_path / "report.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while service.tell("/counters")["asked"] < 1 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=20)
    assert (process.returncode, complaint) == (130, "")
    assert "Cut short" in said
    assert "Not measured: embeddings" in said
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["cut"], found["cases"]) == (True, [])


def test_a_soak_shows_how_far_it_is_and_keeps_what_it_saw_when_it_is_cut_short(
    service: Service, tmp_path: Path
) -> None:
    """On a terminal, long before its first minute is over; the rest of that minute is a row of its own."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tandem", "bench", "soak", "--url", service.url, "--rate", "50"]
    command += ["--json", str(tmp_path / "report.json")]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environ) as process:
        os.close(theirs)
        seen = b""
        while b"of 1 h 0 m" not in seen or service.tell("/counters")["asked"] < 20:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[0].decode()
    os.close(ours)
    assert process.returncode == 130
    assert f"Memory: pid {service.process.pid}".encode() in seen
    found = json.loads((tmp_path / "report.json").read_text())
    (row,) = found["soak"]["rows"]
    assert row["requests"] >= 15
    assert f"{row['requests']:,} requests, 1 row" in said


def test_what_a_model_refuses_is_told_before_anything_is_measured(service: Service, tmp_path: Path) -> None:
    """By the request as it will be; and of several scenarios, the one that is left out has its reason."""
    service.tell("/misbehave", [{"how": "status", "times": 1, "status": 400}])
    found, said = measured(tmp_path, "--url", service.url, *QUICK, "--dimensions", "8")
    assert [case["name"] for case in found["cases"]] == ["completions", "streams"]
    assert "A: no embeddings: org/gen: HTTP 400, it is broken" in said
    assert found["sides"]["A"]["refusals"] == {"embeddings": "org/gen: HTTP 400, it is broken"}
    run("embeddings", "--url", service.url, *QUICK, "--dimensions", "8")
    assert service.bodies[-1]["dimensions"] == 8


def test_a_report_that_cannot_be_written_costs_no_result(service: Service, tmp_path: Path) -> None:
    """What was measured is shown first; the disk may have filled up since it was looked at."""
    (tmp_path / "full").symlink_to("/dev/full")
    code, said = run("embeddings", "--url", service.url, *QUICK, "--json", str(tmp_path / "full"))
    assert code == 1
    assert said.index("latency p95") < said.index("full cannot be written: No space left on device")


def test_where_nothing_listens(free_port: int) -> None:
    """One line, with what to do."""
    code, said = run("--url", f"http://127.0.0.1:{free_port}/v1")
    assert code == 1
    assert said == (
        f"error: http://127.0.0.1:{free_port}/v1 does not answer: no connection (Connection refused). "
        "Start a service with `tandem up`, or name another with --url\n"
    )


def test_a_service_that_answers_no_such_request(service: Service) -> None:
    """The model's own words are passed on."""
    service.misbehave("status", after=0, status=404)
    code, said = run("embeddings", "--url", service.url)
    assert code == 1
    assert said == (f"error: {service.url} answers no request for embeddings: org/gen: HTTP 404, it is broken\n")


def test_a_service_that_wants_a_key(service: Service) -> None:
    """It is named as such, and where to give one."""
    service.misbehave("status", after=0, status=401)
    code, said = run("embeddings", "--url", service.url)
    assert code == 1
    assert "wants another API key: it is broken. Give it with --api-key, or in OPENAI_API_KEY" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nonsense",), "there is no scenario nonsense. Choose one of overhead, embeddings,"),
        (("--url", "127.0.0.1:8200"), "'127.0.0.1:8200' is no http:// or https:// address"),
        (("--vs", "127.0.0.1:8200"), "'127.0.0.1:8200' is no http:// or https:// address"),
        (("embeddings", "--hours", "2"), "--hours does nothing for embeddings. It is for soak"),
        (("--pid", "1"), "--pid does nothing for a run without a scenario. It is for soak"),
        (("soak", "--vs", "http://h"), "--vs does nothing for soak. It is for overhead, embeddings, completions and"),
        (("soak", "--seconds", "60"), "--seconds does nothing for soak. It is for overhead, embeddings,"),
        (("streams", "--texts", "2"), "--texts does nothing for streams. It is for embeddings and soak"),
        (("--rate", "9", "--clients", "9"), "--rate and --clients are two kinds of load. Give one"),
        (("--vs-model", "m"), "--vs-model names a model of another service. Name that with --vs"),
        (("--rate", "0"), "--rate 0 is no number above 0"),
        (("--seconds", "inf"), "--seconds inf is no number above 0"),
        (("--timeout", "inf"), "--timeout inf is no number above 0"),
        (("--warm-up", "inf"), "--warm-up inf is no number above 0"),
        (("soak", "--hours", "inf"), "--hours inf is no number above 0"),
        (("soak", "--hours", "nan"), "--hours nan is no number above 0"),
        (("soak", "--pid", "999999999"), "--pid 999999999: there is no such process here"),
        (("--api-key", "a key"), "the API key holds a character that no key has"),
        (("--api-key", "key\n"), "the API key holds a character that no key has"),
        (("--json", "no/such/folder/x.json"), "no/such/folder/x.json cannot be written: there is no folder"),
        (("--html", "/"), "/ cannot be written: it is a folder"),
        (("--html", "x", "--json", "./x"), "--json and --html both name"),
    ],
)
def test_wrong_options_have_exit_code_2_before_anything_is_asked(arguments: tuple[str, ...], complaint: str) -> None:
    """A day's soak must not end with a report that has no place."""
    code, said = run(*arguments)
    assert code == 2
    assert f"error: {complaint}" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--clients", "0"),
        ("--seconds", "nan"),
        ("--warm-up", "-1"),
        ("--rounds", "0"),
        ("--texts", "1.5"),
        ("--words", "0"),
        ("--dimensions", "x"),
        ("--encoding-format", "hex"),
        ("--max-tokens", "0"),
        ("--timeout", "0"),
        ("--pid", "0"),
        ("--seed", "x"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_name_of_its_option(option: str, value: str) -> None:
    """Exit code 2, and no traceback."""
    code, said = run(option, value)
    assert code == 2
    assert option in said
