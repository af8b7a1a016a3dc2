"""Live sharing of positions: who may see whose position, under which article, and until when. Denied by default."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from services.common.errors import FailedPrecondition, InvalidField, PermissionDenied
from services.common.privacy.grounds import LEGAL_BASES, Purpose, RecordKind, check_grounds
from services.common.rpc.identity import Role
from services.geofence.domain.detectors import wearing
from services.geofence.domain.geometry import Shape
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, is_recent
from services.geofence.domain.state import CaseState, OpenIncident, State

MAX_SHARE_MS = 86_400_000
"""Maximum duration of a share: a day."""
SHOWN = {
    # This desk sees no protected person: her position shows her address, as three distances with a track would.
    Role.ROLE_MOJ_DESK: frozenset({RecordKind.WEARER}),
    Role.ROLE_NPA_DESK: frozenset({RecordKind.WEARER, RecordKind.PROTECTED_PERSON, RecordKind.ORDER}),
}
"""Kinds of subject that each role may see; a role that isn't listed sees none. A protected place is part of its order."""

_NO_APPROACH = frozenset(
    {
        "STALKING_9_1_2",
        "STALKING_9_1_3_2",
        "STALKING_4",
        "STALKING_17_6",
        "STALKING_17_7",
        "DV_29_1",
        "DV_PROTECTION",
        "TAG_9_2_1_3",
        "TAG_DECREE_23_10",
    }
)
"""Articles that keep somebody away, and the article by which the police are informed. Item 3 forbids calls, which need no
position."""
_OF_TAGS = frozenset({"TAG_16_2", "TAG_31_8_2", "TAG_DECREE_23_10"})
"""Articles on the use of tag data."""
DURING_AN_INCIDENT = {
    RecordKind.WEARER: _NO_APPROACH | _OF_TAGS,
    RecordKind.PROTECTED_PERSON: _NO_APPROACH,
    RecordKind.ORDER: _NO_APPROACH,
}
UNDER_AN_ORDER: dict[RecordKind, frozenset[str]] = {
    RecordKind.WEARER: _OF_TAGS,
    RecordKind.PROTECTED_PERSON: frozenset(),
    RecordKind.ORDER: frozenset(),
}
"""Articles that allow a live position without an incident, by kind of subject. Nobody needs the protected person's position then."""
_LISTED = frozenset(basis.code for basis in LEGAL_BASES)


class End(enum.IntEnum):
    """Why a share ended. The numbers equal those of the protos."""

    INCIDENT_ENDED = 1
    ORDER_ENDED = 2
    EXPIRED = 3
    WITHDRAWN = 4


@dataclass(frozen=True, slots=True)
class Subject:
    """A person or place whose position is requested."""

    kind: RecordKind
    """ORDER for a protected place."""
    subject_id: str
    """Id of a person; for a place `order/place`."""


@dataclass(frozen=True, slots=True)
class PositionQuery:
    """A caller's request for the positions of one subject. Exactly one of incident_id and order_id is given."""

    incident_id: str
    order_id: str
    legal_basis: str
    subject: Subject
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class PositionShare:
    """The right of one reader to the position of one subject."""

    subject: Subject
    case_id: str
    order_id: str
    wearer_id: str
    incident_id: str
    """Empty if the share rests on the order alone."""
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class KnownPosition:
    """Where a subject is, as far as it is known."""

    fix: Fix | None
    unknown: bool
    """Whether the fix is missing or older than 3 minutes."""
    place: Shape | None = None
    """Area of a protected place, instead of a fix. It is never unknown."""


def check(query: PositionQuery, role: Role.ValueType, now_ms: int) -> None:
    """Checks that a role may make a request at all, whatever the state holds. Raises InvalidField or PermissionDenied."""
    if not now_ms < query.expires_at_ms <= now_ms + MAX_SHARE_MS:
        raise InvalidField("expires_at", "must be in the future, at most 24 hours ahead")
    kind = query.subject.kind
    if kind not in SHOWN.get(role, ()):
        raise PermissionDenied(f"{Role.Name(role)} may not see a position of the kind {kind.value}")
    allowed = DURING_AN_INCIDENT if query.incident_id else UNDER_AN_ORDER
    if query.legal_basis in _LISTED and query.legal_basis not in allowed[kind]:
        under = "an incident" if query.incident_id else "an order"
        raise PermissionDenied(
            f"{query.legal_basis} doesn't allow a live position of the kind {kind.value} under {under}"
        )
    reference = query.incident_id or query.order_id
    check_grounds(query.legal_basis, Purpose.ENFORCEMENT, reference, kind=kind, now_ms=now_ms)


def incidents_by_id(state: State) -> Mapping[str, OpenIncident]:
    """The open incidents by id. Build it once for many requests."""
    return {incident.incident_id: incident for incident in state.incidents.values()}


