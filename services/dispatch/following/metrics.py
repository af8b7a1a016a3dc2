"""Metrics of target following and pursuits."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class FollowingMetrics:
    """Counters of failures, by gRPC status code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.streams_broken = Counter(
            "tandem_dispatch_target_streams_broken",
            "Streams of a target's positions that broke",
            ["code"],
            registry=registry,
        )
        self.pursuit_failed = Counter(
            "tandem_dispatch_pursuit_failed",
            "Commands of a pursuit that ingest didn't accept",
            ["code"],
            registry=registry,
        )
