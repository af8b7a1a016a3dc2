"""Metrics of target following and pursuits."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class FollowingMetrics:
    """Counters of failures, by gRPC status code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.streams_broken = Counter(
            "tandem_dispatch_target_streams_broken",
            "Streams of positions from an evaluator that broke or couldn't be opened",
            ["code"],
            registry=registry,
        )
        self.shares_refused = Counter(
            "tandem_dispatch_target_shares_refused",
            "Positions of a target that an evaluator refused",
            ["code"],
            registry=registry,
        )
        self.pursuit_failed = Counter(
            "tandem_dispatch_pursuit_failed",
            "Commands of a pursuit that ingest didn't accept",
            ["code"],
            registry=registry,
        )
