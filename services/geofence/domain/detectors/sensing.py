"""Sensing: the fold asks each wearer's tag for the reports that its decisions need: an interval, or the position now.

A tag is judged over all orders that name it, and the greatest need wins. The interval is a share of the time until the wearer could
reach a ring. Intervals and speeds come from a closed-loop study of 1,894 simulated approaches, held against constant intervals
(ADR 54). With these values a tag reports every half minute near a protected person and every 3 minutes far away, and fewer breaches
are missed than with a report a minute.

An interval is asked for a limited time. It is renewed or changed only after a report of the tag, or if the protected person comes
nearer fast. The change comes at a random moment after that report and by a random amount, and sometimes without any cause: so a change
doesn't tell the wearer that the protected person is near. The random numbers are hashes, because the same log must give the same
requests.

The requests of a device aren't about a single case: the fold calls `check_fix` and `pass_time` once for each device.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from services.common.ids import hash_id
from services.geofence.domain import safe_region
from services.geofence.domain.alerts import SensingRequest
from services.geofence.domain.decisions import Amendment, CaseContext, Decisions, Detector
from services.geofence.domain.detectors import encounters
from services.geofence.domain.entries import FOLD_VERSION, Case, EquipmentKind, Rules, Target
from services.geofence.domain.kinematics import plausibility
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import MIN_KEPT_GAPS, UNKNOWN_AFTER_MS, Track
from services.geofence.domain.state import CaseState, SensingState, State

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
MIN_INTERVAL_S = 30
"""Shortest interval. Positions 5 s apart share their errors and don't make fewer rings falsely entered, seconds."""
MAX_INTERVAL_S = 170
"""Longest interval. Positions farther apart than 180 s aren't joined by a line, seconds."""
MAX_NEAR_INTERVAL_S = 60
"""Longest interval within NEAR_MM of a ring, seconds."""
NEAR_MM = 1_000_000
VAGUE_FROM_MM = 100_000
"""With a vaguer position, a tag is asked for no interval below MAX_NEAR_INTERVAL_S: more such positions show nothing, mm."""
MIN_MPS = 2
"""Least speed of a wearer that an interval allows for, m/s: somebody in a hurry on foot."""
PACE_TIMES = 1.5
"""How much faster than now a wearer may become until the next report."""
SHARE = 0.55
"""Share of the time until the ring could be reached. With 0.6 more breaches were missed where gaps are long, and with 0.5 a wearer who
lives 300 m away sends a tenth more reports."""
SMALL_SHARE = 0.1
"""A place whose radius is at most this share of its distance counts as its circle: that is off by less than an interval is jittered."""
SHORTER, LONGER = 0.75, 1.4
"""The interval is changed only if it must be shorter or longer than the last one by these factors, so that noise changes nothing."""


def check_fix(decisions: Decisions, device_id: str) -> None:
    """Evaluates the newest fix of a device: whether it calls for another interval of that tag, or of the tags of a person's cases."""
    state = decisions.state
    if device_id in state.sensing or is_tag(state, device_id):
        _check_tag(state, device_id)
    else:
        _check_person(state, device_id)


def far_mm(state: State, case: Case) -> float | None:
    """Distance from a target of a case beyond which no fix changes an interval, mm; None if the case asks for nothing."""
    if not case.is_live:
        return None
    return case.response_radius_mm + max(_far_from_line_mm(state.rules.reach_mps), _reach_mm(state.rules))


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
    return state.now_ms < sensing.renew_ms and not differs(MAX_INTERVAL_S, sensing.basis_s)


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
        if tag_id not in kept_ids and all(other is context.case_state for other in cases_of(state, tag_id)):
            state.sensing.pop(tag_id, None)


