"""Equipment events: each event of a device becomes an alert of each case that names the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.decisions import AlertDraft, Amendment, CaseContext, Detector
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import ended_records, wearing
from services.geofence.domain.entries import Demand, EquipmentKind, Target
from services.geofence.domain.state import EndedEvent, EventKey, EventTime, State, is_over


class EventChange(NamedTuple):
    """The effect of an equipment event on the active and ended events of its device."""

    ended_event: EquipmentKind | None = None
    """An active event that this event ends."""
    ended_ms: int | None = None
    """Time at which this event ended, if its end arrived before its beginning; else None."""
    is_known: bool = False
    """Whether the desks know of the event, so that no alert is needed."""


def record_event(
    state: State, device_id: str, event: EquipmentKind, *, device_ms: int, has_case: bool, silent: bool = False
) -> EventChange:
    """Records an equipment event as active or ended. `has_case` says whether a case in force can be notified, `silent` whether the
    event is a panic call in silence."""
    active = state.active_events.setdefault(device_id, {})
    ended_events = state.ended_events.setdefault(device_id, {})
    time = EventTime(device_ms, state.now_ms, silent=silent)
    if begun := demands.ENDS.get(event) or demands.ANNOUNCEMENT_ENDS.get(event):
        # An end that is older than the active event's beginning belongs to an earlier event, and has only arrived late.
        ended = begun.value in active and is_over(active[begun.value], time)
        if ended:
            del active[begun.value]
        before = ended_events.get(begun.value)
        if before is None or not is_over(time, before.time):
            ended_events[begun.value] = EndedEvent(
                time, (ended and has_case) or (before is not None and before.emitted)
            )
        return EventChange(ended_event=begun if ended else None)
    if event not in demands.ACTIVE_UNTIL_ENDED and event not in demands.ANNOUNCEMENTS:
        return EventChange()
    before = ended_events.get(event.value)
    if before is None or not is_over(time, before.time):
        if event.value not in active or is_over(active[event.value], time):
            active[event.value] = time
        return EventChange()
    if event in demands.ANNOUNCEMENTS:
        return EventChange()
    ended_events[event.value] = before._replace(emitted=before.emitted or has_case)
    # The desks may know already: a receiver reports jamming with each position, so don't alert again.
    is_known = before.emitted and event not in demands.HOLDS_INCIDENT
    return EventChange(ended_ms=before.time.at_ms, is_known=is_known)


def emit_active(context: CaseContext, at_ms: int) -> None:
    """Emits the events of all devices that are active when a case begins."""
    for device_id in context.case.device_ids:
        for name in sorted(context.state.active_events.get(device_id, ())):
            key = EventKey(EquipmentKind(name), device_id)
            if key.event in demands.ACTIVE_UNTIL_ENDED and key not in context.case_state.raised:
                emit(context, key, at_ms, silent=context.state.active_events[device_id][name].silent)


def emit(context: CaseContext, key: EventKey, at_ms: int, *, ended_ms: int | None = None, silent: bool = False) -> None:
    """Emits the alert of an equipment event in one case; an event that this kind of device can't report becomes a dead letter.

    An event that was already over (`ended_ms`) is emitted together with its end: it never becomes active.
    """
    event, raised = key.event, context.case_state.raised
    target = _target_of(context, key.device_id)
    if event not in (demands.OF_TAGS if target is None else demands.OF_PERSONS):
        context.decisions.dead_letter(f"{event.value} from a device that can't say so")
        return
    if event in demands.WITHOUT_ALERT or wearing.emit_strap(context, key, at_ms, ended_ms=ended_ms):
        return
    alert_type = demands.EQUIPMENT[event]
    if event in demands.ACTIVE_UNTIL_ENDED:
        if key in raised and event not in demands.HOLDS_INCIDENT:
            return  # the desks know; a receiver may report jamming with each position
        if ended_ms is None:
            raised[key] = at_ms
    record_only = event in demands.ENDS and _goes_on(context, alert_type.kind, target)
    cause = context.cause
    context.alert(AlertDraft(alert_type, at_ms, target=target, cause=cause, record_only=record_only, silent=silent))
    if ended_ms is not None and key not in raised:
        context.alert(AlertDraft(alert_type._replace(demand=Demand.RECORD), ended_ms, target=target))


def _goes_on(context: CaseContext, kind: AlertKind, target: Target | None) -> bool:
    """Whether another active event of the same kind holds on, so that the end of one event is no end of the threat: she called on one
    device and takes the call of another one back, or a strap is closed while the case of the tag is open."""
    return any(
        demands.EQUIPMENT[key.event].kind is kind and _target_of(context, key.device_id) == target
        for key in context.case_state.raised
    )


def amend(context: CaseContext, amendment: Amendment) -> None:
    """Ends the events of devices that a new snapshot no longer names, unless they outlast the end of a record."""
    named = amendment.case.device_ids if amendment.in_force else ()
    keys = [key for key in context.case_state.raised if key.device_id not in named]
    held = ended_records.hold(context, amendment, keys)
    _end_events(context, [key for key in keys if key not in held], context.state.now_ms)


def end(context: CaseContext) -> None:
    """Ends all events of a case that ends."""
    _end_events(context, list(context.case_state.raised), context.case.end_ms)


def end_held(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Ends the events that have outlasted the end of a record for long enough. Returns the moments of the next checks."""
    return _end_held(context, at_ms) if ended_records.is_any(context.case_state) else ()  # nearly always none


