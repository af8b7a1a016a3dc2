"""The fold: `step(state, entry)` applies one entry of the log and returns what it puts out.

"Now" is the greatest stamp so far. Nothing here reads a clock, does I/O or draws a number, so the same log gives the same
alerts, byte for byte, on every evaluator and on every replay.
"""

from __future__ import annotations

import heapq

from services.common.errors import OutdatedFold
from services.geofence.domain import approach, demands
from services.geofence.domain.alerts import Cause, Output
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.entries import (
    Case,
    Demand,
    Entry,
    Equipment,
    EquipmentReport,
    FoldVersion,
    Positions,
    Tick,
)
from services.geofence.domain.geometry import ecef_mm
from services.geofence.domain.rings import RingState
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import REMEMBERED_REPORTS, CaseState, State, event_key
from services.geofence.domain.track import WINDOW_MS, Fix, Track

VERSION = 1
"""Version of this fold. It grows with every change that could alter a decision; the log tells older processes to stop."""


def step(state: State, entry: Entry) -> list[Output]:
    """Applies an entry, in place, and returns alerts and parked parts in their order.

    Raises OutdatedFold where the log demands a newer version. Any other exception is a defect: the process must end and replay.
    """
    folding = _Folding(state, entry.sequence)
    body = entry.body
    state.sequence = entry.sequence
    folding.pass_time(state.clock_anchor_ms + (entry.stamp_ms - state.clock_anchor_ms) * state.clock_rate)
    match body:
        case Positions():
            folding.positions(body)
        case EquipmentReport():
            folding.equipment(body)
        case Case():
            folding.case(body)
        case Rules():
            state.rules, state.rules_since_ms = body, state.now_ms
        case FoldVersion():
            if body.version > VERSION:
                raise OutdatedFold(f"the log demands fold version {body.version}, this is {VERSION}")
        case Tick():
            pass
    return folding.decisions.out


def next_due_ms(state: State) -> int | None:
    """The next moment at which time alone decides something: a tick must follow it."""
    return state.due[0][0] if state.due else None