def share_of(state: State, query: PositionQuery, incidents: Mapping[str, OpenIncident]) -> PositionShare | None:
    """The share that the state allows for a request; None if it knows neither the incident nor the order.

    `incidents` is `incidents_by_id(state)`. Raises FailedPrecondition if the state knows the incident or order, and doesn't allow the
    share.
    """
    cases = _cases(state, query, incidents)
    if not cases:
        return None
    subject = query.subject
    possible = [_share(case, query) for case in cases if _names(case, subject)]
    if not possible:
        raise FailedPrecondition(f"the incident or order doesn't concern a subject of the kind {subject.kind.value}")
    reasons = {share: end_of(state, share, state.now_ms) for share in possible}
    allowed = [share for share, reason in reasons.items() if reason is None]
    if not allowed:
        why = ", ".join(sorted({reason.name for reason in reasons.values() if reason}))
        raise FailedPrecondition(
            f"the incident or order doesn't allow the position of a subject of the kind {subject.kind.value}: {why}"
        )
    return allowed[0]


def end_of(state: State, share: PositionShare, now_ms: int) -> End | None:
    """Why a share has ended; None while it lasts."""
    case_state = state.cases.get(share.case_id)
    if case_state is None or case_state.ended:
        return End.ORDER_ENDED
    case = case_state.case
    if not case.is_in_force(now_ms):
        return End.ORDER_ENDED
    if share.subject.kind is RecordKind.ORDER:
        if _place(case_state, share.subject) is None:
            return End.WITHDRAWN
    elif not _devices_in(case_state, share.subject):
        return End.WITHDRAWN
    if share.incident_id and not _concerns(state.incidents.get(share.wearer_id), share):
        return End.INCIDENT_ENDED
    return End.EXPIRED if now_ms >= share.expires_at_ms else None


def locate(state: State, share: PositionShare) -> KnownPosition:
    """The position of a share's subject. Call it only while the share lasts."""
    if share.subject.kind is RecordKind.ORDER:
        return KnownPosition(None, False, _place(state.cases[share.case_id], share.subject))
    fix = state.last_fix(devices(state, share))
    is_off = share.subject.kind is RecordKind.WEARER and wearing.is_off(state.cases[share.case_id])
    return KnownPosition(fix, is_off or fix is None or not is_recent(fix.time_ms, state.now_ms))


def next_change_ms(state: State, share: PositionShare, known: KnownPosition) -> int:
    """The next moment, mesh time, at which time alone ends the share or makes its position unknown. Call it only while the share
    lasts."""
    until_ms = state.cases[share.case_id].case.valid_until_ms
    ends_ms = share.expires_at_ms if until_ms is None else min(share.expires_at_ms, until_ms)
    if known.unknown or known.fix is None:
        return ends_ms
    return min(ends_ms, known.fix.time_ms + UNKNOWN_AFTER_MS + 1)


def devices(state: State, share: PositionShare) -> tuple[str, ...]:
    """The devices that locate a share's subject; none for a place, or if the case is gone."""
    case_state = state.cases.get(share.case_id)
    return _devices_in(case_state, share.subject) if case_state else ()


def _cases(state: State, query: PositionQuery, incidents: Mapping[str, OpenIncident]) -> list[CaseState]:
    """Cases of the order, or cases with an open episode in the incident."""
    if query.order_id:
        of_order = (case_state for case_state in state.cases.values() if case_state.case.order_id == query.order_id)
        return sorted(of_order, key=lambda case_state: case_state.case.case_id)
    incident = incidents.get(query.incident_id)
    return [state.cases[case_id] for case_id in incident.case_ids] if incident else []


def _share(case_state: CaseState, query: PositionQuery) -> PositionShare:
    case = case_state.case
    return PositionShare(
        subject=query.subject,
        case_id=case.case_id,
        order_id=case.order_id,
        wearer_id=case.wearer_id,
        incident_id=query.incident_id,
        expires_at_ms=query.expires_at_ms,
    )


def _names(case_state: CaseState, subject: Subject) -> bool:
    case = case_state.case
    if subject.kind is RecordKind.WEARER:
        return case.wearer_id == subject.subject_id
    if subject.kind is RecordKind.ORDER:
        return _place(case_state, subject) is not None
    return any(target.is_person and target.target_id == subject.subject_id for target in case.targets)


def _place(case_state: CaseState, subject: Subject) -> Shape | None:
    """Area of a protected place; None if the case doesn't name the place."""
    order_id, _, place_id = subject.subject_id.partition("/")
    if case_state.case.order_id != order_id:
        return None
    named = (
        target.shape for target in case_state.case.targets if not target.is_person and target.target_id == place_id
    )
    return next(named, None)


def _devices_in(case_state: CaseState, subject: Subject) -> tuple[str, ...]:
    """Devices of a person; empty for a place, or if the case doesn't name the person."""
    case = case_state.case
    if subject.kind is RecordKind.ORDER:
        return ()
    if subject.kind is RecordKind.WEARER:
        return case.tag_device_ids
    persons = (target for target in case.targets if target.is_person and target.target_id == subject.subject_id)
    return next((target.device_ids for target in persons), ())


def _concerns(incident: OpenIncident | None, share: PositionShare) -> bool:
    """Whether the incident is still open, and still concerns the subject if that isn't the wearer.

    An incident may go on because of another protected person.
    """
    if incident is None or incident.incident_id != share.incident_id:
        return False
    return share.subject.kind is RecordKind.WEARER or share.case_id in incident.case_ids
