"""Log lines: one format for every process of the service, on standard error; and a line for each request."""

import datetime
import logging
import sys

import msgspec

from tandem.telemetry.events import RequestEnded

_requests = logging.getLogger("tandem.requests")
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
    """A sink that logs a line for each request; what was asked only where that is in the record, answers never."""

    def request_began(self) -> None:
        """Nothing to say yet."""

    def request_ended(self, event: RequestEnded) -> None:
        """Say what came of it."""
        if event.route in _QUIET or not _requests.isEnabledFor(logging.INFO):
            return
        _requests.info("%s", _line(event), extra={"event": event})


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
    """One JSON object a line; a request's is its whole record."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        event = getattr(record, "event", None)
        if isinstance(event, RequestEnded):
            line |= {"message": "request"} | msgspec.to_builtins(event)
            if not event.prompt:
                del line["prompt"]
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
