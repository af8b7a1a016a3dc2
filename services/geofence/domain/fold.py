"""The fold: `step(state, entry)` applies one log entry to the state and returns the fold's outputs.

"Now" is the greatest stamp so far. The fold reads no clock, does no I/O and draws no random number. So the same log gives the same
alerts, byte for byte, on every evaluator and in every replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from services.common.rpc.errors import OutdatedFold
from services.geofence.domain import cases, hot_loop
from services.geofence.domain.agenda.due import Due
from services.geofence.domain.alerts import CausingReport, Output
from services.geofence.domain.decisions import CaseContext, Decisions
from services.geofence.domain.detectors import anomalies, equipment, outages, sensing
from services.geofence.domain.entries import (
    Body,
    Case,
    Entry,
    EquipmentReport,
    FoldVersion,
    Heard,
    Positions,
    Presences,
    Tick,
)
from services.geofence.domain.kinematics import safe_region
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import CaseState, EventKey, State
from services.geofence.domain.tracks import retention
from services.geofence.domain.unseen import presences
from services.geofence.domain.version import VERSION

ENDS_LAST_VERSION = 14
"""From this version of the log on, cases that begin at a moment come before those that end then. So an order that takes over from
another demands its response before the other one is cleared, and no unit is asked a second time."""


def step(state: State, entry: Entry) -> list[Output]:
    """Applies an entry to the state in place. Returns its alerts and dead letters in order, then its requests for data.

    Raises OutdatedFold if the log demands a newer fold version. Any other exception is a defect: the process must end and replay.
    """
    decisions = Decisions(state, entry.sequence, entry.stamp_ms)
    state.sequence = entry.sequence
    _pass_time(decisions, state.clock_anchor_ms + (entry.stamp_ms - state.clock_anchor_ms) * state.clock_rate)
    _apply(decisions, entry.body)
    _emit_after_outage(decisions)
    return decisions.finish()


def next_due_ms(state: State) -> int | None:
    """The next moment at which time alone decides something: a tick must follow that moment. None if there is no such moment."""
    due_ms = state.due.next_ms
    if not state.sensing_due:
        return due_ms
    request_ms = state.sensing_due[0][0]
    return request_ms if due_ms is None or request_ms < due_ms else due_ms


def _apply(decisions: Decisions, body: Body) -> None:
    match body:
        case Positions():
            _record_contact(decisions, body.device_ids)
            hot_loop.fold_positions(decisions, body)
        case Heard():
            _record_contact(decisions, body.device_ids)
            anomalies.undated(decisions, set(body.device_ids))
        case Presences():
            _apply_presences(decisions, body)
        case EquipmentReport():
            _record_contact(decisions, [body.device_id])
            _apply_equipment(decisions, body)
        case Case():
            cases.apply(decisions, body)
        case Rules():
            _apply_rules(decisions, body)
        case FoldVersion():
            if body.version > VERSION:
                raise OutdatedFold(f"the log demands fold version {body.version}, this is {VERSION}")
            _apply_version(decisions, body.version)
        case Tick():
            pass
        case _:
            assert_never(body)


def _apply_version(decisions: Decisions, version: int) -> None:
    """Notes that the log demands a fold version, and lets all requests for data begin from nothing.

    The log keeps its entries for days only. So evaluators that know a different past of it make the same requests from here on. Cases
    with a duty to wear a tag or with removals are checked, because an older version didn't know of them.
    """
    state = decisions.state
    state.log_version, state.log_version_ms = max(version, state.log_version), state.now_ms
    state.sensing.clear()
    state.sensing_due.clear()
    safe_region.drop_all(state)
    # Sorted by case id: a checkpoint doesn't keep the order of arrival.
    _check_all(
        decisions,
        [
            each
            for _, each in sorted(state.cases.items())
            if each.awaited_from_ms and (each.case.tag_duty or each.case.removals)
        ],
    )


def _pass_time(decisions: Decisions, now_ms: int) -> None:
    """Moves time to `now_ms`, through the starts and ends of cases, encounters and silences on the way."""
    state = decisions.state
    arrived_ms = max(state.now_ms, now_ms)
    before_ms, state.now_ms = state.now_ms, arrived_ms
    outages.note_gap(decisions, before_ms, arrived_ms)
    while (due_ms := next_due_ms(state)) is not None and due_ms <= arrived_ms:
        if state.due.next_ms == due_ms:
            _apply_all_due(decisions, due_ms)
        if state.sensing_due and state.sensing_due[0][0] <= due_ms:
            sensing.pass_time(decisions, due_ms)
    retention.pass_time(state, before_ms, arrived_ms)


def _apply_all_due(decisions: Decisions, due_ms: int) -> None:
    """Begins, checks and ends all cases that are due at a moment."""
    state = decisions.state
    at_once, ending = [], []
    while state.due.next_ms == due_ms:
        due = state.due.pop()
        case_state = state.cases.get(due.case_id)
        if case_state is None:
            continue
        if state.log_version >= ENDS_LAST_VERSION and case_state.case.is_over(due_ms):
            ending.append((case_state, due))
        elif _apply_due(decisions, case_state, due):
            at_once.append(case_state)
    at_once += [case_state for case_state, due in ending if _apply_due(decisions, case_state, due)]
    decisions.end_all_if_quiet(at_once)


def _apply_due(decisions: Decisions, case_state: CaseState, due: Due) -> bool:
    """Begins, checks or ends a case. Returns False for a check that is void."""
    if case_state.case.is_over(due.at_ms):
        if not due.is_boundary:
            return False
        cases.end(decisions, case_state)
    elif due.is_boundary:
        cases.begin(decisions, case_state, due.at_ms)
    elif due.at_ms != case_state.next_check_ms:
        return False
    else:
        cases.check(decisions, case_state, due.at_ms)
    return True


def _check_all(decisions: Decisions, to_check: Sequence[CaseState]) -> None:
    """Checks several cases as of now, then ends their episodes that are quiet."""
    for case_state in to_check:
        cases.check(decisions, case_state, decisions.state.now_ms)
    decisions.end_all_if_quiet(to_check)


def _emit_after_outage(decisions: Decisions) -> None:
    """After an outage, emits the alerts that its notice had covered, for every case that is still silent."""
    state = decisions.state
    cases_after_outage = [state.cases[case_id] for case_id in outages.cases_after_outage(state)]
    for case_state in cases_after_outage:
        outages.ungroup(case_state)
        if case_state.awaited_from_ms:
            cases.check(decisions, case_state, state.now_ms)
        state.grouped.discard(case_state.case.case_id)
    decisions.end_all_if_quiet(cases_after_outage)


def _apply_rules(decisions: Decisions, rules: Rules) -> None:
    """Applies new rules from now on. New silence limits may make an alert due at once."""
    state = decisions.state
    changed = rules != state.rules
    state.rules, state.rules_since_ms = rules, state.now_ms
    if changed:
        safe_region.drop_all(state)
        # Sorted by case id: a checkpoint doesn't keep the order of arrival.
        _check_all(decisions, [each for _, each in sorted(state.cases.items()) if each.awaited_from_ms])


def _record_contact(decisions: Decisions, device_ids: list[str]) -> None:
    """Records contact with devices. Contact counts when the report enters the log, not at the time that the report is about."""
    state = decisions.state
    state.heard_at_ms.update(dict.fromkeys(device_ids, state.now_ms))
    if not state.silent_devices or state.silent_devices.isdisjoint(device_ids):
        return
    returned = state.silent_devices.intersection(device_ids)
    state.silent_devices -= returned
    case_ids = sorted({case_id for device_id in returned for case_id in state.cases_of.get(device_id, ())})
    case_states = map(state.cases.__getitem__, case_ids)
    _check_all(decisions, [case_state for case_state in case_states if case_state.silent or case_state.lost])


def _apply_presences(decisions: Decisions, batch: Presences) -> None:
    """Applies presences at home units and beacons. Each is a contact with its device."""
    if decisions.state.log_version < presences.FIRST_VERSION:
        decisions.dead_letter("presences before the log demanded a fold that knows them")
        return
    concerned = presences.fold(decisions, batch)
    device_ids = list(dict.fromkeys(report.device_id for report in batch.reports))
    decisions.state.heard_at_ms.update(dict.fromkeys(device_ids, decisions.state.now_ms))
    presences.check(decisions, concerned)  # first, as it knows which report causes the alerts
    _record_contact(decisions, device_ids)


def _apply_equipment(decisions: Decisions, report: EquipmentReport) -> None:
    """Applies an equipment report of a device to each case that names the device."""
    state = decisions.state
    if not state.is_new_report(report.device_id, report.report_id):
        return  # a resent report
    at_ms = min(report.event_time_ms, state.now_ms)
    if at_ms < state.owned_since.get(report.device_id, at_ms):
        decisions.dead_letter("an event from before its device changed hands")
        return
    concerned = [state.cases[case_id] for case_id in state.cases_of.get(report.device_id, ())]
    in_force = [case_state for case_state in concerned if case_state.case.valid_from_ms <= state.now_ms]
    change = equipment.record_event(
        state, report.device_id, report.event, device_ms=report.event_time_ms, has_case=bool(in_force)
    )
    ended_ms = None if change.ended_ms is None else min(change.ended_ms, state.now_ms)
    cause = CausingReport(report.device_id, report.report_id, report.received_wall_us)
    for case_state in in_force:
        if change.ended_event:
            case_state.raised.pop(EventKey(change.ended_event, report.device_id), None)
        if not change.is_known:
            context, key = CaseContext(decisions, case_state, cause), EventKey(report.event, report.device_id)
            equipment.emit(context, key, at_ms, ended_ms=ended_ms)
        cases.check(decisions, case_state, state.now_ms, cause=cause)
    decisions.end_all_if_quiet(in_force)
    presences.end_at_unit(decisions, report.device_id, cause)
