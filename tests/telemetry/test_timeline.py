"""What the client tells of itself, and that telling never fails it."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import REGISTRY

from tandem import BadRequestError, ServerError, Step, Timeline, VLLMClient, VLLMConfig
from tandem.client.structs import Answer
from tandem.client.transports import Call
from tandem.telemetry import embedding_spans

from ..client import service as ways
from ..client.service import Service


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def client(service: Service, **more: object) -> VLLMClient:
    return VLLMClient(VLLMConfig(base_url=service.url, model="m", batch_size=10), **more)  # type: ignore[arg-type]


def names(timeline: Timeline) -> list[str]:
    return [step.name for step in timeline.steps]


def test_steps_go_to_any_callable(service: Service) -> None:
    """Started, retried, finished or failed, each with what is known by then."""
    steps: list[Step] = []
    service.ways = [ways.error(503, "busy", headers={"retry-after-ms": "1"}), ways.well, ways.error(400, "bad")]
    with client(service, on_step=steps.append) as made:
        made.embed_batch(["a", "b"])
        with pytest.raises(BadRequestError):
            made.embed_batch(["c"])
    assert [(step.name, step.outcome, step.attempt) for step in steps] == [
        ("started", "", 0),
        ("retried", "", 1),
        ("finished", "ok", 2),
        ("started", "", 0),
        ("failed", "BadRequestError", 1),
    ]
    first, retried, finished, _, failed = steps
    assert (finished.n_texts, finished.dim, finished.tokens, finished.mode, finished.model) == (2, 8, 2, "http", "m")
    assert first.batch_id == retried.batch_id == finished.batch_id != failed.batch_id
    assert first.seconds <= retried.seconds <= finished.seconds
    assert "busy" in retried.error
    assert "bad" in failed.error


def test_a_timeline_has_the_steps_of_its_scope(service: Service) -> None:
    """Of all batches within, in whichever thread they are sent, and of none before, after or beside it."""
    with client(service) as made, ThreadPoolExecutor(1) as threads:
        made.embed_batch(["a"])
        with Timeline() as outer:
            made.embed_chunks([f"{i}" for i in range(40)])
            with Timeline() as inner:
                asyncio.run(made.embed_chunks_async(["a"]))
            threads.submit(made.embed_batch, ["a"]).result()
            assert len(list(made.embed_iter(["a"]))) == 1
        made.embed_batch(["a"])
    assert names(inner) == ["started", "finished"]
    assert sorted(names(outer)) == ["finished"] * 6 + ["started"] * 6
    assert {step.batch for step in outer.steps} == {0, 1, 2, 3}


def test_a_sink_that_fails_fails_nothing(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged, and the vectors come."""

    def broken(step: Step) -> None:
        raise RuntimeError("no room in the database")

    with client(service, on_step=broken) as made:
        assert made.embed_batch(["a"]).shape == (1, 8)
    assert "no room in the database" in caplog.text


