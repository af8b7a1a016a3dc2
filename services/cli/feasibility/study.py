"""The feasibility of an order: what it would have caused, and which change spares most at no more misses. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from services.cli.feasibility import presence
from services.cli.feasibility.expectation import Expectation, expect, in_force
from services.cli.feasibility.history import Coverage, History, coverage_of
from services.cli.feasibility.presence import Visit
from services.cli.feasibility.stays import STAY_MM, Stay, stays
from services.common import times
from services.geofence.domain.entries import Case, Demand, Encounter, Ring
from services.geofence.domain.kinematics.geometry import Disc
from services.geofence.domain.rules import Rules
from services.geofence.domain.tracks.fixes import Fix

RADIUS_SHARES = (0.75, 0.5)
"""Smaller radii that are tried for each ring, as shares of the proposed one."""
MIN_RADIUS_MM = 100_000
"""Least radius that is tried, mm: the distance within which the Stalking Punishment Act, 9(1) item 2, forbids an approach."""


class SmallerRing(NamedTuple):
    """A ring of the proposed order gets a smaller radius."""

    ring: Ring
    radius_mm: int


class ExceptionLeftOut(NamedTuple):
    """A proposed authorised encounter is left out."""

    encounter_id: str


class ExceptionAdded(NamedTuple):
    """A place where the wearer stays often becomes an authorised encounter, at the hours in which the wearer usually is there."""

    stay: Stay
    distance_m: float
    """Distance from the nearest protected place, metres."""


Change = SmallerRing | ExceptionLeftOut | ExceptionAdded
"""A change of the proposed order."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """The proposed order with one change, on the same days."""

    change: Change
    expectation: Expectation


@dataclass(frozen=True, slots=True)
class Feasibility:
    """All that is known about a proposed order."""

    case: Case
    coverage: Coverage
    reports: int
    """Number of positions of the wearer."""
    expectation: Expectation
    visits: tuple[Visit, ...]
    """Stays within the widest ring that demands a response which no proposed exception allows."""
    unseen_min_a_day: float
    """Minutes a day in which the wearer's position is unknown and the wearer may be within that ring."""
    alternatives: tuple[Alternative, ...]

    @property
    def best(self) -> Alternative | None:
        """The change that removes most dispatches, then most notices, then most pushes, and misses no further visit.

        Of equal ones it is the one that leaves the longest notice. None if no change removes any.
        """
        missed, proposed = set(self.expectation.missed), _burden(self.expectation)
        possible = [
            alternative
            for alternative in self.alternatives
            if set(alternative.expectation.missed) <= missed and _burden(alternative.expectation) < proposed
        ]
        return min(
            possible,
            key=lambda alternative: (*_burden(alternative.expectation), -(alternative.expectation.notice_s or 0)),
            default=None,
        )


def study(case: Case, history: History, *, progress: Callable[[int, int], None]) -> Feasibility:
    """Folds a history under a proposed order and under each change of it.

    The case must have a ring that demands a response, and the history a position of the wearer. Calls `progress` with the number of
    folds that are done, and of all.
    """
    fixes, tracks = history.tag_fixes(), history.tracks()
    coverage = coverage_of(fixes)
    radius_mm = response_radius_mm(case)
    past = in_force(case, coverage.from_ms, coverage.until_ms + 1)
    visits = [visit for visit in presence.visits(past, tracks, radius_mm) if coverage.includes(visit.from_ms)]
    changes = list(_changes(case, fixes))
    progress(0, len(changes) + 1)
    expectation = expect(case, history, coverage, visits=visits)
    alternatives = []
    for done, change in enumerate(changes, 1):
        progress(done, len(changes) + 1)
        alternatives.append(Alternative(change, expect(changed(case, change), history, coverage, visits=visits)))
    unseen_ms = presence.unseen_within_reach_ms(case, tracks, radius_mm, reach_mps=Rules().reach_mps, fixes=fixes)
    return Feasibility(
        case=case,
        coverage=coverage,
        reports=len(fixes),
        expectation=expectation,
        visits=tuple(visits),
        unseen_min_a_day=unseen_ms / 60_000 / coverage.days,
        alternatives=tuple(alternatives),
    )


def response_radius_mm(case: Case) -> int:
    """Radius of the widest ring that demands a response, mm. The case must have one."""
    return max(ring.radius_mm for ring in case.rings if ring.action is Demand.RESPOND)


def changed(case: Case, change: Change) -> Case:
    """Returns the case with a change."""
    match change:
        case SmallerRing():
            rings = [Ring(change.radius_mm, ring.action) if ring == change.ring else ring for ring in case.rings]
            return replace(case, rings=tuple(sorted(rings, key=lambda ring: -ring.radius_mm)))
        case ExceptionLeftOut():
            kept = [encounter for encounter in case.encounters if encounter.encounter_id != change.encounter_id]
            return replace(case, encounters=tuple(kept))
        case ExceptionAdded():
            return replace(case, encounters=(*case.encounters, _encounter(case, change.stay)))
        case _:
            assert_never(change)


def _burden(expectation: Expectation) -> tuple[int, int, int]:
    return expectation.dispatches.total(), expectation.notices.total(), expectation.pushes


def _encounter(case: Case, stay: Stay) -> Encounter:
    return Encounter(
        encounter_id="candidate",
        from_ms=case.valid_from_ms,
        until_ms=times.MAX_MS if case.valid_until_ms is None else case.valid_until_ms,
        places=(Disc(stay.middle, STAY_MM),),
        daily_from_s=stay.daily_from_s,
        daily_until_s=stay.daily_until_s,
    )


def _changes(case: Case, fixes: list[Fix]) -> Iterator[Change]:
    for ring in case.rings:
        for share in RADIUS_SHARES:
            radius_mm = round(ring.radius_mm * share)
            if radius_mm >= MIN_RADIUS_MM and all(radius_mm != other.radius_mm for other in case.rings):
                yield SmallerRing(ring, radius_mm)
    for encounter in case.encounters:
        yield ExceptionLeftOut(encounter.encounter_id)
    widest_mm = case.rings[0].radius_mm
    places = [target.shape for target in case.targets if not target.is_person]
    for stay in stays(fixes):
        nearest_mm = min((shape.distance_mm(stay.middle) for shape in places), default=None)
        if nearest_mm is not None and nearest_mm <= widest_mm + STAY_MM:
            yield ExceptionAdded(stay, nearest_mm / 1000)
