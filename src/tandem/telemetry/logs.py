"""Log lines: one format for every process of the service, on standard error; and a line for each request."""

import asyncio
import datetime
import logging
import sys
import time
from functools import lru_cache

import msgspec

from tandem.telemetry.events import RequestEnded

_OFTEN = 0.1  # seconds
_QUIET = frozenset({"/livez", "/readyz", "/health", "/v1/health", "/metrics"})  # asked every few seconds


def configure(level: str, form: str = "console") -> None:
    """Send everything at ``level`` (``debug`` … ``error``) and above to standard error, a line a record.

    Args:
        form: ``console``, or ``json`` for one object a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_Json() if form == "json" else plain)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class RequestLog:
    """A sink that logs a line for each request; what was asked only where that is in the record, answers never.

    The lines look as :mod:`logging`'s do, and do not go through it: a record for each request would take more time than
    all else that is rendered of it. They are written together, ten times a second.

    Args:
        level: requests are logged at ``info`` and below.
        form: ``console`` or ``json``.
    """

    def __init__(self, level: str, form: str = "console") -> None:
        self._on = logging.getLevelNamesMapping()[level.upper()] <= logging.INFO
        self._encode = _as_json if form == "json" else _as_text
        self._lines: list[str] = []
        self._writing: asyncio.TimerHandle | None = None

    def request_began(self) -> None:
        """Nothing to say yet."""

    def request_ended(self, event: RequestEnded) -> None:
        """Say what came of it."""
        if not self._on or event.route in _QUIET:
            return
        self._lines.append(self._encode(event))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().call_later(_OFTEN, self.close)

    def close(self) -> None:
        """Write what there is to write."""
        self._writing = None
        lines, self._lines = self._lines, []
        if lines:
            sys.stderr.write("\n".join(lines) + "\n")
            sys.stderr.flush()


def _as_text(event: RequestEnded) -> str:
    ended = event.began + event.seconds
    return f"{_second(int(ended))},{int(ended % 1 * 1000):03d} INFO tandem.requests: {_line(event)}"


@lru_cache(maxsize=8)
def _second(when: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _as_json(event: RequestEnded) -> str:
    ended = datetime.datetime.fromtimestamp(event.began + event.seconds, datetime.UTC)
    line = {"time": ended.isoformat(timespec="milliseconds"), "level": "info", "logger": "tandem.requests"}
    record = line | {"message": "request"} | msgspec.to_builtins(event)
    if not event.prompt:
        del record["prompt"]
    return msgspec.json.encode(record).decode()


def _line(event: RequestEnded) -> str:
    parts = [f"{event.id} {event.method} {event.route} {event.status} {event.outcome} {event.seconds * 1000:.1f} ms"]
    if event.model:
        parts.append(f"model={event.model} engine={event.engine or '-'}")
    if event.prompt_tokens:
        parts.append(f"tokens={event.prompt_tokens}+{event.completion_tokens}")
    if event.first_event is not None:
        parts.append(f"first_event={event.first_event * 1000:.1f} ms")
    if event.queued > 0.001:
        parts.append(f"queued={event.queued * 1000:.1f} ms")
    parts += [f"retries={event.retries}"] * bool(event.retries)
    parts += [f"caller={event.caller}"] * bool(event.caller)
    parts += [f"client_id={event.client_id}"] * bool(event.client_id)
    parts += [f"error={event.error}"] * bool(event.error)
    parts += [f"asked={event.prompt!r}"] * bool(event.prompt)
    return " ".join(parts)


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
