"""The client's batches as Prometheus histograms, in prometheus_client's own registry, which applications expose.

They are module variables because that registry takes each name once in a process, however many clients there are.
"""

from prometheus_client import Histogram

from tandem.telemetry.timeline import Step

EMBED_BATCH_SIZE = Histogram(
    "embed_batch_size",
    "Texts in a batch that was embedded.",
    ("mode", "outcome"),
    buckets=tuple(2**power for power in range(12)),
)
EMBED_LATENCY_SECONDS = Histogram(
    "embed_latency_seconds",
    "Seconds from a batch's start to its end, with all repetitions.",
    ("mode", "outcome"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)


def count(step: Step) -> None:
    """A sink: count a batch when it has ended. The outcome is ``ok`` or the name of the error's class."""
    if step.name in ("finished", "failed"):
        EMBED_BATCH_SIZE.labels(step.mode, step.outcome).observe(step.n_texts)
        EMBED_LATENCY_SECONDS.labels(step.mode, step.outcome).observe(step.seconds)
