"""Her map: the region in which a wearer may be now, the part of it that leaves, and why a map may not show more. Pure.

A location may go to a protected person together with a notice that is open, on the notice's ground, and while the Ministry's rule of
urgency holds (Tag Act 16(2)5 with Decree 13-3; 31-8(2)5 with Decree 23-17(1)). Within that, a view is withheld where it would say more
about the wearer's life than about her danger: at rest, on the way off, or far away. A withheld view never says that he isn't near.

The region is a set of circles that holds the true position with a probability of 90 %. Each circle begins as the 90 % radius of a
position, by the accuracy that its device deserves, and grows with the position's age by the pace at which the fold assumes that an
unseen wearer goes on. A position from before a jump adds a circle, because the device may still be there. The circles leave on a
coarse grid: whole steps hide at which house the wearer is, and give the same answer to the same region.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

from services.common.privacy import notices
from services.common.privacy.notices import NoticeGround
from services.geofence.domain.detectors import presences, reachability, wearing
from services.geofence.domain.detectors.reachability import Unseen
from services.geofence.domain.entries import Case, Target
from services.geofence.domain.geometry import Vector, between, lat_lon_deg
from services.geofence.domain.kinematics import accuracy, plausibility
from services.geofence.domain.kinematics.accuracy import R68_PER_SIGMA
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Track, is_recent
from services.geofence.domain.notices import OPEN_NOTICES, closing_mps, is_urgent
from services.geofence.domain.state import CaseState, State

CLOSE_M = 200
"""Within this distance, m, neither rest nor the way off withholds a view: there he endangers her wherever he rests or goes."""
LONG_REST_MS = 3_600_000
"""A wearer who has been at one place for this long is at home there, however near it is."""
LEAVING_MPS = -1.0
"""A wearer whose distance grows faster than this is on the way off, m/s. It is measured over half a minute and more."""


class ViewOutcome(enum.Enum):
    """What a map of one case shows."""

    NO_MAP = "NO_MAP"
    """She has no open notice with a ground, or it has ended."""
    UNKNOWN = "UNKNOWN"
    """The newest position is older than 3 minutes, or the tag is off."""
    NOT_URGENT = "NOT_URGENT"
    """The rule of urgency doesn't hold now."""
    FAR = "FAR"
    """The rule of urgency holds by speed alone: the region begins beyond its distance."""
    AT_REST = "AT_REST"
    """He is at a place where he rests."""
    LEAVING = "LEAVING"
    """He is on the way off."""
    SHOWN = "SHOWN"
    """A region is shown."""


class MapView(NamedTuple):
    """What her map shows of one case at a moment."""

    outcome: ViewOutcome
    case_id: str
    person_id: str
    circles: tuple[ShownCircle, ...] = ()
    """Empty unless the outcome is SHOWN."""
    from_her: FromHer | None = None
    """None if her own position is unknown, or he is near a protected place and not near her."""
    grows_mps: float = 0.0
    fix_ms: int = 0
    """Time of the position on which the region rests, mesh time."""


class MapGround(NamedTuple):
    """The ground and the subjects of a view, for its rows in the ledger."""

    ground: NoticeGround
    location_basis: str
    """Code of the article under which the location is given."""
    incident_id: str
    wearer_id: str
    order_id: str


def views(state: State, device_id: str, at_ms: int) -> list[MapView]:
    """Views of the cases that name a device as hers, by case id. A case without a map isn't among them."""
    case_ids = state.cases_of.get(device_id, ())
    made = (_view(state, state.cases[case_id], device_id, at_ms=at_ms) for case_id in case_ids)
    return [view for view in made if view.outcome is not ViewOutcome.NO_MAP]


def ground_of(state: State, view: MapView) -> MapGround:
    """The ground of a view that was just made."""
    case = state.cases[view.case_id].case
    if case.notice_ground is None:
        raise ValueError("a view without a ground")
    return MapGround(
        ground=case.notice_ground,
        location_basis=notices.location_basis(case.notice_ground),
        incident_id=state.incidents[case.wearer_id].incident_id,
        wearer_id=case.wearer_id,
        order_id=case.order_id,
    )


