"""Authorised removals of a tag (Tag Act Decree 10): an open strap isn't tampering while one lasts, and alarms if it is open at the end.

From the opening of the strap until its closing the tag isn't on its wearer. Its positions can still raise an alarm, but they calm
nobody: they clear no ring, end no notice about an unseen wearer, and the wearer counts as unseen since the strap was opened. While
a removal is active, nobody is sent only because the wearer is unseen, and probation isn't notified of the tag's silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from services.geofence.domain import demands
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import AlertKind, Detection
from services.geofence.domain.detectors.detector import Amendment, Detector
from services.geofence.domain.entries import Case, Demand, EquipmentKind, GoodCause, Removal
from services.geofence.domain.kinematics.reachability import Unseen
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.state import CasePart, CaseState, EventKey, State

FIRST_VERSION = 14
"""The fold knows no removals before the log demands this version: an older log was decided without them."""


@dataclass(slots=True)
class RemovalState:
    """What the fold remembers of the authorised removals of a case."""

    begun: list[str] = field(default_factory=list)
    """Ids of the removals whose beginning was emitted."""
    off_ms: dict[str, int] = field(default_factory=dict)
    """Tags that aren't on their wearer by permission, and when the strap was opened."""
    refitted_ms: int = 0
    """When a strap was last closed within a removal, ms since 1970 UTC; 0 if none was."""


def _of_json(content: Sequence[Any]) -> RemovalState:
    begun, off_ms, refitted = content
    return RemovalState(begun=begun, off_ms=off_ms, refitted_ms=refitted)


REMOVALS = CasePart(
    "removals", new=RemovalState, encode=lambda memory: list(astuple(memory)), decode=_of_json, outlives_episode=True
)


# ── questions of other detectors ─────────────────────────────────────────────────────────────────────────────────────


def is_off(case_state: CaseState) -> bool:
    """Whether a tag of the case isn't on its wearer, by permission."""
    return REMOVALS.name in case_state.of_case and bool(REMOVALS.of(case_state).off_ms)


def refitted_ms(case_state: CaseState) -> int:
    """When a strap was last closed within a removal; 0 if none was. Earlier positions say nothing about the wearer."""
    return REMOVALS.of(case_state).refitted_ms if REMOVALS.name in case_state.of_case else 0


def unseen(case_state: CaseState, track: Track) -> Unseen | None:
    """The wearer as last known before a strap was opened by permission; None if no tag is off. `track` has the newest fix."""
    if not is_off(case_state):
        return None
    off_ms = min(REMOVALS.of(case_state).off_ms.values())
    fixes = track.fixes
    before = [fix for fix in fixes if fix.time_ms <= off_ms]
    return Unseen(Track(before or fixes[:1]), off_ms)


def covers(state: State, case: Case, device_id: str, *, at_ms: int) -> bool:
    """Whether an authorised removal of a tag covers a moment."""
    return covering(state, case, device_id, at_ms=at_ms) is not None


def covering(state: State, case: Case, device_id: str, *, at_ms: int) -> Removal | None:
    """The authorised removal of a tag that covers a moment; None if none does."""
    if state.log_version < FIRST_VERSION:
        return None
    mine = (removal for removal in case.removals if removal.device_id == device_id)
    return next((removal for removal in mine if removal.from_ms <= at_ms < removal.until_ms), None)


def after_ms(state: State, case: Case, from_ms: int) -> int:
    """The first moment from `from_ms` on at which no authorised removal is active."""
    if state.log_version < FIRST_VERSION or not case.removals:  # nearly always
        return from_ms
    return first_uncovered_ms(case.removals, from_ms)


def first_uncovered_ms(periods: Sequence[Removal | GoodCause], from_ms: int) -> int:
    """The first moment from `from_ms` on that none of these periods covers. They are in ascending order of their start."""
    for period in periods:
        if period.from_ms <= from_ms < period.until_ms:
            from_ms = period.until_ms
    return from_ms


# ── equipment events ─────────────────────────────────────────────────────────────────────────────────────────────────


def emit_strap(context: CaseContext, key: EventKey, at_ms: int, *, ended_ms: int | None = None) -> bool:
    """Emits an event of a strap within an authorised removal. Returns False if the event isn't within one."""
    if key.event is EquipmentKind.STRAP_CLOSED:
        return _close_strap(context, key.device_id, at_ms)
    if key.event is not EquipmentKind.STRAP_OPEN:
        return False
    opened_ms = min(at_ms, _opened_ms(context.state, key.device_id) or at_ms)
    removal = covering(context.state, context.case, key.device_id, at_ms=opened_ms)
    if removal is None or (ended_ms is not None and ended_ms > removal.until_ms):
        if is_off(context.case_state):
            REMOVALS.of(context.case_state).off_ms.pop(key.device_id, None)
        return False
    memory = REMOVALS.of(context.case_state)
    if key.device_id not in memory.off_ms:
        _emit(context, Detection.STRAP_OPENED_BY_PERMISSION, at_ms, removal_id=removal.removal_id)
        memory.off_ms[key.device_id] = opened_ms
    if ended_ms is not None:
        _close(context, key.device_id, ended_ms)
    return True


def _close_strap(context: CaseContext, device_id: str, at_ms: int) -> bool:
    if not is_off(context.case_state) or device_id not in REMOVALS.of(context.case_state).off_ms:
        return False
    # A closing that is older than the opening ends an earlier one: the strap is still open.
    if _opened_ms(context.state, device_id) is None:
        _close(context, device_id, at_ms)
    return True


