"""How often a device may report. Pure: the time is an argument."""

from __future__ import annotations

from collections.abc import Sequence


class Quota:
    """So many reports a second in the long run, and so many at once (the generic cell rate algorithm, ITU-T I.371)."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._interval_s = 1 / per_s
        self._most_ahead_s = burst / per_s
        self._due_s: dict[str, float] = {}
        """When the next report of each device would be due at the even rate."""

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

    def forget(self, now_s: float) -> None:
        """Drops what is even again: it says no more than nothing."""
        self._due_s = {device_id: due for device_id, due in self._due_s.items() if due > now_s}
