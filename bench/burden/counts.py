"""Counts of a week of the burden study. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Demand

SAME_MOMENT_MS = 600_000
"""A demand to respond within this time after another one belongs to the same dispatch moment."""


class Moment(NamedTuple):
    """A dispatch moment: its first demand to respond, and what that can follow from."""

    at_ms: int
    kind: str
    doing: str
    """What the wearer was doing."""
    noise: str
    """Gap or jump shortly before."""
    reported_m: float | None
    """Distance of the alert, m."""


@dataclass
class Counts:
    """What one week brought."""

    home_m: int
    seed: int
    protects: str
    arm: str
    days: int
    moments: list[Moment] = field(default_factory=list)
    """Dispatch moments: demands to respond of every kind, those within 10 minutes after another one counted once with it."""
    responds: Counter[str] = field(default_factory=Counter)
    """Number of demands to respond by kind, doing and noise."""
    notices: Counter[str] = field(default_factory=Counter)
    """Number of alerts that demand NOTIFY, by kind."""
    pushes: Counter[str] = field(default_factory=Counter)
    """Number of messages to her telephone, by notice and by the alert that caused them; all-clears included."""
    reports: int = 0
    """Number of the tag's reports that arrived, without duplicates."""
    commands: int = 0
    """Number of the fold's requests for an interval."""
    locates: int = 0
    """Number of the fold's requests for a position now."""
    located: int = 0
    """Number of positions on demand that were reported."""
    contacts: int = 0
    """Number of messages by which the tag tells the wearer to turn round (first contacts)."""
    cpu_s: float = 0.0
    last_respond_ms: int | None = None

    def note(self, alert: Alert, stamp_ms: int, causes: tuple[str, str]) -> None:
        """Counts an alert of an entry with a stamp. `causes`: what the wearer does, and the noise shortly before."""
        kind = alert.kind.value
        if alert.demand is Demand.NOTIFY:
            self.notices[kind] += 1
        if alert.demand is not Demand.RESPOND:
            return
        self.responds[", ".join((kind, *causes))] += 1
        if self.last_respond_ms is None or stamp_ms - self.last_respond_ms >= SAME_MOMENT_MS:
            reported_m = None if alert.distance_mm is None else round(alert.distance_mm / 1000, 1)
            self.moments.append(Moment(stamp_ms, kind, *causes, reported_m))
        self.last_respond_ms = stamp_ms


def to_json(counts: Counts) -> dict[str, Any]:
    """Counts as values of JSON, for `from_json`."""
    return dict(vars(counts))  # JSON has no types of its own for counters and named tuples


def from_json(values: dict[str, Any]) -> Counts:
    """Counts from values of JSON. Raises TypeError for values that `to_json` doesn't write."""
    counts = Counts(**values)
    counts.moments = [Moment(*moment) for moment in counts.moments]
    counts.responds, counts.notices, counts.pushes = (
        Counter(each) for each in (counts.responds, counts.notices, counts.pushes)
    )
    return counts
