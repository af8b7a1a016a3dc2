"""Export of spans to an OTLP back end, if one is configured. No other work waits for it, and stored traces stay complete."""

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

from services.common.observability import trace_ids, tracing
from services.common.observability.telemetry import logger
from services.registry.metrics import RegistryMetrics
from services.registry.traces.domain.spans import TraceSpan
from services.registry.traces.service import ReadProgress, Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
MAX_WAITING = 10_000
"""Maximum number of incidents that wait for export. Updates of further incidents aren't exported."""
MAX_REMEMBERED = 1_000
"""Number of traces whose exported spans are remembered. In any other trace, a new span exports all spans since the start."""
EXPORT_DELAY_S = 1.0
"""Delay before an export, seconds. Alerts and steps come from two streams, and an exported step can't be linked to its alert later."""
FLUSH_WITHIN_MS = 2_000


class Exporter:
    """Exports each span once, soon after its facts are stored. Without a configured endpoint it does nothing."""

    def __init__(self, traces: Traces, metrics: RegistryMetrics) -> None:
        self._traces = traces
        self._metrics = metrics
        self._waiting: dict[str, None] = {}
        """Ids of incidents with new facts, in order of arrival."""
        self._wake = asyncio.Event()
        self._sent: OrderedDict[str, set[str]] = OrderedDict()
        """Ids of the exported spans, by trace id."""
        self._started_at = ReadProgress({}, 0)
        self._processor: SpanProcessor | None = None
        if tracing.is_on() and any(os.environ.get(name) for name in ENDPOINTS):
            self._processor = BatchSpanProcessor(OTLPSpanExporter())

    async def prepare(self) -> None:
        """Set the starting point: facts that are stored already count as exported. Call once before reading new messages."""
        self._started_at = await self._traces.progress()

    def notify(self, incident_id: str) -> None:
        """Schedule an incident with new facts for export."""
        if self._processor is None or not incident_id:
            return
        if len(self._waiting) >= MAX_WAITING and incident_id not in self._waiting:
            self._metrics.spans_lost.inc()
            return
        self._waiting[incident_id] = None
        self._wake.set()

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(EXPORT_DELAY_S)
            incident_id = next(iter(self._waiting))
            del self._waiting[incident_id]
            try:
                spans = await self._new(incident_id)
            except Exception as error:  # any error, because only the export fails and the stored trace stays complete
                self._metrics.spans_lost.inc()
                logger().error("spans_not_exported", incident_id=incident_id, reason=type(error).__name__)
                continue
            self._send(spans)

    async def _new(self, incident_id: str) -> list[TraceSpan]:
        """Spans of an incident that weren't exported yet."""
        facts = await self._traces.facts_of(incident_id)
        if trace_ids.trace_id_of(incident_id) not in self._sent:
            self._remember(facts.spans(until=self._started_at))
        spans = [span for span in facts.spans() if span.span_id not in self._sent.get(span.trace_id, ())]
        self._remember(spans)
        while len(self._sent) > MAX_REMEMBERED:
            self._sent.popitem(last=False)
        return spans

    def _remember(self, spans: Iterable[TraceSpan]) -> None:
        for span in spans:
            self._sent.setdefault(span.trace_id, set()).add(span.span_id)
            self._sent.move_to_end(span.trace_id)

    def _send(self, spans: Iterable[TraceSpan]) -> None:
        if self._processor is None:
            return
        for span in spans:
            self._processor.on_end(readable(span))
            self._metrics.spans_exported.inc()

    def close(self) -> None:
        """Export the remaining spans within FLUSH_WITHIN_MS. Errors are ignored."""
        if self._processor:
            self._processor.force_flush(FLUSH_WITHIN_MS)
            self._processor.shutdown()


def readable(span: TraceSpan) -> ReadableSpan:
    """A span in the form that the OpenTelemetry exporter accepts."""
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
