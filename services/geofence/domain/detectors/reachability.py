"""Reachability: how far an unseen wearer can have moved. When the ring that demands a response can have been reached, when that is
likely, and from when on which detection holds about a target.

An unseen wearer may be as far from the last position as its accuracy and a speed allow. What is possible follows from the speed
bound, and what is likely from the wearer's own pace. All moments follow from the positions and the rules alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.decisions import CaseContext
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import encounters, wearing
from services.geofence.domain.entries import Case, Demand, EquipmentKind, Rules, Target
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import (
    MAX_PACE_MS,
    MIN_PACE_MS,
    UNKNOWN_AFTER_MS,
    Track,
)
from services.geofence.domain.pairs import apart
from services.geofence.domain.state import WEARER, CasePart, CaseState, State

SOON_MS = 20_000
"""A report that is due this soon after the position became unknown is waited for before somebody is sent."""
REST_WITHIN_MM = 50_000
"""A fix shows a device at the place of another fix if they are at most this far apart beyond their accuracies, mm: a building and its
courtyard."""
MAX_REST_ACCURACY_MM = 100_000
"""Greatest accuracy, mm, that explains a distance between fixes of a stationary device. A vaguer fix could be anywhere."""


class AtUnit(NamedTuple):
    """A wearer at a home unit or beacon after the newest fix."""

    fix: Fix
    """The unit's place, when the wearer was last there; the accuracy is the unit's range."""
    rested_ms: int
    """How long the wearer has been there, ms; 0 once the wearer has left."""


class Unseen(NamedTuple):
    """A wearer whose position is unknown."""

    track: Track
    """Track of the tag with the newest fix."""
    from_ms: int
    """The moment from which on the position is unknown."""
    at_unit: AtUnit | None = None
    """The last known place, if a home unit or beacon showed it after the newest fix."""

    @property
    def last(self) -> Fix:
        """The last known position."""
        return self.at_unit.fix if self.at_unit else self.track.recent[-1]

    @property
    def rested_ms(self) -> int:
        """How long the wearer had been at the last known position, ms."""
        return self.at_unit.rested_ms if self.at_unit else rest_ms(self.track)


def _possible_ms(state: State, case: Case, unseen: Unseen, *, target: Target) -> int | None:
    """The first moment at which an unseen wearer can be within the ring that demands a response, at the speed bound.

    None if help would come before that, or if the person's position is unknown.
    """
    at_ms = _reached_ms(state, case, unseen.last, target=target, mps=state.rules.reach_mps)
    latest_ms = unseen.from_ms + state.rules.max_reach_ms - UNKNOWN_AFTER_MS
    return None if at_ms is None or at_ms > latest_ms else max(at_ms, unseen.from_ms)


def _likely_ms(state: State, case: Case, unseen: Unseen, *, target: Target) -> int:
    """The first moment at which the wearer is likely within the ring: the arrival at the wearer's own pace, or a long time unseen."""
    long_ms = unseen.last.time_ms + state.rules.silent_notify_after_ms
    at_ms = _reached_ms(state, case, unseen.last, target=target, mps=assumed_pace_mps(state.rules, unseen))
    return long_ms if at_ms is None else min(long_ms, max(at_ms, unseen.from_ms))


def respond_ms(state: State, case: Case, unseen: Unseen, *, target: Target, is_announced: bool) -> int:
    """The moment from which on somebody is sent to a target near which a wearer was last seen.

    The wearer can have arrived at the own pace, and an overdue report has had its chance. Nobody is sent earlier than the rules say if
    the wearer was stationary or going away, or if the device had announced (`is_announced`) that it would fall silent.
    """
    rules, last_ms = state.rules, unseen.last.time_ms
    at_ms = max(_likely_ms(state, case, unseen, target=target), _chance_ms(unseen) + rules.report_grace_ms)
    if is_announced or unseen.rested_ms >= rules.rest_ms:
        at_ms = max(at_ms, last_ms + rules.rest_respond_after_ms)
    if unseen.at_unit is None and _goes_away(state, unseen.track, target):
        at_ms = max(at_ms, last_ms + rules.away_respond_after_ms)
    return at_ms


def _chance_ms(unseen: Unseen) -> int:
    """The moment at which the position became unknown, or at which the next report is due if that is soon after."""
    last_ms, kept_ms = unseen.last.time_ms, unseen.track.kept_interval_ms()
    if not kept_ms or unseen.at_unit:
        return unseen.from_ms
    due_ms = last_ms + math.ceil((unseen.from_ms - last_ms) / kept_ms) * kept_ms
    return due_ms if due_ms <= unseen.from_ms + SOON_MS else unseen.from_ms


