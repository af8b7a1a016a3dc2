"""The life of a case in the fold: it begins, is amended by newer snapshots, is checked as time passes, and ends."""

from __future__ import annotations

from services.geofence.domain import safe_region
from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import Amendment, CaseContext, Decisions, Movement
from services.geofence.domain.detectors import accounts, equipment, sensing, silence
from services.geofence.domain.detectors.pipeline import ON_AMEND, ON_END, ON_FIX, ON_TIME
from services.geofence.domain.entries import Case
from services.geofence.domain.kinematics.rings import RingState
from services.geofence.domain.state import CaseState, Due, RingKey

_new = tuple.__new__  # makes a CaseContext in half the time: all cases are checked together every 3 minutes


def apply(decisions: Decisions, case: Case) -> None:
    """Applies a case snapshot from now on, and decides at once on the known positions of both sides, without a new report."""
    state, now_ms = decisions.state, decisions.state.now_ms
    case_state = state.cases.get(case.case_id)
    # A target or ring that an amendment adds counts only from now on, and so does an order that is resumed.
    from_ms = case.valid_from_ms if case_state is None else max(now_ms, case.valid_from_ms)
    if case_state is None:
        case_state = state.cases[case.case_id] = CaseState(case)
    elif case.version > case_state.case.version:
        _amend(decisions, case_state, case)
    else:
        return
    safe_region.drop_case(state, case)
    _prepare_rings(case_state, from_ms)
    case_state.ended = case.is_over(now_ms)
    if case_state.ended:
        end(decisions, case_state)
    else:
        _take_over_devices(decisions, case)
        if case.valid_until_ms is not None:
            state.due.add(Due(case.valid_until_ms, case.case_id, is_boundary=True))
        if case.valid_from_ms > now_ms:
            state.due.add(Due(case.valid_from_ms, case.case_id, is_boundary=True))
            return
        begin(decisions, case_state, now_ms)
    decisions.end_if_quiet(case_state)


def _amend(decisions: Decisions, case_state: CaseState, case: Case) -> None:
    """Closes what a new snapshot no longer asks for, then puts the snapshot in place of the old one."""
    state, before = decisions.state, case_state.case
    safe_region.drop_case(state, before)
    context = CaseContext(decisions, case_state)
    amendment = Amendment(case, in_force=case.valid_from_ms <= state.now_ms)
    for on_amend in ON_AMEND:
        on_amend(context, amendment)
    decisions.end_if_quiet(case_state)
    state.forget(before)
    state.due.drop_case(case.case_id)
    case_state.case, case_state.next_check_ms = case, None


def _prepare_rings(case_state: CaseState, from_ms: int) -> None:
    """Adds the state of new rings, which count from a moment on. If an order is resumed, all its rings count only from that moment
    on."""
    for target in case_state.case.targets:
        for ring in case_state.case.rings:
            key = RingKey(target.key, ring.radius_mm)
            ring_state = case_state.rings.setdefault(key, RingState(from_ms, floor_ms=from_ms))
            if case_state.ended:
                ring_state.bound_ms = ring_state.floor_ms = from_ms


def _take_over_devices(decisions: Decisions, case: Case) -> None:
    """Records a case as the newest of its devices. The accounts of previous owners first take over the presence that the tracks
    prove so far."""
    state = decisions.state
    for device_id in state.changes_hands(case):
        for case_id in state.cases_of.get(device_id, ()):
            accounts.preserve(state, state.cases[case_id])
    state.record_owners(case)
    state.index(case)


def begin(decisions: Decisions, case_state: CaseState, at_ms: int) -> None:
    """Starts a case: its detectors evaluate all known data of its devices, as if the data were reported now.

    The active equipment events come first, before the hooks of any detector; then the positions, then time.
    """
    context = CaseContext(decisions, case_state)
    equipment.emit_active(context, at_ms)
    for tag_id in case_state.case.tag_device_ids:
        for on_fix in ON_FIX:
            on_fix(context, Movement(tag_id, at_ms, at_ms))
        sensing.check_fix(decisions, tag_id)
    silence.await_reports(case_state, at_ms)
    check(decisions, case_state, at_ms)


def check(decisions: Decisions, case_state: CaseState, at_ms: int, *, cause: CausingReport | None = None) -> None:
    """Applies the passing of time to a case as of a moment, and schedules the next check."""
    context = _new(CaseContext, (decisions, case_state, cause))
    check_ms: int | None = None
    for on_time in ON_TIME:
        for next_ms in on_time(context, at_ms):
            if check_ms is None or next_ms < check_ms:
                check_ms = next_ms
    if check_ms is not None and check_ms != case_state.next_check_ms:
        decisions.state.due.add(Due(check_ms, case_state.case.case_id, is_boundary=False))
    case_state.next_check_ms = check_ms


def end(decisions: Decisions, case_state: CaseState) -> None:
    """Ends a case after the validity of its order: closes everything open as of the end of the validity."""
    state, case = decisions.state, case_state.case
    context = CaseContext(decisions, case_state)
    case_state.ended = True
    for on_end in ON_END:
        on_end(context)
    case_state.next_check_ms = None
    for device_id in case.device_ids:
        state.order_ended_ms[device_id] = max(case.end_ms, state.order_ended_ms.get(device_id, 0))
    safe_region.drop_case(state, case)
    state.forget(case)