def _view(state: State, case_state: CaseState, device_id: str, *, at_ms: int) -> MapView:
    case = case_state.case
    person = next((target for target in case.targets if target.is_person and device_id in target.device_ids), None)
    if person is None or not _has_open_notice(state, case_state, person, at_ms=at_ms):
        return MapView(ViewOutcome.NO_MAP, case.case_id, person.target_id if person else "")
    found = None if wearing.is_off(case_state) else possible_region(state, case, at_ms)
    if found is None:
        return MapView(ViewOutcome.UNKNOWN, case.case_id, person.target_id)
    her = _known_fix(state, person, at_ms)
    circles = circles_of(found)
    place = from_her(circles, her) if her else None
    # Somebody near a protected place while she is elsewhere: no view says how far from her he is.
    withheld = _withheld(state, case, person, place=place)
    if withheld is not None:
        return MapView(withheld, case.case_id, person.target_id)
    return MapView(
        ViewOutcome.SHOWN,
        case.case_id,
        person.target_id,
        circles=circles,
        from_her=place if place is not None and _is_near(state, place) else None,
        grows_mps=found.grows_mps,
        fix_ms=found.fix_ms,
    )


def _has_open_notice(state: State, case_state: CaseState, person: Target, *, at_ms: int) -> bool:
    case = case_state.case
    incident = state.incidents.get(case.wearer_id)
    open_notices = OPEN_NOTICES.all_in(case_state).get(OPEN_NOTICES.name, {})
    return (
        case.is_live
        and case.notice_ground is not None
        and open_notices.get(person.target_id) == case.notice_ground.value
        and not case_state.ended
        and case.is_in_force(at_ms)
        and incident is not None
        and case.case_id in incident.case_ids
    )


def _known_fix(state: State, person: Target, at_ms: int) -> Fix | None:
    fix = state.last_fix(person.device_ids)
    return fix if fix is not None and is_recent(fix.time_ms, at_ms) else None


def _withheld(state: State, case: Case, person: Target, *, place: FromHer | None) -> ViewOutcome | None:
    """Why a view of a known position is withheld; None if it is shown."""
    near_place = _is_near_place(state, case)
    if not near_place and not is_urgent(state, case, person):
        return ViewOutcome.NOT_URGENT
    if not near_place and (place is None or not _is_near(state, place)):
        return ViewOutcome.FAR
    track = state.last_track(case.tag_device_ids)
    rested_ms = reachability.rest_ms(track) if track is not None else 0
    if _is_at_own_unit(state, case) or rested_ms >= LONG_REST_MS:
        return ViewOutcome.AT_REST
    if place is not None and place.least_m <= CLOSE_M:
        return None
    if rested_ms >= state.rules.rest_ms:
        return ViewOutcome.AT_REST
    mps = closing_mps(state, case, person)
    return ViewOutcome.LEAVING if mps is not None and mps < LEAVING_MPS else None


def _is_near_place(state: State, case: Case) -> bool:
    """Whether the newest position is within the distance of the rule of urgency from a protected place. Speed alone doesn't count."""
    fix = state.last_fix(case.tag_device_ids)
    return fix is not None and any(
        target.shape.least_distance_mm(fix.point, fix.point) <= state.rules.urgent_place_within_mm
        for target in case.targets
        if not target.is_person
    )


def _is_near(state: State, place: FromHer) -> bool:
    """Whether a region begins within the distance of the rule of urgency. A view that said more could be taken for an all-clear."""
    return place.least_m * 1000 < state.rules.urgent_within_mm


def _is_at_own_unit(state: State, case: Case) -> bool:
    """Whether a home unit or beacon of the wearer shows that he is there, or his newest position is within its range."""
    at_unit = presences.unseen_at_unit(state, case)
    if at_unit is not None and at_unit.rested_ms:
        return True
    fix = state.last_fix(case.tag_device_ids)
    return fix is not None and any(
        unit.place.distance_bound_mm(fix.point) <= fix.accuracy_mm
        for unit in case.units
        if not unit.holder and unit.is_installed(fix.time_ms)
    )


