"""How far evaluators have folded the log, by their metrics."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

APPLIED = "tandem_geofence_applied_sequence"
_POLL_S = 0.05
_TIMEOUT_S = 5.0


async def applied(metrics_url: str, partition: int = 0) -> int:
    """Sequence of the last log entry of a partition that an evaluator has folded; 0 if it doesn't answer, or folds other partitions."""
    try:
        text = await asyncio.to_thread(_read, f"{metrics_url}/metrics")
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0
    return next(
        (
            int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == APPLIED and sample.labels["partition"] == str(partition)
        ),
        0,
    )


async def until_applied(metrics_url: str, sequence: int, *, within_s: float, partition: int = 0) -> int:
    """Waits until an evaluator has folded an entry of a partition; returns the sequence of its last entry. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while (last := await applied(metrics_url, partition)) < sequence:  # noqa: ASYNC110  # another process's
            await asyncio.sleep(_POLL_S)
    return last


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # an address of this mesh
        return str(answer.read().decode())
