"""`tandem status` for people and for scripts."""

import io
import json

import msgspec
import pytest
from rich.console import Console

from tandem import control
from tandem.cli import table
from tandem.cli.talk import Status
from tandem.fleet import Engine, Snapshot, State, Vitals
from tandem.settings import ApiSettings, RouterSettings

GIB = 2**30
NOW = 1_800_000_000.0
HELLO = control.Hello(
    7,
    "http://127.0.0.1:8200",
    "info",
    "json",
    msgspec.Raw(RouterSettings().model_dump_json().encode()),
    msgspec.Raw(ApiSettings().model_dump_json().encode()),
)
ENGINES = (
    Engine(
        name="embedding",
        kind="embedding",
        model="org/emb",
        state=State.READY,
        since=NOW - 7510,
        pid=10,
        restarts=1,
        error="it was killed (SIGKILL). Look who did that",
    ),
    Engine(name="generation", kind="generation", model="org/gen", state=State.FAILED, reason="no luck. Try again"),
)
VITALS = {
    "embedding": Vitals(
        engine="embedding", memory=3 * GIB, in_flight=2, requests=1234, tokens_per_second=5678.4, cores=1.5
    ),
    "generation": Vitals(engine="generation", memory=GIB, card_memory=20 * GIB, card_use=0.97, cores=1.0),
}
STATUS = Status(HELLO, Snapshot(ENGINES), VITALS)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the other tests take."""
    monkeypatch.setattr(table, "now", lambda: NOW)


def shown(status: Status, *, terminal: bool = False, width: int = 100) -> list[str]:
    out = io.StringIO()
    table.show(status, Console(file=out, force_terminal=terminal, width=width, color_system=None))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_each_engine_is_a_line_of_plain_text_where_there_is_no_terminal() -> None:
    """However narrow the output is; columns are the same for each."""
    address, head, first, second, said = shown(STATUS, width=40)
    assert address == "http://127.0.0.1:8200/v1 (pid 7)"
    assert head.split("  ")[0] == "ENGINE"
    for column in ("IN FLIGHT", "REQUESTS", "TOKENS/S", "USE", "RESTARTS", "LAST ERROR"):
        assert column in head
    cells = [cell.strip() for cell in first.split("  ") if cell.strip()]
    assert cells == [
        *("embedding", "org/emb", "ready", "2 h 5 m", "10", "3.0 GiB", "2", "1234", "5,678", "150% CPU", "1"),
        "it was killed (SIGKILL)",
    ]
    cells = [cell.strip() for cell in second.split("  ") if cell.strip()]
    assert cells == ["generation", "org/gen", "failed", "-", "-", "20.0 GiB GPU", "0", "-", "-", "97% GPU", "0", "-"]
    assert said == "generation: no luck. Try again"


def test_a_terminal_gets_the_same_in_its_width() -> None:
    lines = shown(STATUS, terminal=True, width=160)
    assert max(map(len, lines)) <= 160
    assert any("embedding" in line and "5,678" in line for line in lines)


def test_what_is_not_known_is_a_dash() -> None:
    """Of a service of an older version, or an engine that has no process."""
    row = next(line for line in shown(Status(HELLO, Snapshot(ENGINES), {})) if line.startswith("embedding"))
    assert row.split()[8:14] == ["-", "0", "-", "-", "-", "1"]


def test_scripts_get_all_of_it() -> None:
    told = json.loads(table.as_json(STATUS))
    assert (told["pid"], told["ready"], told["draining"]) == (7, False, False)
    first, second = told["engines"]
    assert (first["name"], first["memory"], first["requests"], first["cores"]) == ("embedding", 3 * GIB, 1234, 1.5)
    assert (second["state"], second["card_use"], second["error"]) == ("failed", 0.97, "")
