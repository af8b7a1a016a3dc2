"""Rate limits of devices' reports and of senders' refused reports. Pure: the time is an argument."""

from __future__ import annotations

from collections.abc import Sequence

BACKFILL_BURSTS = 20
"""Number of bursts that buffered reports may use at once. With a burst of 300, that is 6,000 reports:
about a day of one report every 15 s."""
REFUSALS_PER_S, REFUSALS_BURST = 1_000.0, 5_000
"""Refused reports that a sender may have without a penalty delay: per second in the long run, and at once."""
MAX_PENALTY_S = 30.0
"""Maximum penalty delay of a sender, seconds, however many reports were refused. So the sender can report again soon."""


class RateLimit:
    """Rate limit per key: `per_s` in the long run and `burst` at once. Generic cell rate algorithm (ITU-T I.371)."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._interval_s = 1 / per_s
        self._max_due_ahead_s = burst / per_s
        self._due_s: dict[str, float] = {}
        """By key: when its next report would be due if its reports so far were spaced evenly, seconds."""

    def over(self, device_ids: Sequence[str], now_s: float) -> list[int]:
        """Counts a report for each of these devices. Returns the indexes of the reports over the limit; these aren't counted."""
        due_s, interval_s, latest_s = self._due_s, self._interval_s, now_s + self._max_due_ahead_s
        refused: list[int] = []
        for i, device_id in enumerate(device_ids):
            due = due_s.get(device_id, now_s)
            due = (now_s if due < now_s else due) + interval_s
            if due > latest_s:
                refused.append(i)
            else:
                due_s[device_id] = due
        return refused

    def penalty_s(self, sender: str, now_s: float) -> float:
        """Returns the time that a sender has to wait until it is within its rate, seconds."""
        return max(0.0, self._due_s.get(sender, now_s) - now_s - self._max_due_ahead_s)

    def charge(self, sender: str, count: int, now_s: float) -> float:
        """Counts `count` reports of a sender and returns the sender's penalty delay, seconds. A count of 0 causes none."""
        if not count:
            return 0.0
        due_s = max(self._due_s.get(sender, now_s), now_s) + count * self._interval_s
        self._due_s[sender] = min(due_s, now_s + self._max_due_ahead_s + MAX_PENALTY_S)
        return self.penalty_s(sender, now_s)

    def forget(self, now_s: float) -> None:
        """Drops the keys whose due time has passed. They are treated like unknown keys anyway."""
        self._due_s = {device_id: due for device_id, due in self._due_s.items() if due > now_s}


class RateLimits:
    """Separate rate limits for each kind of report and for refused reports, so that none uses up another's."""

    def __init__(self, per_s: float, burst: int) -> None:
        self.live = RateLimit(per_s, burst)
        self.backfill = RateLimit(per_s, BACKFILL_BURSTS * burst)
        self.events = RateLimit(per_s, burst)
        self.presences = RateLimit(per_s, burst)
        """Rate limit of presences, of contacts without a position, and of contacts by reports with a clock that is ahead."""
        self.refusals = RateLimit(REFUSALS_PER_S, REFUSALS_BURST)
        """Rate limit of refused reports, by `Sender.refusal_key`."""

    def forget(self, now_s: float) -> None:
        """Drops the keys of all limits that are in the state of an unknown key."""
        for limit in (self.live, self.backfill, self.events, self.presences, self.refusals):
            limit.forget(now_s)
