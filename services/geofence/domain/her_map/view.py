"""What her map may show now, and why it may not show more. Denied by default. Pure.

A location may go to a protected person together with a notice that is open, on the notice's ground, and while the Ministry's rule of
urgency holds (Tag Act 16(2)5 with Decree 13-3; 31-8(2)5 with Decree 23-17(1)). Within that, a view is withheld where it would say more
about the wearer's life than about her danger: at rest, on the way off, or far away. A withheld view never says that he isn't near.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from services.common.privacy import notices
from services.common.privacy.notices import NoticeGround
from services.geofence.domain.entries import Case, Target
from services.geofence.domain.her_map import coarse, region
from services.geofence.domain.her_map.coarse import FromHer, ShownCircle
from services.geofence.domain.kinematics import reachability
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.notices import urgency
from services.geofence.domain.notices.notice import OPEN_NOTICES
from services.geofence.domain.state import CaseState, State
from services.geofence.domain.tracks.fixes import Fix
from services.geofence.domain.unseen import belief
from services.geofence.domain.wearing import removals

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
    found = None if removals.is_off(case_state) else region.possible_region(state, case, at_ms)
    if found is None:
        return MapView(ViewOutcome.UNKNOWN, case.case_id, person.target_id)
    her = _known_fix(state, person, at_ms)
    circles = coarse.circles_of(found)
    place = coarse.from_her(circles, her) if her else None
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
    return fix if fix is not None and at_ms - fix.time_ms <= UNKNOWN_AFTER_MS else None


def _withheld(state: State, case: Case, person: Target, *, place: FromHer | None) -> ViewOutcome | None:
    """Why a view of a known position is withheld; None if it is shown."""
    near_place = _is_near_place(state, case)
    if not near_place and not urgency.is_urgent(state, case, person):
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
    closing_mps = urgency.closing_mps(state, case, person)
    return ViewOutcome.LEAVING if closing_mps is not None and closing_mps < LEAVING_MPS else None


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
    at_unit = belief.unseen_at_unit(state, case)
    if at_unit is not None and at_unit.rested_ms:
        return True
    fix = state.last_fix(case.tag_device_ids)
    return fix is not None and any(
        unit.place.distance_bound_mm(fix.point) <= fix.accuracy_mm
        for unit in case.units
        if not unit.holder and unit.is_installed(fix.time_ms)
    )
