"""Sensing: the fold asks each wearer's tag for the reports that its decisions need: an interval, or the position now.

A tag is judged over all orders that name it, and the greatest need wins. An interval is asked for a limited time. It is renewed or
changed only after a report of the tag, or if the protected person comes nearer fast. The change comes at a random moment after that
report and by a random amount, and sometimes without any cause: so a change doesn't tell the wearer that the protected person is near.
The random numbers are hashes, because the same log must give the same requests (ADR 54).

The requests of a device aren't about a single case: the fold calls `check_fix` and `pass_time` once for each device.
"""

from __future__ import annotations

import heapq
import math
from itertools import islice

from services.common.ids import hash_id
from services.geofence.domain.alerts import SensingRequest
from services.geofence.domain.decisions import CaseContext, Decisions
from services.geofence.domain.detectors.detector import Amendment, Detector
from services.geofence.domain.entries import Case
from services.geofence.domain.kinematics import report_interval, safe_region
from services.geofence.domain.kinematics.report_interval import MAX_INTERVAL_S, MAX_NEAR_INTERVAL_S
from services.geofence.domain.kinematics.track import MIN_KEPT_GAPS, UNKNOWN_AFTER_MS, Track
from services.geofence.domain.state import SensingState, State
from services.geofence.domain.version import VERSION

FIRST_VERSION = 12
"""The fold asks for nothing before the log demands this version: an older log was decided without requests."""
_OBEYED_VERSION = 19
"""From this version of the log on a report is awaited for as long as was asked, if the tag obeys. Before, the gaps alone counted."""
MIN_LIFE_MS, MAX_LIFE_MS = 2_400_000, 3_600_000
"""Lifetime of a request for an interval, 40 to 60 minutes. It is renewed after half of it."""
JITTER_MS = 20_000
"""A change comes within this time after the report that calls for it."""
UNCAUSED_ONE_IN = 14
"""One request in this many is followed by a shorter interval without any cause: some 4 a day of some 54."""
UNCAUSED_LIFE_MS = 1_200_000
"""Lifetime of a request without any cause, 20 minutes."""
EVALUATE_MS_PER_S = 800
"""Near rings a tag is evaluated once in 80 % of its interval, ms per second of it: a jittered interval is up to 10 % shorter."""
LOCATE_AFTER_MS = 8_000
"""How long a report may be overdue before the position is asked for: most late reports come within 5 s."""
LOCATE_INTERVAL_MS = 60_000
"""Minimum time between two requests for a position, and the lifetime of each."""
MAX_LOCATED = 3
"""Maximum number of requests for a position without a position in between. A tag that can't be reached gets no more of them."""


def check_fix(decisions: Decisions, device_id: str) -> None:
    """Evaluates the newest fix of a device: whether it calls for another interval of that tag, or of the tags of a person's cases."""
    state = decisions.state
    if state.log_version < FIRST_VERSION:
        return
    if device_id in state.sensing or report_interval.is_tag(state, device_id):
        _check_tag(state, device_id)
    else:
        _check_person(state, device_id)


def far_mm(state: State, case: Case) -> float | None:
    """Distance from a target of a case beyond which no fix changes an interval, mm; None if the case asks for nothing."""
    if state.log_version < FIRST_VERSION or not case.is_live:
        return None
    far_mm, reach_mm = report_interval.far_mm(state.rules.reach_mps), report_interval.reach_mm(state.rules)
    return report_interval.radius_mm(case) + max(far_mm, reach_mm)


def is_quiet(state: State, device_id: str) -> bool:
    """Whether no fix of a device calls for a request while the device stays far from all rings."""
    sensing = state.sensing.get(device_id)
    if sensing is None:
        return not any(
            far_mm(state, case) is not None and device_id in case.tag_device_ids
            for case in (state.cases[case_id].case for case_id in state.cases_of.get(device_id, ()))
        )
    if sensing.seen_ms is not None:
        return False  # the next fix shows that no ring can be reached any more
    if sensing.change_ms is not None:
        return True
    return state.now_ms < sensing.renew_ms and not report_interval.differs(MAX_INTERVAL_S, sensing.basis_s)


def pass_time(decisions: Decisions, at_ms: int) -> None:
    """Makes the requests that are due up to a moment."""
    state = decisions.state
    while state.sensing_due and state.sensing_due[0][0] <= at_ms:
        due_ms, tag_id = heapq.heappop(state.sensing_due)
        sensing = state.sensing.get(tag_id)
        if sensing is not None and sensing.due_ms == due_ms:
            sensing.due_ms = None
            _check_time(decisions, tag_id, sensing, at_ms=at_ms)


def amend(context: CaseContext, amendment: Amendment) -> None:
    """Forgets the tags that a new snapshot no longer names. The fold stops renewing, and what was asked of them runs out."""
    _forget(context, kept_ids=amendment.case.tag_device_ids if amendment.in_force else ())


