"""What is counted of a request, and what `/metrics` says of engines."""

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tandem.fleet import Engine, Snapshot, State
from tandem.telemetry.events import Load, RequestEnded, Sink
from tandem.telemetry.metrics import Metrics, merged

EMBEDDED = RequestEnded(
    id="1",
    method="POST",
    route="/v1/embeddings",
    model="org/a",
    engine="a",
    status=200,
    outcome="ok",
    seconds=0.020,
    queued=0.004,
    engine_seconds=0.0155,
    inputs=3,
    prompt_tokens=12,
)
STREAMED = RequestEnded(
    id="2",
    method="POST",
    route="/v1/chat/completions",
    model="org/b",
    engine="b",
    status=200,
    outcome="ok",
    seconds=2.0,
    queued=0.010,
    engine_seconds=0.088,
    first_event=0.100,
    between_events=0.012,
    prompt_tokens=7,
    completion_tokens=150,
    retries=2,
)
REFUSED = RequestEnded(id="3", method="GET", route="other", status=404, outcome="refused", seconds=0.0001)

A = Engine(name="a", kind="embedding", model="org/a", state=State.READY, restarts=3)
B = Engine(name="b", kind="generation", model="org/b", state=State.LOADING)
LOADS = (
    Load(engine="a", in_flight=4, queued=0, breaker="closed"),
    Load(engine="b", in_flight=0, queued=9, breaker="half_open"),
)

Samples = dict[tuple[str, frozenset[str]], float]


def counted(*events: RequestEnded) -> Metrics:
    metrics = Metrics()
    for event in events:
        metrics.request_began()
        metrics.request_ended(event)
    return metrics


def samples(metrics: Metrics, *engines: Engine, loads: tuple[Load, ...] = ()) -> Samples:
    """By name and label values, what a scrape reads of the router's own."""
    return parsed(metrics.render(Snapshot(engines), loads).decode())


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(read: Samples, name: str, *labels: str) -> float | None:
    return read.get((f"tandem_{name}", frozenset(labels)))


def series(read: Samples, name: str) -> set[frozenset[str]]:
    return {labels for sample, labels in read if sample == f"tandem_{name}"}


def test_it_is_a_sink() -> None:
    """The request path knows it by the sinks' protocol alone."""
    sink: Sink = Metrics()
    sink.request_began()
    sink.request_ended(REFUSED)


def test_requests_are_counted_and_timed_by_route_and_model() -> None:
    """Each status has a series of its own; the time does not ask for the status."""
    failed = msgspec.structs.replace(EMBEDDED, status=503, outcome="failed", seconds=0.5)
    read = samples(counted(EMBEDDED, EMBEDDED, failed, REFUSED))
    assert value(read, "requests_total", "/v1/embeddings", "org/a", "200") == 2
    assert value(read, "requests_total", "/v1/embeddings", "org/a", "503") == 1
    assert value(read, "requests_total", "other", "", "404") == 1
    assert value(read, "request_duration_seconds_count", "/v1/embeddings", "org/a") == 3
    assert value(read, "request_duration_seconds_sum", "/v1/embeddings", "org/a") == pytest.approx(0.54)
    assert value(read, "request_duration_seconds_bucket", "/v1/embeddings", "org/a", "0.025") == 2


def test_what_is_in_flight_began_and_did_not_end() -> None:
    """The gauge rises with a request and falls with its end."""
    metrics = counted(EMBEDDED)
    metrics.request_began()
    metrics.request_began()
    metrics.request_ended(REFUSED)
    assert value(samples(metrics), "requests_in_flight") == 1


def test_streams_are_timed_by_their_events() -> None:
    """Time to first token and inter-token latency are of streams only."""
    read = samples(counted(STREAMED, EMBEDDED))
    assert value(read, "time_to_first_token_seconds_sum", "org/b") == pytest.approx(0.1)
    assert value(read, "inter_token_latency_seconds_sum", "org/b") == pytest.approx(0.012)
    assert series(read, "time_to_first_token_seconds_count") == {frozenset({"org/b"})}
    assert series(read, "inter_token_latency_seconds_count") == {frozenset({"org/b"})}


def test_a_stream_of_one_event_has_no_latency_between_them() -> None:
    """A mean of nothing is not observed."""
    read = samples(counted(msgspec.structs.replace(STREAMED, between_events=None)))
    assert value(read, "time_to_first_token_seconds_count", "org/b") == 1
    assert not series(read, "inter_token_latency_seconds_count")


def test_overhead_is_what_neither_queue_nor_engine_took() -> None:
    """Of a whole answer until its end, of a stream until its first event."""
    read = samples(counted(EMBEDDED, STREAMED))
    assert value(read, "router_overhead_seconds_sum", "/v1/embeddings") == pytest.approx(0.0005)
    assert value(read, "router_overhead_seconds_sum", "/v1/chat/completions") == pytest.approx(0.002)
    assert value(read, "router_overhead_seconds_bucket", "/v1/embeddings", "0.0001") == 0
    assert value(read, "queue_seconds_sum", "org/a") == pytest.approx(0.004)
    assert value(read, "queue_seconds_sum", "org/b") == pytest.approx(0.010)


