"""Equipment events: each event of a device becomes an alert of each case that names the device."""

from __future__ import annotations

from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.entries import Demand, EquipmentKind
from services.geofence.domain.state import CaseState, EndedEvent, State, event_key


class EventChange(NamedTuple):
    """How an event of a device changes its active and ended events."""

    ended_event: EquipmentKind | None = None
    """An active event that this event ends."""
    ended_ms: int | None = None
    """When this event was already over: its end arrived before it."""
    is_known: bool = False
    """Whether the desks know of the event, so that no alert is needed."""


def record_event(state: State, device_id: str, event: EquipmentKind, *, at_ms: int, has_case: bool) -> EventChange:
    """Records an active or ended event by the device's own times, also where its clock is ahead.

    Of two reports sent together either may arrive first. `has_case` says whether a case in force can be notified.
    """
    active = state.active_events.setdefault(device_id, {})
    ended_events = state.ended_events.setdefault(device_id, {})
    if begun := demands.ENDS.get(event):
        # An end older than the present beginning has only arrived late.
        ended = active.get(begun.value, at_ms + 1) <= at_ms
        if ended:
            del active[begun.value]
        before = ended_events.get(begun.value)
        if before is None or before.at_ms < at_ms:
            ended_events[begun.value] = EndedEvent(
                at_ms, (ended and has_case) or (before is not None and before.emitted)
            )
        return EventChange(ended_event=begun if ended else None)
    if event not in demands.ACTIVE_UNTIL_ENDED:
        return EventChange()
    before = ended_events.get(event.value)
    if before is None or at_ms > before.at_ms:
        active[event.value] = max(at_ms, active.get(event.value, at_ms))
        return EventChange()
    ended_events[event.value] = before._replace(emitted=before.emitted or has_case)
    # A receiver may have reported jamming with each position.
    return EventChange(ended_ms=before.at_ms, is_known=before.emitted and event not in demands.HOLDS_INCIDENT)


def emit(
    decisions: Decisions,
    case_state: CaseState,
    event: EquipmentKind,
    *,
    device_id: str,
    at_ms: int,
    cause: CausingReport | None,
    ended_ms: int | None = None,
) -> None:
    """Emits the alert of an equipment event in one case; an event that this kind of device can't report becomes a dead letter.

    An event that was already over (`ended_ms`) is emitted together with its end: it never becomes active.
    """
    case = case_state.case
    target = next((t for t in case.targets if device_id in t.device_ids), None)
    if event not in (demands.OF_TAGS if target is None else demands.OF_PERSONS):
        decisions.dead_letter(f"{event.value} from a device that can't say so")
        return
    if event in demands.WITHOUT_ALERT:
        return
    kind, demand = demands.EQUIPMENT[event]
    if event in demands.ACTIVE_UNTIL_ENDED:
        key = event_key(event, device_id)
        if key in case_state.raised and event not in demands.HOLDS_INCIDENT:
            return  # the desks know; a receiver may report jamming with each position
        if ended_ms is None:
            case_state.raised[key] = at_ms
    decisions.alert(case_state, kind, demand, at_ms=at_ms, target=target, cause=cause)
    if ended_ms is not None and event_key(event, device_id) not in case_state.raised:
        decisions.alert(case_state, kind, Demand.RECORD, at_ms=ended_ms, target=target)


def retract(decisions: Decisions, case_state: CaseState, keys: list[str], *, at_ms: int) -> None:
    """Ends active equipment events that the case no longer asks about."""
    for key in keys:
        event, _, device_id = key.partition(" ")
        del case_state.raised[key]
        target = next((t for t in case_state.case.targets if device_id in t.device_ids), None)
        decisions.alert(
            case_state, demands.EQUIPMENT[EquipmentKind(event)][0], Demand.RECORD, at_ms=at_ms, target=target
        )
