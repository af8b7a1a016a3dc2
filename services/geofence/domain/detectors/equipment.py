"""What a device said about itself, as an alert of each case in which it plays a part."""

from __future__ import annotations

from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.entries import Demand, EquipmentKind
from services.geofence.domain.state import CaseState, EndedEvent, State, event_key


class EventChange(NamedTuple):
    """What an event of a device means beside those that came before."""

    ended_event: EquipmentKind | None = None
    """What stood until now."""
    ended_ms: int | None = None
    """When it was over: its end came before it."""
    is_known: bool = False
    """Nobody needs to be told."""


def record_event(state: State, device_id: str, event: EquipmentKind, at_ms: int, has_case: bool) -> EventChange:
    """Notes what stands and what is over, by the device's own times, also where its clock is ahead: of two reports sent at once
    either may come first. `told` says whether there is anybody to tell."""
    active = state.active_events.setdefault(device_id, {})
    ended_events = state.ended_events.setdefault(device_id, {})
    if begun := demands.ENDS.get(event):
        # An end that is older than the beginning it would end has only come late.
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
    # A receiver may have said with each report that it was jammed.
    return EventChange(ended_ms=before.at_ms, is_known=before.emitted and event not in demands.HOLDS_INCIDENT)


def emit(
    decisions: Decisions,
    case_state: CaseState,
    event: EquipmentKind,
    device_id: str,
    at_ms: int,
    cause: CausingReport | None,
    ended_ms: int | None = None,
) -> None:
    """The alert of an equipment event in one case; what a device of that kind can't say is set aside.

    What was over by a moment is told as ever, and that it is over with it: it never stands.
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
            return  # the desks know; a receiver may say with each report that it is jammed
        if ended_ms is None:
            case_state.raised[key] = at_ms
    decisions.alert(case_state, kind, demand, at_ms, target=target, cause=cause)
    if ended_ms is not None and event_key(event, device_id) not in case_state.raised:
        decisions.alert(case_state, kind, Demand.RECORD, ended_ms, target=target)


def retract(decisions: Decisions, case_state: CaseState, keys: list[str], at_ms: int) -> None:
    """Ends equipment events that the case no longer asks about."""
    for key in keys:
        event, _, device_id = key.partition(" ")
        del case_state.raised[key]
        target = next((t for t in case_state.case.targets if device_id in t.device_ids), None)
        decisions.alert(case_state, demands.EQUIPMENT[EquipmentKind(event)][0], Demand.RECORD, at_ms, target=target)
