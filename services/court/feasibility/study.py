"""The feasibility of an order: what it would have caused, and which change spares most at no more misses. No I/O, no clock."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from services.common import times
from services.court.feasibility.history import (
    STAY_MM,
    Coverage,
    History,
    Stay,
    Visit,
    coverage_of,
    stays_of,
    unseen_within_reach_ms,
    visits_of,
)
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Body, Case, Demand, Encounter, Entry, Ring, Rules, Tick
from services.geofence.domain.geometry import Disc
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.state import State

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
    visits = [visit for visit in visits_of(past, tracks, radius_mm) if coverage.includes(visit.from_ms)]
    changes = list(_changes(case, fixes))
    progress(0, len(changes) + 1)
    expectation = expect(case, history, coverage, visits=visits)
    alternatives = []
    for done, change in enumerate(changes, 1):
        progress(done, len(changes) + 1)
        alternatives.append(Alternative(change, expect(changed(case, change), history, coverage, visits=visits)))
    unseen_ms = unseen_within_reach_ms(case, tracks, radius_mm, reach_mps=Rules().reach_mps, fixes=fixes)
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
    for stay in stays_of(fixes):
        nearest_mm = min((shape.distance_mm(stay.middle) for shape in places), default=None)
        if nearest_mm is not None and nearest_mm <= widest_mm + STAY_MM:
            yield ExceptionAdded(stay, nearest_mm / 1000)


WEEK_DAYS = 7
SAME_MOMENT_MS = 600_000
"""A demand to respond within this time after another one belongs to the same dispatch."""
HELP_MS = 480_000
"""Time before a visit in which a demand to respond still answers it: the unit is on its way or there."""
LATE_MS = 60_000
"""Time after the end of a visit in which a demand to respond still answers it."""
NOTICE_MS = 1_800_000
"""Time before a visit in which an alert counts as a notice of it."""
DATED_MS = 86_400_000
"""Longest authorised encounter that keeps its dates, ms: a hearing. A longer one is a rule of everyday life, such as a commute, and is
folded as if it had held on all days of the history."""


class AlertCause(NamedTuple):
    """The reason of a dispatch or a notice."""

    demand: str
    ring_m: float | None
    """Radius of the ring; None if the alert isn't about a ring."""
    kind: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """Counts of one order on the days of a history."""

    days: float
    dispatches: Counter[AlertCause]
    """Number of dispatches by the cause of the first demand. Demands within 10 minutes after another one are one dispatch."""
    notices: Counter[AlertCause]
    """Number of alerts that demand NOTIFY."""
    pushes: int
    """Number of alerts that go to the protected persons."""
    missed: tuple[Visit, ...]
    """Visits that no demand to respond answered."""
    notice_s: float | None
    """Median time from the first alert that demands NOTIFY or more to the beginning of the visit that follows, seconds. A visit without
    a notice counts as 0. None if there was no visit."""

    def a_week(self, count: int) -> float:
        """Returns the number a week for a number in the history."""
        return count / self.days * WEEK_DAYS


def expect(case: Case, history: History, coverage: Coverage, *, visits: Sequence[Visit]) -> Expectation:
    """Folds a history under a case and counts the alerts of the time that the history covers."""
    lost = {target.target_id for target in case.targets if target.is_person and not target.device_ids}
    alerts = [
        alert
        for alert in play(case, history)
        # A history without reports of her device says nothing about the device.
        if not (alert.kind is AlertKind.PROTECTED_DEVICE_LOST and alert.target_id in lost)
    ]
    return count(alerts, coverage, visits)