def end(context: CaseContext) -> None:
    """Forgets the tags of a case that ends, unless another case in force names them."""
    _forget(context, kept_ids=())


def _forget(context: CaseContext, *, kept_ids: tuple[str, ...]) -> None:
    state = context.state
    for tag_id in context.case.tag_device_ids:
        if tag_id not in kept_ids and all(
            other is context.case_state for other in report_interval.cases_of(state, tag_id)
        ):
            state.sensing.pop(tag_id, None)


# ── by reports ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_tag(state: State, tag_id: str) -> None:
    """Schedules a request if the newest fix of a tag calls for one, and notes from when on the next fix is overdue."""
    now_ms, sensing = state.now_ms, state.sensing.get(tag_id)
    if sensing is not None and sensing.seen_ms is not None:
        sensing.seen_ms, sensing.located = now_ms, 0
        if now_ms < sensing.evaluated_ms + EVALUATE_MS_PER_S * sensing.basis_s:
            return  # a tag that does as asked doesn't report so often
    need = report_interval.need_of(state, tag_id)
    if need is None:
        return
    if sensing is None:
        sensing = state.sensing[tag_id] = SensingState()
    sensing.seen_ms, sensing.evaluated_ms = (now_ms, now_ms) if need.can_reach else (None, 0)
    if sensing.change_ms is None and (
        now_ms >= sensing.renew_ms or report_interval.differs(need.interval_s, sensing.basis_s)
    ):
        _schedule(state, tag_id, sensing)
    overdue_ms = _overdue_ms(state, tag_id, sensing)
    if overdue_ms is not None:
        _check_by(state, tag_id, sensing, at_ms=overdue_ms)


def _check_person(state: State, device_id: str) -> None:
    """Schedules requests to tags that the newest fix of a protective device makes too rare.

    Slow movements, and all of them where the tag reports each minute, show soon enough at a fix of the tag. So does whether the
    interval may be longer.
    """
    other = state.tracks[device_id]
    if not _is_fast(other):
        return
    for case_state in report_interval.cases_of(state, device_id):
        for tag_id in case_state.case.tag_device_ids:
            sensing, track = state.sensing.get(tag_id), state.tracks.get(tag_id)
            if sensing is None or sensing.change_ms is not None or sensing.basis_s <= MAX_NEAR_INTERVAL_S:
                continue
            if track is None or not track.recent:
                continue
            gap = report_interval.gap_to_person(state, case_state.case, track.recent[-1], other=other)
            if gap.free_mm > report_interval.far_mm(state.rules.reach_mps):
                continue
            needed_s = report_interval.interval_for(state, case_state.case, tag_id, gap=gap)
            if needed_s < report_interval.SHORTER * sensing.basis_s:
                _schedule(state, tag_id, sensing)


def _is_fast(track: Track) -> bool:
    """Whether a device covered its last step faster than somebody in a hurry on foot."""
    if len(track.recent) < 2:
        return False
    before, last = track.recent[-2:]
    return math.dist(before[3:6], last[3:6]) > report_interval.MIN_MPS * (last.time_ms - before.time_ms)


def _schedule(state: State, tag_id: str, sensing: SensingState) -> None:
    sensing.change_ms = state.now_ms + _draw(state, tag_id, "moment") % JITTER_MS
    _check_by(state, tag_id, sensing, at_ms=sensing.change_ms)


def _check_by(state: State, tag_id: str, sensing: SensingState, *, at_ms: int) -> None:
    """Has time considered for a tag at a moment, unless it is considered before."""
    if sensing.due_ms is None or at_ms < sensing.due_ms:
        sensing.due_ms = at_ms
        heapq.heappush(state.sensing_due, (at_ms, tag_id))


def _draw(state: State, tag_id: str, what: str) -> int:
    """A number of 80 bits that nobody outside can foresee, and that each evaluator draws alike."""
    return int(hash_id("draw", state.log_id, tag_id, state.sequence, what).removeprefix("draw-"), 16)


# ── by time ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_time(decisions: Decisions, tag_id: str, sensing: SensingState, *, at_ms: int) -> None:
    """Makes the requests to a tag that are due, and schedules the next ones."""
    state = decisions.state
    if sensing.change_ms is not None and sensing.change_ms <= at_ms:
        sensing.change_ms = None
        _ask_for_interval(decisions, tag_id, sensing)
    if sensing.change_ms is not None:
        _check_by(state, tag_id, sensing, at_ms=sensing.change_ms)
    elif at_ms < sensing.renew_ms:
        _check_by(state, tag_id, sensing, at_ms=sensing.renew_ms)
    else:
        safe_region.evaluate_next(state.tracks[tag_id])  # so that the next fix renews the request
    overdue_ms = _overdue_ms(state, tag_id, sensing)
    if overdue_ms is not None and overdue_ms <= at_ms:
        _ask_for_position(decisions, tag_id, sensing)
        overdue_ms = _overdue_ms(state, tag_id, sensing)
    if overdue_ms is not None:
        _check_by(state, tag_id, sensing, at_ms=overdue_ms)


