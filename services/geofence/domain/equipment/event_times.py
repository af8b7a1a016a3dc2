"""Times of equipment events, and which of two events was over when the other one began.

A device's clock may be ahead, and may be set right between two events.
"""

from __future__ import annotations

from typing import NamedTuple

SENT_TOGETHER_MS = 10_000
"""Reports of a device that arrive within this time may have been sent together, and in another order."""


class EventTime(NamedTuple):
    """The time of an equipment event."""

    device_ms: int
    """By the device's clock, which may be ahead."""
    arrived_ms: int
    """When its report entered the log, mesh time."""

    @property
    def at_ms(self) -> int:
        """When the event was at the latest: nothing is reported before it happens."""
        return min(self.device_ms, self.arrived_ms)


class EndedEvent(NamedTuple):
    """The newest end of an equipment event of a device."""

    time: EventTime
    emitted: bool
    """Whether an alert was emitted for an event with this end."""


def is_over(begun: EventTime, ended: EventTime) -> bool:
    """Whether an event was over by the moment of an end.

    Either of two reports that were sent together may arrive first, so the device's own clock decides, even if it is ahead. Of other
    reports none is of a later time than its arrival: the clock may have been set right between them, and a new event isn't over
    because an earlier end claimed to be later.
    """
    if abs(begun.arrived_ms - ended.arrived_ms) <= SENT_TOGETHER_MS:
        return begun.device_ms <= ended.device_ms
    return begun.at_ms <= ended.at_ms
