"""Alerts that a scenario must produce, and alerts that it must not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from services.common import times
from tests.support.scenario_paths import inside_s


@dataclass(frozen=True, slots=True)
class Expected:
    """An alert that the scenario must produce."""

    kind: str
    demand: str
    by_s: float
    """Latest second of the decision."""
    not_before_s: float = -math.inf
    order: str = ""
    """Empty means any order; target "" and ring 0 mean any, too."""
    target: str = ""
    ring_m: float = 0
    late: bool | None = None
    inside_s: float = 0
    """Minimum time inside the ring, by the alert's intervals, seconds."""
    least_m: float = math.inf
    """Upper limit of the alert's minimum distance, metres."""
    notice: str | None = None
    """Article of the Ministry's notice that is due or has ended with the alert, "none" for an alert without one; None means any."""
    location: bool | None = None
    """Whether a location may go with the notice."""
    checks: list[str] | None = None
    """Legs that must look into the act; None means any."""
    contact: str = ""
    """Plan of the first contact with the wearer, the reason why it is withheld, or `none`; empty means any, or none."""
    unconfirmed: bool | None = None
    """Whether the alert ends something that no report shows to be over; None means any."""
    what: str = ""

    def is_met_by(self, alert: dict[str, Any], begins_ms: int) -> bool:
        """Whether an alert is the expected one."""
        decided_s = (times.from_rfc3339(alert["decided_at"]) - begins_ms) / 1000
        return (
            (alert["kind"], alert["demand"]) == (self.kind, self.demand)
            and self.not_before_s <= decided_s <= self.by_s
            and self.order in ("", alert["order_id"])
            and self.target in ("", alert["target_id"])
            and self.ring_m in (0, alert["ring_m"])
            and self.late in (None, alert["late"])
            and self.unconfirmed in (None, alert.get("unconfirmed", False))
            and (not self.contact or self.contact in _contact(alert))
            and self.inside_s <= inside_s(alert)
            and (self.least_m == math.inf or alert.get("min_distance_m", math.inf) <= self.least_m)
            and self._has_notice(alert)
        )

    def _has_notice(self, alert: dict[str, Any]) -> bool:
        notice = alert.get("notice", {"ground": "none", "gives_location": False})
        return (
            self.notice in (None, notice["ground"])
            and self.location in (None, notice["gives_location"])
            and self.checks in (None, alert.get("checks", []))
        )


@dataclass(frozen=True, slots=True)
class Forbidden:
    """An alert that the scenario must not produce, even with the demand RECORD."""

    kind: str
    target: str = ""
    """Empty means any target; ring 0 means any, too."""
    ring_m: float = 0
    before_s: float = math.inf
    what: str = ""

    def is_broken_by(self, alert: dict[str, Any], begins_ms: int) -> bool:
        """Whether an alert is the forbidden one."""
        return (
            alert["kind"] == self.kind
            and self.target in ("", alert["target_id"])
            and self.ring_m in (0, alert["ring_m"])
            and (times.from_rfc3339(alert["decided_at"]) - begins_ms) / 1000 < self.before_s
        )


def _contact(alert: dict[str, Any]) -> tuple[str | None, ...]:
    """What an alert says about the first contact."""
    contact = alert.get("contact")
    return (contact["plan"], contact["withheld"]) if contact else ("none",)
