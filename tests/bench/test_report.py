"""The JSON object and the page made of it."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from tandem.bench import figures, page, report
from tandem.bench.connection import Address, Failure
from tandem.bench.load import Load
from tandem.bench.rounds import Errors, Measured, Round
from tandem.bench.run import Run
from tandem.bench.scenarios import Case, Kind, Shape
from tandem.bench.side import Side
from tandem.bench.soak import Row, Soaked

LOAD = Load(clients=50, rate=None, seconds=10, warm_up=2, timeout=60)
VOID = {"meta", "br", "link", "img", "input"}


def side(name: str) -> Side:
    return Side(name, Address(f"http://{name}.example:8200/v1"), None, {Kind.EMBEDDINGS: "<b>model</b>"}, {})


def one(name: str, number: int, speed: float, errors: int = 0, generator: float = 0.1) -> Round:
    counted = Errors()
    if errors:
        counted.add(Failure("HTTP 503", "the engine <is> away"), errors)
    found = {"requests_per_second": speed, "texts_per_second": speed, "latency_p50": 0.2, "latency_p95": 0.4321}
    found["latency_p99"] = 0.5
    return Round(name, number, 10, False, 1000, counted, 50, generator, found, figures.histogram([0.2, 0.4321]))


def run(*rounds: Round, soaked: Soaked | None = None) -> Run:
    case = Case("embeddings", Kind.EMBEDDINGS, Shape(), LOAD)
    sides = [side(name) for name in dict.fromkeys(each.side for each in rounds)] or [side("A")]
    measured = [Measured(case, rounds)] if rounds else []
    return Run(("soak",) if soaked else ("embeddings",), sides, measured, soaked, 7, 1e9, 60, False)


TWO = run(one("A", 1, 1234), one("B", 1, 617), one("B", 2, 800), one("A", 2, 1200))
ROWS = [Row(60.0 * at, 60, 300, 0, 0.01, 0.02, 60 * 2**20, (4,)) for at in range(1, 30)]
SOAKED = Soaked("A", LOAD, [Kind.EMBEDDINGS], False, ROWS, Errors(), 0.02, figures.histogram([0.01, 0.02]))


class Page(HTMLParser):
    """Checks that tags are closed in order; collects what it would load, and what it says."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.said = ""
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        if tag in {"script", "link", "img", "iframe"}:
            self.loads.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


def test_the_object_is_json_with_a_version() -> None:
    """Everything in it survives a round trip, and the machine is named."""
    built = json.loads(json.dumps(report.build(TWO)))
    assert built["version"] == 1
    assert built["machine"]["cpu"]
    assert built["machine"]["cores"] >= 1
    assert built["cases"][0]["summary"]["A"]["requests_per_second"] == {"median": 1217, "low": 1200, "high": 1234}
    assert built["cases"][0]["ratios"]["requests_per_second"]["median"] == pytest.approx((2 + 1.5) / 2)
    assert [one["side"] for one in built["cases"][0]["rounds"]] == ["A", "B", "B", "A"]


def test_targets_are_held_against_the_medians_of_a() -> None:
    """B is what it is compared with, not what must be good."""
    found = {target["name"]: target for target in report.build(TWO)["targets"]}
    assert found["embeddings/s"]["measured"] == 1217
    assert found["embedding p95, ms"]["measured"] == pytest.approx(432.1)
    assert found["concurrent users without an error"] == {
        "name": "concurrent users without an error",
        "wanted": "50 or more",
        "measured": 50,
        "outcome": "pass",
    }
    assert found["memory growth over the run, %"]["outcome"] == "not asked"


def test_users_who_met_an_error_do_not_count() -> None:
    """Fifty who are refused are not served."""
    found = {target["name"]: target["outcome"] for target in report.build(run(one("A", 1, 500, errors=3)))["targets"]}
    assert found["concurrent users without an error"] == found["failed requests"] == "fail"


def test_a_run_with_errors_says_so_first() -> None:
    """How many, of which kind, with an example; and on the page before any number."""
    built = report.build(run(one("A", 1, 500, errors=3), one("A", 2, 500, errors=4)))
    line = "embeddings, A: 7 of 2,000 requests failed. HTTP 503: 7 (such as: the engine <is> away)"
    assert report.headlines(built) == [line]
    said = Page(page.render(built)).said
    assert said.index("7 of 2,000 requests failed") < said.index("requests/s")


def test_a_round_is_compared_with_the_one_of_its_number() -> None:
    """Where one side's first round is missing, since nothing was due in it, the second ones are neighbours still."""
    measured = run(one("B", 1, 100), one("B", 2, 500), one("A", 2, 1000)).measured[0]
    assert measured.ratios()["requests_per_second"] == (2, 2, 2)
    assert measured.differences()["requests_per_second"].median == 500


def test_a_busy_load_generator_is_named() -> None:
    """Else its limit would pass for the service's."""
    (line,) = report.headlines(report.build(run(one("A", 1, 500, generator=0.97))))
    assert line == "embeddings: the load generator used 97% of a core; it may be what was measured."


@pytest.mark.parametrize("what", [TWO, run(one("A", 1, 5)), run(soaked=SOAKED), run()])
def test_the_page_is_whole_and_loads_nothing(what: Run) -> None:
    """Its markup is closed, its plots are XML, what others named is escaped, and no address stands where one loads."""
    markup = page.render(report.build(what))
    found = Page(markup)
    assert found.loads == []
    assert "<b>" not in markup
    assert not re.search(r"url\(|@import", markup)
    for plot in re.findall(r"<svg.*?</svg>", markup, re.DOTALL):
        ET.fromstring(plot)  # noqa: S314 - our own


def test_the_page_holds_the_numbers() -> None:
    """Medians, spread, ratio, targets, and a plot for each of them."""
    markup = page.render(report.build(TWO))
    said = Page(markup).said
    assert "1,217 (1,200 to 1,234)" in said
    assert "x1.75 (1.50 to 2)" in said
    assert "432" in said
    assert "http://A.example:8200/v1" in said
    assert "<title>A 1: 1,234</title>" in markup
    assert not re.search(r"\de\+\d", said)
    assert markup.count("<svg") == 3


def test_the_page_of_a_soak_has_its_verdict_and_curves() -> None:
    """Memory, latency and errors over time."""
    markup = page.render(report.build(run(soaked=SOAKED)))
    assert "Memory is flat: from 60.0 MiB, +0.000 MiB/h" in markup
    assert markup.count("<polyline") == 4
    assert "8,700 requests" in markup


def test_a_soak_without_a_process_to_watch_says_so() -> None:
    """It is not called flat."""
    unseen = [Row(row.at, 60, 300, 0, 0.01, 0.02, None, ()) for row in ROWS]
    built = report.build(run(soaked=Soaked("A", LOAD, [Kind.EMBEDDINGS], False, unseen, Errors(), 0.02, [])))
    assert "Memory was not measured" in page.memory_line(built["soak"])
    assert {target["name"]: target["outcome"] for target in built["targets"]}["memory growth over the run, %"] == (
        "not measured"
    )
