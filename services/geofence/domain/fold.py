"""The fold: `step(state, entry)` applies one log entry to the state and returns the fold's outputs.

"Now" is the greatest stamp so far. The fold reads no clock, does no I/O and draws no random number. So the same log gives the same
alerts, byte for byte, on every evaluator and in every replay.

The fold destroys the positions that no decision needs any more. Most fixes leave a track as newer ones arrive (`hot_loop.forget_old`).
Once an hour the fold also drops the positions that no report pushes out: those of devices that no case names, of ended cases, and of
devices that fell silent. It drops presences that aren't repeated, too. The next checkpoint holds none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from services.geofence.domain import cases, entries, hot_loop, safe_region
from services.geofence.domain.alerts import CausingReport, Output
from services.geofence.domain.decisions import CaseContext, Decisions
from services.geofence.domain.detectors import anomalies, equipment, outages, presences, sensing
from services.geofence.domain.detectors.anomalies import DEPARTED
from services.geofence.domain.entries import (
    Body,
    Case,
    Entry,
    EquipmentReport,
    FoldVersion,
    Heard,
    Positions,
    Presences,
    Rules,
    Tick,
)
from services.geofence.domain.kinematics.track import WINDOW_MS
from services.geofence.domain.state import CaseState, Due, EventKey, State


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
            entries.require_supported(body.version)
            _apply_version(decisions.state)
        case Tick():
            pass
        case _:
            assert_never(body)


def _apply_version(state: State) -> None:
    """Notes when the log demanded a fold version, and lets all requests for data begin from nothing.

    The log keeps its entries for days only. So evaluators that know a different past of it make the same requests from here on.
    """
    state.log_version_ms = state.now_ms
    state.sensing.clear()
    state.sensing_due.clear()
    safe_region.drop_all(state)


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
    _destroy_old(state, before_ms, arrived_ms)


def _apply_all_due(decisions: Decisions, due_ms: int) -> None:
    """Begins, checks and ends all cases that are due at a moment, the ends last.

    So an order that takes over from another demands its response before the other one is cleared, and no unit is asked a second time.
    """
    state = decisions.state
    at_once, ending = [], []
    while state.due.next_ms == due_ms:
        due = state.due.pop()
        case_state = state.cases.get(due.case_id)
        if case_state is None:
            continue
        if case_state.case.is_over(due_ms):
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
    concerned = presences.keep_believed(decisions, batch)
    device_ids = list(dict.fromkeys(report.device_id for report in batch.reports))
    decisions.state.heard_at_ms.update(dict.fromkeys(device_ids, decisions.state.now_ms))
    _check_presences(decisions, concerned)  # first, as it knows which report causes the alerts
    _record_contact(decisions, device_ids)


def _check_presences(decisions: Decisions, concerned: dict[str, CausingReport]) -> None:
    """Checks the cases that rest on presences of an entry, each with the report that concerns it."""
    case_states = [(decisions.state.cases[case_id], cause) for case_id, cause in sorted(concerned.items())]
    for case_state, cause in case_states:
        if case_state.awaited_from_ms:  # the order is in force
            cases.check(decisions, case_state, decisions.state.now_ms, cause=cause)
    decisions.end_all_if_quiet(case_state for case_state, _ in case_states)


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
        state,
        report.device_id,
        report.event,
        device_ms=report.event_time_ms,
        has_case=bool(in_force),
        silent=report.silent,
    )
    ended_ms = None if change.ended_ms is None else min(change.ended_ms, state.now_ms)
    cause = CausingReport(report.device_id, report.report_id, report.received_wall_us)
    for case_state in in_force:
        if change.ended_event:
            case_state.raised.pop(EventKey(change.ended_event, report.device_id), None)
        if not change.is_known:
            context, key = CaseContext(decisions, case_state, cause), EventKey(report.event, report.device_id)
            equipment.emit(context, key, at_ms, ended_ms=ended_ms, silent=report.silent)
        cases.check(decisions, case_state, state.now_ms, cause=cause)
    decisions.end_all_if_quiet(in_force)
    _check_presences(decisions, presences.end_at_unit(state, report.device_id, cause))


SWEEP_INTERVAL_MS = 3_600_000
"""Interval between two sweeps over all devices, 1 h."""


def _destroy_old(state: State, before_ms: int, now_ms: int) -> None:
    """Destroys old positions if a full hour of mesh time lies between two moments.

    What is old follows from the last full hour, so it doesn't matter how long after that hour the log has its next entry: an amendment
    in that entry may name a device whose last position still counts.
    """
    if now_ms // SWEEP_INTERVAL_MS == before_ms // SWEEP_INTERVAL_MS:
        return
    horizon_ms = now_ms - now_ms % SWEEP_INTERVAL_MS - WINDOW_MS
    # In a country the fold stops for this sweep, so the devices are found in one expression.
    old_ids = [
        device_id
        for device_id, track in state.tracks.items()
        if track.recent and track.recent[-1][0] < horizon_ms  # of all others the next reports push out the older fixes
    ]
    for device_id in old_ids:
        case_ids = state.cases_of.get(device_id)
        if case_ids:
            hot_loop.forget_old(state, device_id, case_ids)
        else:
            del state.tracks[device_id]
    _drop_presences(state, horizon_ms)
    for case_state in state.cases.values():
        if case_state.ended:
            case_state.of_case.pop(DEPARTED.name, None)


def _drop_presences(state: State, horizon_ms: int) -> None:
    for device_id, stay in list(state.stays.items()):
        if stay.seen_ms < horizon_ms:
            del state.stays[device_id]
    for unit_id, until_ms in list(state.distrusted_units.items()):
        if until_ms <= state.now_ms:
            del state.distrusted_units[unit_id]