class _Folding:
    """The application of one entry."""

    def __init__(self, state: State, sequence: int) -> None:
        self.state = state
        self.decisions = Decisions(state, sequence)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def pass_time(self, now_ms: int) -> None:
        """Moves to `now_ms`, past the beginnings and ends of cases on the way."""
        state = self.state
        arrived_ms = max(state.now_ms, now_ms)
        while state.due and state.due[0][0] <= arrived_ms:
            due_ms, case_id, version = heapq.heappop(state.due)
            case_state = state.cases.get(case_id)
            if case_state is None or case_state.case.version != version:
                continue  # a newer snapshot has set its own moments
            state.now_ms = max(state.now_ms, arrived_ms)
            if due_ms >= case_state.case.valid_until_ms:
                self._end(case_state)
            else:
                self._decide_on_what_is_known(case_state, due_ms)
        state.now_ms = arrived_ms

    def _end(self, case_state: CaseState) -> None:
        """The order's validity is over: what is open is closed as of that moment."""
        case = case_state.case
        approach.close(self.decisions, case_state, case.targets, case.valid_until_ms)
        case_state.ended = True
        self._take_back(case_state, tuple(case_state.raised), case.valid_until_ms)
        self.state.forget(case)
        self.decisions.settle(case_state)

    # ── cases ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def case(self, case: Case) -> None:
        """A case as it stands from now on. What is known of both sides decides at once, without a new report."""
        state = self.state
        now_ms = state.now_ms
        before = state.cases.get(case.case_id)
        if before is not None:
            if case.version <= before.case.version:
                return
            kept = {(t.key, r.radius_mm, t.shape) for t in case.targets for r in case.rings}
            for target in before.case.targets:
                gone = [r for r in before.case.rings if (target.key, r.radius_mm, target.shape) not in kept]
                approach.close(self.decisions, before, (target,), now_ms, gone)
                for ring in gone:
                    before.rings.pop((target.key, ring.radius_mm), None)
            named = {*case.tag_device_ids, *(d for target in case.targets for d in target.device_ids)}
            self._take_back(before, tuple(key for key in before.raised if key.split()[1] not in named), now_ms)
            state.forget(before.case)
            before.case = case
        case_state = before or CaseState(case)
        resumed = case_state.ended
        case_state.ended = now_ms >= case.valid_until_ms
        state.cases[case.case_id] = case_state
        for target in case.targets:
            for ring in case.rings:
                ring_state = case_state.rings.setdefault((target.key, ring.radius_mm), RingState(case.valid_from_ms))
                if resumed:
                    ring_state.bound_ms = max(now_ms, case.valid_from_ms)
        if case_state.ended:
            self._end(case_state)
            return
        state.index(case)
        if case.valid_from_ms > now_ms:
            heapq.heappush(state.due, (case.valid_from_ms, case.case_id, case.version))
        heapq.heappush(state.due, (case.valid_until_ms, case.case_id, case.version))
        if case.valid_from_ms <= now_ms:
            self._decide_on_what_is_known(case_state, now_ms)
        self.decisions.settle(case_state)

    def _decide_on_what_is_known(self, case_state: CaseState, at_ms: int) -> None:
        for tag_id in case_state.case.tag_device_ids:
            for target in case_state.case.targets:
                for device_id in approach.others(target):
                    approach.look(self.decisions, case_state, tag_id, target, device_id, at_ms, at_ms, None)

    # ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def positions(self, batch: Positions) -> None:
        """Folds a batch, report by report, in its order."""
        state = self.state
        too_late = 0
        for device_id, report_id, fix_time_ms, lat_e7, lon_e7, accuracy_mm in zip(
            batch.device_ids,
            batch.report_ids,
            batch.fix_times_ms,
            batch.lat_e7,
            batch.lon_e7,
            batch.accuracy_mm,
            strict=True,
        ):
            time_ms = min(fix_time_ms, state.now_ms)
            if time_ms < state.now_ms - WINDOW_MS:
                too_late += 1
                continue
            track = state.tracks.get(device_id)
            if track is None:
                track = state.tracks[device_id] = Track()
            fix = Fix(time_ms, report_id, *ecef_mm(lat_e7, lon_e7), accuracy_mm)
            index = track.add(fix)
            if index is None:
                continue  # sent again
            case_ids = state.cases_of.get(device_id)
            if case_ids:
                cause = Cause(device_id, report_id, batch.received_wall_us)
                self._moved(device_id, track, index, case_ids, cause)
                if len(track.fixes) % 64 == 0:
                    self._forget_old(device_id, track, case_ids)
            elif len(track.fixes) > 2:
                # No case names the device: its newest positions are enough for an order that is yet to come.
                track.forget_before(state.now_ms)
        if too_late:
            self.decisions.park(f"{too_late} positions older than 2 h")

    def _moved(self, device_id: str, track: Track, index: int, case_ids: list[str], cause: Cause) -> None:
        """Looks at the stretch of time in which a new fix changes what is known."""
        fixes = track.fixes
        from_ms = fixes[index - 1].time_ms if index else fixes[0].time_ms
        until_ms = fixes[index + 1].time_ms if index + 1 < len(fixes) else None
        for case_id in case_ids:
            case_state = self.state.cases[case_id]
            case = case_state.case
            if device_id in case.tag_device_ids:
                for target in case.targets:
                    for other_id in approach.others(target):
                        approach.look(self.decisions, case_state, device_id, target, other_id, from_ms, until_ms, cause)
            else:
                for target in case.targets:
                    if device_id in target.device_ids:
                        for tag_id in case.tag_device_ids:
                            approach.look(
                                self.decisions, case_state, tag_id, target, device_id, from_ms, until_ms, cause
                            )
            if case_state.episode_id:
                approach.clear_what_was_left(self.decisions, case_state, cause)

    def _forget_old(self, device_id: str, track: Track, case_ids: list[str]) -> None:
        """Drops fixes that no late report can need any more; open rings account for them first."""
        horizon_ms = self.state.now_ms - WINDOW_MS
        if track.fixes[0].time_ms >= horizon_ms:
            return
        for case_id in case_ids:
            case_state = self.state.cases[case_id]
            for target in case_state.case.targets:
                for ring in case_state.case.rings:
                    if case_state.ring(target, ring).open:
                        approach.account(self.state, case_state, target, ring, horizon_ms)
        track.forget_before(horizon_ms)

    # ── equipment ────────────────────────────────────────────────────────────────────────────────────────────────────

    def equipment(self, report: EquipmentReport) -> None:
        """What a device says about itself concerns each case in which it plays a part."""
        state = self.state
        heard = state.heard.setdefault(report.device_id, [])
        if report.report_id in heard:
            return  # sent again
        heard.append(report.report_id)
        del heard[:-REMEMBERED_REPORTS]
        kind, demand = demands.EQUIPMENT[report.event]
        at_ms = min(report.event_time_ms, state.now_ms)
        cause = Cause(report.device_id, report.report_id, report.received_wall_us)
        for case_id in tuple(state.cases_of.get(report.device_id, ())):
            case_state = state.cases[case_id]
            if not case_state.case.valid_from_ms <= state.now_ms:
                continue
            target = next((t for t in case_state.case.targets if report.device_id in t.device_ids), None)
            taken_back = demands.ENDS.get(report.event)
            if taken_back:
                case_state.raised.pop(event_key(taken_back, report.device_id), None)
            elif demand is Demand.RESPOND:
                case_state.raised[event_key(report.event, report.device_id)] = at_ms
            self.decisions.alert(case_state, kind, demand, at_ms, target=target, cause=cause)
            self.decisions.settle(case_state)

    def _take_back(self, case_state: CaseState, keys: tuple[str, ...], at_ms: int) -> None:
        """Ends equipment events that the case no longer asks about."""
        for key in keys:
            event, _, device_id = key.partition(" ")
            del case_state.raised[key]
            target = next((t for t in case_state.case.targets if device_id in t.device_ids), None)
            self.decisions.alert(
                case_state, demands.EQUIPMENT[Equipment(event)][0], Demand.RECORD, at_ms, target=target
            )
