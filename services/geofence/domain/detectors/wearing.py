"""Wearing: the duty to wear a tag, and authorised removals of it.

An open strap isn't tampering while an authorised removal lasts (Tag Act Decree 10), and alarms if it is open at the end. From the
opening of the strap until its closing the tag isn't on its wearer. Its positions can still raise an alarm, but they calm nobody: they
clear no ring, end no notice about an unseen wearer, and the wearer counts as unseen since the strap was opened. While a removal is
active, nobody is sent only because the wearer is unseen, and probation isn't notified of the tag's silence.

A respondent under an order of item 3-2 has to be fitted with a tag, and to keep one (Tag Act 31-6). The police are notified if the
respondent has no tag by the court's time, or refuses one, without good cause (31-6(4) item 1). That the record of the last tag ends
while the order is valid is an alert of Tandem's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from services.geofence.domain import demands
from services.geofence.domain.decisions import AlertDraft, Amendment, CaseContext, Detector
from services.geofence.domain.demands import Detection
from services.geofence.domain.entries import Case, EquipmentKind, GoodCause, Removal, TagDuty
from services.geofence.domain.state import CasePart, CaseState, EventKey, State


@dataclass(slots=True)
class RemovalState:
    """What the fold remembers of the authorised removals of a case."""

    begun: list[str] = field(default_factory=list)
    """Ids of the removals whose beginning was emitted."""
    off_ms: dict[str, int] = field(default_factory=dict)
    """Tags that aren't on their wearer by permission, and when the strap was opened."""
    refitted_ms: int = 0
    """When a strap was last closed within a removal, ms since 1970 UTC; 0 if none was."""


def _removals_of_json(content: Sequence[Any]) -> RemovalState:
    begun, off_ms, refitted = content
    return RemovalState(begun=begun, off_ms=off_ms, refitted_ms=refitted)


REMOVALS = CasePart(
    "removals",
    new=RemovalState,
    encode=lambda memory: list(astuple(memory)),
    decode=_removals_of_json,
    outlives_episode=True,
)


# ── questions of other detectors ─────────────────────────────────────────────────────────────────────────────────────


def is_off(case_state: CaseState) -> bool:
    """Whether a tag of the case isn't on its wearer, by permission."""
    return REMOVALS.name in case_state.of_case and bool(REMOVALS.of(case_state).off_ms)


def refitted_ms(case_state: CaseState) -> int:
    """When a strap was last closed within a removal; 0 if none was. Earlier positions say nothing about the wearer."""
    return REMOVALS.of(case_state).refitted_ms if REMOVALS.name in case_state.of_case else 0


def off_since_ms(case_state: CaseState) -> int | None:
    """When the first strap that is open by permission was opened; None if no tag of the case is off."""
    return min(REMOVALS.of(case_state).off_ms.values()) if is_off(case_state) else None


def covers(case: Case, device_id: str, at_ms: int) -> bool:
    """Whether an authorised removal of a tag covers a moment."""
    return covering(case, device_id, at_ms) is not None


