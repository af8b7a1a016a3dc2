"""Compare the alerts of two back-tests of the same reports under different rules."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

AlertLine = dict[str, Any]
"""An alert as a back-test prints it."""

_IDS = frozenset(("alert_id", "episode_id", "incident_id"))
"""Fields not compared: they hash log positions, which differ after any earlier difference."""


@dataclass(frozen=True, slots=True)
class ChangedAlert:
    """An alert that differs between the two rule sets."""

    a: AlertLine | None
    """The alert under the first rules; None if it is only in b."""
    b: AlertLine | None
    """The alert under the second rules; None if it is only in a."""

    @property
    def what(self) -> str:
        """Kind of the change: ONLY_A, ONLY_B or CHANGED."""
        if self.a is None:
            return "ONLY_B"
        return "ONLY_A" if self.b is None else "CHANGED"

    @property
    def fields(self) -> list[str]:
        """Names of the fields that differ, for an alert that both have."""
        return sorted(_different(self.a, self.b)) if self.a and self.b else []

    def to_json(self) -> dict[str, Any]:
        """The JSON object of a change, one line of the output."""
        return {"change": self.what, "fields": self.fields, "a": self.a, "b": self.b}


def compare(a: Iterable[AlertLine], b: Iterable[AlertLine]) -> list[ChangedAlert]:
    """Changes from `a` to `b`, in order of time.

    Only alerts of the same kind, ring, target and order are compared. Two alerts of the same moment are paired first. The alerts
    between two such pairs are paired in order.
    """
    first, second = _grouped(a), _grouped(b)
    changes = [change for key in first | second for change in _aligned(first[key], second[key])]
    return sorted(changes, key=_order)


def summary(a: list[AlertLine], b: list[AlertLine], changes: list[ChangedAlert]) -> dict[str, Any]:
    """Counts of the changes, and of the alerts on each side."""
    counted = Counter(change.what for change in changes)
    return {
        "only_a": counted["ONLY_A"],
        "only_b": counted["ONLY_B"],
        "changed": counted["CHANGED"],
        "a": _numbers(a),
        "b": _numbers(b),
    }


def _grouped(alerts: Iterable[AlertLine]) -> defaultdict[str, list[AlertLine]]:
    groups = defaultdict(list)
    for alert in alerts:
        groups[repr([alert.get(name) for name in ("order_id", "target_id", "kind", "ring_m")])].append(alert)
    return groups


def _aligned(a: list[AlertLine], b: list[AlertLine]) -> Iterator[ChangedAlert]:
    matcher = SequenceMatcher(None, [alert.get("at") for alert in a], [alert.get("at") for alert in b], autojunk=False)
    for _, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        in_a, in_b = a[a_from:a_to], b[b_from:b_to]
        paired = min(len(in_a), len(in_b))
        for left, right in zip(in_a, in_b, strict=False):
            if _different(left, right):
                yield ChangedAlert(left, right)
        yield from (ChangedAlert(alert, None) for alert in in_a[paired:])
        yield from (ChangedAlert(None, alert) for alert in in_b[paired:])


def _different(a: AlertLine, b: AlertLine) -> set[str]:
    return {name for name in a.keys() | b.keys() if name not in _IDS and a.get(name) != b.get(name)}


def _order(change: ChangedAlert) -> tuple[str, str]:
    alert = change.a or change.b or {}
    return alert.get("decided_at", ""), alert.get("at", "")


def _numbers(alerts: list[AlertLine]) -> dict[str, int]:
    demands = Counter(alert["demand"] for alert in alerts if "demand" in alert)
    incidents = {alert["incident_id"] for alert in alerts if alert.get("incident_id")}
    return {"alerts": len(alerts), "incidents": len(incidents)} | dict(sorted(demands.items()))