# ── by reports ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_tag(state: State, tag_id: str) -> None:
    """Schedules a request if the newest fix of a tag calls for one, and notes from when on the next fix is overdue."""
    now_ms, sensing = state.now_ms, state.sensing.get(tag_id)
    if sensing is not None and sensing.seen_ms is not None:
        sensing.seen_ms, sensing.located = now_ms, 0
        if now_ms < sensing.evaluated_ms + EVALUATE_MS_PER_S * sensing.basis_s:
            return  # a tag that does as asked doesn't report so often
    need = _need_of(state, tag_id)
    if need is None:
        return
    if sensing is None:
        sensing = state.sensing[tag_id] = SensingState()
    sensing.seen_ms, sensing.evaluated_ms = (now_ms, now_ms) if need.can_reach else (None, 0)
    if sensing.change_ms is None and (now_ms >= sensing.renew_ms or differs(need.interval_s, sensing.basis_s)):
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
    for case_state in cases_of(state, device_id):
        for tag_id in case_state.case.tag_device_ids:
            sensing, track = state.sensing.get(tag_id), state.tracks.get(tag_id)
            if sensing is None or sensing.change_ms is not None or sensing.basis_s <= MAX_NEAR_INTERVAL_S:
                continue
            if track is None or not track.recent:
                continue
            gap = _gap_to_person(state, case_state.case, track.recent[-1], other=other)
            if gap.free_mm > _far_from_line_mm(state.rules.reach_mps):
                continue
            needed_s = _interval_for(state, case_state.case, tag_id, gap=gap)
            if needed_s < SHORTER * sensing.basis_s:
                _schedule(state, tag_id, sensing)


def _is_fast(track: Track) -> bool:
    """Whether a device covered its last step faster than somebody in a hurry on foot."""
    if len(track.recent) < 2:
        return False
    before, last = track.recent[-2:]
    return math.dist(before[3:6], last[3:6]) > MIN_MPS * (last.time_ms - before.time_ms)


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
    now_ms, need = state.now_ms, _need_of(state, tag_id)
    if need is None or now_ms - state.heard_at_ms.get(tag_id, 0) > UNKNOWN_AFTER_MS:
        return
    is_renewal = now_ms >= sensing.renew_ms
    if not is_renewal and not differs(need.interval_s, sensing.basis_s):
        return
    numbers = _draw(state, tag_id, "interval")
    numbers, permille = divmod(numbers, 1001)
    numbers, more_life_ms = divmod(numbers, MAX_LIFE_MS - MIN_LIFE_MS)
    numbers, none_follows = divmod(numbers, UNCAUSED_ONE_IN)
    is_uncaused = is_renewal and sensing.is_next_uncaused
    if is_uncaused:
        interval_s, life_ms = _shortened_s(need.interval_s, permille), UNCAUSED_LIFE_MS
    else:
        interval_s, life_ms = _jittered_s(need.interval_s, permille), MIN_LIFE_MS + more_life_ms
    sensing.basis_s, sensing.renew_ms = round(need.interval_s), now_ms + life_ms // 2
    sensing.obeyed_ms = now_ms if _obeys(state, tag_id, sensing) else None
    sensing.asked_s = interval_s
    sensing.is_next_uncaused = not (is_uncaused or none_follows or _is_battery_low(state, tag_id))
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
    kept_ms = state.tracks[tag_id].longer_gap_ms()
    is_kept = kept_ms is not None and not differs(kept_ms / 1000, sensing.asked_s)
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
            fold_version=FOLD_VERSION,
        )
    )


# ── the interval by a gap ────────────────────────────────────────────────────────────────────────────────────────────


class Need(NamedTuple):
    """What all orders together need from a tag."""

    interval_s: float
    can_reach: bool
    """Whether the wearer can reach a ring that demands a response before help is there."""


class Gap(NamedTuple):
    """The way from a wearer to a ring that demands a response."""

    line_mm: float
    """Distance between the newest positions and the ring's line, mm; negative inside."""
    vague_mm: int
    """Sum of the positions' accuracies, mm."""
    other_mps: float
    """Pace of the protected person, m/s; 0 for a place."""

    @property
    def free_mm(self) -> float:
        """Distance to the ring's line that remains if both positions are wrong by their accuracies, mm."""
        return self.line_mm - self.vague_mm


