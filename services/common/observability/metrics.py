"""Prometheus metrics that all services share. Each process creates them once, on a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.priority import PriorityGate, WorkClass


def process_registry() -> CollectorRegistry:
    """Registry for the metrics of a process. It includes the default registry, which has the process's memory, CPU time and garbage
    collection."""
    registry = CollectorRegistry()
    registry.register(REGISTRY)
    return registry


class ProcessMetrics:
    """Metrics of a process that don't depend on its service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        """Registry of all metrics of the process."""
        self.streams_went_back = Counter(
            "tandem_stream_went_back",
            "Times that a reader found its last read entry replaced or missing in the stream",
            ["stream"],
            registry=registry,
        )
        self.unusable_messages = Counter(
            "tandem_unusable_messages",
            "Messages that a reader couldn't use, by stream, reader and outcome: dead_letter (kept in DEAD_LETTERS) or passed_over",
            ["stream", "reader", "outcome"],
            registry=registry,
        )
        self.publications_lost = Counter(
            "tandem_publications_lost",
            "Published messages that their stream lost and that are published again",
            ["stream"],
            registry=registry,
        )
        self.http_closed = Counter(
            "tandem_http_closed",
            "Connections that were closed because of the peer's behaviour, by reason",
            ["endpoint", "reason"],
            registry=registry,
        )
        self.streams_unread = Counter(
            "tandem_grpc_streams_unread",
            "gRPC streams that were ended because their peer did not read them, by method",
            ["method"],
            registry=registry,
        )
        self.disk_used = Gauge(
            "tandem_disk_used_ratio",
            "Used share of the disk that holds this process's data, 0 to 1",
            registry=registry,
        )
        self.certificate_remaining_s = Gauge(
            "tandem_certificate_remaining_seconds",
            "Time until this process's certificate ends, by use: mesh or http; 0 if its file can't be read",
            ["certificate"],
            registry=registry,
        )
        self.stream_used = Gauge(
            "tandem_stream_used_ratio",
            "Used share of a stream that rejects messages once it is full, 0 to 1",
            ["stream"],
            registry=registry,
        )
        self.stream_consumers = Gauge(
            "tandem_stream_consumers",
            "Consumers of a stream, for all users together; the server accepts at most 1,000",
            ["stream"],
            registry=registry,
        )


class GateMetrics(Collector):
    """Work that a process has put off in favour of response work, by class. Read from its gate at each scrape."""

    def __init__(self, gate: PriorityGate, registry: CollectorRegistry) -> None:
        self._gate = gate
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics."""
        waiting = GaugeMetricFamily("tandem_work_waiting", "Blocks of work that wait for admission", labels=["class"])
        oldest_s = GaugeMetricFamily(
            "tandem_work_oldest_seconds", "Longest time that such a block has waited, seconds", labels=["class"]
        )
        overdue = CounterMetricFamily(
            "tandem_work_overdue",
            "Blocks of work that had waited for the maximum delay, so that they ran beside response work",
            labels=["class"],
        )
        for work in (WorkClass.SHARING, WorkClass.RECORD, WorkClass.HISTORY):
            waiting.add_metric([work.value], self._gate.waiting(work))
            oldest_s.add_metric([work.value], self._gate.oldest_s(work))
            overdue.add_metric([work.value], self._gate.overdue(work))
        yield from (waiting, oldest_s, overdue)


def unexposed() -> ProcessMetrics:
    """Metrics that nobody scrapes, for a process without a metrics port such as a command."""
    return ProcessMetrics(CollectorRegistry())
