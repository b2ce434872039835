"""Spans as a collector gets them: over OTLP/HTTP, from a real exporter."""

import http.server
import logging
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tandem.telemetry import tracing
from tandem.telemetry.events import RequestEnded, Sink, Trace
from tandem.telemetry.tracing import Tracing

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"
BEGAN = 1_750_000_000.25
EMBEDDED = RequestEnded(
    id="r-1",
    client_id="mine",
    method="POST",
    route="/v1/embeddings",
    model="org/a",
    engine="a",
    status=200,
    outcome="ok",
    began=BEGAN,
    seconds=1.0,
    queued=0.25,
    engine_seconds=0.5,
    inputs=3,
    prompt_tokens=12,
    retries=1,
)


class Collector:
    """Takes spans on loopback, as an OpenTelemetry collector does.

    Attributes:
        url: what `OTEL_EXPORTER_OTLP_ENDPOINT` names.
        requests: what it was sent.
        paths: where to.
    """

    def __init__(self) -> None:
        self.requests: queue.SimpleQueue[ExportTraceServiceRequest] = queue.SimpleQueue()
        self.paths: set[str] = set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.paths.add(self.path)
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests.put(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def resource(self) -> Resource:
        """What sent one export, once it came."""
        (sent,) = self.requests.get(timeout=10).resource_spans
        resource: Resource = sent.resource
        return resource

    def spans(self) -> list[Span]:
        """Those of one export, once it came."""
        sent = self.requests.get(timeout=10)
        return [span for each in sent.resource_spans for scope in each.scope_spans for span in scope.spans]


@pytest.fixture(autouse=True)
def _no_otel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def configured() -> Tracing:
    made = tracing.from_environment(os.environ)
    assert made
    return made


@pytest.fixture
def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracing]:
    """Closed once more after the test, which does no harm to one that is closed."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    traced = configured()
    yield traced
    traced.close()


def ended(traced: Tracing, event: RequestEnded, traceparent: str = "", tracestate: str = "") -> Trace:
    """Take one request from its headers to its end, and send what it made."""
    trace = traced.begin(traceparent, tracestate)
    traced.request_began()
    traced.request_ended(msgspec.structs.replace(event, trace=trace))
    traced.close()
    return trace


def attributes(of: Span | Resource) -> dict[str, str | int]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in of.attributes}


def after(span: Span) -> tuple[float, float]:
    """Seconds from the request's arrival to the span's start and end."""
    arrived = int(BEGAN * 1e9)
    return (span.start_time_unix_nano - arrived) / 1e9, (span.end_time_unix_nano - arrived) / 1e9


def test_a_request_is_a_span_with_its_wait_and_its_engine_within(traced: Tracing, collector: Collector) -> None:
    """The ids are those that were told while the request ran, and the times are its own."""
    sink: Sink = traced
    trace = ended(traced, EMBEDDED)
    spans = {span.name: span for span in collector.spans()}
    assert sink is traced
    assert spans.keys() == {"embeddings org/a", "queue", "upstream"}
    request, waited, upstream = spans["embeddings org/a"], spans["queue"], spans["upstream"]
    assert {span.trace_id.hex() for span in spans.values()} == {trace.trace}
    assert (request.span_id.hex(), request.parent_span_id) == (trace.request, b"")
    assert (upstream.span_id.hex(), upstream.parent_span_id.hex()) == (trace.upstream, trace.request)
    assert waited.parent_span_id.hex() == trace.request
    assert waited.span_id.hex() not in {trace.request, trace.upstream}
    kinds = (request.kind, waited.kind, upstream.kind)
    assert kinds == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL, Span.SPAN_KIND_CLIENT)
    assert [after(span) for span in (request, waited, upstream)] == [(0, 1), (0, 0.25), (0.25, 0.75)]
    assert collector.paths == {"/v1/traces"}


def test_spans_say_what_was_asked_and_what_it_took(traced: Tracing, collector: Collector) -> None:
    """By the names of OpenTelemetry's conventions; nothing of what was asked or answered is among it."""
    ended(traced, EMBEDDED)
    spans = {span.name: attributes(span) for span in collector.spans()}
    assert spans["embeddings org/a"] == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "org/a",
        "gen_ai.usage.input_tokens": 12,
        "tandem.request_id": "r-1",
        "tandem.client_request_id": "mine",
        "tandem.engine": "a",
        "tandem.retries": 1,
    }
    assert spans["upstream"] == {"tandem.engine": "a"}


