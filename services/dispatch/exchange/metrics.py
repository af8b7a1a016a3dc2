"""Metrics of a leg's webhooks. Labels name the receiver, never an incident or a person."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class WebhookMetrics:
    """Counts of the deliveries to each receiver."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tries = Counter(
            "tandem_webhook_tries",
            "Attempts to deliver a message to a receiver, by outcome",
            ["receiver", "outcome"],
            registry=registry,
        )
        self.waiting = Gauge(
            "tandem_webhook_waiting",
            "Messages that wait for a receiver, by queue: steps or reviews",
            ["receiver", "queue"],
            registry=registry,
        )
