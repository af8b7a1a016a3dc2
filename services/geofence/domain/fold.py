"""The fold: `step(state, entry)` applies one log entry to the state and returns the fold's outputs.

"Now" is the greatest stamp so far. The fold reads no clock, does no I/O and draws no random number. So the same log gives the same
alerts, byte for byte, on every evaluator and in every replay.
"""

from __future__ import annotations

import heapq
from math import dist

from services.common.rpc.errors import OutdatedFold
from services.geofence.domain import accounts, amendments
from services.geofence.domain.alerts import CausingReport, Output
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.detectors import (
    anomalies,
    approach,
    closest_approach,
    distances,
    equipment,
    outages,
    possible_presence,
    silence,
)
from services.geofence.domain.detectors.anomalies import FIXES_PER_CHECK
from services.geofence.domain.entries import (
    Case,
    Entry,
    EquipmentKind,
    EquipmentReport,
    FoldVersion,
    Heard,
    Positions,
    Tick,
)
from services.geofence.domain.kinematics import safe_region
from services.geofence.domain.kinematics.geometry import ecef_mm
from services.geofence.domain.kinematics.rings import RingState
from services.geofence.domain.kinematics.safe_region import ACCURACY_TIMES
from services.geofence.domain.kinematics.track import JUMP_MPS, WINDOW_MS, Fix, Track
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import TIMED_CHECK, CaseState, State, event_key
from services.geofence.domain.version import VERSION

FIXES_PER_CLEANUP = 2 * FIXES_PER_CHECK
"""Number of fixes of a device after which the fold drops those that no late report can need any more."""


def step(state: State, entry: Entry) -> list[Output]:
    """Applies an entry to the state in place. Returns its alerts and dead letters in order.

    Raises OutdatedFold if the log demands a newer fold version. Any other exception is a defect: the process must end and replay.
    """
    folding = _Folding(state, entry)
    body = entry.body
    state.sequence = entry.sequence
    folding.pass_time(state.clock_anchor_ms + (entry.stamp_ms - state.clock_anchor_ms) * state.clock_rate)
    match body:
        case Positions():
            folding.positions(body)
        case Heard():
            folding.heard(body.device_ids)
            anomalies.undated(folding.decisions, set(body.device_ids))
        case EquipmentReport():
            folding.equipment(body)
        case Case():
            folding.case(body)
        case Rules():
            folding.rules(body)
        case FoldVersion():
            if body.version > VERSION:
                raise OutdatedFold(f"the log demands fold version {body.version}, this is {VERSION}")
        case Tick():
            pass
    folding.emit_after_outage()
    return folding.decisions.out


def next_due_ms(state: State) -> int | None:
    """The next moment at which time alone decides something: a tick must follow that moment. None where there is none."""
    return state.due[0][0] if state.due else None


