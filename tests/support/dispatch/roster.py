"""Offices and units for tests: two offices that follow one another, and who is there at night."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.dispatch.domain.areas import JurisdictionCircle, LatLon
from services.dispatch.domain.roster import Board, Office, Status, Travel, Unit, UnitReport

SEOUL = LatLon(37.5665, 126.9780)
SHIFT_MS = (0, 10**14)


def office(office_id: str, *, next_id: str = "", subjects: Iterable[str] = (), radius_m: float | None = None) -> Office:
    """An office round the centre of Seoul, or for subjects, or for everybody else."""
    area = JurisdictionCircle(SEOUL, radius_m) if radius_m else None
    return Office(office_id, 1, area, frozenset(subjects), next_id, f"supervisor-{office_id}", "national")


def unit(unit_id: str, office_id: str, *, skills: Iterable[str] = (), shift_ms: tuple[int, int] = SHIFT_MS) -> Unit:
    """A patrol car."""
    return Unit(unit_id, 1, office_id, "patrol-car", frozenset(skills), *shift_ms)


def board(
    offices: Iterable[Office],
    units: Iterable[Unit],
    *,
    status: Mapping[str, Status] | None = None,
    engaged: Mapping[str, Mapping[str, str]] | None = None,
    travel: Mapping[tuple[str, str], Travel] | None = None,
    positions: Mapping[str, LatLon] | None = None,
) -> Board:
    """What a choice rests on."""
    said = status or {}
    return Board(
        {one.office_id: one for one in offices},
        {one.unit_id: (one, UnitReport(said.get(one.unit_id, Status.AVAILABLE))) for one in units},
        engaged or {},
        positions or {},
        travel or {},
    )


TWO_OFFICES = (office("a", next_id="b"), office("b", next_id="a", subjects=("elsewhere",)))
"""The first is responsible for whom the second doesn't name."""
AT_DAY = board(TWO_OFFICES, [unit("a1", "a"), unit("a2", "a"), unit("b1", "b")])
"""Two cars of the first office, one of the second."""
