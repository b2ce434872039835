"""The parts of the benchmarks that need neither peers nor time."""

import base64
import json
import shutil
import struct
from pathlib import Path

import client
import counting
import embedding_clients
import hot_path
import load
import machine
import pytest
import report
import static_upstream

SAID = (
    '{"requests":%d,"duration":2000000,"p50":3421,"p99":9000,"connect":0,"read":0,"write":0,"timeout":%d,"status":%d}'
)


def test_what_wrk_says() -> None:
    """The line of our hook counts, whatever wrk's own report says around it."""
    measured = load.parse(f"Running 2s test\n  1 threads\nRequests/sec: 1\n{SAID % (29004, 0, 0)}\n")
    assert (measured.requests, measured.seconds, measured.p50, measured.p99) == (29004, 2.0, 3421, 9000)
    assert measured.rate == 14502


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (SAID % (100, 0, 3), "{'status': 3}"),
        (SAID % (100, 2, 0), "{'timeout': 2}"),
        (SAID % (0, 0, 0), "no answer came"),
        ("unable to connect to 127.0.0.1:1 Connection refused", "Connection refused"),
    ],
)
def test_bad_answers_end_the_run(output: str, complaint: str) -> None:
    with pytest.raises(load.Failed, match=complaint):
        load.parse(output)


def test_the_script_asks_for_the_case() -> None:
    """The body stands in it as it is; the format of the hook survives Python's."""
    written = load.script(static_upstream.COMPLETIONS)
    assert f"wrk.body = [==[{json.dumps(static_upstream.COMPLETIONS.body)}]==]" in written
    assert '"requests":%d' in written
    assert "%%" not in written


def test_spread() -> None:
    assert report.spread([9900.4, 9700, 9810]) == "9,810 (9,700 to 9,900)"
    assert report.spread([1.234], ".2f") == "1.23"


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_quantile(share: float, value: float) -> None:
    assert report.quantile(list(range(100, 0, -1)), share) == value


def test_no_quantile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        report.quantile([], 0.5)


def test_slope() -> None:
    """Bytes a request; a single point does not tell."""
    assert report.slope([(0, 100), (10, 120), (20, 140)]) == pytest.approx(2)
    assert report.slope([(10, 120)]) == 0


def test_table() -> None:
    """Markdown that can be read as it is, too."""
    assert report.table(["through", "rate"], [["direct", "27,749"], ["tandem", "14,502"]]) == (
        "| through |   rate |\n|---------|-------:|\n| direct  | 27,749 |\n| tandem  | 14,502 |"
    )


@pytest.mark.parametrize(
    ("siblings", "cores"),
    [
        ([{0}, {1}], (0, 1, 1)),
        ([{0}, {1}, {2}, {3}], (0, 1, 2)),
        ([{0, 1}, {0, 1}, {2, 3}, {2, 3}], (0, 2, 2)),  # threads of one core share what they compute with
        ([{0, 2}, {1, 3}, {0, 2}, {1, 3}], (0, 1, 1)),
        ([{0, 3}, {1, 4}, {2, 5}, {0, 3}, {1, 4}, {2, 5}], (0, 1, 2)),
    ],
)
def test_cores(siblings: list[set[int]], cores: tuple[int, int, int]) -> None:
    """The router has a physical core to itself; so have upstream and load, where there are three."""
    assert machine.pick(set(range(len(siblings))), dict(enumerate(siblings))) == machine.Cores(*cores)


@pytest.mark.parametrize("siblings", [{0: {0}}, {0: {0, 1}, 1: {0, 1}}])
def test_one_core_is_too_few(siblings: dict[int, set[int]]) -> None:
    with pytest.raises(SystemExit, match="two cores"):
        machine.pick(set(siblings), siblings)


def test_ranges() -> None:
    assert list(machine.expanded("0-2,8\n")) == [0, 1, 2, 8]


def test_missing_tools_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["overhead.py"])
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in ("nginx", "wrk") else tool)
    with pytest.raises(SystemExit, match="nginx and wrk not found: apt install nginx-light wrk"):
        machine.arguments("What it does.")


def test_every_parameter_of_the_configuration_fits() -> None:
    """nginx refuses one of 4,096 bytes, and takes $ in a string for a variable."""
    text = static_upstream.configuration({static_upstream.GENERATION: 8100, static_upstream.EMBEDDING: 8101})
    assert all(len(line) < 4096 for line in text.splitlines())
    assert text.count("{") == text.count("}")
    assert "listen 127.0.0.1:8100 " in text
    assert "listen 127.0.0.1:8101 " in text
    assert json.dumps(static_upstream.completion(), separators=(",", ":")) in text


def test_answers_are_told_from_others() -> None:
    """Both forms of the same vector pass, and no other vector."""
    vector = static_upstream.unit_vector()
    encoded = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    floats = static_upstream.embedding(list(vector))
    assert static_upstream.check(static_upstream.COMPLETIONS, static_upstream.completion())
    assert static_upstream.check(static_upstream.FLOATS, floats)
    assert static_upstream.check(static_upstream.BASE64, static_upstream.embedding(encoded))
    floats["data"][0]["embedding"] = [*vector[:-1], vector[-1] + 0.1]
    assert not static_upstream.check(static_upstream.FLOATS, floats)


def test_clients_get_a_good_answer() -> None:
    """What they are measured with is an answer as a server writes it: 64 vectors, all of finite values."""
    head, _, body = embedding_clients.answer().partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}" in head.decode()
    data = json.loads(body)["data"]
    found = [struct.unpack(f"<{embedding_clients.DIMENSIONS}f", base64.b64decode(item["embedding"])) for item in data]
    assert len(set(found)) == embedding_clients.BATCH
    assert all(abs(value) < 10 for vector in found for value in vector)


def test_clients_are_compared_round_by_round() -> None:
    """Each to Tandem's of the same round, tasks to tasks."""
    names = list(embedding_clients.CLIENTS)
    found = {name: [10.0, 20.0] for name in names} | {"tandem": [1.0, 4.0], "tandem, async": [2.0, 2.0]}
    rows = {row.split("|")[1].strip(): row.split("|")[3].strip() for row in client.table(found).splitlines()}
    assert rows["openai"] == "7.50 (5.00 to 10.00)"
    assert rows["openai, async"] == "7.50 (5.00 to 10.00)"
    assert rows["tandem"] == "1.00 (1.00 to 1.00)"


def test_a_profile_counts_each_function_once_a_stack() -> None:
    """Lines of one function are put together; one that calls itself counts once."""
    stacks = "serve (tandem/a.py:1);ask (tandem/b.py:2) 3\nserve (tandem/a.py:9);serve (tandem/a.py:1) 1\n"
    assert hot_path.rows(stacks) == [["100.0", "25.0", "serve (tandem/a.py)"], ["75.0", "75.0", "ask (tandem/b.py)"]]


async def test_the_large_tokenizer_is_one_that_both_counters_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many entries as it is to have, though there is too little text for them."""
    monkeypatch.setattr(counting, "ENTRIES", 2000)
    text = Path(counting.__file__)
    made = counting._large([text], tmp_path)
    assert made.get_vocab_size() == 2000
    rows = await counting._compared(tmp_path, text.read_text().split(" "), 1)
    assert [row[0] for row in rows] == ["12 words", "100 words", "500 words"]
