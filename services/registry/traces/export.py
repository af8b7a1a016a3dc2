"""Spans on their way to an OTLP back end, where one is configured. Nobody waits for it; what it can't take is lost there, not here."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_NAMESPACE, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link as OtelLink
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from prometheus_client import Counter

from services.common.observability import trace_ids, tracing
from services.common.observability.telemetry import logger
from services.registry.traces.domain.spans import Span
from services.registry.traces.traces import Read, Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
MAX_WAITING = 10_000
"""Incidents that wait to be exported; beyond them what happened in others is left out."""
MAX_REMEMBERED = 1_000
"""Traces of which it is remembered what was sent; what is new in another is sent with all of it that came since the start."""
SETTLES_S = 1.0
"""Alerts and steps are read from two streams. What was sent stays as it is, so the alert is waited for that led to a step."""
FLUSH_WITHIN_MS = 2_000

_EXPORTED = Counter("tandem_registry_spans_exported", "Spans that were given to the OTLP exporter")
_LOST = Counter("tandem_registry_spans_lost", "Times that something of an incident was left out of the export")


class Exporter:
    """Sends each span once, as soon as what it is of is kept. Without an endpoint it does nothing."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces
        self._waiting: dict[str, None] = {}
        """Incidents of which something is new, in their order."""
        self._wake = asyncio.Event()
        self._sent: OrderedDict[str, set[str]] = OrderedDict()
        """By trace: its spans."""
        self._began_at = Read({}, 0)
        self._processor: SpanProcessor | None = None
        if tracing.is_on() and any(os.environ.get(name) for name in ENDPOINTS):
            self._processor = BatchSpanProcessor(OTLPSpanExporter())

    async def prepare(self) -> None:
        """To be called once before anything more is read: what was kept before is taken to have been sent."""
        self._began_at = await self._traces.position()

    def tell(self, incident_id: str) -> None:
        """Something more is kept of an incident."""
        if self._processor is None or not incident_id:
            return
        if len(self._waiting) >= MAX_WAITING and incident_id not in self._waiting:
            _LOST.inc()
            return
        self._waiting[incident_id] = None
        self._wake.set()

    async def run(self) -> None:
        """Exports for ever."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(SETTLES_S)
            incident_id = next(iter(self._waiting))
            del self._waiting[incident_id]
            try:
                spans = await self._new(incident_id)
            except Exception as error:  # whatever it is: the trace is kept here all the same
                _LOST.inc()
                logger().error("spans_not_exported", incident_id=incident_id, reason=type(error).__name__)
                continue
            self._send(spans)

    async def _new(self, incident_id: str) -> list[Span]:
        """Spans that weren't sent before."""
        known = await self._traces.known(incident_id)
        if trace_ids.trace_id_of(incident_id) not in self._sent:
            self._remember(known.spans(until=self._began_at))
        spans = [span for span in known.spans() if span.span_id not in self._sent.get(span.trace_id, ())]
        self._remember(spans)
        while len(self._sent) > MAX_REMEMBERED:
            self._sent.popitem(last=False)
        return spans

    def _remember(self, spans: Iterable[Span]) -> None:
        for span in spans:
            self._sent.setdefault(span.trace_id, set()).add(span.span_id)
            self._sent.move_to_end(span.trace_id)

    def _send(self, spans: Iterable[Span]) -> None:
        if self._processor is None:
            return
        for span in spans:
            self._processor.on_end(readable(span))
            _EXPORTED.inc()

    def close(self) -> None:
        """Sends what is left; bounded, and failing is no failure."""
        if self._processor:
            self._processor.force_flush(FLUSH_WITHIN_MS)
            self._processor.shutdown()


def readable(span: Span) -> ReadableSpan:
    """A span as the exporter takes it."""
    return ReadableSpan(
        span.name,
        context=_context(span.trace_id, span.span_id),
        parent=_context(span.trace_id, span.parent_id) if span.parent_id else None,
        resource=Resource({SERVICE_NAME: span.service, SERVICE_NAMESPACE: "tandem"}),
        attributes={f"tandem.{key}": value for key, value in span.attributes.items()},
        links=[OtelLink(_context(to.trace_id, to.span_id), {"tandem.what": to.what}) for to in span.links],
        kind=SpanKind.INTERNAL,
        start_time=span.start_us * 1000,
        end_time=span.end_us * 1000,
    )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