def _ask_for_interval(decisions: Decisions, tag_id: str, sensing: SensingState) -> None:
    """Asks a tag for an interval if the reason still holds: the last request must be renewed, or another interval is needed."""
    state = decisions.state
    now_ms, need = state.now_ms, report_interval.need_of(state, tag_id)
    if need is None or now_ms - state.heard_at_ms.get(tag_id, 0) > UNKNOWN_AFTER_MS:
        return
    is_renewal = now_ms >= sensing.renew_ms
    if not is_renewal and not report_interval.differs(need.interval_s, sensing.basis_s):
        return
    numbers = _draw(state, tag_id, "interval")
    numbers, permille = divmod(numbers, 1001)
    numbers, more_life_ms = divmod(numbers, MAX_LIFE_MS - MIN_LIFE_MS)
    numbers, none_follows = divmod(numbers, UNCAUSED_ONE_IN)
    is_uncaused = is_renewal and sensing.is_next_uncaused
    if is_uncaused:
        interval_s, life_ms = report_interval.shortened_s(need.interval_s, permille), UNCAUSED_LIFE_MS
    else:
        interval_s, life_ms = report_interval.jittered_s(need.interval_s, permille), MIN_LIFE_MS + more_life_ms
    sensing.basis_s, sensing.renew_ms = round(need.interval_s), now_ms + life_ms // 2
    sensing.obeyed_ms = now_ms if _obeys(state, tag_id, sensing) else None
    sensing.asked_s = interval_s
    sensing.is_next_uncaused = not (is_uncaused or none_follows or report_interval.is_battery_low(state, tag_id))
    if sensing.is_next_uncaused:
        sensing.renew_ms = now_ms + numbers % (life_ms // 2)
    _put_request(decisions, tag_id, interval_s, until_ms=now_ms + life_ms)


def _overdue_ms(state: State, tag_id: str, sensing: SensingState) -> int | None:
    """When the next position of a tag is asked for, unless one comes before; None if none is.

    A report counts as overdue by the longer of the gaps that the tag was seen to keep, and only where a ring can be reached. A tag that
    obeys isn't overdue before the moment for which it was asked, although its gaps don't show a new interval yet. During an outage no
    tag can be reached.
    """
    if sensing.seen_ms is None or sensing.located >= MAX_LOCATED or state.outage is not None:
        return None
    kept_ms = state.tracks[tag_id].longer_gap_ms()
    if kept_ms is None:
        return None
    if _is_new_to(state, tag_id, sensing):
        kept_ms = max(kept_ms, 1000 * sensing.asked_s)
    at_ms = max(sensing.seen_ms + kept_ms + LOCATE_AFTER_MS, sensing.located_ms + LOCATE_INTERVAL_MS)
    # Long after its moment, as when the log stood still, nobody knows whether the tag can be reached.
    return at_ms if state.now_ms <= at_ms + LOCATE_INTERVAL_MS else None


def _obeys(state: State, tag_id: str, sensing: SensingState) -> bool:
    """Whether a tag keeps the interval that was asked of it last, or hasn't had the time to show it and kept the one before."""
    if state.log_version < _OBEYED_VERSION:
        return False
    kept_ms = state.tracks[tag_id].longer_gap_ms()
    is_kept = kept_ms is not None and not report_interval.differs(kept_ms / 1000, sensing.asked_s)
    return is_kept or _is_new_to(state, tag_id, sensing)


def _is_new_to(state: State, tag_id: str, sensing: SensingState) -> bool:
    """Whether a tag that obeyed was asked for an interval that its last gaps can't show yet: fewer than MIN_KEPT_GAPS fixes ago."""
    if sensing.obeyed_ms is None:
        return False
    fix = next(islice(state.tracks[tag_id].backwards(), MIN_KEPT_GAPS - 1, None), None)
    return fix is None or fix.time_ms <= sensing.obeyed_ms


def _ask_for_position(decisions: Decisions, tag_id: str, sensing: SensingState) -> None:
    sensing.located_ms = decisions.state.now_ms
    sensing.located += 1
    _put_request(decisions, tag_id, None, until_ms=sensing.located_ms + LOCATE_INTERVAL_MS)


def _put_request(decisions: Decisions, tag_id: str, interval_s: int | None, *, until_ms: int) -> None:
    """Requests an interval between reports of a tag, or its position now (None)."""
    decisions.put_request(
        SensingRequest(
            request_id=decisions.new_id("sensing", tag_id, "now" if interval_s is None else "interval"),
            sequence=decisions.sequence,
            ordinal=0,
            device_id=tag_id,
            interval_s=interval_s,
            decided_at_ms=decisions.state.now_ms,
            until_ms=until_ms,
            fold_version=VERSION,
        )
    )


DETECTOR = Detector(on_amend=amend, on_end=end)
