"""The client's batches as OpenTelemetry spans, through the API alone: the application chooses provider and exporter."""

from contextvars import Token

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from tandem import __version__
from tandem.telemetry.timeline import Step

_EVENTS = {"started": "start", "retried": "retry", "finished": "completion", "failed": "error"}


class Spans:
    """A sink that makes a span ``vllm.embed_batch`` of each batch; it is the current one while the batch is sent."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Span, Token[Context]]] = {}

    def __call__(self, step: Step) -> None:
        """Begin its batch's span, add to it or end it."""
        if step.name == "started":
            span = trace.get_tracer("tandem", __version__).start_span(
                "vllm.embed_batch", kind=SpanKind.CLIENT, attributes=_asked(step), start_time=_ns(step.at)
            )
            self._open[step.batch_id] = span, context.attach(trace.set_span_in_context(span))
        span, token = self._open[step.batch_id]
        span.add_event(_EVENTS[step.name], _about(step), _ns(step.at))
        if step.outcome:
            del self._open[step.batch_id]
            context.detach(token)
            span.set_attributes(_came(step))
            if step.name == "failed":
                span.set_status(StatusCode.ERROR, step.error)
            span.end(_ns(step.at))


def headers() -> dict[str, str]:
    """The current span as headers of a request, so that the server's own spans hang below it."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def _asked(step: Step) -> dict[str, AttributeValue]:
    """Ours, and OpenTelemetry's names beside them.

    Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
    """
    return {
        "mode": step.mode,
        "n_texts": step.n_texts,
        "model": step.model,
        "batch": step.batch,
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": step.model,
        "gen_ai.request.encoding_formats": ("base64",),
    }


def _came(step: Step) -> dict[str, AttributeValue]:
    if step.name == "failed":
        return {"outcome": step.outcome, "error.type": step.outcome}
    return {
        "outcome": step.outcome,
        "dim": step.dim,
        "gen_ai.embeddings.dimension.count": step.dim,
        "gen_ai.usage.input_tokens": step.tokens,
    }


def _about(step: Step) -> dict[str, AttributeValue]:
    if step.name == "retried":
        return {"attempt": step.attempt, "pause": step.pause, "error": step.error}
    return {"error": step.error} if step.error else {}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
