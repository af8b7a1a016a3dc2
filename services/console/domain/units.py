"""Units of a desk's own agency on its map. Pure; times are milliseconds since 1970 UTC by the mesh's clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.console.domain.board import OVER, AssignmentCard

KNOWN_FOR_MS = 180_000
"""Age up to which a unit's position counts as known, in ms; the same as for targets."""


@dataclass(frozen=True, slots=True)
class UnitCard:
    """Team or car of the leg's roster, with its last report."""

    unit_id: str
    unit_class: str
    status: str
    """AVAILABLE, BUSY or OFF."""
    lat_deg: float
    lon_deg: float
    position_ms: int
    """Time of the position."""
    incident_id: str = ""
    """Incident to which the unit is assigned; empty if there is none."""


def states(assignments: Iterable[AssignmentCard]) -> dict[str, str]:
    """Returns the state of each unit's assignment; of several, the last one."""
    return {
        assignment.unit_id: assignment.state
        for assignment in assignments
        if assignment.unit_id and assignment.state not in OVER
    }


def as_json(unit: UnitCard, state_of: Mapping[str, str], now_ms: int) -> dict[str, Any] | None:
    """Returns a unit as the browser gets it, to 0.1 m; None for a unit that is off duty and has no assignment."""
    state = state_of.get(unit.unit_id, "")
    if not state and unit.status == "OFF":
        return None
    return {
        "id": f"unit {unit.unit_id}",  # the space keeps ids of units and of targets apart
        "name": unit.unit_id,
        "class": unit.unit_class,
        "state": state or unit.status,
        "going": bool(state),
        "unknown": now_ms - unit.position_ms > KNOWN_FOR_MS,
        "at": [round(unit.lon_deg, 6), round(unit.lat_deg, 6)],
        "incident": unit.incident_id,
    }