def count(alerts: Sequence[Alert], coverage: Coverage, visits: Sequence[Visit]) -> Expectation:
    """Counts alerts, which are in the order of their decisions. Those of a break of the history aren't counted."""
    counted = [alert for alert in alerts if coverage.includes(alert.decided_at_ms)]
    return Expectation(
        days=coverage.days,
        dispatches=Counter(_cause(alert) for alert in _dispatches(counted)),
        notices=Counter(_cause(alert) for alert in counted if alert.demand is Demand.NOTIFY),
        pushes=sum(any(leg is Leg.WARNING for leg, _ in alert.destinations) for alert in counted),
        missed=tuple(visit for visit in visits if not _is_answered(visit, counted)),
        notice_s=statistics.median(_notice_s(visit, counted) for visit in visits) if visits else None,
    )


def play(case: Case, history: History) -> Iterator[Alert]:
    """Alerts of a history whose order was in force from one second before its first entry on."""
    first_ms, last_ms = history.entries[0].stamp_ms, history.entries[-1].stamp_ms
    from_ms, until_ms = first_ms - 1000, last_ms + 1
    state = State(0)

    def step(stamp_ms: int, body: Body) -> Iterator[Alert]:
        for output in fold.step(state, Entry(state.sequence + 1, stamp_ms, body)):
            if isinstance(output, Alert):
                yield output

    yield from step(from_ms, in_force(case, from_ms, until_ms))
    for entry in history.entries:
        # An idle mesh ticks, so that each deadline is decided when it is due.
        while (due_ms := fold.next_due_ms(state)) is not None and due_ms < entry.stamp_ms:
            yield from step(due_ms, Tick())
        yield from step(entry.stamp_ms, entry.body)


def in_force(case: Case, from_ms: int, until_ms: int) -> Case:
    """Returns the case as if it had been in force in the past. Authorised encounters longer than a day hold all the time, too."""
    return replace(
        case,
        valid_from_ms=from_ms,
        valid_until_ms=until_ms,
        encounters=tuple(_spread(encounter, from_ms, until_ms) for encounter in case.encounters),
    )


def _spread(encounter: Encounter, from_ms: int, until_ms: int) -> Encounter:
    if encounter.until_ms - encounter.from_ms <= DATED_MS:
        return encounter
    return replace(encounter, from_ms=from_ms, until_ms=until_ms)


def _dispatches(alerts: Sequence[Alert]) -> Iterator[Alert]:
    """The first demand to respond of each dispatch."""
    last_ms: int | None = None
    for alert in alerts:
        if alert.demand is Demand.RESPOND:
            if last_ms is None or alert.decided_at_ms - last_ms >= SAME_MOMENT_MS:
                yield alert
            last_ms = alert.decided_at_ms


def _cause(alert: Alert) -> AlertCause:
    return AlertCause(alert.demand.name, alert.ring_mm / 1000 if alert.ring_mm else None, alert.kind.value)


def _is_answered(visit: Visit, alerts: Sequence[Alert]) -> bool:
    """Whether a demand to respond was decided in time for a visit, or a ring that demands a response was open when it began."""
    since_ms: dict[int, int] = {}
    for alert in alerts:
        if alert.decided_at_ms > visit.until_ms + LATE_MS:
            break
        if alert.demand is Demand.RESPOND and alert.decided_at_ms >= visit.from_ms - HELP_MS:
            return True
        if alert.target_id == visit.target_id and alert.decided_at_ms < visit.from_ms:
            if alert.kind is AlertKind.RING_ENTERED and alert.demand is Demand.RESPOND:
                since_ms[alert.ring_mm] = alert.decided_at_ms
            elif alert.kind is AlertKind.RING_CLEARED:
                since_ms.pop(alert.ring_mm, None)
    return bool(since_ms)


def _notice_s(visit: Visit, alerts: Sequence[Alert]) -> float:
    """Time from the first notice of a visit to its beginning, seconds; 0 without a notice before it."""
    decided_ms = (
        alert.decided_at_ms
        for alert in alerts
        if alert.demand >= Demand.NOTIFY and visit.from_ms - NOTICE_MS <= alert.decided_at_ms < visit.from_ms
    )
    return (visit.from_ms - min(decided_ms, default=visit.from_ms)) / 1000