def interval_s(gap: Gap, own_mps: float, *, max_mps: int, is_battery_low: bool) -> float:
    """Interval that a tag should keep, seconds, by the wearer's own pace. `max_mps` is the greatest speed of either side that counts.

    A low battery takes the whole time to the ring, if the wearer isn't near it.
    """
    is_near = gap.line_mm <= NEAR_MM
    share = 1.0 if is_battery_low and not is_near else SHARE
    mps = max(MIN_MPS, min(PACE_TIMES * own_mps, max_mps)) + min(gap.other_mps, max_mps)
    least_s = MAX_NEAR_INTERVAL_S if gap.vague_mm >= VAGUE_FROM_MM else MIN_INTERVAL_S
    return min(max(share * gap.free_mm / 1000 / mps, least_s), MAX_NEAR_INTERVAL_S if is_near else MAX_INTERVAL_S)


def _far_from_line_mm(max_mps: int) -> int:
    """Distance to a ring's line beyond which no pace of either side changes an interval, mm: 7.1 km at 14 m/s."""
    return round(1000 * SHORTER * MAX_INTERVAL_S / SHARE * 2 * max_mps)


def differs(needed_s: float, basis_s: int) -> bool:
    """Whether the interval that is needed now differs enough from the one of the last request."""
    return needed_s < SHORTER * basis_s or needed_s > LONGER * basis_s


def _jittered_s(needed_s: float, permille: int) -> int:
    """An interval that is up to 10 % shorter or longer, within the bounds; `permille` is from 0 to 1,000."""
    longest_s = MAX_NEAR_INTERVAL_S if needed_s <= MAX_NEAR_INTERVAL_S else MAX_INTERVAL_S
    return min(max(round(needed_s * (0.9 + permille / 5000)), MIN_INTERVAL_S), longest_s)


def _shortened_s(needed_s: float, permille: int) -> int:
    """An interval shorter than the needed one without any cause, evenly drawn by `permille`, from 0 to 1,000."""
    return round(MIN_INTERVAL_S + (max(SHORTER * needed_s, MIN_INTERVAL_S) - MIN_INTERVAL_S) * permille / 1000)


# ── the interval by the state ─────────────────────────────────────────────────────────────────────────────────────────────────────


def cases_of(state: State, device_id: str) -> Iterator[CaseState]:
    """Live cases in force that name a device. No real tag stands behind an exercise."""
    for case_state in map(state.cases.__getitem__, state.cases_of.get(device_id, ())):
        case = case_state.case
        if case.is_live and case.is_in_force(state.now_ms):
            yield case_state


def is_tag(state: State, device_id: str) -> bool:
    """Whether a case names a device as its wearer's tag."""
    return any(device_id in state.cases[case_id].case.tag_device_ids for case_id in state.cases_of.get(device_id, ()))


def _reach_mm(rules: Rules) -> int:
    """How far a wearer gets until help is there, or until a presence counts as likely, mm."""
    return rules.reach_mps * max(rules.help_after_ms, rules.max_reach_ms)


def _need_of(state: State, tag_id: str) -> Need | None:
    """What all orders need from a tag by the newest positions; None if no position of the tag or of any target is known."""
    track = state.tracks.get(tag_id)
    if track is None or not track.recent:
        return None
    region = track.safe_region
    if region is not None and region.is_far:
        return Need(MAX_INTERVAL_S, can_reach=False) if _has_known_target(state, tag_id) else None
    least_s, free_mm = None, math.inf
    for case_state in cases_of(state, tag_id):
        for gap in _gaps(state, case_state, track):
            free_mm = min(free_mm, gap.free_mm)
            needed_s = _interval_for(state, case_state.case, tag_id, gap=gap)
            least_s = needed_s if least_s is None else min(least_s, needed_s)
    return None if least_s is None else Need(least_s, free_mm <= _reach_mm(state.rules))


def _has_known_target(state: State, tag_id: str) -> bool:
    """Whether the position of any target of a tag is known."""
    for case_state in cases_of(state, tag_id):
        for target in case_state.case.targets:
            if not target.is_person or state.last_track(target.device_ids) is not None:
                return True
    return False


