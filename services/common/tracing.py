"""One trace for each incident, made afterwards from the times that messages carry. An ordinary report costs nothing.

The trace id and the id of its root span are hashes of the incident's id, so every process can add its spans without being told
a context, and nobody's span hangs in the air. Traces are for seeing, not for proof: losing them touches no decision.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def trace_id_of(incident_id: str) -> int:
    """Trace of an incident, 128 bits."""
    return int.from_bytes(hashlib.blake2b(incident_id.encode(), digest_size=16, person=b"trace").digest(), "big")


def root_span_id_of(incident_id: str) -> int:
    """Span that all others of the incident hang from, 64 bits."""
    return int.from_bytes(hashlib.blake2b(incident_id.encode(), digest_size=8, person=b"root").digest(), "big")


class _Ids(RandomIdGenerator):
    """Random ids, but for a root, whose ids are given."""

    def __init__(self) -> None:
        self.root_of: str | None = None

    def generate_trace_id(self) -> int:
        return trace_id_of(self.root_of) if self.root_of else super().generate_trace_id()

    def generate_span_id(self) -> int:
        return root_span_id_of(self.root_of) if self.root_of else super().generate_span_id()


class IncidentTracer:
    """Makes spans of incidents and exports them by OTLP to OTEL_EXPORTER_OTLP_ENDPOINT; without one it does nothing."""

    def __init__(self, service: str) -> None:
        self._provider: TracerProvider | None = None
        if os.environ.get(ENDPOINT):
            self._ids = _Ids()
            # Only incidents are traced, and each of them always.
            self._provider = TracerProvider(
                sampler=ALWAYS_ON, resource=Resource({SERVICE_NAME: service}), id_generator=self._ids
            )
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(insecure=True)))

    def root(self, incident_id: str, start_us: int, end_us: int, attributes: Mapping[str, str]) -> None:
        """The span of the report that opened an incident, from its receipt to its alert; microseconds since 1970 UTC."""
        if self._provider:
            self._ids.root_of = incident_id
            try:
                span = self._provider.get_tracer("tandem").start_span(
                    "incident", trace.set_span_in_context(trace.INVALID_SPAN), start_time=start_us * 1000
                )
            finally:
                self._ids.root_of = None
            self._end(span, incident_id, end_us, attributes)

    def step(self, name: str, incident_id: str, start_us: int, end_us: int, attributes: Mapping[str, str]) -> None:
        """A span under the incident's root; microseconds since 1970 UTC."""
        if self._provider:
            parent = trace.NonRecordingSpan(
                trace.SpanContext(
                    trace_id_of(incident_id),
                    root_span_id_of(incident_id),
                    is_remote=True,
                    trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
                )
            )
            span = self._provider.get_tracer("tandem").start_span(
                name, trace.set_span_in_context(parent), start_time=start_us * 1000
            )
            self._end(span, incident_id, end_us, attributes)

    def _end(self, span: trace.Span, incident_id: str, end_us: int, attributes: Mapping[str, str]) -> None:
        span.set_attribute("tandem.incident_id", incident_id)
        for key, value in attributes.items():
            span.set_attribute(f"tandem.{key}", value)
        span.end(end_us * 1000)

    def close(self) -> None:
        """Sends what is left; bounded, and failing is no failure."""
        if self._provider:
            self._provider.force_flush(2_000)
            self._provider.shutdown()
