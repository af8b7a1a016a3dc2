"""What a device said about itself, as an alert of each case in which it plays a part."""

from __future__ import annotations

from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.entries import Demand, EquipmentKind
from services.geofence.domain.state import CaseState, Over, State, event_key


class Noted(NamedTuple):
    """What an event of a device means beside those that came before."""

    taken_back: EquipmentKind | None = None
    """What stood until now."""
    over_ms: int | None = None
    """When it was over: its end came before it."""
    known: bool = False
    """Nobody needs to be told."""


def note(state: State, device_id: str, event: EquipmentKind, at_ms: int, told: bool) -> Noted:
    """Notes what stands and what is over, by the device's own times, also where its clock is ahead: of two reports sent at once
    either may come first. `told` says whether there is anybody to tell."""
    standing = state.standing.setdefault(device_id, {})
    over = state.over.setdefault(device_id, {})
    if begun := demands.ENDS.get(event):
        # An end that is older than the beginning it would end has only come late.
        ended = standing.get(begun.value, at_ms + 1) <= at_ms
        if ended:
            del standing[begun.value]
        before = over.get(begun.value)
        if before is None or before.at_ms < at_ms:
            over[begun.value] = Over(at_ms, (ended and told) or (before is not None and before.told))
        return Noted(taken_back=begun if ended else None)
    if event not in demands.STANDING:
        return Noted()
    before = over.get(event.value)
    if before is None or at_ms > before.at_ms:
        standing[event.value] = max(at_ms, standing.get(event.value, at_ms))
        return Noted()
    over[event.value] = before._replace(told=before.told or told)
    # A receiver may have said with each report that it was jammed.
    return Noted(over_ms=before.at_ms, known=before.told and event not in demands.HOLDING)


def tell(
    decisions: Decisions,
    case_state: CaseState,
    event: EquipmentKind,
    device_id: str,
    at_ms: int,
    cause: CausingReport | None,
    over_ms: int | None = None,
) -> None:
    """The alert of an equipment event in one case; what a device of that kind can't say is set aside.

    What was over by a moment is told as ever, and that it is over with it: it never stands.
    """
    case = case_state.case
    target = next((t for t in case.targets if device_id in t.device_ids), None)
    if event not in (demands.OF_TAGS if target is None else demands.OF_PERSONS):
        decisions.park(f"{event.value} from a device that can't say so")
        return
    if event in demands.UNTOLD:
        return
    kind, demand = demands.EQUIPMENT[event]
    if event in demands.STANDING:
        key = event_key(event, device_id)
        if key in case_state.raised and event not in demands.HOLDING:
            return  # the desks know; a receiver may say with each report that it is jammed
        if over_ms is None:
            case_state.raised[key] = at_ms
    decisions.alert(case_state, kind, demand, at_ms, target=target, cause=cause)
    if over_ms is not None and event_key(event, device_id) not in case_state.raised:
        decisions.alert(case_state, kind, Demand.RECORD, over_ms, target=target)


def take_back(decisions: Decisions, case_state: CaseState, keys: list[str], at_ms: int) -> None:
    """Ends equipment events that the case no longer asks about."""
    for key in keys:
        event, _, device_id = key.partition(" ")
        del case_state.raised[key]
        target = next((t for t in case_state.case.targets if device_id in t.device_ids), None)
        decisions.alert(case_state, demands.EQUIPMENT[EquipmentKind(event)][0], Demand.RECORD, at_ms, target=target)