def test_lines_are_structured(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """A sentence for people, the step as a dict for machines, and no text that was embedded."""
    caplog.set_level(logging.DEBUG, "tandem.client")
    with client(service) as made:
        made.embed_batch(["a secret"])
        service.ways = [ways.error(400, "bad")]
        with pytest.raises(BadRequestError):
            made.embed_batch(["a secret"])
    lines = [record for record in caplog.records if hasattr(record, "step")]
    assert [record.levelname for record in lines] == ["DEBUG", "DEBUG", "DEBUG", "INFO"]
    assert [record.step["name"] for record in lines] == ["started", "finished", "started", "failed"]
    assert "model=m mode=http texts=1" in lines[1].getMessage()
    assert "dim=8 tokens=1 outcome=ok" in lines[1].getMessage()
    assert "secret" not in caplog.text


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_batches_are_counted_for_prometheus(service: Service) -> None:
    """By mode and outcome, in the registry that applications expose; two clients share it."""
    good, bad = {"mode": "http", "outcome": "ok"}, {"mode": "http", "outcome": "BadRequestError"}
    series = [
        ("embed_batch_size_sum", good),
        ("embed_batch_size_count", bad),
        ("embed_latency_seconds_count", good),
        ("embed_latency_seconds_count", bad),
    ]
    before = [sample(name, **labels) for name, labels in series]
    service.ways = [ways.well, ways.error(400, "bad")]
    with client(service) as one, client(service) as other:
        one.embed_batch(["a", "b", "c"])
        with pytest.raises(BadRequestError):
            other.embed_batch(["a"])
    assert [sample(name, **labels) for name, labels in series] == [
        a + b for a, b in zip(before, [3, 1, 1, 1], strict=True)
    ]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Spans as an application's provider would get them."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return kept


def test_each_batch_is_a_span(service: Service, exporter: InMemorySpanExporter) -> None:
    """With our attributes, OpenTelemetry's own beside them, and an event for each step."""
    service.ways = [ways.error(503, "busy", headers={"retry-after-ms": "1"}), ways.well, ways.error(400, "bad")]
    with client(service) as made:
        made.embed_batch(["a", "b"])
        with pytest.raises(BadRequestError):
            made.embed_batch(["c"])
    good, bad = exporter.get_finished_spans()
    assert good.name == bad.name == "vllm.embed_batch"
    assert good.attributes is not None
    assert dict(good.attributes) == {
        "mode": "http",
        "n_texts": 2,
        "dim": 8,
        "model": "m",
        "batch": 0,
        "outcome": "ok",
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "m",
        "gen_ai.request.encoding_formats": ("base64",),
        "gen_ai.embeddings.dimension.count": 8,
        "gen_ai.usage.input_tokens": 2,
    }
    assert [event.name for event in good.events] == ["start", "retry", "completion"]
    assert [event.name for event in bad.events] == ["start", "error"]
    assert bad.status.status_code is StatusCode.ERROR
    assert bad.attributes is not None
    assert bad.attributes["error.type"] == "BadRequestError"


def test_the_server_is_told_of_the_span(service: Service, exporter: InMemorySpanExporter) -> None:
    """Requests carry their own batch's span, below the caller's, from threads and tasks; then none is open."""
    with client(service) as made, trace.get_tracer("test").start_as_current_span("caller") as caller:
        made.embed_batch(["a"])
        made.embed_chunks([f"{i}" for i in range(20)])
        asyncio.run(made.embed_chunks_async([f"{i}" for i in range(20)]))
        assert trace.get_current_span() is caller
    spans = {span.context.span_id: span for span in exporter.get_finished_spans() if span.context}
    told = [headers["traceparent"].split("-") for _, headers, _ in service.asked]
    assert {int(span, 16) for _, _, span, _ in told} == {i for i, span in spans.items() if span.name != "caller"}
    assert {int(given, 16) for _, given, _, _ in told} == {caller.get_span_context().trace_id}
    assert len(told) == 5
    assert all(span.parent.span_id == caller.get_span_context().span_id for span in spans.values() if span.parent)


def test_without_the_packages_all_goes_on(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus and OpenTelemetry are used where they are, and not missed where they are not."""
    for module in ("tandem.telemetry.embedding_metrics", "tandem.telemetry.embedding_spans"):
        monkeypatch.setitem(sys.modules, module, None)  # to import it fails then, as without its package
    with client(service) as made:
        assert made.embed_batch(["a"]).shape == (1, 8)
    assert "traceparent" not in service.asked[0][1]


def test_spans_are_closed_when_a_call_is_cancelled(exporter: InMemorySpanExporter) -> None:
    """A cancelled task ends its span as failed."""

    class Never:
        async def send(self, request: object, call: Call) -> Answer:
            await asyncio.Event().wait()
            raise ServerError("unreachable")

        async def aclose(self) -> None:
            """Nothing to close."""

    async def cancelled() -> None:
        async with VLLMClient(VLLMConfig(model="m"), async_transport=Never()) as made:
            await asyncio.wait_for(made.embed_single_async("a"), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["outcome"] == "CancelledError"


def test_no_span_no_header() -> None:
    """Outside of a trace nothing is sent."""
    assert embedding_spans.headers() == {}
