"""Log lines of faults that repeat, such as a database that refuses each attempt while it is away.

The first failure of an outage is logged at once. While the outage lasts, each reason gets at most one line in INTERVAL_S, with the
number of its failures since its last line. The end of the outage gets a line, too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.common.observability.telemetry import logger

INTERVAL_S = 10.0
"""Least time between two lines with the same reason, seconds."""
WORKS_AFTER_S = 10.0
"""Time without a failure after which work that has no end counts as working again, seconds."""
MAX_REASONS = 100
"""Number of reasons that an outage remembers. Some reasons hold a number that differs each time."""


@dataclass(slots=True)
class _Repetition:
    """Failures with the same reason."""

    not_before_s: float = 0.0
    """When the next line may be written, by the monotonic clock, seconds."""
    unlogged: int = 0


@dataclass(slots=True)
class _Outage:
    """Failures with the same event and fields."""

    since_s: float
    failed_s: float
    """Last failure."""
    failures: int = 0
    repetitions: dict[str, _Repetition] = field(default_factory=dict)
    """Failures by their reason."""


class Outages:
    """Outages with a common event, by the fields that name what fails. Threads may share it."""

    def __init__(self, event: str, ended: str) -> None:
        self._event, self._ended = event, ended
        """Events of a failure, and of the end of an outage."""
        self._open: dict[tuple[tuple[str, object], ...], _Outage] = {}
        self._lock = threading.Lock()

    def failed(self, fields: Mapping[str, object], reason: str, level: int = logging.ERROR) -> None:
        """Notes a failure, and logs it if it tells something new or the last line is INTERVAL_S old."""
        now_s, key = time.monotonic(), tuple(fields.items())
        with self._lock:
            outage = self._open.setdefault(key, _Outage(now_s, now_s))
            outage.failed_s = now_s
            outage.failures += 1
            if reason not in outage.repetitions and len(outage.repetitions) >= MAX_REASONS:
                outage.repetitions.clear()
            repetition = outage.repetitions.setdefault(reason, _Repetition(now_s))
            repetition.unlogged += 1
            if now_s < repetition.not_before_s:
                return
            failures = repetition.unlogged
            repetition.unlogged = 0
            repetition.not_before_s = now_s + INTERVAL_S
        logger().log(level, self._event, **fields, reason=reason, failures=failures)

    def succeeded(self, fields: Mapping[str, object], quiet_s: float = 0.0) -> bool:
        """Ends an outage, if there is one and its last failure is at least `quiet_s` ago, seconds. Returns whether it has ended."""
        if not self._open:
            return False
        now_s, key = time.monotonic(), tuple(fields.items())
        with self._lock:
            outage = self._open.get(key)
            if outage is None or now_s < outage.failed_s + quiet_s:
                return False
            del self._open[key]
        lasted_s = round(outage.failed_s - outage.since_s, 1)
        logger().info(self._ended, **fields, after=self._event, failures=outage.failures, seconds=lasted_s)
        return True

    @contextmanager
    def working(self, fields: Mapping[str, object]) -> Iterator[None]:
        """Ends an outage once the block has run for WORKS_AFTER_S. For work on the event loop that runs until it fails."""
        works = asyncio.get_running_loop().call_later(WORKS_AFTER_S, self.succeeded, fields)
        try:
            yield
        finally:
            works.cancel()

    def forget(self, fields: Mapping[str, object]) -> None:
        """Forgets an outage whose end nobody will see. The next failure begins another one."""
        with self._lock:
            self._open.pop(tuple(fields.items()), None)
