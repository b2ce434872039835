"""What the request path tells of itself: frozen records, rendered by sinks that the path does not know."""

from typing import Protocol

import msgspec


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A request's place in a distributed trace: ids in lower-case hexadecimal.

    Attributes:
        parent: the caller's span; empty if it sent none.
        request: the span of the whole request.
        upstream: the span of the engine's work, which the engine is told as its parent.
        sampled: whether anybody keeps the trace.
        state: the caller's ``tracestate``; empty if it sent none.
    """

    trace: str
    parent: str
    request: str
    upstream: str
    sampled: bool
    state: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The trace context for the engine.

        Source: https://www.w3.org/TR/trace-context/
        """
        parent = f"00-{self.trace}-{self.upstream}-{'01' if self.sampled else '00'}"
        return {"traceparent": parent, **({"tracestate": self.state} if self.state else {})}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine has to do, as the router sees it.

    Attributes:
        in_flight: requests that it has; a batch of merged ones is one.
        queued: requests that wait for a place at it or at one of its replicas; not those that wait to be merged.
        breaker: ``closed``, ``open`` or ``half_open``.
    """

    engine: str
    in_flight: int
    queued: int
    breaker: str


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True):
    """One request, at its end.

    Attributes:
        id: the router's own id of it.
        client_id: the caller's ``X-Request-Id``, cleaned; empty if none was sent.
        caller: the name of the caller's key; empty without keys.
        route: a path that exists, or ``other``.
        model: the served name that was asked for, once that was known to exist; else empty.
        engine: the engine that was asked last; empty if none was.
        status: what was sent; 499 for a caller that left first.
        outcome: ``ok``, ``refused`` (4xx), ``failed`` (5xx, or a stream that broke off) or ``left``.
        seconds: from arrival to the end of the answer.
        queued: seconds of it that were spent waiting for an engine.
        engine_seconds: seconds of it until the engine's answer, or its first event, had come.
        first_event: seconds from arrival to the first event of a stream; None without.
        between_events: mean seconds from one event to the next; None with fewer than two.
        began: when it arrived, in seconds since the epoch.
        inputs: how many texts an embedding request had; 0 for others.
        prompt_tokens: as the engine counted; 0 where it did not tell.
        completion_tokens: likewise.
        retries: how often the engine was asked again.
        error: the code, or else the type, of the error that was sent; empty without one.
        prompt: the beginning of its body, where the settings ask for that; else empty.
        trace: its place in a trace; None where nobody traces.
    """

    id: str
    method: str
    route: str
    status: int
    outcome: str
    seconds: float
    client_id: str = ""
    caller: str = ""
    model: str = ""
    engine: str = ""
    queued: float = 0.0
    engine_seconds: float = 0.0
    began: float = 0.0
    inputs: int = 0
    first_event: float | None = None
    between_events: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    error: str = ""
    prompt: str = ""
    trace: Trace | None = None


class Sink(Protocol):
    """Renders records. Nothing in it may block, or raise."""

    def request_began(self) -> None:
        """A request came."""

    def request_ended(self, event: RequestEnded) -> None:
        """It was answered, or its caller left."""

    def close(self) -> None:
        """The router ends: what was not rendered yet is rendered now, within seconds."""