def test_a_streams_engine_works_until_its_end(traced: Tracing, collector: Collector) -> None:
    """And a wait of less than a millisecond is no span."""
    route = "/v1/chat/completions"
    ended(traced, msgspec.structs.replace(EMBEDDED, route=route, queued=0.0005, first_event=0.6, completion_tokens=5))
    spans = {span.name: span for span in collector.spans()}
    assert spans.keys() == {"chat org/a", "upstream"}
    assert after(spans["upstream"]) == (0.0005, 1)
    assert attributes(spans["chat org/a"])["gen_ai.usage.output_tokens"] == 5


@pytest.mark.parametrize(
    ("method", "route", "model", "name"),
    [
        ("POST", "/v1/completions", "org/b", "text_completion org/b"),
        ("POST", "/v1/completions", "", "POST /v1/completions"),
        ("GET", "/v1/models", "", "GET /v1/models"),
    ],
)
def test_spans_are_named_by_operation_or_route(
    traced: Tracing, collector: Collector, method: str, route: str, model: str, name: str
) -> None:
    """An operation with its model, and what has none by its method and route."""
    event = RequestEnded(id="r", method=method, route=route, model=model, status=200, outcome="ok", seconds=0.1)
    ended(traced, event)
    assert [span.name for span in collector.spans()] == [name]


@pytest.mark.parametrize(
    ("status", "outcome", "error", "code", "kind"),
    [
        (503, "failed", "engine_failed", Status.STATUS_CODE_ERROR, "engine_failed"),
        (500, "failed", "", Status.STATUS_CODE_ERROR, "500"),
        (404, "refused", "model_not_found", Status.STATUS_CODE_UNSET, "model_not_found"),
        (499, "left", "", Status.STATUS_CODE_UNSET, None),
    ],
)
def test_failures_are_errors(
    traced: Tracing, collector: Collector, status: int, outcome: str, error: str, code: int, kind: str | None
) -> None:
    """Only what the service did wrong is one; a refusal tells its type all the same."""
    ended(traced, msgspec.structs.replace(EMBEDDED, status=status, outcome=outcome, error=error))
    (request,) = (span for span in collector.spans() if span.name == "embeddings org/a")
    assert request.status.code == code
    assert attributes(request).get("error.type") == kind


def test_the_callers_trace_is_joined(traced: Tracing, collector: Collector) -> None:
    """Its trace goes on, its span is the parent, and the engine is told of both with the caller's state."""
    trace = ended(traced, EMBEDDED, PARENT, "vendor=1")
    assert (trace.trace, trace.parent, trace.sampled, trace.state) == (TRACE, CALLER, True, "vendor=1")
    assert trace.headers == {"traceparent": f"00-{TRACE}-{trace.upstream}-01", "tracestate": "vendor=1"}
    spans = {span.name: span for span in collector.spans()}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert spans["embeddings org/a"].parent_span_id.hex() == CALLER
    assert spans["upstream"].parent_span_id.hex() == trace.request


def test_what_the_caller_does_not_keep_is_not_sent(traced: Tracing, collector: Collector) -> None:
    """An unsampled parent gives no span, and the engine is told that nobody keeps it."""
    trace = ended(traced, EMBEDDED, f"00-{TRACE}-{CALLER}-00")
    assert not trace.sampled
    assert trace.headers["traceparent"] == f"00-{TRACE}-{trace.upstream}-00"
    assert collector.requests.empty()


def test_requests_without_a_trace_are_left_alone(traced: Tracing, collector: Collector) -> None:
    """What began before anybody traced makes no span."""
    traced.request_ended(EMBEDDED)
    traced.close()
    assert collector.requests.empty()


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"{PARENT}-more",
        f"{PARENT}-",
        f"01-{TRACE}-{CALLER}-01more",
        f"{PARENT}\n",
    ],
)
def test_an_invalid_header_begins_a_new_trace(traced: Tracing, traceparent: str) -> None:
    """It counts as none, and the state beside it goes with it."""
    trace = traced.begin(traceparent, "vendor=1")
    assert re.fullmatch(r"[0-9a-f]{32}", trace.trace)
    assert trace.trace != TRACE
    assert (trace.parent, trace.state, trace.sampled) == ("", "", True)