# ── the region ───────────────────────────────────────────────────────────────────────────────────────────────────────


R90_PER_R68 = math.sqrt(-2 * math.log(0.1)) / R68_PER_SIGMA
"""Radius that holds 90 % of a 2-D normal distribution, in radii that hold 68 %."""
HEADING_OVER_MS = 10_000
"""Least time over which the direction of a movement is measured, ms."""
AHEAD_SHARE = 0.5
"""The middle of the circle moves ahead by this share of the way that the last movement would have led."""
GROWTH_SHARE = 0.6
"""The radius grows by this share of the way that the wearer can have gone at the assumed pace. Half of it would do for a wearer who
stops or goes straight on; the rest is for corners (`bench.region`)."""
MIN_RADIUS_MM = 25_000
"""Least radius, mm: a receiver's error between houses is greater than it says."""


class RegionCircle(NamedTuple):
    """One circle of a region."""

    centre: Vector
    """Earth-centred, mm."""
    radius_mm: float


class Region(NamedTuple):
    """The region in which a wearer may be at a moment."""

    circles: tuple[RegionCircle, ...]
    """The first rests on the newest position; the others on positions from before jumps."""
    fix_ms: int
    """Time of the newest position, mesh time."""
    grows_mps: float
    """How fast the radii grow until the next position, m/s."""


def possible_region(state: State, case: Case, at_ms: int) -> Region | None:
    """The region in which the wearer of a case may be at a moment.

    None if the newest position is older than 3 minutes then: his place is unknown.
    """
    track = state.last_track(case.tag_device_ids)
    if track is None or not is_recent(track.recent[-1].time_ms, at_ms):
        return None
    last = track.recent[-1]
    pace_mps = reachability.assumed_pace_mps(state.rules, Unseen(track, last.time_ms))
    age_ms = max(0, at_ms - last.time_ms)
    newest = RegionCircle(
        _ahead(track, age_ms, pace_mps=pace_mps),
        _radius_mm(accuracy.credible_mm(track), pace_mps, age_ms),
    )
    earlier = [
        RegionCircle(fix.point, _radius_mm(fix.accuracy_mm, mps, at_ms - fix.time_ms))
        for fix, mps in _before_jumps(state, track, pace_mps)
    ]
    circles = (newest, *(circle for circle in earlier if not _is_inside(circle, newest)))
    return Region(circles, last.time_ms, GROWTH_SHARE * pace_mps)


def _radius_mm(accuracy_mm: int, pace_mps: float, age_ms: int) -> float:
    return max(MIN_RADIUS_MM, R90_PER_R68 * accuracy_mm) + GROWTH_SHARE * pace_mps * age_ms


def _ahead(track: Track, age_ms: int, *, pace_mps: float) -> Vector:
    """The middle of the circle of the newest position: ahead in the direction of the last movement, or at the position itself."""
    last = track.recent[-1]
    before = track.last_before(last.time_ms - HEADING_OVER_MS + 1)
    if before is None or last.time_ms - before.time_ms > UNKNOWN_AFTER_MS:
        return last.point
    moved_mm = math.dist(before.point, last.point)
    if moved_mm <= before.accuracy_mm + last.accuracy_mm:
        return last.point
    ahead_mm = AHEAD_SHARE * min(moved_mm / (last.time_ms - before.time_ms), pace_mps) * age_ms
    return between(before.point, last.point, 1 + ahead_mm / moved_mm)


def _before_jumps(state: State, track: Track, pace_mps: float) -> list[tuple[Fix, float]]:
    """Positions at which the device may still be although a newer position says otherwise, newest first, with the pace of each, m/s."""
    rules = state.rules
    left = [(fix, min(rules.reach_mps, max(rules.foot_mps, pace))) for fix, pace in plausibility.left_by_jump(track)]
    if left or plausibility.is_newest_believed(track, rules.reach_mps):
        return left
    last = track.recent[-1]
    return [(plausibility.believed(track, last.time_ms, None, bound_mps=rules.reach_mps).recent[-1], pace_mps)]


