"""What a device said about itself, as an alert of each case in which it plays a part."""

from __future__ import annotations

from services.geofence.domain import demands
from services.geofence.domain.alerts import Report
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.entries import Demand, Equipment
from services.geofence.domain.state import CaseState, event_key


def tell(
    decisions: Decisions, case_state: CaseState, event: Equipment, device_id: str, at_ms: int, cause: Report | None
) -> None:
    """The alert of an equipment event in one case; what a device of that kind can't say is set aside."""
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
        case_state.raised[key] = at_ms
    decisions.alert(case_state, kind, demand, at_ms, target=target, cause=cause)


def take_back(decisions: Decisions, case_state: CaseState, keys: list[str], at_ms: int) -> None:
    """Ends equipment events that the case no longer asks about."""
    for key in keys:
        event, _, device_id = key.partition(" ")
        del case_state.raised[key]
        target = next((t for t in case_state.case.targets if device_id in t.device_ids), None)
        decisions.alert(case_state, demands.EQUIPMENT[Equipment(event)][0], Demand.RECORD, at_ms, target=target)