def _end_held(context: CaseContext, at_ms: int) -> Iterator[int]:
    state, case_state = context.state, context.case_state
    memory = ended_records.of(case_state)
    calmed, expired = [], []
    for key, held in memory.events.items():
        until_ms = ended_records.event_until_ms(state, case_state, held)
        if not held.target_key and (_is_located(context, held.ended_ms) or _was_permitted(context, key, held.ended_ms)):
            calmed.append(key)
        elif until_ms is not None and at_ms >= until_ms:
            expired.append(key)
        elif until_ms is not None:
            yield until_ms
    _end_events(context, calmed, at_ms, is_confirmed=True)
    _end_events(context, expired, at_ms)
    untagged_until_ms = ended_records.untagged_until_ms(state, case_state)
    if untagged_until_ms is not None and at_ms >= untagged_until_ms:
        memory.untagged_ms = None
    ended_records.forget_closed(case_state)


def _is_located(context: CaseContext, since_ms: int) -> bool:
    """Whether a tag that wasn't opened has shown since a moment where the wearer is, and still does. Silences are checked before."""
    state, case_state = context.state, context.case_state
    if case_state.unseen or wearing.is_off(case_state):
        return False
    held = ended_records.of(case_state).events
    opened = {key.device_id for key in case_state.raised if key.event in demands.HOLDS_INCIDENT and key not in held}
    fixes = (state.last_fix((tag_id,)) for tag_id in context.case.tag_device_ids if tag_id not in opened)
    return any(fix is not None and fix.time_ms > since_ms for fix in fixes)


def _was_permitted(context: CaseContext, key: EventKey, ended_ms: int) -> bool:
    """Whether an authorised removal turns out to cover an open strap, from its opening to the end of the tag's record."""
    moments_ms = context.case_state.raised[key], ended_ms
    return key.event is EquipmentKind.STRAP_OPEN and all(
        wearing.covers(context.case, key.device_id, moment_ms) for moment_ms in moments_ms
    )


def _end_events(context: CaseContext, keys: Iterable[EventKey], at_ms: int, *, is_confirmed: bool = False) -> None:
    """Ends events. `is_confirmed`: a report or an officer's record shows that they are over; else their device is gone."""
    case_state = context.case_state
    for key in sorted(keys, key=lambda key: (key.event.value, key.device_id)):
        target = ended_records.held_target(context.case, case_state, key) or _target_of(context, key.device_id)
        del case_state.raised[key]
        ended_records.of(case_state).events.pop(key, None)
        over = demands.EQUIPMENT[key.event]._replace(demand=Demand.RECORD)
        cause = context.cause if is_confirmed else None
        context.alert(AlertDraft(over, at_ms, target=target, cause=cause, unconfirmed=not is_confirmed))


def _target_of(context: CaseContext, device_id: str) -> Target | None:
    """The target that a device protects; None for a tag."""
    return next((target for target in context.case.targets if device_id in target.device_ids), None)


DETECTOR = Detector(on_amend=amend, on_end=end)
END_OF_HELD_EVENTS = Detector(on_time=end_held, awaits_report=ended_records.is_any)
"""A detector of its own: its place among the checks by time is after those of silences, which say whether the wearer is seen."""
