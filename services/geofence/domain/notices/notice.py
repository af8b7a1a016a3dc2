"""Notices of the Ministry: which alerts make one due, for whom, who must look into the act, and when it ends.

Only a case with a ground makes notices. A notice of a person is open from the first alert that makes one due until no ring round the
person or a protected place of the order is entered any more, the order ends, or the ground falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.common.privacy.notices import NoticeGround
from services.geofence.domain import demands
from services.geofence.domain.alerts import MinistryNotice
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.notices import urgency
from services.geofence.domain.state import CasePart, CaseState, State

FIRST_VERSION = 14
"""The fold makes no notices and no checks before the log demands this version: an older log was decided without them."""
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
    if state.log_version < FIRST_VERSION or not (case.notice_ground or case.police_must_check or case.tag_duty):
        return NoticeDemand()
    if cause.kind is AlertKind.DISTANCE_CHANGED:
        return NoticeDemand(_update(state, case_state, warned_ids, target=cause.target))
    act = demands.act_of(cause.kind, cause.demand, target=cause.target, ring=cause.ring)
    # What the persons know of a wearer who lives within a ring, the desks know, too.
    is_known_stay = cause.kind is AlertKind.RING_ENTERED and not warned_ids and any(t.is_person for t in case.targets)
    if act is None or is_known_stay or not (case.notice_ground or case.police_must_check or act in demands.OF_DUTY):
        return NoticeDemand()
    notice = _notice(state, case_state, warned_ids, act=act, target=cause.target)
    return NoticeDemand(notice, demands.checks(case, act, notice is not None))


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
    return MinistryNotice(ground, tuple(warned_ids), gives_location=urgency.is_urgent(state, case_state.case, target))


def _update(
    state: State, case_state: CaseState, warned_ids: Sequence[str], *, target: Target | None
) -> MinistryNotice | None:
    """A new notice of persons whose notice is open, if a location may go with it: each update of a location is a notice of its own."""
    ground, notices = case_state.case.notice_ground, OPEN_NOTICES.of(case_state)
    person_ids = tuple(person_id for person_id in warned_ids if person_id in notices)
    if ground is None or not person_ids or not urgency.is_urgent(state, case_state.case, target):
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