def assumed_pace_mps(rules: Rules, unseen: Unseen) -> float:
    """Speed at which an unseen wearer is assumed to go on, m/s: on foot after a rest, at the speed bound if no pace is known."""
    if unseen.rested_ms >= rules.rest_ms:
        return rules.foot_mps
    pace_mps = None if unseen.at_unit else unseen.track.pace_mps()
    return rules.reach_mps if pace_mps is None else min(rules.reach_mps, max(rules.foot_mps, pace_mps))


def rest_ms(track: Track) -> int:
    """How long a device had been at the place of its newest fix, ms, without a gap in which its position was unknown."""
    last, gap_ms = track.recent[-1], track.unknown_after_ms()
    since_ms = last.time_ms
    for fix in track.backwards():
        vague_mm = min(fix.accuracy_mm, MAX_REST_ACCURACY_MM) + min(last.accuracy_mm, MAX_REST_ACCURACY_MM)
        if since_ms - fix.time_ms > gap_ms or math.dist(fix[3:6], last[3:6]) > REST_WITHIN_MM + vague_mm:
            break
        since_ms = fix.time_ms
    return last.time_ms - since_ms


def _goes_away(state: State, track: Track, target: Target) -> bool:
    """Whether the last movement of half a minute to five minutes led away from a target, by more than the accuracies.

    The target counts as stationary.
    """
    last = track.recent[-1]
    for fix in track.backwards():
        took_ms = last.time_ms - fix.time_ms
        if took_ms > MAX_PACE_MS:
            return False
        if took_ms >= MIN_PACE_MS:
            before, now = apart(state, fix, target), apart(state, last, target)
            return before is not None and now is not None and now.mm - before.mm > fix.accuracy_mm + last.accuracy_mm
    return False


def is_beyond_response(state: State, case: Case, last: Fix, *, target: Target) -> bool:
    """Whether a position, with its accuracy, is surely beyond the ring that demands a response. False if the other side's position is
    unknown."""
    found = apart(state, last, target)
    if found is None:
        return False
    vague_mm = last.accuracy_mm + (found.there.accuracy_mm if found.there else 0)
    return found.mm - vague_mm > case.response_radius_mm


def _reached_ms(state: State, case: Case, last: Fix, *, target: Target, mps: float) -> int | None:
    """Time at which the ring that demands a response is reached, if each side moves at a speed; None if the other side's position is
    unknown. Never before the other side's last position."""
    found = apart(state, last, target)
    if found is None:
        return None
    there = found.there
    gap_mm = found.mm - case.response_radius_mm - last.accuracy_mm
    if there is None:
        return _closed_ms(gap_mm, last.time_ms, mps=mps)
    return max(there.time_ms, _met_ms(gap_mm - there.accuracy_mm, last.time_ms, there.time_ms, mps=mps))


def _closed_ms(gap_mm: float, from_ms: int, *, mps: float) -> int:
    """Time at which one side has closed a gap at a speed (m/s are mm/ms) from `from_ms` on; may be earlier than `from_ms`."""
    return from_ms + math.ceil(gap_mm / mps)


def _met_ms(gap_mm: float, last_ms: int, there_ms: int, *, mps: float) -> int:
    """Time at which both sides have closed the gap between their last positions. The person moves only for 3 minutes after the last
    position."""
    both_ms = math.ceil((gap_mm / mps + last_ms + there_ms) / 2)
    if both_ms <= there_ms + UNKNOWN_AFTER_MS:
        return both_ms
    return _closed_ms(gap_mm - mps * UNKNOWN_AFTER_MS, last_ms, mps=mps)


# ── stages of an unseen wearer ───────────────────────────────────────────────────────────────────────────────────────


ANNOUNCED_MS = 21_600_000
"""How long an announcement explains a silence: 6 h. A tag with a low battery lasts for hours, not for days."""


class UnseenStage(NamedTuple):
    """A detection about an unseen wearer and a target, and the moment from which on it holds."""

    from_ms: int
    detection: Detection

    @property
    def demand(self) -> Demand:
        """The demand of the detection."""
        return self.detection.alert_type.demand


PUT_OFF: CasePart[dict[str, Detection]] = CasePart(
    "put_off",
    new=dict,
    encode=lambda put_off: {key: detection.value for key, detection in put_off.items()},
    decode=lambda content: {key: Detection(value) for key, value in content.items()},
    outlives_episode=True,
)
"""Greatest detection about each target, by key, that the positions gave while a home unit or beacon put it off. It holds once the unit
says nothing more, however long ago the positions were."""


