"""What other rules would have changed: the alerts of two back-tests of the same reports, side by side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

Told = dict[str, Any]
"""An alert as a back-test tells it."""

_IDS = frozenset(("alert_id", "episode_id", "incident_id"))
"""Hashes of places in the log, which differ where anything before them does."""


@dataclass(frozen=True, slots=True)
class ChangedAlert:
    """One alert that isn't the same under both rules."""

    a: Told | None
    """None: it is only in b."""
    b: Told | None
    """None: it is only in a."""

    @property
    def what(self) -> str:
        """ONLY_A, ONLY_B or CHANGED."""
        if self.a is None:
            return "ONLY_B"
        return "ONLY_A" if self.b is None else "CHANGED"

    @property
    def fields(self) -> list[str]:
        """What differs, where both have it."""
        return sorted(_different(self.a, self.b)) if self.a and self.b else []

    def to_json(self) -> dict[str, Any]:
        """One line of the output."""
        return {"change": self.what, "fields": self.fields, "a": self.a, "b": self.b}


def compare(a: Iterable[Told], b: Iterable[Told]) -> list[ChangedAlert]:
    """What changed from `a` to `b`, in order of time.

    Alerts of one kind, ring, target and order are laid side by side: those of the same moment are the same alert, and of what lies
    between two such the first belongs to the first.
    """
    first, second = _grouped(a), _grouped(b)
    changes = [change for key in first | second for change in _aligned(first[key], second[key])]
    return sorted(changes, key=_order)


def summary(a: list[Told], b: list[Told], changes: list[ChangedAlert]) -> dict[str, Any]:
    """Numbers of alerts and of changes."""
    counted = Counter(change.what for change in changes)
    return {
        "only_a": counted["ONLY_A"],
        "only_b": counted["ONLY_B"],
        "changed": counted["CHANGED"],
        "a": _numbers(a),
        "b": _numbers(b),
    }


def _grouped(alerts: Iterable[Told]) -> defaultdict[str, list[Told]]:
    groups = defaultdict(list)
    for alert in alerts:
        groups[repr([alert.get(name) for name in ("order_id", "target_id", "kind", "ring_m")])].append(alert)
    return groups


def _aligned(a: list[Told], b: list[Told]) -> Iterator[ChangedAlert]:
    matcher = SequenceMatcher(None, [one.get("at") for one in a], [one.get("at") for one in b], autojunk=False)
    for _, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        mine, theirs = a[a_from:a_to], b[b_from:b_to]
        both = min(len(mine), len(theirs))
        for one, other in zip(mine, theirs, strict=False):
            if _different(one, other):
                yield ChangedAlert(one, other)
        yield from (ChangedAlert(one, None) for one in mine[both:])
        yield from (ChangedAlert(None, one) for one in theirs[both:])


def _different(a: Told, b: Told) -> set[str]:
    return {name for name in a.keys() | b.keys() if name not in _IDS and a.get(name) != b.get(name)}


def _order(change: ChangedAlert) -> tuple[str, str]:
    alert = change.a or change.b or {}
    return alert.get("decided_at", ""), alert.get("at", "")


def _numbers(alerts: list[Told]) -> dict[str, int]:
    demands = Counter(alert["demand"] for alert in alerts if "demand" in alert)
    incidents = {alert["incident_id"] for alert in alerts if alert.get("incident_id")}
    return {"alerts": len(alerts), "incidents": len(incidents)} | dict(sorted(demands.items()))
