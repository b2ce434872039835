"""The router's own series, and the engines' with their names on them, for Prometheus."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tandem.fleet import Snapshot, State

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One router's series, in a registry of its own. Label values are bounded: routes and models that exist."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tandem_requests",
            "Requests answered, by route, model and status.",
            ("route", "model", "status"),
            registry=self._registry,
        )
        self._duration = Histogram(
            "tandem_request_duration_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            ("route", "model"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._in_flight = Gauge("tandem_requests_in_flight", "Requests being answered now.", registry=self._registry)
        self._state = Gauge(
            "tandem_engine_state",
            "1 for the state that an engine is in, 0 for the others.",
            ("engine", "state"),
            registry=self._registry,
        )
        self._restarts = Gauge(
            "tandem_engine_restarts",
            "How often an engine was restarted.",
            ("engine",),
            registry=self._registry,
        )

    def began(self) -> None:
        """A request came."""
        self._in_flight.inc()

    def ended(self, *, route: str, model: str, status: int, seconds: float) -> None:
        """A request was answered; 499 stands for a caller that went away."""
        self._in_flight.dec()
        self._requests.labels(route, model, str(status)).inc()
        self._duration.labels(route, model).observe(seconds)

    def render(self, snapshot: Snapshot, scraped: Mapping[str, str]) -> bytes:
        """Everything in Prometheus' text format.

        Args:
            scraped: by engine's name, what its own ``/metrics`` said.
        """
        for engine in snapshot.engines:
            self._restarts.labels(engine.name).set(engine.restarts)
            for state in State:
                self._state.labels(engine.name, state.value).set(engine.state is state)
        return generate_latest(self._registry) + generate_latest(_Scraped(scraped))


class _Scraped(CollectorRegistry):
    """The engines' ``vllm:*`` families, merged, each sample labelled by its engine."""

    def __init__(self, scraped: Mapping[str, str]) -> None:
        super().__init__()
        self._families: dict[str, Metric] = {}
        for engine, text in scraped.items():
            for family in text_string_to_metric_families(text):
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
