"""How often a device may report, and how much a sender may bring that is refused. Pure: the time is an argument."""

from __future__ import annotations

from collections.abc import Sequence

BACKFILL_BURSTS = 20
"""How many bursts may come at once of what was buffered: with 300 reports, a day at 15 s."""
REFUSALS_PER_S, REFUSALS_BURST = 1_000.0, 5_000
"""Refused reports of one sender, before it has to wait."""
OWED_MOST_S = 30.0
"""So long a wait is the most that a sender owes, however many of its calls bring what is refused at once: it is heard again soon."""


class Quota:
    """So many a second in the long run, and so many at once (the generic cell rate algorithm, ITU-T I.371)."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._interval_s = 1 / per_s
        self._most_ahead_s = burst / per_s
        self._due_s: dict[str, float] = {}
        """When the next report of each would be due at the even rate."""

    def over(self, device_ids: Sequence[str], now_s: float) -> list[int]:
        """Counts a report of each of these devices, and returns which of them come too often; those don't count."""
        due_s, interval_s, latest_s = self._due_s, self._interval_s, now_s + self._most_ahead_s
        refused: list[int] = []
        for i, device_id in enumerate(device_ids):
            due = due_s.get(device_id, now_s)
            due = (now_s if due < now_s else due) + interval_s
            if due > latest_s:
                refused.append(i)
            else:
                due_s[device_id] = due
        return refused

    def owed_s(self, sender: str, now_s: float) -> float:
        """For how long a sender has to wait until it is within its rate again."""
        return max(0.0, self._due_s.get(sender, now_s) - now_s - self._most_ahead_s)

    def wait_s(self, sender: str, count: int, now_s: float) -> float:
        """Counts so many of a sender at once, and returns what it owes then; one that brought none has nothing to wait for."""
        if not count:
            return 0.0
        due_s = max(self._due_s.get(sender, now_s), now_s) + count * self._interval_s
        self._due_s[sender] = min(due_s, now_s + self._most_ahead_s + OWED_MOST_S)
        return self.owed_s(sender, now_s)

    def forget(self, now_s: float) -> None:
        """Drops what is even again: it says no more than nothing."""
        self._due_s = {device_id: due for device_id, due in self._due_s.items() if due > now_s}


class Quotas:
    """Live positions, buffered ones and events each have a rate of their own: none of them uses up another's."""

    def __init__(self, per_s: float, burst: int) -> None:
        self.live = Quota(per_s, burst)
        self.backfill = Quota(per_s, BACKFILL_BURSTS * burst)
        self.events = Quota(per_s, burst)
        self.refusals = Quota(REFUSALS_PER_S, REFUSALS_BURST)
        """By who answers for them."""

    def forget(self, now_s: float) -> None:
        """Drops what is even again."""
        for one in (self.live, self.backfill, self.events, self.refusals):
            one.forget(now_s)
