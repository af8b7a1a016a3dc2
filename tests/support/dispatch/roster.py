"""Offices and units for tests: two offices, each the successor of the other, and their units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.common.geometry import Circle, LatLon
from services.dispatch.domain.roster import Board, Office, Status, Travel, Trip, Unit, UnitReport

SEOUL = LatLon(37.5665, 126.9780)
SHIFT_MS = (0, 10**14)


def office(office_id: str, *, next_id: str = "", subjects: Iterable[str] = (), radius_m: float | None = None) -> Office:
    """Returns an office for a circle round the centre of Seoul, for given subjects, or for all others."""
    area = Circle(SEOUL.lat_deg, SEOUL.lon_deg, radius_m) if radius_m else None
    return Office(office_id, 1, area, frozenset(subjects), next_id, f"supervisor-{office_id}", "national")


def unit(unit_id: str, office_id: str, *, skills: Iterable[str] = (), shift_ms: tuple[int, int] = SHIFT_MS) -> Unit:
    """Returns a patrol car."""
    return Unit(unit_id, 1, office_id, "patrol-car", frozenset(skills), *shift_ms)


def board(
    offices: Iterable[Office],
    units: Iterable[Unit],
    *,
    status: Mapping[str, Status] | None = None,
    engaged: Mapping[str, Mapping[str, str]] | None = None,
    travel: Mapping[tuple[str, str], Travel] | None = None,
) -> Board:
    """Returns the input of a choice of units."""
    statuses = status or {}
    return Board(
        {office.office_id: office for office in offices},
        {unit.unit_id: (unit, UnitReport(statuses.get(unit.unit_id, Status.AVAILABLE))) for unit in units},
        engaged or {},
        {},
        {Trip(*key): time for key, time in (travel or {}).items()},
    )


TWO_OFFICES = (office("a", next_id="b"), office("b", next_id="a", subjects=("elsewhere",)))
"""The second is responsible for the subject `elsewhere`, the first for all others."""
AT_DAY = board(TWO_OFFICES, [unit("a1", "a"), unit("a2", "a"), unit("b1", "b")])
"""A board with two cars of the first office and one of the second."""