def test_overhead_is_never_negative() -> None:
    """Clocks that round differently make it nothing, not less; a negative sum would read as a restart."""
    read = samples(counted(msgspec.structs.replace(EMBEDDED, queued=0.01, engine_seconds=0.02)))
    assert value(read, "router_overhead_seconds_sum", "/v1/embeddings") == 0
    assert value(read, "router_overhead_seconds_bucket", "/v1/embeddings", "0.0001") == 1


def test_requests_that_asked_no_engine_have_neither_queue_nor_overhead() -> None:
    """What was refused at the door would make both look better than they are."""
    read = samples(counted(REFUSED))
    assert not series(read, "queue_seconds_count") | series(read, "router_overhead_seconds_count")


def test_retries_are_counted_by_engine() -> None:
    """Each time an engine was asked again counts once."""
    read = samples(counted(STREAMED, STREAMED, EMBEDDED))
    assert value(read, "retries_total", "b") == 4
    assert series(read, "retries_total") == {frozenset({"b"})}


def test_tokens_are_counted_by_model_and_type() -> None:
    """Embedding models complete nothing, so they have no such series."""
    read = samples(counted(STREAMED, EMBEDDED, EMBEDDED))
    assert value(read, "tokens_total", "org/b", "prompt") == 7
    assert value(read, "tokens_total", "org/b", "completion") == 150
    assert value(read, "tokens_total", "org/a", "prompt") == 24
    assert value(read, "tokens_total", "org/a", "completion") is None


def test_embedding_requests_are_measured_by_batch() -> None:
    """Only those that were answered: what failed says nothing of how long a batch takes."""
    failed = msgspec.structs.replace(EMBEDDED, status=500, outcome="failed", seconds=60)
    read = samples(counted(EMBEDDED, failed, STREAMED))
    assert value(read, "embedding_batch_size_count", "org/a") == 1
    assert value(read, "embedding_batch_size_bucket", "org/a", "2.0") == 0
    assert value(read, "embedding_batch_size_bucket", "org/a", "4.0") == 1
    assert value(read, "embedding_batch_size_bucket", "org/a", "2048.0") == 1
    assert value(read, "embedding_latency_seconds_sum", "org/a") == pytest.approx(0.02)
    assert series(read, "embedding_latency_seconds_count") == {frozenset({"org/a"})}


def test_engines_have_a_state_a_load_and_a_breaker() -> None:
    """Of the states that there are, an engine and its breaker are each in one."""
    read = samples(Metrics(), A, B, loads=LOADS)
    assert value(read, "engine_restarts", "a") == 3
    assert value(read, "engine_state", "a", "ready") == 1
    assert value(read, "engine_state", "a", "loading") == 0
    assert value(read, "engine_state", "b", "loading") == 1
    assert value(read, "engine_in_flight", "a") == 4
    assert value(read, "engine_queued", "b") == 9
    assert [value(read, "engine_breaker", "a", state) for state in ("closed", "half_open", "open")] == [1, 0, 0]
    assert [value(read, "engine_breaker", "b", state) for state in ("closed", "half_open", "open")] == [0, 1, 0]


def test_engines_that_are_gone_are_not_told_of() -> None:
    """Their gauges vanish with them, even while the router still has a load for them; what was counted stays."""
    metrics = counted(STREAMED)
    assert series(samples(metrics, A, B, loads=LOADS), "engine_queued") == {frozenset({"a"}), frozenset({"b"})}
    read = samples(metrics, A, loads=LOADS)
    gauges = ("state", "restarts", "in_flight", "queued", "breaker")
    assert not [labels for gauge in gauges for labels in series(read, f"engine_{gauge}") if "b" in labels]
    assert value(read, "engine_in_flight", "a") == 4
    assert value(read, "requests_total", "/v1/chat/completions", "org/b", "200") == 1


def test_engines_own_series_carry_their_names() -> None:
    """vLLM's label `engine` makes way for the engine's name; families that are not vLLM's are left out, and so is an
    engine that talks nonsense."""
    own = '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{engine="0"}} {}\nprocess_open_fds 5\n'
    scraped = {"a": own.format(1).encode(), "b": own.format(2).encode(), "c": b"<html>", "d": b"\xff"}
    read = parsed(merged(scraped).decode())
    assert read["vllm:num_requests_running", frozenset({"0", "a"})] == 1
    assert read["vllm:num_requests_running", frozenset({"0", "b"})] == 2
    assert not [name for name, _ in read if name.startswith("process_")]


def test_two_routers_share_nothing() -> None:
    """Each has a registry of its own, and counts for itself."""
    counted(EMBEDDED)
    assert value(samples(Metrics()), "requests_total", "/v1/embeddings", "org/a", "200") is None
