"""Export of spans to an OTLP back end, if one is configured. No other work waits for it, and stored traces stay complete.

The spans of an incident are built when it has been quiet for QUIET_S, at the latest EXPORT_WITHIN_S after its first new fact. So an
incident costs few builds, however many steps it has, and an export never competes with the crowd of its first moment.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_NAMESPACE, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link as OtelLink
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from services.common.observability import spans, telemetry
from services.common.observability.telemetry import logger
from services.common.priority import PriorityGate
from services.registry.metrics import RegistryMetrics
from services.registry.traces.domain.spans import TraceSpan
from services.registry.traces.service import ReadProgress, Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
MAX_WAITING = 10_000
"""Maximum number of incidents that wait for export. Updates of further incidents aren't exported."""
MAX_REMEMBERED = 1_000
"""Number of traces whose exported spans are remembered. In any other trace, a new span exports all spans since the start."""
QUIET_S = 5.0
"""Time without a new fact of an incident before its export, seconds. Alerts and steps come from two streams, and an exported step can't
be linked to its alert later."""
EXPORT_WITHIN_S = 60.0
"""Maximum delay of an export after the first fact that wasn't exported, seconds."""
FLUSH_WITHIN_MS = 2_000
_SCOPE = InstrumentationScope("services.registry.traces")


class Exporter:
    """Exports each span once, soon after its facts are stored. Without a configured endpoint it does nothing."""

    def __init__(self, traces: Traces, gate: PriorityGate, metrics: RegistryMetrics) -> None:
        self._traces, self._gate = traces, gate
        self._metrics = metrics
        self._first_s: dict[str, float] = {}
        """Time of the first fact that wasn't exported, by incident id, earliest first. By the event loop's clock, seconds."""
        self._last_s: OrderedDict[str, float] = OrderedDict()
        """Time of the last fact by incident id, earliest first."""
        self._wake = asyncio.Event()
        self._sent: OrderedDict[str, set[str]] = OrderedDict()
        """Ids of the exported spans, by trace id."""
        self._started_at = ReadProgress({}, 0)
        self._processor: SpanProcessor | None = None
        if telemetry.is_on() and any(os.environ.get(name) for name in ENDPOINTS):
            self._processor = BatchSpanProcessor(OTLPSpanExporter())

    async def prepare(self) -> None:
        """Set the starting point: facts that are stored already count as exported. Call once before reading new messages."""
        self._started_at = await self._traces.progress()

    def notify(self, incident_id: str) -> None:
        """Schedule an incident with new facts for export."""
        if self._processor is None or not incident_id:
            return
        if len(self._first_s) >= MAX_WAITING and incident_id not in self._first_s:
            self._metrics.spans_lost.inc()
            return
        now_s = asyncio.get_running_loop().time()
        self._first_s.setdefault(incident_id, now_s)
        self._last_s[incident_id] = now_s
        self._last_s.move_to_end(incident_id)
        self._metrics.exports_put_off.set(len(self._first_s))
        self._wake.set()

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            incident_id = await self._next_due()
            del self._first_s[incident_id], self._last_s[incident_id]
            self._metrics.exports_put_off.set(len(self._first_s))
            try:
                async with self._gate.record():
                    spans = await self._new(incident_id)
            except Exception as error:  # any error, because only the export fails and the stored trace stays complete
                self._metrics.spans_lost.inc()
                logger().error("spans_not_exported", incident_id=incident_id, reason=type(error).__name__)
                continue
            self._send(spans)

    async def _next_due(self) -> str:
        """Waits until an incident is due, and returns its id."""
        while True:
            if not self._first_s:
                self._wake.clear()
                await self._wake.wait()
            quietest, oldest = next(iter(self._last_s)), next(iter(self._first_s))
            quiet_at_s, at_latest_s = self._last_s[quietest] + QUIET_S, self._first_s[oldest] + EXPORT_WITHIN_S
            left_s = min(quiet_at_s, at_latest_s) - asyncio.get_running_loop().time()
            if left_s <= 0:
                return quietest if quiet_at_s <= at_latest_s else oldest
            await asyncio.sleep(left_s)

    async def _new(self, incident_id: str) -> list[TraceSpan]:
        """Spans of an incident that weren't exported yet."""
        facts = await self._traces.facts_of(incident_id)
        if spans.trace_id_of(incident_id) not in self._sent:
            self._remember(facts.spans(until=self._started_at))
        new = [span for span in facts.spans() if span.span_id not in self._sent.get(span.trace_id, ())]
        self._remember(new)
        while len(self._sent) > MAX_REMEMBERED:
            self._sent.popitem(last=False)
        return new

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
        instrumentation_scope=_SCOPE,
        start_time=span.start_us * 1000,
        end_time=span.end_us * 1000,
    )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
