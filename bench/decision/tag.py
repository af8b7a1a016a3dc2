"""A tag in a play of the decision-quality study: when it takes a fix, and what commands do to it. Pure.

`ReportEvery` with a duration sets the interval; at its end the tag returns to its usual interval. A position now is one more fix,
and leaves the interval alone. A stream delivers a command 2 s after the decision, and a position on demand takes 2 to 10 s
altogether. A gap or a hold of the network delays a changed interval; a position on demand that meets a gap fails, as the tag has no
fix or no network.
"""

from __future__ import annotations

import heapq

from bench.decision.arms import Arm, Delivery
from bench.decision.noise import Receiver, Report
from services.geofence.domain.alerts import SensingRequest

STREAM_MS = 2_000
"""Time from a decision to the arrival of its command by an open stream."""
DEMAND_MS = 8_000
"""Maximum time from a command to a fix on demand."""


class Tag:
    """A tag that reports at an interval and obeys commands as its arm says."""

    def __init__(self, receiver: Receiver, arm: Arm, until_ms: int) -> None:
        self.commands = self.locates = self.located = 0
        """Number of requests for an interval, of requests for a position, and of positions on demand that were reported."""
        self._receiver = receiver
        self._arm = arm
        self._until_ms = until_ms
        self._every_ms, self._kept_until_ms = arm.every_ms, 0
        """Interval of the last command, and when it ends."""
        self._next_ms = receiver.first_ms(arm.every_ms)
        self._last_ms: int | None = None
        """The last fix by the interval."""
        self._demanded: list[int] = []
        """Heap of the times of fixes on demand."""
        self._on_the_way: list[tuple[int, int, SensingRequest]] = []
        """Heap of the commands by arrival."""
        self._sequence = 0
        """Number of commands that were sent, so that commands that arrive together are obeyed in order."""
        self._pending: dict[bool, SensingRequest] = {}
        """Newest command for an interval (True) and for a position (False) that waits for the next contact."""
        self._number = 0

    def next_ms(self) -> int:
        """When the tag does something next: takes a fix or obeys a command."""
        times_ms = [self._next_ms, *self._demanded[:1], *(arrives_ms for arrives_ms, _, _ in self._on_the_way[:1])]
        return min(times_ms)

    def advance(self) -> list[Report]:
        """Does what is due next; the reports that follow from it."""
        now_ms = self.next_ms()
        if self._on_the_way and self._on_the_way[0][0] == now_ms:
            self._obey(heapq.heappop(self._on_the_way)[2], now_ms)
            return []
        if self._demanded and self._demanded[0] == now_ms:
            heapq.heappop(self._demanded)
            reports = self._report(now_ms)
            self.located += bool(reports)
            return reports
        self._last_ms = now_ms
        self._next_ms = self._scheduled_ms(now_ms)
        return self._report(now_ms)

    def request(self, request: SensingRequest, now_ms: int) -> None:
        """Accepts a request of the fold, if the tag can be commanded."""
        if self._arm.delivery is None:
            return
        is_interval = request.interval_s is not None
        self.commands += is_interval
        self.locates += not is_interval
        if self._arm.delivery is Delivery.NEXT_CONTACT:
            self._pending[is_interval] = request
        else:
            self._send(request, now_ms, STREAM_MS)

    def answered(self, now_ms: int) -> None:
        """A report of the tag has arrived, and the answer carries what was requested before."""
        for request in self._pending.values():
            self._send(request, now_ms, 0)
        self._pending.clear()

    def _send(self, request: SensingRequest, now_ms: int, delay_ms: int) -> None:
        if request.interval_s is None and self._receiver.is_in_gap(now_ms + delay_ms):
            return
        arrives_ms = self._receiver.reachable_ms(now_ms, delay_ms)
        self._sequence += 1
        heapq.heappush(self._on_the_way, (arrives_ms, self._sequence, request))

    def _obey(self, request: SensingRequest, now_ms: int) -> None:
        if now_ms >= min(request.until_ms, self._until_ms):
            return
        if request.interval_s is None:
            heapq.heappush(self._demanded, now_ms + round(self._receiver.seconds_to_fix(now_ms) * DEMAND_MS))
            return
        self._every_ms, self._kept_until_ms = request.interval_s * 1000, request.until_ms
        if self._last_ms is not None:
            self._next_ms = max(now_ms, self._scheduled_ms(self._last_ms))

    def _scheduled_ms(self, last_ms: int) -> int:
        """The fix after one at `last_ms`: by the interval of the last command, unless that ends before."""
        usual_ms = last_ms + self._arm.every_ms
        kept_ms = last_ms + self._every_ms
        return kept_ms if kept_ms <= self._kept_until_ms else max(usual_ms, self._kept_until_ms)

    def _report(self, now_ms: int) -> list[Report]:
        if now_ms > self._until_ms:
            return []
        self._number += 1
        return self._receiver.reports(now_ms, self._number)
