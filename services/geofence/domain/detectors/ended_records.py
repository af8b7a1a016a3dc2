"""Ended records: what outlasts the end of the record of a device.

A record that ends the wearer's last tag, or the person's device, shows neither where the wearer is nor that she is safe. So what was
active at that moment stays active, for as long as that side could be silent before a desk is notified:

- Silence, and targets that the wearer may have reached unseen, until another tag shows the wearer.
- Tampering, until a whole tag shows where the wearer is.
- A panic call, which no other device answers.
- A response for a person because the wearer was unseen near her, if the wearer is seen again while nothing measures the distance.

Rings have a memory of their own (`detectors/clearing.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.decisions import Amendment, CaseContext, Detector
from services.geofence.domain.entries import Case, Demand, EquipmentKind, Target
from services.geofence.domain.state import CasePart, CaseState, EventKey, State


class HeldEvent(NamedTuple):
    """An active event of a device whose record has ended."""

    ended_ms: int
    """When the record ended, mesh time."""
    target_key: str
    """Key of the person whose device it was; empty for a tag."""


@dataclass(slots=True)
class EndedRecords:
    """What the fold remembers of ended records of a case. All times are mesh time."""

    untagged_ms: int | None = None
    """Since when the records name no tag, if anything of the wearer was active then; else None."""
    unmeasured_ms: dict[str, int] = field(default_factory=dict)
    """Persons for whom a response is open and whose devices are other ones since a moment, or none, by key."""
    events: dict[EventKey, HeldEvent] = field(default_factory=dict)
    """Active events (`CaseState.raised`) of devices whose record has ended."""


def _to_json(memory: EndedRecords) -> list[Any]:
    events = [[key.event.value, key.device_id, *held] for key, held in memory.events.items()]
    return [memory.untagged_ms, memory.unmeasured_ms, events]


def _of_json(content: Sequence[Any]) -> EndedRecords:
    untagged_ms, unmeasured_ms, events = content
    held = {
        EventKey(EquipmentKind(event), device_id): HeldEvent(ended_ms, target_key)
        for event, device_id, ended_ms, target_key in events
    }
    return EndedRecords(untagged_ms, unmeasured_ms, held)


ENDED_RECORDS = CasePart("ended_records", new=EndedRecords, encode=_to_json, decode=_of_json, outlives_episode=True)


# ── questions of other detectors ─────────────────────────────────────────────────────────────────────────────────────


def is_any(case_state: CaseState) -> bool:
    """Whether anything outlasts the end of a record."""
    memory: EndedRecords | None = case_state.of_case.get(ENDED_RECORDS.name)
    return memory is not None and bool(memory.untagged_ms is not None or memory.unmeasured_ms or memory.events)


def of(case_state: CaseState) -> EndedRecords:
    """The memory of a case."""
    return ENDED_RECORDS.of(case_state)


def untagged_until_ms(state: State, case_state: CaseState) -> int | None:
    """Until when what was active of a wearer without a tag stays active; None if nothing waits for a tag."""
    untagged_ms = of(case_state).untagged_ms
    return None if untagged_ms is None else untagged_ms + state.rules.silent_notify_after_ms


def unmeasured_until_ms(state: State, case_state: CaseState, target: Target) -> int | None:
    """Until when a response for a person stays open although the wearer is seen; None if it doesn't stay open.

    It stays until a device of hers shows where she is.
    """
    since_ms = of(case_state).unmeasured_ms.get(target.key) if is_any(case_state) else None
    if since_ms is None:
        return None
    fix = state.last_fix(target.device_ids)
    return since_ms + state.rules.protected_lost_after_ms if fix is None or fix.time_ms <= since_ms else None


def event_until_ms(state: State, case_state: CaseState, held: HeldEvent) -> int | None:
    """Until when an event stays active; None for tampering while a tag is named, which shows where the wearer is."""
    if held.target_key:
        return held.ended_ms + state.rules.protected_lost_after_ms
    return untagged_until_ms(state, case_state)


def held_target(case: Case, case_state: CaseState, key: EventKey) -> Target | None:
    """The target whose device reported an event before its record ended; None if it was a tag."""
    held = of(case_state).events.get(key)
    return next((target for target in case.targets if held and target.key == held.target_key), None)


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def hold(context: CaseContext, amendment: Amendment, keys: Iterable[EventKey]) -> frozenset[EventKey]:
    """Keeps those of the events that hold an incident open, although a new snapshot no longer names their device. Returns them."""
    if not amendment.in_force:
        return frozenset()
    kept_keys = {target.key for target in amendment.case.targets}
    owners = {device_id: target.key for target in context.case.targets for device_id in target.device_ids}
    events = of(context.case_state).events
    held = {
        key: events.get(key) or HeldEvent(context.state.now_ms, owners.get(key.device_id, ""))
        for key in keys
        if key.event in demands.HOLDS_INCIDENT
    }
    held = {key: event for key, event in held.items() if not event.target_key or event.target_key in kept_keys}
    events.update(held)
    return frozenset(held)


def amend(context: CaseContext, amendment: Amendment) -> None:
    """Notes since when no tag or no known device is named, and forgets what the new snapshot names again. Other detectors have closed
    what the snapshot no longer asks for."""
    state = context.state
    case_state = context.case_state
    case = amendment.case
    if not amendment.in_force:
        case_state.of_case.pop(ENDED_RECORDS.name, None)
        return
    memory = of(case_state)
    memory.events = {
        key: held
        for key, held in memory.events.items()
        if key in case_state.raised and not _is_still_active(state, case, key, target_key=held.target_key)
    }
    if case.tag_device_ids:
        memory.untagged_ms = None
    elif memory.untagged_ms is None and (case_state.silent or case_state.near or _is_any_of_tags(memory)):
        memory.untagged_ms = state.now_ms
    before = {target.key: set(target.device_ids) for target in context.case.targets}
    for target in case.targets:
        known = before.get(target.key)
        if known and known.isdisjoint(target.device_ids) and case_state.near.get(target.key) is Demand.RESPOND:
            memory.unmeasured_ms.setdefault(target.key, state.now_ms)
    forget_closed(case_state)


def _is_still_active(state: State, case: Case, key: EventKey, *, target_key: str) -> bool:
    """Whether a snapshot names the device of an event once more for the same side, and the event is still active there."""
    sides = {target.key: target.device_ids for target in case.targets} | {"": case.tag_device_ids}
    is_named = key.device_id in sides.get(target_key, ())
    return is_named and key.event.value in state.active_events.get(key.device_id, {})


def _is_any_of_tags(memory: EndedRecords) -> bool:
    return any(not held.target_key for held in memory.events.values())


def forget_closed(case_state: CaseState) -> None:
    """Forgets the persons for whom no response is open any more."""
    memory = of(case_state)
    for key in [key for key in memory.unmeasured_ms if case_state.near.get(key) is not Demand.RESPOND]:
        del memory.unmeasured_ms[key]


def end(context: CaseContext) -> None:
    """Forgets all of a case that ends."""
    context.case_state.of_case.pop(ENDED_RECORDS.name, None)


DETECTOR = Detector(on_amend=amend, on_end=end, parts=(ENDED_RECORDS,))
