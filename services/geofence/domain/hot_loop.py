"""The hot loop: folds a batch of positions. Most of the fold's time is spent here, so it trades shape for speed.

`tests/unit/geofence/fold/test_hot_loop.py` compares it with a plain path: the same steps, one fix at a time and without shortcuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import dist, inf

from services.geofence.domain import cases, safe_region
from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import CaseContext, Decisions, Movement
from services.geofence.domain.detectors import accounts, anomalies, late_evidence, sensing, withheld_clearing
from services.geofence.domain.detectors.anomalies import FIXES_PER_CHECK
from services.geofence.domain.detectors.late_evidence import TooLate
from services.geofence.domain.detectors.pipeline import AWAITS_REPORT, ON_BATCH, ON_FIX, RANGES_MM
from services.geofence.domain.entries import Positions, PositionSource
from services.geofence.domain.geometry import ecef_points_mm
from services.geofence.domain.kinematics import plausibility
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import JUMP_MPS, UNKNOWN_AFTER_MS, WINDOW_MS, Track, is_jump, repeats
from services.geofence.domain.safe_region import ACCURACY_TIMES
from services.geofence.domain.state import State

MIN_ACCURACY_MM: Mapping[int, int] = {
    PositionSource.UNSPECIFIED: 0,
    PositionSource.GNSS: 0,
    PositionSource.WIFI: 30_000,
    PositionSource.CELL: 500_000,
}
"""Least accuracy of a position by its source, mm: access points are heard 30 m away, and positions from cells were 500 m off when
police went to them. A worse stated accuracy stays. So a position from cells clears no ring within some 500 m."""
FIXES_PER_PACK = FIXES_PER_CHECK // 2
"""Number of fixes of a device after which the fold packs the older ones."""
FIXES_PER_CLEANUP = 2 * FIXES_PER_CHECK
"""Number of fixes of a device after which the fold drops those that no late report can need any more."""


def fold_positions(decisions: Decisions, batch: Positions) -> None:  # noqa: C901  # nearly all reports pass through this body alone
    """Folds a batch of positions, report by report, in the order of the batch.

    Nearly all reports end at the safe region of their device. A function call costs as much as all the work for such a report, so this
    body isn't split into functions.
    """
    state, moves = decisions.state, BatchMoves(decisions)
    previous_owners = overdue = contradicting = 0
    too_late: list[TooLate] = []
    tracks = state.tracks
    cases_of = state.cases_of
    owned_since = state.owned_since
    now_ms, received_wall_us = state.now_ms, batch.received_wall_us
    oldest_ms, undated = now_ms - WINDOW_MS, state.undated_ms
    new = tuple.__new__
    for device_id, report_id, fix_time_ms, point, accuracy_mm, source in zip(  # the next line weighs it
        batch.device_ids,
        batch.report_ids,
        batch.fix_times_ms,
        ecef_points_mm(batch.lat_e7, batch.lon_e7),
        batch.accuracy_mm,
        sources_of(batch),
        strict=True,
    ):
        if source:
            accuracy_mm = max(accuracy_mm, MIN_ACCURACY_MM[source])  # noqa: PLW2901
        time_ms = fix_time_ms if fix_time_ms < now_ms else now_ms
        if time_ms < oldest_ms:
            too_late.append(TooLate(device_id, time_ms, point, accuracy_mm=accuracy_mm))
            continue
        if owned_since and time_ms < owned_since.get(device_id, time_ms):
            previous_owners += 1
            continue
        try:
            track = tracks[device_id]
        except KeyError:
            track = tracks[device_id] = Track()
        x_mm, y_mm, z_mm = point
        fix = new(Fix, (time_ms, fix_time_ms, report_id, x_mm, y_mm, z_mm, accuracy_mm, source))
        recent = track.recent
        before = recent[-1] if recent else None
        if before and time_ms == fix_time_ms and time_ms > before[0] and not track.ahead:
            recent.append(fix)  # the same result as `Track.add`, with fewer checks
            after = None
            # The steps along the axes together are never shorter than the straight line, so a smaller sum can't be a jump. A sum of
            # whole numbers takes half the time of comparisons with fractions.
            steps_mm = abs(x_mm - before[3]) + abs(y_mm - before[4]) + abs(z_mm - before[5])
            far = steps_mm >= JUMP_MPS * (time_ms - before[0])
        else:
            if repeats(track, fix):
                continue  # a measurement counts once, however many reports repeat it: a copy agrees with every error
            added = track.add(fix)
            if added is None:
                contradicting += track.contradicts(fix)
                continue  # a resent report
            (before, after), far = added, True
        count = track.older_count + len(recent)
        if undated and device_id in undated:
            del undated[device_id]
        newest = after is None
        region = track.safe_region
        # How far the device may be from the middle of its region; infinite without one.
        off_mm = dist(point, region[0]) + ACCURACY_TIMES * accuracy_mm if newest and region else inf
        clear = region and off_mm <= region[1]
        if clear and not far and count % FIXES_PER_PACK:
            continue
        case_ids = cases_of.get(device_id)
        if not case_ids:
            if time_ms < state.order_ended_ms.get(device_id, 0):
                overdue += 1
            if count > 2:
                # No case names the device. Its newest positions are enough for an order that comes later.
                track.forget_before(now_ms)
            continue
        if far and before and is_jump(before, fix):
            cause = CausingReport(device_id, report_id, received_wall_us)
            anomalies.jumped(decisions, fix, case_ids, cause=cause)
        if not clear:
            if region and off_mm <= region.free_mm:
                sensing.check_fix(decisions, device_id)
                safe_region.skip_if_quiet(state, device_id, sensing.is_quiet)
            else:
                cause = CausingReport(device_id, report_id, received_wall_us)
                moves.add(Movement(device_id, (before or fix)[0], after[0] if after else None), case_ids, cause=cause)
        if count % FIXES_PER_PACK:
            continue
        if count % FIXES_PER_CLEANUP == 0:
            forget_old(state, device_id, case_ids)
        if newest and count % FIXES_PER_CHECK == 0:
            cause = CausingReport(device_id, report_id, received_wall_us)
            anomalies.check_track(decisions, track, case_ids, cause=cause)
        track.pack()
    moves.finish()
    if too_late:
        fold_too_late(decisions, too_late)
    for number, which in (
        (len(too_late), "older than 2 h"),
        (overdue, "from before the end of an order that is over"),
        (previous_owners, "from before their device changed hands"),
        (contradicting, "with the id and time of an earlier report but another content"),
    ):
        if number:
            decisions.dead_letter(f"{number} positions {which}")


def fold_too_late(decisions: Decisions, positions: list[TooLate]) -> None:
    """Folds the positions of a batch that are older than the window. They change no track."""
    anomalies.undated(decisions, {position.device_id for position in positions})
    concerned = [decisions.state.cases[case_id] for case_id in late_evidence.note(decisions, positions)]
    for case_state in concerned:
        cases.check(decisions, case_state, decisions.state.now_ms)
    decisions.end_all_if_quiet(concerned)


def sources_of(batch: Positions) -> Sequence[int]:
    """The source of each position of a batch; UNSPECIFIED for all if no sender says."""
    return batch.sources or (PositionSource.UNSPECIFIED,) * len(batch.device_ids)


class BatchMoves:
    """The movements of a batch, and the cases that are checked once all of them are known."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._state = decisions.state
        self._to_check: dict[str, CausingReport] = {}
        """Cases to check against time after the entry, each with the last report that made the check necessary."""
        self._moved_in: dict[str, tuple[CausingReport, CausingReport | None]] = {}
        """Cases with an open episode in which a device moved. Each has its last report, and the last one that was the newest of its
        device (None if there was none)."""

    def add(self, movement: Movement, case_ids: list[str], *, cause: CausingReport) -> None:
        """Evaluates the stretch of time in which a new fix changes the known movement of a device."""
        device_id, from_ms, until_ms = movement
        for case_id in case_ids:
            case_state = self._state.cases[case_id]
            context = CaseContext(self._decisions, case_state, cause)
            for on_fix in ON_FIX:
                on_fix(context, movement)
            if case_state.episode_id:
                newest = cause if until_ms is None else self._moved_in.get(case_id, (cause, None))[1]
                self._moved_in[case_id] = cause, newest
            for awaits_report in AWAITS_REPORT:
                if awaits_report(case_state):
                    self._to_check[case_id] = cause
                    break
        if until_ms is None:
            self._state.tracks[device_id].safe_region = None  # the fix lies outside it
            sensing.check_fix(self._decisions, device_id)
            safe_region.measure(
                self._state,
                device_id,
                from_ms,
                ranges_mm=RANGES_MM,
                far_mm=sensing.far_mm,
                is_quiet=sensing.is_quiet,
            )
        else:
            safe_region.drop(self._state, device_id)

    def finish(self) -> None:
        """Evaluates the cases in which devices moved.

        Call this after the whole batch: in a buffered backlog, reports after the newest position may be older.
        """
        state = self._state
        for case_id, (cause, newest) in sorted(self._moved_in.items()):
            context = CaseContext(self._decisions, state.cases[case_id], cause)
            for on_batch in ON_BATCH:
                on_batch(context, newest)
        for case_id, cause in self._to_check.items():
            cases.check(self._decisions, state.cases[case_id], state.now_ms, cause=cause)
        self._decisions.end_all_if_quiet(map(state.cases.__getitem__, self._to_check))


def forget_old(state: State, device_id: str, case_ids: list[str]) -> None:
    """Drops fixes that no late report can need. The accounts and ways of these cases first take over the content of the fixes."""
    track = state.tracks[device_id]
    if track.first_ms >= state.now_ms - WINDOW_MS:
        return
    for case_state in map(state.cases.__getitem__, case_ids):
        accounts.finalize(state, case_state)
    horizon_ms = state.now_ms - WINDOW_MS - UNKNOWN_AFTER_MS
    count = track.count_before(horizon_ms, plausibility.JUDGED_FIXES)
    count = withheld_clearing.keep(state, device_id, case_ids, count=count) if count else 0
    if not count:
        return
    track.drop(count)
    track.is_truncated = True