def _opened_ms(state: State, device_id: str) -> int | None:
    """When the open strap of a tag was opened; None if it is closed."""
    opened = state.active_events.get(device_id, {}).get(EquipmentKind.STRAP_OPEN.value)
    return opened.at_ms if opened else None


def _close(context: CaseContext, device_id: str, at_ms: int) -> None:
    memory = REMOVALS.of(context.case_state)
    removal = covering(context.state, context.case, device_id, at_ms=memory.off_ms.pop(device_id))
    memory.refitted_ms = max(memory.refitted_ms, at_ms)
    _emit(context, Detection.STRAP_CLOSED_BY_PERMISSION, at_ms, removal_id=removal.removal_id if removal else "")


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Emits removals that begin, and straps that are still open at the end of one. Returns the moments of the next checks."""
    case_state = context.case_state
    is_used = case_state.case.removals or REMOVALS.name in case_state.of_case
    if not is_used or context.state.log_version < FIRST_VERSION:
        return ()  # nearly always
    return _check(context, at_ms)


def _check(context: CaseContext, at_ms: int) -> Iterator[int]:
    state, case_state, case = context.state, context.case_state, context.case
    memory = REMOVALS.of(case_state)
    for removal in case.removals:
        if removal.from_ms <= at_ms < removal.until_ms and removal.removal_id not in memory.begun:
            memory.begun.append(removal.removal_id)
            detection = Detection.REMOVAL_BEGUN if case.tag_duty is None else Detection.REMOVAL_BEGUN_UNDER_AN_ORDER
            _emit(context, detection, at_ms, removal_id=removal.removal_id)
    for device_id in case.tag_device_ids:
        _permit_open_strap(context, device_id, at_ms)
    for device_id in sorted(memory.off_ms):
        if not covers(state, case, device_id, at_ms=at_ms):
            _alarm(context, device_id, at_ms)
    moments_ms = (moment_ms for removal in case.removals for moment_ms in (removal.from_ms, removal.until_ms))
    yield from (moment_ms for moment_ms in moments_ms if moment_ms > at_ms)


def _permit_open_strap(context: CaseContext, device_id: str, at_ms: int) -> None:
    """Ends the tampering of a strap that turns out to be open by permission: an officer recorded the removal, or a longer one, after
    the fact (Decree 10(1), proviso)."""
    state, case, key = context.state, context.case, EventKey(EquipmentKind.STRAP_OPEN, device_id)
    raised_ms = context.case_state.raised.get(key)
    if raised_ms is None:
        return
    opened_ms = min(raised_ms, _opened_ms(state, device_id) or raised_ms)
    removal = covering(state, case, device_id, at_ms=at_ms)
    if removal is None or not covers(state, case, device_id, at_ms=opened_ms):
        return
    del context.case_state.raised[key]
    context.alert(AlertDraft(AlertKind.TAMPERED, Demand.RECORD, at_ms, cause=context.cause))
    REMOVALS.of(context.case_state).off_ms[device_id] = opened_ms
    _emit(context, Detection.STRAP_OPENED_BY_PERMISSION, at_ms, removal_id=removal.removal_id)


def _alarm(context: CaseContext, device_id: str, at_ms: int) -> None:
    """Emits that a strap is open although no removal of its tag is active any more."""
    del REMOVALS.of(context.case_state).off_ms[device_id]
    kind, demand = demands.EQUIPMENT[EquipmentKind.STRAP_OPEN]
    context.case_state.raised[EventKey(EquipmentKind.STRAP_OPEN, device_id)] = at_ms
    context.alert(AlertDraft(kind, demand, at_ms, cause=context.cause))


def amend(context: CaseContext, amendment: Amendment) -> None:
    """Forgets the tags that a new snapshot no longer names. A removal that it ends or drops is checked as soon as it is in place."""
    if REMOVALS.name not in context.case_state.of_case:
        return
    memory, case = REMOVALS.of(context.case_state), amendment.case
    kept = case.tag_device_ids if amendment.in_force else ()
    memory.off_ms = {device_id: off_ms for device_id, off_ms in memory.off_ms.items() if device_id in kept}
    known = {removal.removal_id for removal in case.removals}
    memory.begun = [removal_id for removal_id in memory.begun if removal_id in known]


def end(context: CaseContext) -> None:
    """Forgets all of a case that ends."""
    context.case_state.of_case.pop(REMOVALS.name, None)


def awaits_report(case_state: CaseState) -> bool:
    """Whether a tag is off: each report is compared with what was known before."""
    return is_off(case_state)


def _emit(context: CaseContext, detection: Detection, at_ms: int, *, removal_id: str) -> None:
    kind, demand = demands.DETECTIONS[detection]
    context.alert(AlertDraft(kind, demand, at_ms, cause=context.cause, removal_id=removal_id))


WHY = {
    Detection.REMOVAL_BEGUN_UNDER_AN_ORDER: (
        "an authorised removal of the tag begins under an order of item 3-2, which the police are told (Decree 10, 23-14(1) item 2)"
    ),
    Detection.REMOVAL_BEGUN: "an authorised removal of the tag begins (Decree 10)",
}
DETECTOR = Detector(on_time=check, on_amend=amend, on_end=end, awaits_report=awaits_report, parts=(REMOVALS,), why=WHY)
