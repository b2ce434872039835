"""Requests as OpenTelemetry spans, where the environment names a collector. OpenTelemetry is imported only then."""

import dataclasses
import logging
import random
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tandem.telemetry.events import RequestEnded, Trace

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

_log = logging.getLogger(__name__)

# Version 00 is exactly this long; a later one may go on after a dash. https://www.w3.org/TR/trace-context/
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_SAMPLED = 0x01
_OPERATIONS = {"/v1/embeddings": "embeddings", "/v1/completions": "text_completion", "/v1/chat/completions": "chat"}
_SHORTEST_WAIT = 0.001  # seconds in the queue, below which they are not worth a span
_CLOSING = 3.0  # seconds


def from_environment(environ: Mapping[str, str]) -> "Tracing | None":
    """What exports to the collector that ``environ`` names; None if it names none, or it cannot be done.

    Only whether to trace is read from ``environ``: OpenTelemetry itself reads all ``OTEL_*`` from the process's own.

    Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """

    def said(name: str) -> str:
        return environ.get(name, "").strip().lower()

    endpoint = said("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or said("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint or said("OTEL_SDK_DISABLED") == "true" or said("OTEL_TRACES_EXPORTER") == "none":
        return None
    protocol = said("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or said("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if protocol != "http/protobuf":
        _log.warning("No traces: the OTLP protocol %s was asked for, and Tandem speaks http/protobuf", protocol)
        return None
    ids = _Ids()
    try:
        return Tracing(_provider(ids), ids)
    except ImportError as exc:
        _log.warning("No traces: %s is missing; run `pip install 'vllm-tandem[otel]'`", exc.name or "OpenTelemetry")
    except (RuntimeError, ValueError) as exc:
        _log.warning("No traces: OpenTelemetry cannot be set up: %s", exc)
    return None


class Tracing:
    """A sink that makes a request's spans once it has ended, with the ids that were told while it ran.

    Lives on one event loop: ``ids`` are handed to the SDK from call to call.
    """

    def __init__(self, provider: "TracerProvider", ids: "_Ids") -> None:
        self._provider, self._ids = provider, ids
        self._tracer = provider.get_tracer("tandem")

    def begin(self, traceparent: str, tracestate: str) -> Trace:
        """A request's place in its caller's trace, or, where that is no valid one, in a new trace.

        Args:
            traceparent: the header of that name; empty if none was sent.
            tracestate: likewise; kept beside a valid ``traceparent`` if it is printable ASCII, 512 characters at most.
        """
        sent = _TRACEPARENT.fullmatch(traceparent)
        trace, parent, flags = sent.groups() if sent else (f"{random.getrandbits(128) or 1:032x}", "", "00")
        return Trace(
            trace=trace,
            parent=parent,
            request=f"{random.getrandbits(64) or 1:016x}",
            upstream=f"{random.getrandbits(64) or 1:016x}",
            sampled=self._samples(trace, parent, sampled=bool(int(flags, 16) & _SAMPLED)),
            state=tracestate if sent and _TRACESTATE.fullmatch(tracestate) else "",
        )

    def request_began(self) -> None:
        """Nothing to say yet."""

    def request_ended(self, event: RequestEnded) -> None:
        """Make its spans, if anybody keeps them; another thread sends them."""
        if event.trace is None or not event.trace.sampled:
            return
        try:
            self._span(event, event.trace)
        except RuntimeError:  # after a fork, the SDK starts its thread anew in here
            _log.debug("No span for request %s", event.id, exc_info=True)

    def close(self) -> None:
        """Send what is left. Blocks for 3 seconds at most; what a slow collector has not taken by then is lost."""
        # The SDK waits for up to 30 seconds, and offers no way to say how long.
        closing = threading.Thread(target=self._provider.shutdown, name="tandem-tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSING)

    def _samples(self, trace: str, parent: str, *, sampled: bool) -> bool:
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.trace import SpanKind

        context = _context(trace, parent, sampled=sampled, remote=True)
        result = self._provider.sampler.should_sample(context, int(trace, 16), "request", SpanKind.SERVER)
        return result.decision is Decision.RECORD_AND_SAMPLE

    def _span(self, event: RequestEnded, trace: Trace) -> None:
        from opentelemetry.trace import SpanKind, StatusCode

        began, ended = _ns(event.began), _ns(event.began) + _ns(event.seconds)
        asked = began + _ns(event.queued)
        answered = ended if event.first_event is not None else min(asked + _ns(event.engine_seconds), ended)

        self._ids.trace, self._ids.span = int(trace.trace, 16), int(trace.request, 16)
        caller = _context(trace.trace, trace.parent, sampled=trace.sampled, remote=True)
        span = self._tracer.start_span(_name(event), caller, SpanKind.SERVER, _attributes(event), start_time=began)
        within = _context(trace.trace, trace.request, sampled=trace.sampled, remote=False)
        if event.queued > _SHORTEST_WAIT:
            self._ids.span = random.getrandbits(64) or 1
            self._tracer.start_span("queue", within, SpanKind.INTERNAL, start_time=began).end(asked)
        if event.engine:
            self._ids.span = int(trace.upstream, 16)
            about = {"tandem.engine": event.engine}
            self._tracer.start_span("upstream", within, SpanKind.CLIENT, about, start_time=asked).end(answered)
        if event.outcome == "failed":
            span.set_status(StatusCode.ERROR, event.error or None)
        span.end(ended)


@dataclasses.dataclass(slots=True)
class _Ids:
    """The ids that the next span will have."""

    trace: int = 0
    span: int = 0


def _provider(ids: _Ids) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Preset(IdGenerator):
        def generate_trace_id(self) -> int:
            return ids.trace

        def generate_span_id(self) -> int:
            return ids.span

    named = {"service.name": "tandem", **OTELResourceDetector().detect().attributes}
    # Not at exit: the SDK would wait there for up to 30 seconds.
    provider = TracerProvider(resource=Resource.create(named), id_generator=Preset(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _context(trace: str, span: str, *, sampled: bool, remote: bool) -> "Context":
    """What a span begins in; empty without a ``span``, or else the SDK would take whatever is current.

    The caller's ``tracestate`` is not in it: the SDK logs a line for each that it cannot read.
    """
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if not span:
        return Context()
    flags = TraceFlags(_SAMPLED if sampled else 0)
    parent = SpanContext(int(trace, 16), int(span, 16), is_remote=remote, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _name(event: RequestEnded) -> str:
    operation = _OPERATIONS.get(event.route)
    return f"{operation} {event.model}" if operation and event.model else f"{event.method} {event.route}"


def _attributes(event: RequestEnded) -> "dict[str, AttributeValue]":
    """What is known of the request, by OpenTelemetry's names for it.

    Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
    """
    attributes: dict[str, AttributeValue] = {
        "http.request.method": event.method,
        "http.route": event.route,
        "http.response.status_code": event.status,
        "tandem.request_id": event.id,
        "tandem.retries": event.retries,
    }
    if operation := _OPERATIONS.get(event.route):
        attributes |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": "vllm"}
    known: dict[str, AttributeValue] = {
        "gen_ai.request.model": event.model,
        "gen_ai.usage.input_tokens": event.prompt_tokens,
        "gen_ai.usage.output_tokens": event.completion_tokens,
        "tandem.client_request_id": event.client_id,
        "tandem.engine": event.engine,
        "error.type": event.error or (str(event.status) if event.outcome == "failed" else ""),
    }
    return attributes | {name: value for name, value in known.items() if value}