def _interval_for(state: State, case: Case, tag_id: str, *, gap: Gap) -> float:
    """The interval that a tag should keep because of one target, seconds."""
    max_mps = state.rules.reach_mps
    if gap.free_mm > _far_from_line_mm(max_mps):
        return MAX_INTERVAL_S
    pace_mps = state.tracks[tag_id].pace_mps()
    needed_s = interval_s(
        gap,
        max_mps if pace_mps is None else pace_mps,
        max_mps=max_mps,
        is_battery_low=_is_battery_low(state, tag_id),
    )
    # During an authorised encounter nobody is sent, however near they are.
    if needed_s < MAX_NEAR_INTERVAL_S and encounters.active_at(state, case, state.now_ms):
        return MAX_NEAR_INTERVAL_S
    return needed_s


def _is_battery_low(state: State, tag_id: str) -> bool:
    """Whether a tag said that its battery is low, and hasn't been charged since."""
    return EquipmentKind.BATTERY_LOW.value in state.active_events.get(tag_id, ())


def _gaps(state: State, case_state: CaseState, track: Track) -> Iterator[Gap]:
    """The ways from a wearer to the rings of a case, also from positions before recent jumps."""
    starts = _starts(track)
    for target in case_state.case.targets:
        if case_state.episode_id and case_state.is_response_open(target):
            yield Gap(line_mm=0, vague_mm=0, other_mps=0)  # also while the newest positions claim that it was left
        elif not target.is_person:
            for here in starts:
                yield _gap_to_place(state, case_state.case, here, target=target)
        else:
            for other in _known(state, target):
                for here in starts:
                    yield _gap_to_person(state, case_state.case, here, other=other)


def _starts(track: Track) -> list[Fix]:
    """The newest fix of a device, and the fixes at which it may still be because it jumped away from them."""
    return track.recent[-1:] + [fix for fix, _ in plausibility.left_by_jump(track)]


def _known(state: State, target: Target) -> list[Track]:
    """Tracks of a person's devices that were located lately; if none was, the one with the newest fix."""
    tracks = [track for device_id in target.device_ids if (track := state.tracks.get(device_id)) and track.recent]
    if len(tracks) < 2:
        return tracks
    newest_ms = max((track.recent[-1].time_ms for track in tracks), default=0)
    since_ms = min(newest_ms, state.now_ms - state.rules.protected_lost_after_ms)
    return [track for track in tracks if track.recent[-1].time_ms >= since_ms]


def _gap_to_place(state: State, case: Case, here: Fix, *, target: Target) -> Gap:
    """The way to a place, from its exact edge if the place is large for its distance."""
    away_mm = target.shape.distance_bound_mm(here.point)
    _, wide_mm = target.shape.bounding_ball
    if wide_mm > SMALL_SHARE * away_mm and away_mm - case.response_radius_mm <= _far_from_line_mm(
        state.rules.reach_mps
    ):
        away_mm = target.shape.distance_mm(here.point)
    return Gap(line_mm=away_mm - case.response_radius_mm, vague_mm=here.accuracy_mm, other_mps=0)


def _gap_to_person(state: State, case: Case, here: Fix, *, other: Track) -> Gap:
    """The way from a position of the wearer to a person's device, with that device's pace where it matters."""
    ring_mm = case.response_radius_mm
    gaps = [
        Gap(math.dist(here[3:6], there[3:6]) - ring_mm, vague_mm=here.accuracy_mm + there.accuracy_mm, other_mps=0)
        for there in _starts(other)
    ]
    nearest = gaps[0] if len(gaps) == 1 else min(gaps, key=lambda gap: gap.free_mm)
    if nearest.free_mm > _far_from_line_mm(state.rules.reach_mps):
        return nearest
    return Gap(nearest.line_mm, vague_mm=nearest.vague_mm, other_mps=other.pace_mps() or 0.0)


DETECTOR = Detector(on_amend=amend, on_end=end)