def _is_inside(inner: RegionCircle, outer: RegionCircle) -> bool:
    return math.dist(inner.centre, outer.centre) + inner.radius_mm <= outer.radius_mm


# ── the part of a region that leaves ─────────────────────────────────────────────────────────────────────────────────


GRID_E7 = (4_500, 5_500)
"""Steps of the grid of middles, 1e-7 degrees of latitude and longitude: some 50 m in Korea."""
SNAPPED_BY_M = 40.0
"""Greatest distance from a point to the next point of the grid, m, rounded up."""
RADIUS_STEP_M = 50
BAND_STEP_M = 100
"""Step of the distances between which the wearer may be, m."""
WAY_OUT_M = 300.0
"""Length of the way that is tried in each direction, m."""
SECTORS = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")


class ShownCircle(NamedTuple):
    """A circle that is shown."""

    lat_e7: int
    lon_e7: int
    radius_m: int


class FromHer(NamedTuple):
    """Where a region lies from her newest position."""

    least_m: int
    """The wearer is at least this far, m; 0 if he may be with her."""
    greatest_m: int
    direction: str
    """One of SECTORS; empty if she may be inside the region."""
    way_out: str
    """Direction that leads away from all circles, one of SECTORS."""


def circles_of(region: Region) -> tuple[ShownCircle, ...]:
    """The circles of a region on the grid. Each holds the circle that it replaces."""
    shown: dict[ShownCircle, None] = {}
    for circle in region.circles:
        lat_deg, lon_deg = lat_lon_deg(circle.centre)
        lat_e7, lon_e7 = (
            round(degrees * 1e7 / step) * step for degrees, step in zip((lat_deg, lon_deg), GRID_E7, strict=True)
        )
        wide_m = circle.radius_mm / 1000 + SNAPPED_BY_M
        shown[ShownCircle(lat_e7, lon_e7, math.ceil(wide_m / RADIUS_STEP_M) * RADIUS_STEP_M)] = None
    return tuple(shown)


def from_her(circles: tuple[ShownCircle, ...], her: Fix) -> FromHer:
    """Where circles lie from her newest position, whose accuracy widens the distances."""
    offsets = [(*offset_m(circle, her.point), float(circle.radius_m)) for circle in circles]
    vague_m = her.accuracy_mm / 1000
    least_m = max(0.0, min(math.hypot(east, north) - radius for east, north, radius in offsets) - vague_m)
    greatest_m = max(math.hypot(east, north) + radius for east, north, radius in offsets) + vague_m
    east, north, _ = offsets[0]
    bearing = math.degrees(math.atan2(east, north))
    return FromHer(
        least_m=int(least_m // BAND_STEP_M) * BAND_STEP_M,
        greatest_m=math.ceil(greatest_m / BAND_STEP_M) * BAND_STEP_M,
        direction=SECTORS[round(bearing / 45) % 8] if least_m > 0 else "",
        way_out=_way_out(offsets),
    )


def offset_m(circle: ShownCircle, point: Vector) -> tuple[float, float]:
    """Offset from a point to the middle of a circle: east and north, m. A plane does within some kilometres."""
    lat_deg, lon_deg = lat_lon_deg(point)
    north_m = (circle.lat_e7 / 1e7 - lat_deg) * _M_PER_DEGREE
    return (circle.lon_e7 / 1e7 - lon_deg) * _M_PER_DEGREE * math.cos(math.radians(lat_deg)), north_m


_M_PER_DEGREE = 111_195.0


def _way_out(offsets: list[tuple[float, float, float]]) -> str:
    """The direction in which she is farthest from all circles after WAY_OUT_M. The first of several that are alike."""

    def gained_m(sector: int) -> int:
        turn = math.radians(45 * sector)
        east, north = WAY_OUT_M * math.sin(turn), WAY_OUT_M * math.cos(turn)
        return round(min(math.hypot(east - x, north - y) - radius for x, y, radius in offsets))

    return SECTORS[max(range(len(SECTORS)), key=gained_m)]
