"""One line a request, for people or for machines, and never what was asked unless the settings say so."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator

import pytest

from tandem.telemetry import logs
from tandem.telemetry.events import RequestEnded

ENDED = RequestEnded(
    id="req_1",
    client_id="mine",
    caller="alice",
    method="POST",
    route="/v1/completions",
    model="org/gen",
    engine="generation",
    status=200,
    outcome="ok",
    seconds=0.25,
    queued=0.01,
    first_event=0.05,
    prompt_tokens=3,
    completion_tokens=4,
    retries=1,
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The root logger belongs to pytest."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def logged(*events: RequestEnded, level: str = "info", form: str = "console") -> None:
    """What a request log makes of ``events``."""

    async def log() -> None:
        made = logs.RequestLog(level, form)
        for event in events:
            made.request_ended(event)
        made.close()

    asyncio.run(log())


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Id, outcome, model, tokens, times and who called, each where it is known; at the moment when it ended."""
    logged(ENDED)
    line = capsys.readouterr().err
    assert re.match(r"1970-01-0\d \d\d:\d\d:0[01],\d{3} INFO ", line)
    assert line.endswith(
        "INFO tandem.requests: req_1 POST /v1/completions 200 ok 250.0 ms model=org/gen engine=generation tokens=3+4 "
        "first_event=50.0 ms queued=10.0 ms retries=1 caller=alice client_id=mine\n"
    )


def test_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object a line, whatever is logged; a request's is its record."""
    logs.configure("info", "json")
    logged(ENDED, form="json")
    logging.getLogger("tandem.router").warning("a line\nand another")
    request, other = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (request["id"], request["status"], request["seconds"], request["level"]) == ("req_1", 200, 0.25, "info")
    assert "prompt" not in request
    assert (other["message"], other["logger"]) == ("a line\nand another", "tandem.router")


def test_lines_are_written_within_moments(capsys: pytest.CaptureFixture[str]) -> None:
    """Without anybody asking for it."""

    async def log() -> None:
        logs.RequestLog("info").request_ended(ENDED)
        said = ""
        async with asyncio.timeout(10):
            while "req_1" not in said:
                await asyncio.sleep(0.02)
                said += capsys.readouterr().err

    asyncio.run(log())


def test_what_is_asked_every_few_seconds_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor anything at a level above info."""
    for route in ("/livez", "/readyz", "/health", "/v1/health", "/metrics"):
        logged(RequestEnded(id="r", method="GET", route=route, status=200, outcome="ok", seconds=0))
    logged(ENDED, level="warning")
    assert capsys.readouterr().err == ""