class _Folding:
    """Applies one entry to the state."""

    def __init__(self, state: State, entry: Entry) -> None:
        self.state = state
        self.decisions = Decisions(state, entry.sequence, entry.stamp_ms)
        self._to_check: dict[str, CausingReport] = {}
        """Cases to check against time after the entry, each with the last report that made the check necessary."""
        self._moved_in: dict[str, tuple[CausingReport, CausingReport | None]] = {}
        """Cases with an open episode in which a device moved: the last report, and the last one that was its device's newest."""

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def pass_time(self, now_ms: int) -> None:
        """Moves time to `now_ms`, through the starts and ends of cases, encounters and silences on the way."""
        state = self.state
        arrived_ms = max(state.now_ms, now_ms)
        before_ms, state.now_ms = state.now_ms, arrived_ms
        outages.note_gap(self.decisions, before_ms, arrived_ms)
        while state.due and state.due[0][0] <= arrived_ms:
            due_ms, at_once = state.due[0][0], []
            while state.due and state.due[0][0] == due_ms:
                _, case_id, version = heapq.heappop(state.due)
                case_state = state.cases.get(case_id)
                if case_state is None or version not in (TIMED_CHECK, case_state.case.version):
                    continue  # a newer snapshot has set its own times
                if version == TIMED_CHECK:
                    if due_ms != case_state.next_check_ms or due_ms >= case_state.case.valid_until_ms:
                        continue
                    self._check(case_state, due_ms)
                elif due_ms >= case_state.case.valid_until_ms:
                    self._end(case_state)
                else:
                    self._begin(case_state, due_ms)
                at_once.append(case_state)
            self.decisions.end_all_if_quiet(at_once)

    def _end(self, case_state: CaseState) -> None:
        """Ends a case whose order is no longer valid: closes everything open as of the end of validity."""
        case = case_state.case
        approach.close(self.decisions, case_state, case.targets, at_ms=case.valid_until_ms)
        accounts.publish_and_drop(self.decisions, case_state)
        case_state.ended = True
        equipment.retract(self.decisions, case_state, sorted(case_state.raised), at_ms=case.valid_until_ms)
        silence.close(self.decisions, case_state, case.valid_until_ms)
        possible_presence.close(self.decisions, case_state, case.valid_until_ms)
        case_state.awaited_from_ms.clear()
        case_state.next_check_ms = 0
        for device_id in case.device_ids:
            self.state.order_ended_ms[device_id] = max(case.valid_until_ms, self.state.order_ended_ms.get(device_id, 0))
        safe_region.drop_case(self.state, case)
        self.state.forget(case)

    def _check(self, case_state: CaseState, at_ms: int, cause: CausingReport | None = None) -> None:
        """Applies the passing of time to a case as of a moment, and schedules the next check."""
        check_ms = silence.quiet_until(self.state, case_state, at_ms)
        if check_ms is None:
            check_times_ms = silence.check(self.decisions, case_state, at_ms, cause=cause)
            check_times_ms += approach.end_muting(self.decisions, case_state, at_ms, cause=cause)
            check_ms = min(check_times_ms, default=None)
        amend_ms = accounts.amend(self.decisions, case_state, at_ms)
        if amend_ms is not None:
            check_ms = amend_ms if check_ms is None else min(check_ms, amend_ms)
        if check_ms is not None and check_ms != case_state.next_check_ms:
            heapq.heappush(self.state.due, (check_ms, case_state.case.case_id, TIMED_CHECK))
        case_state.next_check_ms = check_ms or 0

    def emit_after_outage(self) -> None:
        """After an outage, emits the alerts that its notice had covered, for every case that is still silent."""
        cases_after_outage = [self.state.cases[case_id] for case_id in outages.cases_after_outage(self.state)]
        for case_state in cases_after_outage:
            outages.ungroup(case_state)
            if case_state.awaited_from_ms:
                self._check(case_state, self.state.now_ms)
            self.state.grouped.discard(case_state.case.case_id)
        self.decisions.end_all_if_quiet(cases_after_outage)

    def rules(self, rules: Rules) -> None:
        """Applies new rules from now on. New silence limits may make an alert due at once."""
        state = self.state
        changed = rules != state.rules
        state.rules, state.rules_since_ms = rules, state.now_ms
        if changed:
            safe_region.drop_all(state)
            # Sorted by case id: a checkpoint doesn't keep the order of arrival.
            to_check = [case_state for _, case_state in sorted(state.cases.items()) if case_state.awaited_from_ms]
            for case_state in to_check:
                self._check(case_state, state.now_ms)
            self.decisions.end_all_if_quiet(to_check)

    # ── cases ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def case(self, case: Case) -> None:
        """Applies a case snapshot from now on, and decides at once on the known positions of both sides, without a new report."""
        state = self.state
        now_ms = state.now_ms
        before = state.cases.get(case.case_id)
        if before is not None:
            if case.version <= before.case.version:
                return
            safe_region.drop_case(state, before.case)
            amendments.apply(self.decisions, before, case)
        safe_region.drop_case(state, case)
        case_state = before or CaseState(case)
        resumed = case_state.ended
        case_state.ended = now_ms >= case.valid_until_ms
        state.cases[case.case_id] = case_state
        # A target or ring that an amendment adds doesn't count backwards, nor does an order that is resumed.
        from_ms = case.valid_from_ms if before is None else max(now_ms, case.valid_from_ms)
        for target in case.targets:
            for ring in case.rings:
                ring_state = case_state.rings.setdefault(
                    (target.key, ring.radius_mm), RingState(from_ms, floor_ms=from_ms)
                )
                if resumed:
                    ring_state.bound_ms = ring_state.floor_ms = from_ms
        if case_state.ended:
            self._end(case_state)
            self.decisions.end_if_quiet(case_state)
            return
        for device_id in state.changes_hands(case):
            for case_id in state.cases_of.get(device_id, ()):
                accounts.preserve(state, state.cases[case_id])
        state.record_owners(case)
        state.index(case)
        heapq.heappush(state.due, (case.valid_until_ms, case.case_id, case.version))
        if case.valid_from_ms > now_ms:
            heapq.heappush(state.due, (case.valid_from_ms, case.case_id, case.version))
        else:
            self._begin(case_state, now_ms)
            self.decisions.end_if_quiet(case_state)

    def _begin(self, case_state: CaseState, at_ms: int) -> None:
        """Starts a case: decides on the known positions of both sides and on the active equipment events, without a new report."""
        case = case_state.case
        for device_id in case.device_ids:
            for event in sorted(self.state.active_events.get(device_id, ())):
                if event_key(EquipmentKind(event), device_id) not in case_state.raised:
                    equipment.emit(
                        self.decisions, case_state, EquipmentKind(event), device_id=device_id, at_ms=at_ms, cause=None
                    )
        for tag_id in case.tag_device_ids:
            for target in case.targets:
                for other_id in approach.other_devices(target):
                    approach.check(
                        self.decisions,
                        case_state,
                        tag_id,
                        target=target,
                        device_id=other_id,
                        from_ms=at_ms,
                        until_ms=at_ms,
                        cause=None,
                    )
        silence.await_reports(case_state, at_ms)
        self._check(case_state, at_ms)

    # ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def heard(self, device_ids: list[str]) -> None:
        """Records contact with devices. Contact counts when the report enters the log, not at the time that the report is about."""
        state = self.state
        state.heard_at_ms.update(dict.fromkeys(device_ids, state.now_ms))
        if not state.silent_devices or state.silent_devices.isdisjoint(device_ids):
            return
        returned = state.silent_devices.intersection(device_ids)
        state.silent_devices -= returned
        case_ids = sorted({case_id for device_id in returned for case_id in state.cases_of.get(device_id, ())})
        to_check = [
            case_state for case_state in map(state.cases.__getitem__, case_ids) if case_state.silent or case_state.lost
        ]
        for case_state in to_check:
            self._check(case_state, state.now_ms)
        self.decisions.end_all_if_quiet(to_check)

    def positions(self, batch: Positions) -> None:
        """Folds a batch of positions, report by report, in the order of the batch."""
        state = self.state
        self.heard(batch.device_ids)
        too_late = previous_owners = overdue = 0
        late: set[str] = set()
        # Most of the fold's time is spent here: nearly all reports end at the safe region of their device.
        tracks, cases_of, owned_since = state.tracks, state.cases_of, state.owned_since
        now_ms, received_wall_us = state.now_ms, batch.received_wall_us
        oldest_ms, undated = now_ms - WINDOW_MS, state.undated_ms
        new = tuple.__new__
        for device_id, report_id, fix_time_ms, lat_e7, lon_e7, accuracy_mm in zip(
            batch.device_ids,
            batch.report_ids,
            batch.fix_times_ms,
            batch.lat_e7,
            batch.lon_e7,
            batch.accuracy_mm,
            strict=True,
        ):
            time_ms = fix_time_ms if fix_time_ms < now_ms else now_ms
            if time_ms < oldest_ms:
                too_late += 1
                late.add(device_id)
                continue
            if owned_since and time_ms < owned_since.get(device_id, time_ms):
                previous_owners += 1
                continue
            try:
                track = tracks[device_id]
            except KeyError:
                track = tracks[device_id] = Track()
            point = x_mm, y_mm, z_mm = ecef_mm(lat_e7, lon_e7)
            fix = new(Fix, (time_ms, fix_time_ms, report_id, x_mm, y_mm, z_mm, accuracy_mm))
            fixes = track.fixes
            before = fixes[-1] if fixes else None
            if before and time_ms == fix_time_ms and time_ms > before[0] and not track.ahead:
                index = len(fixes)  # the same result as `Track.add`, with fewer checks
                fixes.append(fix)
                took_ms = time_ms - before[0]
                # The sum is never shorter than the straight line, so a smaller sum can't be a jump.
                far = abs(x_mm - before[3]) + abs(y_mm - before[4]) + abs(z_mm - before[5]) >= JUMP_MPS * took_ms
            else:
                added = track.add(fix)
                if added is None:
                    continue  # a resent report
                index, far = added, True
            count = len(fixes)
            if undated and device_id in undated:
                del undated[device_id]
            newest = index == count - 1
            region = track.safe_region
            clear = newest and region and dist(point, region[0]) + ACCURACY_TIMES * accuracy_mm <= region[1]
            if clear and not far and count % FIXES_PER_CHECK:
                continue
            case_ids = cases_of.get(device_id)
            if not case_ids:
                if time_ms < state.order_ended_ms.get(device_id, 0):
                    overdue += 1
                if count > 2:
                    # No case names the device. Its newest positions are enough for an order that comes later.
                    track.forget_before(now_ms)
                continue
            if far and track.jumps_to(index):
                anomalies.jumped(
                    self.decisions, fixes[index], case_ids, cause=CausingReport(device_id, report_id, received_wall_us)
                )
            if not clear:
                self._moved(
                    device_id,
                    track,
                    index,
                    case_ids=case_ids,
                    cause=CausingReport(device_id, report_id, received_wall_us),
                )
            if not count % FIXES_PER_CHECK:
                if count % FIXES_PER_CLEANUP == 0:
                    approach.forget_old(state, device_id, case_ids)
                if newest:
                    anomalies.check_track(
                        self.decisions, track, case_ids, cause=CausingReport(device_id, report_id, received_wall_us)
                    )
        # Only after the whole batch: a buffered backlog may end at the present position, and later reports in it may be older.
        for case_id, (cause, newest_cause) in sorted(self._moved_in.items()):
            case_state = state.cases[case_id]
            approach.clear_left_rings(self.decisions, case_state, cause)
            if case_state.episode_id and newest_cause:
                distances.check(self.decisions, case_state, newest_cause)
        for case_id, cause in self._to_check.items():
            self._check(state.cases[case_id], state.now_ms, cause)
        self.decisions.end_all_if_quiet(map(state.cases.__getitem__, self._to_check))
        if late:
            anomalies.undated(self.decisions, late)
        if too_late:
            self.decisions.dead_letter(f"{too_late} positions older than 2 h")
        if overdue:
            self.decisions.dead_letter(f"{overdue} positions from before the end of an order that is over")
        if previous_owners:
            self.decisions.dead_letter(f"{previous_owners} positions from before their device changed hands")

    def _moved(self, device_id: str, track: Track, index: int, *, case_ids: list[str], cause: CausingReport) -> None:
        """Evaluates the stretch of time in which a new fix changes the known movement."""
        fixes = track.fixes
        from_ms = fixes[index - 1].time_ms if index else fixes[0].time_ms
        until_ms = fixes[index + 1].time_ms if index + 1 < len(fixes) else None
        for case_id in case_ids:
            case_state = self.state.cases[case_id]
            case = case_state.case
            if device_id in case.tag_device_ids:
                for target in case.targets:
                    for other in approach.other_devices(target):
                        approach.check(
                            self.decisions,
                            case_state,
                            device_id,
                            target=target,
                            device_id=other,
                            from_ms=from_ms,
                            until_ms=until_ms,
                            cause=cause,
                        )
            else:
                for target in case.targets:
                    if device_id in target.device_ids:
                        for tag_id in case.tag_device_ids:
                            approach.check(
                                self.decisions,
                                case_state,
                                tag_id,
                                target=target,
                                device_id=device_id,
                                from_ms=from_ms,
                                until_ms=until_ms,
                                cause=cause,
                            )
            if case_state.episode_id:
                newest = self._moved_in.get(case_id, (cause, None))[1]
                if until_ms is None:
                    closest_approach.check(self.decisions, case_state, device_id, cause=cause)
                    newest = cause
                self._moved_in[case_id] = cause, newest
            if case_state.unseen or case_state.amend_ms or (case_state.episode_id and case_state.rechecks_on_report):
                self._to_check[case_id] = cause
        if until_ms is None:
            safe_region.measure(self.state, device_id, from_ms)
        else:
            safe_region.drop(self.state, device_id)

    # ── equipment ────────────────────────────────────────────────────────────────────────────────────────────────────

    def equipment(self, report: EquipmentReport) -> None:
        """Applies an equipment report of a device to each case that names the device."""
        state = self.state
        self.heard([report.device_id])
        if not state.is_new_report(report.device_id, report.report_id):
            return  # a resent report
        at_ms = min(report.event_time_ms, state.now_ms)
        if at_ms < state.owned_since.get(report.device_id, at_ms):
            self.decisions.dead_letter("an event from before its device changed hands")
            return
        concerned = [state.cases[case_id] for case_id in state.cases_of.get(report.device_id, ())]
        in_force = [case_state for case_state in concerned if case_state.case.valid_from_ms <= state.now_ms]
        change = equipment.record_event(
            state, report.device_id, report.event, at_ms=report.event_time_ms, has_case=bool(in_force)
        )
        ended_ms = None if change.ended_ms is None else min(change.ended_ms, state.now_ms)
        cause = CausingReport(report.device_id, report.report_id, report.received_wall_us)
        for case_state in in_force:
            if change.ended_event:
                case_state.raised.pop(event_key(change.ended_event, report.device_id), None)
            if not change.is_known:
                equipment.emit(
                    self.decisions,
                    case_state,
                    report.event,
                    device_id=report.device_id,
                    at_ms=at_ms,
                    cause=cause,
                    ended_ms=ended_ms,
                )
            self._check(case_state, state.now_ms, cause)
        self.decisions.end_all_if_quiet(in_force)
