"""Notices of the Ministry: which alerts make one due, for whom, who must look into the act, and when it ends.

Only a case with a ground makes notices. A notice of a person is open from the first alert that makes one due until no ring round the
person or a protected place of the order is entered any more, the order ends, or the ground falls.

A location may go with a notice if the Ministry's rule of urgency holds. The law asks for urgency by distance and danger (Tag Act
Decree 13-3, 23-17(1)). The rule measures it by the distance to her, the speed at which the wearer comes nearer, and the distance to a
protected place. The limits are rules of the log, so that a replay gives the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.common.privacy.notices import NoticeGround
from services.geofence.domain import demands
from services.geofence.domain.alerts import MinistryNotice
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Case, Demand, Ring, Target
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.pairs import recent_apart_mm
from services.geofence.domain.state import CasePart, CaseState, State

CLOSING_OVER_MS = 30_000
"""Least time over which the closing speed is measured, ms: shorter ones are the receiver's noise."""

OPEN_NOTICES: CasePart[dict[str, str]] = CasePart(
    "notices", new=dict, encode=lambda notices: list(notices.items()), decode=dict
)
"""Code of the ground of each person's open notice, by person id. A checkpoint keeps their order, since the ground of the first one that
ends is named for all that end with it."""


class NoticeCause(NamedTuple):
    """The part of an alert on which a notice rests."""

    kind: AlertKind
    demand: Demand
    target: Target | None
    ring: Ring | None


class NoticeDemand(NamedTuple):
    """What an alert demands beside its destinations: a notice of the Ministry, and checks."""

    notice: MinistryNotice | None = None
    checks: tuple[Leg, ...] = ()


def demanded(state: State, case_state: CaseState, cause: NoticeCause, *, warned_ids: Sequence[str]) -> NoticeDemand:
    """The notice and the checks that an alert of a case demands. Opens the notices of the persons.

    `warned_ids` are the persons whom the alert warns: a person who knows of a stay gets no notice of it either.
    """
    case = case_state.case
    if not (case.notice_ground or case.police_must_check or case.tag_duty):
        return NoticeDemand()
    if cause.kind is AlertKind.DISTANCE_CHANGED:
        return NoticeDemand(_update(state, case_state, warned_ids, target=cause.target))
    act = demands.act_of(cause.kind, cause.demand, target=cause.target, ring=cause.ring)
    # What the persons know of a wearer who lives within a ring, the desks know, too.
    is_known_stay = cause.kind is AlertKind.RING_ENTERED and not warned_ids and any(t.is_person for t in case.targets)
    if act is None or is_known_stay or not (case.notice_ground or case.police_must_check or act in demands.OF_DUTY):
        return NoticeDemand()
    due = _notice(state, case_state, warned_ids, act=act, target=cause.target)
    return NoticeDemand(due, demands.checks(case, act, due is not None))


def ended(case_state: CaseState) -> MinistryNotice | None:
    """The end of the open notices that nothing keeps open any more; None if there is none. Closes them."""
    notices = OPEN_NOTICES.all_in(case_state).get(OPEN_NOTICES.name)
    if not notices:
        return None
    over = {person_id: ground for person_id, ground in notices.items() if not _is_active(case_state, person_id)}
    if not over:
        return None
    for person_id in over:
        del notices[person_id]
    return MinistryNotice(NoticeGround(next(iter(over.values()))), tuple(sorted(over)), ended=True)


def _notice(
    state: State, case_state: CaseState, warned_ids: Sequence[str], *, act: demands.Act, target: Target | None
) -> MinistryNotice | None:
    ground = case_state.case.notice_ground
    if ground is None or not warned_ids or act not in demands.NOTIFIES_PERSONS[ground]:
        return None
    notices = OPEN_NOTICES.of(case_state)
    notices.update(dict.fromkeys(warned_ids, ground.value))
    return MinistryNotice(ground, tuple(warned_ids), gives_location=is_urgent(state, case_state.case, target))


def _update(
    state: State, case_state: CaseState, warned_ids: Sequence[str], *, target: Target | None
) -> MinistryNotice | None:
    """A new notice of persons whose notice is open, if a location may go with it: each update of a location is a notice of its own."""
    ground, notices = case_state.case.notice_ground, OPEN_NOTICES.of(case_state)
    person_ids = tuple(person_id for person_id in warned_ids if person_id in notices)
    if ground is None or not person_ids or not is_urgent(state, case_state.case, target):
        return None
    return MinistryNotice(ground, person_ids, gives_location=True)


def _is_active(case_state: CaseState, person_id: str) -> bool:
    """Whether something keeps a person's notice open."""
    case = case_state.case
    if case_state.ended or case.notice_ground is None:
        return False
    if not any(target.is_person and target.target_id == person_id for target in case.targets):
        return False
    keys = {target.key for target in case.targets if not target.is_person or target.target_id == person_id}
    is_entered = any(ring_state.open for key, ring_state in case_state.rings.items() if key.target_key in keys)
    return is_entered or any(case_state.near.get(key) is Demand.RESPOND for key in keys)


def is_urgent(state: State, case: Case, target: Target | None) -> bool:
    """Whether a location may go with a notice about a target now.

    Without positions of both sides from the last 3 minutes there is no location to give. A notice without a target, or about a place,
    is urgent if any place or person that it concerns is.
    """
    targets = (target,) if target is not None else case.targets
    return any(_is_urgent(state, case, each) for each in targets)


def _is_urgent(state: State, case: Case, target: Target) -> bool:
    rules, apart_mm = state.rules, recent_apart_mm(state, case, target)
    if apart_mm is None:
        return False
    if apart_mm <= (rules.urgent_within_mm if target.is_person else rules.urgent_place_within_mm):
        return True
    mps = closing_mps(state, case, target)
    return mps is not None and mps >= rules.urgent_closing_mps


def closing_mps(state: State, case: Case, target: Target) -> float | None:
    """Speed at which the wearer has come nearer to a target over the last half minute or more, m/s; negative if the distance grew.

    None if the positions don't say.
    """
    track = state.last_track(case.tag_device_ids)
    if track is None:
        return None
    now = track.recent[-1]
    earlier = track.last_before(now.time_ms - CLOSING_OVER_MS + 1)
    if earlier is None or now.time_ms - earlier.time_ms > UNKNOWN_AFTER_MS:
        return None
    apart_mm = recent_apart_mm(state, case, target)
    earlier_mm = recent_apart_mm(state, case, target, before_ms=earlier.time_ms + 1)
    if apart_mm is None or earlier_mm is None:
        return None
    return (earlier_mm - apart_mm) / (now.time_ms - earlier.time_ms)
