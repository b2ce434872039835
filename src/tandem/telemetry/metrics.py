"""The router's own series, and the engines' with their names on them, for Prometheus.

What is counted for each request is counted in plain dictionaries, which prometheus_client reads when it renders: its
own counters and histograms take a lock, and half a microsecond, for each of the ten numbers of a request.
"""

import logging
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tandem.fleet import Snapshot, State
from tandem.telemetry.events import Load, RequestEnded

_log = logging.getLogger("tandem.router")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BETWEEN = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 10)
_BATCH = tuple(2**power for power in range(12))  # 2048 is the most inputs that OpenAI's API takes in a request
_BREAKER = ("closed", "half_open", "open")


class Metrics:
    """A sink that counts: one router's series, in a registry of its own.

    Label values are bounded: an event names only routes, models and engines that exist.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests answered.", "route", "model", "status")
        self._duration = self._histogram(
            "request_duration_seconds", "From a request's arrival to the end of its answer.", _SECONDS, "route", "model"
        )
        self._first_event = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its stream's first event.", _SECONDS, "model"
        )
        self._between_events = self._histogram(
            "inter_token_latency_seconds",
            "From one event of a stream to the next: each stream's mean.",
            _BETWEEN,
            "model",
        )
        self._queue = self._histogram("queue_seconds", "What a request waited for an engine.", _SECONDS, "model")
        self._overhead = self._histogram(
            "router_overhead_seconds",
            "Of the time to the answer, or to its first event, what neither queue nor engine took.",
            _OVERHEAD,
            "route",
        )
        self._retries = self._counter("retries", "How often an engine was asked again.", "engine")
        self._tokens = self._counter("tokens", "Tokens, as the engines counted them.", "model", "type")
        self._batch_size = self._histogram("embedding_batch_size", "Texts in an embedding request.", _BATCH, "model")
        self._embedding = self._histogram(
            "embedding_latency_seconds", "From an embedding request's arrival to its answer's end.", _SECONDS, "model"
        )
        self._in_flight = 0
        in_flight = Gauge("tandem_requests_in_flight", "Requests being answered now.", registry=self._registry)
        in_flight.set_function(lambda: self._in_flight)
        self._state = self._gauge("engine_state", "1 for the state an engine is in, 0 for the others.", "state")
        self._restarts = self._gauge("engine_restarts", "How often an engine was restarted.")
        self._engine_in_flight = self._gauge(
            "engine_in_flight", "Requests that an engine has now; merged ones are one."
        )
        self._engine_queued = self._gauge("engine_queued", "Requests that wait for a place at an engine now.")
        self._breaker = self._gauge("engine_breaker", "1 for the state its breaker is in, 0 for the others.", "state")

    def request_began(self) -> None:
        """One more is in flight."""
        self._in_flight += 1

    def request_ended(self, event: RequestEnded) -> None:
        """Count it."""
        route, model = event.route, event.model
        self._in_flight -= 1
        self._requests.add(1, route, model, event.status)
        self._duration.observe(event.seconds, route, model)
        if event.engine:
            answered = event.seconds if event.first_event is None else event.first_event
            self._queue.observe(event.queued, model)
            self._overhead.observe(max(0.0, answered - event.queued - event.engine_seconds), route)
        if event.first_event is not None:
            self._first_event.observe(event.first_event, model)
        if event.between_events is not None:
            self._between_events.observe(event.between_events, model)
        if event.retries:
            self._retries.add(event.retries, event.engine)
        if event.prompt_tokens:
            self._tokens.add(event.prompt_tokens, model, "prompt")
        if event.completion_tokens:
            self._tokens.add(event.completion_tokens, model, "completion")
        if event.inputs and event.outcome == "ok":
            self._batch_size.observe(event.inputs, model)
            self._embedding.observe(event.seconds, model)

    def close(self) -> None:
        """Nothing is left to render."""

    def render(self, snapshot: Snapshot, loads: Iterable[Load]) -> bytes:
        """The router's own series in Prometheus' text format."""
        for gauge in (self._state, self._restarts, self._engine_in_flight, self._engine_queued, self._breaker):
            gauge.clear()
        for engine in snapshot.engines:
            self._restarts.labels(engine.name).set(engine.restarts)
            for state in State:
                self._state.labels(engine.name, state.value).set(engine.state is state)
        known = {engine.name for engine in snapshot.engines}
        for load in loads:
            if load.engine in known:
                self._engine_in_flight.labels(load.engine).set(load.in_flight)
                self._engine_queued.labels(load.engine).set(load.queued)
                for breaker in _BREAKER:
                    self._breaker.labels(load.engine, breaker).set(load.breaker == breaker)
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str, *labels: str) -> "_Counter":
        counter = _Counter(f"tandem_{name}", what, labels)
        self._registry.register(counter)
        return counter

    def _histogram(self, name: str, what: str, buckets: Iterable[float], *labels: str) -> "_Histogram":
        histogram = _Histogram(f"tandem_{name}", what, tuple(buckets), labels)
        self._registry.register(histogram)
        return histogram

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"tandem_{name}", what, ("engine", *labels), registry=self._registry)


class _Counter(Collector):
    """Sums by label values."""

    def __init__(self, name: str, what: str, labels: tuple[str, ...]) -> None:
        self._described = name, what, labels
        self._sums: dict[tuple[str | int, ...], float] = {}

    def add(self, number: float, *values: str | int) -> None:
        self._sums[values] = self._sums.get(values, 0) + number

    def collect(self) -> Iterable[Metric]:
        name, what, labels = self._described
        family = CounterMetricFamily(name, what, labels=labels)
        for values, total in list(self._sums.items()):
            family.add_metric([str(value) for value in values], total)
        return [family]


class _Histogram(Collector):
    """How many values fell into which bucket, by label values.

    Args:
        bounds: of the buckets, each inclusive, ascending; beyond the last is one more.
    """

    def __init__(self, name: str, what: str, bounds: tuple[float, ...], labels: tuple[str, ...]) -> None:
        self._described = name, what, labels
        self._bounds = bounds
        self._names = [*(str(float(bound)) for bound in bounds), "+Inf"]
        self._tallies: dict[tuple[str, ...], list[float]] = {}  # a number for each bucket, then the values' sum

    def observe(self, value: float, *values: str) -> None:
        tally = self._tallies.get(values)
        if tally is None:
            tally = self._tallies[values] = [0] * (len(self._names) + 1)
        tally[bisect_left(self._bounds, value)] += 1
        tally[-1] += value

    def collect(self) -> Iterable[Metric]:
        name, what, labels = self._described
        family = HistogramMetricFamily(name, what, labels=labels)
        for values, tally in list(self._tallies.items()):
            *counts, total = tally
            family.add_metric(list(values), list(zip(self._names, accumulate(counts), strict=True)), total)
        return [family]


def merged(scraped: Mapping[str, bytes]) -> bytes:
    """The engines' own ``vllm:*`` series, each labelled by its engine, in Prometheus' text format.

    Args:
        scraped: by engine's name, what its own ``/metrics`` said; nonsense is left out.
    """
    return generate_latest(_Scraped(scraped))


class _Scraped(CollectorRegistry):
    """The engines' ``vllm:*`` families, merged, each sample labelled by its engine."""

    def __init__(self, scraped: Mapping[str, bytes]) -> None:
        super().__init__()
        self._families: dict[str, Metric] = {}
        for engine, text in scraped.items():
            try:
                families = [*text_string_to_metric_families(text.decode())]
            except ValueError as exc:  # no text, or not of that format
                _log.warning("the metrics of %s cannot be read: %s", engine, exc)
                continue
            for family in families:
                if family.name.startswith("vllm:"):
                    self._add(engine, family)

    def _add(self, engine: str, family: Metric) -> None:
        merged = self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        for sample in family.samples:
            labels = dict(sample.labels)
            if "engine" in labels:  # vLLM's own: which of its data-parallel engines
                labels["engine_index"] = labels.pop("engine")
            merged.samples.append(sample._replace(labels={**labels, "engine": engine}))

    def collect(self) -> Iterable[Metric]:
        return self._families.values()