@pytest.mark.parametrize("traceparent", [PARENT, f"01-{TRACE}-{CALLER}-03", f"cc-{TRACE}-{CALLER}-01-what-comes-next"])
def test_later_versions_of_the_header_are_read_as_far_as_they_are_known(traced: Tracing, traceparent: str) -> None:
    """A version that is not known yet may say more after a dash."""
    trace = traced.begin(traceparent, "")
    assert (trace.trace, trace.parent, trace.sampled) == (TRACE, CALLER, True)


@pytest.mark.parametrize("tracestate", ["vendor=\xe9", "vendor=\n", "v" * 513])
def test_a_state_that_is_no_plain_text_is_dropped(traced: Tracing, tracestate: str) -> None:
    """The trace is joined without it."""
    trace = traced.begin(PARENT, tracestate)
    assert (trace.trace, trace.state) == (TRACE, "")


def test_ids_are_no_two_requests_own(traced: Tracing) -> None:
    """Neither traces nor spans come twice."""
    traces = [traced.begin("", "") for _ in range(100)]
    assert len({trace.trace for trace in traces}) == 100
    assert len({span for trace in traces for span in (trace.request, trace.upstream)}) == 200


@pytest.mark.parametrize(
    ("sampler", "argument", "traceparent", "sampled"),
    [
        ("always_off", "", PARENT, False),
        ("parentbased_always_off", "", "", False),
        ("parentbased_always_off", "", PARENT, True),
        ("parentbased_traceidratio", "0", "", False),
        ("traceidratio", "1", f"00-{TRACE}-{CALLER}-00", True),
    ],
)
def test_the_sampler_is_the_environments(
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    argument: str,
    traceparent: str,
    sampled: bool,
) -> None:
    """What it decides when the request begins is what comes out when it ends."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    trace = ended(configured(), EMBEDDED, traceparent)
    assert trace.sampled is sampled
    assert collector.requests.empty() is not sampled


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({}, "tandem"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,deployment.environment.name=lab"}, "ours"),
        ({"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "service.name=ours"}, "mine"),
    ],
)
def test_the_service_is_tandem_unless_the_environment_names_it(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], name: str
) -> None:
    """As OpenTelemetry's variables say, the one for the name before the one for all attributes."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
    for variable, value in said.items():
        monkeypatch.setenv(variable, value)
    ended(configured(), EMBEDDED)
    assert attributes(collector.resource())["service.name"] == name


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "tandem"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_SDK_DISABLED": "True"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nobody_traces_unless_configured(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Without an endpoint, or where tracing is switched off; and that is worth no word."""
    assert tracing.from_environment(environ) is None
    assert not caplog.records


def test_missing_packages_are_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Tracing that was asked for and cannot be done is told with what to run; the service goes on."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracing.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "pip install 'vllm-tandem[otel]'" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"), ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size")],
)
def test_what_cannot_be_set_up_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str, told: str
) -> None:
    """A setting that cannot be followed leaves the service without traces, not without service."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    monkeypatch.setenv(name, value)
    assert tracing.from_environment(os.environ) is None
    assert [told in record.getMessage() for record in caplog.records] == [True]


def test_a_collector_that_is_down_harms_nobody(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests end as ever, and closing waits no longer than it says; later ends are harmless too."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    traced = configured()
    before = time.monotonic()
    trace = ended(traced, EMBEDDED)
    assert time.monotonic() - before < 6
    traced.request_ended(msgspec.structs.replace(EMBEDDED, trace=trace))


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing gives up on one that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{hanging.getsockname()[1]}")
        monkeypatch.setattr(tracing, "_CLOSING", 0.1)
        before = time.monotonic()
        ended(configured(), EMBEDDED)
        assert time.monotonic() - before < 3


@pytest.mark.process
def test_opentelemetry_is_not_loaded_before_it_is_used() -> None:
    """Neither by importing the module nor where nobody traces."""
    code = "from tandem.telemetry import tracing; tracing.from_environment({}); import sys; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in told.stdout.split() if name.startswith("opentelemetry")]
