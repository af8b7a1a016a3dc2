"""Whom a desk's own agency can send, as its map shows them. Pure; times are milliseconds since 1970 UTC by the mesh's clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.console.domain.board import OVER, Assignment

KNOWN_FOR_MS = 180_000
"""Where a unit is that said so longer ago is unknown, as it is of targets."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A team or a car of the leg's roster, and what it said last."""

    unit_id: str
    unit_class: str
    status: str
    """AVAILABLE, BUSY or OFF."""
    lat_deg: float
    lon_deg: float
    position_ms: int
    """When it was there."""
    incident_id: str = ""
    """The incident that it has a part in; empty where there is none."""


def states(assignments: Iterable[Assignment]) -> dict[str, str]:
    """By unit, how far it is with what it was asked for; of several, the last one stands."""
    return {
        assignment.unit_id: assignment.state
        for assignment in assignments
        if assignment.unit_id and assignment.state not in OVER
    }


def told(unit: Unit, state_of: Mapping[str, str], now_ms: int) -> dict[str, Any] | None:
    """A unit as the browser gets it, to 0.1 m; None for one that is off and has no part in anything."""
    state = state_of.get(unit.unit_id, "")
    if not state and unit.status == "OFF":
        return None
    return {
        "id": f"unit {unit.unit_id}",  # a space: no id of a target is like that
        "name": unit.unit_id,
        "class": unit.unit_class,
        "state": state or unit.status,
        "going": bool(state),
        "unknown": now_ms - unit.position_ms > KNOWN_FOR_MS,
        "at": [round(unit.lon_deg, 6), round(unit.lat_deg, 6)],
        "incident": unit.incident_id,
    }