def covering(case: Case, device_id: str, at_ms: int) -> Removal | None:
    """The authorised removal of a tag that covers a moment; None if none does."""
    mine = (removal for removal in case.removals if removal.device_id == device_id)
    return next((removal for removal in mine if removal.from_ms <= at_ms < removal.until_ms), None)


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
    removal = covering(context.case, key.device_id, opened_ms)
    if removal is None or (ended_ms is not None and ended_ms > removal.until_ms):
        if is_off(context.case_state):
            REMOVALS.of(context.case_state).off_ms.pop(key.device_id, None)
        return False
    memory = REMOVALS.of(context.case_state)
    if key.device_id not in memory.off_ms:
        _emit_removal(context, Detection.STRAP_OPENED_BY_PERMISSION, at_ms, removal_id=removal.removal_id)
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
    removal = covering(context.case, device_id, memory.off_ms.pop(device_id))
    memory.refitted_ms = max(memory.refitted_ms, at_ms)
    _emit_removal(
        context, Detection.STRAP_CLOSED_BY_PERMISSION, at_ms, removal_id=removal.removal_id if removal else ""
    )


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_removals(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Emits removals that begin, and straps that are still open at the end of one. Returns the moments of the next checks."""
    case_state = context.case_state
    is_used = case_state.case.removals or REMOVALS.name in case_state.of_case
    return _check_removals(context, at_ms) if is_used else ()  # nearly always none


def _check_removals(context: CaseContext, at_ms: int) -> Iterator[int]:
    case = context.case
    memory = REMOVALS.of(context.case_state)
    for removal in case.removals:
        if removal.from_ms <= at_ms < removal.until_ms and removal.removal_id not in memory.begun:
            memory.begun.append(removal.removal_id)
            detection = Detection.REMOVAL_BEGUN if case.tag_duty is None else Detection.REMOVAL_BEGUN_UNDER_AN_ORDER
            _emit_removal(context, detection, at_ms, removal_id=removal.removal_id)
    for device_id in case.tag_device_ids:
        _permit_open_strap(context, device_id, at_ms)
    for device_id in sorted(memory.off_ms):
        if not covers(case, device_id, at_ms):
            _alarm(context, device_id, at_ms)
    moments_ms = (moment_ms for removal in case.removals for moment_ms in (removal.from_ms, removal.until_ms))
    yield from (moment_ms for moment_ms in moments_ms if moment_ms > at_ms)


def _permit_open_strap(context: CaseContext, device_id: str, at_ms: int) -> None:
    """Ends the tampering of a strap that turns out to be open by permission: an officer recorded the removal, or a longer one, after
    the fact (Decree 10(1), proviso)."""
    state = context.state
    case = context.case
    key = EventKey(EquipmentKind.STRAP_OPEN, device_id)
    raised_ms = context.case_state.raised.get(key)
    if raised_ms is None:
        return
    opened_ms = min(raised_ms, _opened_ms(state, device_id) or raised_ms)
    removal = covering(case, device_id, at_ms)
    if removal is None or not covers(case, device_id, opened_ms):
        return
    del context.case_state.raised[key]
    context.alert(AlertDraft(demands.EQUIPMENT[EquipmentKind.STRAP_CLOSED], at_ms, cause=context.cause))
    REMOVALS.of(context.case_state).off_ms[device_id] = opened_ms
    _emit_removal(context, Detection.STRAP_OPENED_BY_PERMISSION, at_ms, removal_id=removal.removal_id)


def _alarm(context: CaseContext, device_id: str, at_ms: int) -> None:
    """Emits that a strap is open although no removal of its tag is active any more."""
    del REMOVALS.of(context.case_state).off_ms[device_id]
    context.case_state.raised[EventKey(EquipmentKind.STRAP_OPEN, device_id)] = at_ms
    context.alert(AlertDraft(demands.EQUIPMENT[EquipmentKind.STRAP_OPEN], at_ms, cause=context.cause))


def amend_removals(context: CaseContext, amendment: Amendment) -> None:
    """Forgets the tags that a new snapshot no longer names. A removal that it ends or drops is checked as soon as it is in place."""
    if REMOVALS.name not in context.case_state.of_case:
        return
    memory, case = REMOVALS.of(context.case_state), amendment.case
    kept = case.tag_device_ids if amendment.in_force else ()
    memory.off_ms = {device_id: off_ms for device_id, off_ms in memory.off_ms.items() if device_id in kept}
    known = {removal.removal_id for removal in case.removals}
    memory.begun = [removal_id for removal_id in memory.begun if removal_id in known]


def end_removals(context: CaseContext) -> None:
    """Forgets all of a case that ends."""
    context.case_state.of_case.pop(REMOVALS.name, None)


def _emit_removal(context: CaseContext, detection: Detection, at_ms: int, *, removal_id: str) -> None:
    context.alert(AlertDraft(detection.alert_type, at_ms, cause=context.cause, removal_id=removal_id))


WHY_REMOVAL = {
    Detection.REMOVAL_BEGUN_UNDER_AN_ORDER: (
        "an authorised removal of the tag begins under an order of item 3-2, which the police are told (Decree 10, 23-14(1) item 2)"
    ),
    Detection.REMOVAL_BEGUN: "an authorised removal of the tag begins (Decree 10)",
}
REMOVAL_DETECTOR = Detector(
    on_time=check_removals,
    on_amend=amend_removals,
    on_end=end_removals,
    awaits_report=is_off,
    parts=(REMOVALS,),
    why=WHY_REMOVAL,
)
# ── fitting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


EXCHANGE_MS = 600_000
"""How long a wearer may be without a tag in the records before that is an alert: an exchange of the tag is two records."""
_OVER = {
    Detection.NOT_FITTED: Detection.FITTING_SETTLED,
    Detection.TAG_LAPSED: Detection.LAPSE_SETTLED,
}


@dataclass(slots=True)
class FittingState:
    """What the fold remembers of a respondent's duty to wear a tag."""

    worn: bool = False
    """Whether the respondent ever wore a tag under the order."""
    lapsed_ms: int | None = None
    """Since when the records name no tag of a respondent who wore one; None while they name one."""
    notified: Detection | None = None
    """The notice that is active; None if none is."""


def _fitting_to_json(memory: FittingState) -> list[Any]:
    return [memory.worn, memory.lapsed_ms, memory.notified.value if memory.notified else None]


def _fitting_of_json(content: Sequence[Any]) -> FittingState:
    worn, lapsed_ms, notified = content
    return FittingState(worn, lapsed_ms, Detection(notified) if notified else None)


FITTING = CasePart("fitting", new=FittingState, encode=_fitting_to_json, decode=_fitting_of_json, outlives_episode=True)


def check_fitting(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Emits that no tag is worn, and the end of that. Returns the moment of the next check."""
    duty = context.case_state.case.tag_duty
    return () if duty is None else _check_fitting(context, duty, at_ms)  # nearly always none


def _check_fitting(context: CaseContext, duty: TagDuty, at_ms: int) -> Iterator[int]:
    case = context.case
    memory = FITTING.of(context.case_state)
    if case.tag_device_ids:
        memory.worn, memory.lapsed_ms = True, None
        _settle(context, at_ms)
        return
    if memory.worn and memory.lapsed_ms is None:
        memory.lapsed_ms = at_ms
    # What is excused now counts once the excuse ends, whatever was due before.
    due_ms = _unexcused_ms(case, duty, max(at_ms, _fit_due_ms(duty, memory)))
    if due_ms > at_ms:
        _settle(context, at_ms)
        yield due_ms
    elif memory.notified is None:
        memory.notified = Detection.TAG_LAPSED if memory.worn else Detection.NOT_FITTED
        _emit_fitting(context, memory.notified, at_ms)


def _fit_due_ms(duty: TagDuty, memory: FittingState) -> int:
    if memory.lapsed_ms is not None:
        return memory.lapsed_ms + EXCHANGE_MS
    return duty.fit_by_ms if duty.refused_ms is None else min(duty.fit_by_ms, duty.refused_ms)


def _unexcused_ms(case: Case, duty: TagDuty, from_ms: int) -> int:
    """The first moment from `from_ms` on for which neither good cause nor an authorised removal is recorded."""
    while True:
        until_ms = first_uncovered_ms(duty.good_causes, from_ms)
        until_ms = first_uncovered_ms(case.removals, until_ms)
        if until_ms == from_ms:
            return from_ms
        from_ms = until_ms


def amend_fitting(context: CaseContext, amendment: Amendment) -> None:
    """Settles the notice if the new snapshot knows no such duty, or isn't in force yet."""
    if amendment.case.tag_duty is None or not amendment.in_force:
        _settle(context, context.state.now_ms)


def end_fitting(context: CaseContext) -> None:
    """Settles the notice of an order that ends, and forgets the duty."""
    _settle(context, context.case.end_ms)
    context.case_state.of_case.pop(FITTING.name, None)


def _settle(context: CaseContext, at_ms: int) -> None:
    memory = context.case_state.of_case.get(FITTING.name)
    if memory is not None and memory.notified is not None:
        _emit_fitting(context, _OVER[memory.notified], at_ms)
        memory.notified = None


def _emit_fitting(context: CaseContext, detection: Detection, at_ms: int) -> None:
    context.alert(AlertDraft(detection.alert_type, at_ms))


WHY_FITTING = {
    Detection.NOT_FITTED: (
        "the respondent wears no tag by the court's time, or refused one, and no good cause is recorded (Tag Act 31-6(4) item 1)"
    ),
    Detection.TAG_LAPSED: "the record of the last tag ended while the order of item 3-2 is valid, and nothing explains it",
}
FITTING_DETECTOR = Detector(
    on_time=check_fitting, on_amend=amend_fitting, on_end=end_fitting, parts=(FITTING,), why=WHY_FITTING
)