def from_unit(context: CaseContext, target: Target, at_unit: Unseen, upto: UnseenStage) -> list[UnseenStage]:
    """The detections that hold from the place of a unit on, as far as they demand no more than `upto`, which holds by the positions.

    So a presence at a unit never demands anything by itself.
    """
    found = [stage for stage in stages(context, target, at_unit) if stage.demand <= upto.demand]
    return [stage._replace(from_ms=max(stage.from_ms, upto.from_ms)) for stage in found]


def stages(context: CaseContext, target: Target, unseen: Unseen | None) -> Iterator[UnseenStage]:
    """The detections about an unseen wearer and a target. A wearer without any position may be anywhere, which is emitted together
    with the notice of the silence."""
    state = context.state
    case_state = context.case_state
    case = context.case
    has_sign = shows_sign(state, case_state)
    if unseen is None:
        from_ms = case_state.awaited_from_ms[WEARER] + state.rules.silent_notify_after_ms
        yield UnseenStage(from_ms, Detection.IN_REACH_AFTER_A_SIGN if has_sign else Detection.LIKELY_IN_REACH)
        return
    first_ms = _possible_ms(state, case, unseen, target=target)
    is_noted = target.key in case_state.near or target.key in PUT_OFF.of(case_state)
    if first_ms is None and not is_noted:
        return
    if first_ms is not None:
        yield UnseenStage(first_ms, Detection.IN_REACH_AFTER_A_SIGN if has_sign else Detection.IN_REACH)
    if was_near(state, case, unseen.last, target=target):
        yield UnseenStage(unseen.from_ms if first_ms is None else first_ms, Detection.UNSEEN_NEAR)
        announced = _is_announced(state, case, unseen.last)
        from_ms = respond_ms(state, case, unseen, target=target, is_announced=announced)
        yield UnseenStage(_may_respond_ms(state, case, from_ms), Detection.ARRIVED_UNSEEN)
    else:
        yield UnseenStage(_likely_ms(state, case, unseen, target=target), Detection.LIKELY_IN_REACH)


def shows_sign(state: State, case_state: CaseState) -> bool:
    """Whether a sign of evasion is active: a tag was opened, jammed or shut down. A tag whose battery was low before it shut down
    shows no sign by that, nor does a tag whose removal was authorised then."""
    if not case_state.raised:  # nearly always
        return False
    for key, since_ms in case_state.raised.items():
        tag_id = key.device_id
        if tag_id not in case_state.case.tag_device_ids or wearing.covers(case_state.case, tag_id, since_ms):
            continue
        if key.event in demands.EVASION_SIGNS:
            return True
        if key.event is EquipmentKind.SHUTDOWN and not _was_announced(
            state, tag_id, since_ms, by=(EquipmentKind.BATTERY_LOW,)
        ):
            return True
    return False


def _is_announced(state: State, case: Case, last: Fix) -> bool:
    """Whether any tag had announced that it would fall silent: its battery is low, or it has no network."""
    return any(_was_announced(state, tag_id, last.time_ms, by=demands.ANNOUNCEMENTS) for tag_id in case.tag_device_ids)


def _was_announced(state: State, tag_id: str, at_ms: int, *, by: Iterable[EquipmentKind]) -> bool:
    """Whether one of these announcements of a tag is active and not much older than a moment."""
    active = state.active_events.get(tag_id, {})
    return any(at_ms - active[event.value].at_ms <= ANNOUNCED_MS for event in by if event.value in active)


def was_near(state: State, case: Case, last: Fix, *, target: Target) -> bool:
    """Whether the last known positions of wearer and target were within a ring that demands NOTIFY or more."""
    found = apart(state, last, target)
    radius_mm = max((ring.radius_mm for ring in case.rings if ring.action >= Demand.NOTIFY), default=0)
    return found is not None and found.mm <= radius_mm


def _may_respond_ms(state: State, case: Case, from_ms: int) -> int:
    """The first moment from `from_ms` on at which no authorised encounter or removal is active: during one, nobody is sent."""
    from_ms = wearing.first_uncovered_ms(case.removals, from_ms)
    while (until_ms := encounters.active_until_ms(state, case, from_ms)) is not None:
        from_ms = wearing.first_uncovered_ms(case.removals, until_ms)
    return from_ms
