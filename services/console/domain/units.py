"""Units of a desk's own agency: their positions on its map, and those that it can send to a destination. Pure.

Times are milliseconds since 1970 UTC by the mesh's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.console.domain.board import ACCEPTED_BY_UNIT, ASKED, AssignmentCard, UnitOfferCard

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


class UnitTask(NamedTuple):
    """What a unit is asked to do, or does."""

    state: str
    """UNIT_ASKED, UNIT_ACCEPTED, or the state of the assignment that the unit has, from DISPATCHED on."""
    incident_id: str


def tasks(assignments: Iterable[AssignmentCard]) -> dict[str, UnitTask]:
    """Returns the task of each unit, by unit id; of several, the last one that it has, else the last one that it is asked for."""
    found: dict[str, UnitTask] = {}
    for assignment in assignments:
        for unit_id, state in assignment.unit_states.items():
            if unit_id not in found or state != ASKED or found[unit_id].state == ASKED:
                found[unit_id] = UnitTask(state, assignment.incident_id)
    return found


def unit_as_json(unit: UnitCard, task_of: Mapping[str, UnitTask], now_ms: int) -> dict[str, Any] | None:
    """Returns a unit as the browser gets it, to 0.1 m; None for a unit that is off duty and has no task."""
    task = task_of.get(unit.unit_id)
    if not task and unit.status == "OFF":
        return None
    return {
        "id": f"unit {unit.unit_id}",  # the space keeps ids of units and of targets apart
        "name": unit.unit_id,
        "class": unit.unit_class,
        "state": task.state if task else unit.status,
        "going": task is not None,
        "unknown": now_ms - unit.position_ms > KNOWN_FOR_MS,
        "at": [round(unit.lon_deg, 6), round(unit.lat_deg, 6)],
        "incident": task.incident_id if task else unit.incident_id,
    }


FREE = "FREE"
BUSY = "BUSY"
BUSY_IN = "BUSY_IN"
"""What a unit does: nothing, another task that it named itself, or another incident."""


@dataclass(frozen=True, slots=True)
class CandidateCard:
    """Unit on duty that can be sent."""

    unit_id: str
    unit_class: str
    work: str
    """FREE, BUSY or BUSY_IN."""
    incident_id: str
    """The other incident that it works on; empty if it isn't BUSY_IN."""
    distance_m: int | None
    travel_s: int | None
    offer: UnitOfferCard | None
    """Offer of the same assignment to it; None if it wasn't asked."""
    is_next: bool
    """Whether the leg would ask it next by itself."""

    @property
    def can_be_asked(self) -> bool:
        """Whether it can be asked now: it isn't asked already, and hasn't the assignment."""
        return self.offer is None or self.offer.state not in (ASKED, ACCEPTED_BY_UNIT)


@dataclass(frozen=True, slots=True)
class CandidateList:
    """Units that can be sent to a destination of the own leg, and its assignment at that moment."""

    assignment: AssignmentCard
    has_roster: bool
    """Whether the leg has a roster. Without one, units can be sent by radio alone."""
    candidates: Sequence[CandidateCard]
    """Free units first, then by travel time."""

    @property
    def is_exercise(self) -> bool:
        """Whether it is an exercise, to which no unit of the roster is sent: it may be missing elsewhere."""
        return self.assignment.exercise

    @property
    def nearest(self) -> str:
        """Id of the nearest free unit that wasn't asked before, which a page proposes; empty if there is none."""
        return next((unit.unit_id for unit in self.candidates if unit.work == FREE and unit.offer is None), "")

    @property
    def has_free(self) -> bool:
        """Whether any unit is free."""
        return any(unit.work == FREE for unit in self.candidates)


def candidates_as_json(listed: CandidateList) -> dict[str, Any]:
    """Returns the list as the browser gets it."""
    return {
        "roster": listed.has_roster,
        "exercise": listed.is_exercise,
        "state": listed.assignment.state,
        "offer": listed.assignment.newest_offer,
        "nearest": listed.nearest,
        "free": listed.has_free,
        "units": [
            {
                "id": unit.unit_id,
                "class": unit.unit_class,
                "work": unit.work,
                "incident": unit.incident_id,
                "distance": unit.distance_m,
                "travel": unit.travel_s,
                "offer": unit.offer.state if unit.offer else "",
                "by": unit.offer.asked_by if unit.offer else "",
                "until": unit.offer.until_ms if unit.offer else None,
                "next": unit.is_next,
                "can": unit.can_be_asked,
            }
            for unit in listed.candidates
        ],
    }
