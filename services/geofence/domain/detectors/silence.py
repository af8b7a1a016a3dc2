"""Silence: alerts about wearers and persons who aren't heard, and about targets that an unseen wearer can have reached.

Each decision is made as of a moment that follows from the state alone, so it doesn't matter whether a tick or a report triggers the
check. Contact (`State.heard_at_ms`) ends a silence; only a position shows where somebody is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from services.geofence.domain import demands
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import outages, withheld_clearing
from services.geofence.domain.detectors.detector import Amendment, Detector
from services.geofence.domain.entries import Case, Demand, Exercise, Target
from services.geofence.domain.kinematics import safe_region
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Fix
from services.geofence.domain.state import WEARER, CaseState, GroupedKey, State


def check(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Evaluates silence and reachability in a case in force as of a moment, and returns the times of the next checks.

    Returns no time if only a report can change anything.
    """
    state, case_state, case = context.state, context.case_state, context.case
    quiet_ms = quiet_until_ms(state, case_state, at_ms)
    if quiet_ms is not None:
        return (quiet_ms,)
    check_times_ms = [*_check_persons(context, at_ms)]
    if case.tag_device_ids:
        # Exercises don't count in outages, neither as silent nor as watched wearers.
        if case.exercise is Exercise.NONE:
            state.watched.add(case.case_id)
        check_times_ms += _check_contact(context, at_ms)
        check_times_ms += _check_reachability(context, at_ms)
    for key in (*([WEARER] if case_state.silent else []), *case_state.lost):
        state.silent_devices.update(case_state.devices(key))
    return check_times_ms


def quiet_until_ms(state: State, case_state: CaseState, at_ms: int) -> int | None:
    """Time of the next check of a quiet case: nothing is active, and everybody was heard and seen in time. None for other cases.

    None means that a full check is needed. A full check of a quiet case would return the same time, so nearly all due cases can skip
    the full check.
    """
    if case_state.silent or case_state.unseen or case_state.episode_id or case_state.lost or case_state.near:
        return None
    case, heard_at_ms = case_state.case, state.heard_at_ms
    last = state.last_fix(case.tag_device_ids)
    if last is None or case.case_id not in state.watched:
        return None
    check_ms = min(last.time_ms, _last_heard_ms(heard_at_ms, case.tag_device_ids)) + UNKNOWN_AFTER_MS
    for target in case.targets:
        if target.is_person:
            lost_ms = _last_heard_ms(heard_at_ms, target.device_ids) + state.rules.protected_lost_after_ms
            check_ms = min(check_ms, lost_ms)
    return check_ms if check_ms > at_ms else None


def _last_heard_ms(heard_at_ms: Mapping[str, int], device_ids: tuple[str, ...]) -> int:
    """When any of the devices was last heard; 0 if none ever was."""
    if len(device_ids) == 1:  # nearly always
        return heard_at_ms.get(device_ids[0], 0)
    return max((heard_at_ms.get(device_id, 0) for device_id in device_ids), default=0)


def await_reports(case_state: CaseState, from_ms: int) -> None:
    """Notes that reports are awaited from the wearer and each person since `from_ms`. A time that is already noted stays."""
    for key in (WEARER, *(target.key for target in case_state.case.targets if target.is_person)):
        case_state.awaited_from_ms.setdefault(key, from_ms)


def amend(context: CaseContext, amendment: Amendment) -> None:
    """Retracts the alerts about a wearer and targets that a new snapshot no longer covers, and restarts the wait for replaced
    devices."""
    before, case = context.case, amendment.case
    devices = {WEARER: case.tag_device_ids} | {t.key: t.device_ids for t in case.targets}
    replaced = {t.key for t in before.targets if set(devices.get(t.key, ())) != set(t.device_ids)}
    if set(case.tag_device_ids) != set(before.tag_device_ids):
        replaced.add(WEARER)
    dropped = {WEARER, *(t.key for t in before.targets)} - (devices.keys() if amendment.in_force else set())
    _close(context, context.state.now_ms, dropped if case.tag_device_ids else dropped | {WEARER})
    for key in replaced | dropped:
        context.case_state.awaited_from_ms.pop(key, None)


def end(context: CaseContext) -> None:
    """Retracts all alerts of a case that ends, and awaits no more reports."""
    keys = {WEARER, *(target.key for target in context.case.targets)}
    _close(context, context.case.valid_until_ms, keys)
    context.case_state.awaited_from_ms.clear()


def _close(context: CaseContext, at_ms: int, keys: set[str]) -> None:
    """Retracts the alerts about the wearer and targets that the order no longer covers."""
    case_state = context.case_state
    for target in context.case.targets:
        if not keys & {target.key, WEARER}:
            continue
        if case_state.near.pop(target.key, None):
            _emit(context, Detection.POSITION_REGAINED, at_ms, target=target)
        if target.key in keys and case_state.lost.pop(target.key, False):
            _emit(context, Detection.PERSON_FOUND, at_ms, target=target)
    if WEARER not in keys:
        return
    case_state.unseen = False
    context.state.watched.discard(context.case.case_id)
    if case_state.silent:
        case_state.silent = None
        _emit(context, Detection.HEARD_AGAIN, at_ms)
        outages.note_heard(context.decisions, case_state, at_ms)


def _emit(
    context: CaseContext,
    detection: Detection,
    at_ms: int,
    *,
    target: Target | None = None,
    heard_ms: int | None = None,
) -> Demand:
    """Emits a detection and returns its demand.

    If an outage explains why somebody last heard at `heard_ms` is silent, a NOTIFY is only recorded: the notice of the outage covers
    it.
    """
    kind, demand = demands.DETECTIONS[detection]
    record_only = detection is Detection.IN_REACH
    outage_id = "" if heard_ms is None else outages.covering(context.state, heard_ms)
    key = GroupedKey(detection, target.key if target else WEARER)
    if key in context.case_state.grouped:
        return Demand.RECORD
    if outage_id and demand is Demand.NOTIFY:
        record_only, demand = True, Demand.RECORD
        outages.group(context.state, context.case_state, key)
    context.alert(
        AlertDraft(
            kind,
            demand,
            at_ms,
            target=target,
            cause=context.cause,
            record_only=record_only,
            outage_id=outage_id,
        )
    )
    return demand


def _heard_ms(state: State, case_state: CaseState, key: str) -> int:
    """When somebody's devices were last heard; if never, since when a report has been awaited."""
    heard = [state.heard_at_ms[device] for device in case_state.devices(key) if device in state.heard_at_ms]
    return max(heard, default=case_state.awaited_from_ms[key])


# ── contact ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_contact(context: CaseContext, at_ms: int) -> Iterator[int]:
    """Emits SILENT and its end; yields the times of the next checks."""
    state, case_state = context.state, context.case_state
    since_ms, from_ms = _heard_ms(state, case_state, WEARER), case_state.awaited_from_ms[WEARER]
    silent_ms, long_ms = since_ms + UNKNOWN_AFTER_MS, since_ms + state.rules.silent_notify_after_ms
    if at_ms < silent_ms:
        if case_state.silent:
            case_state.silent = None
            _emit(context, Detection.HEARD_AGAIN, at_ms)
            outages.note_heard(context.decisions, case_state, at_ms)
        yield silent_ms
        return
    if case_state.silent is None:
        moment_ms = max(silent_ms, from_ms)
        heard_before = any(tag_id in state.heard_at_ms for tag_id in context.case.tag_device_ids)
        if heard_before and context.case.exercise is Exercise.NONE:
            outages.note_silence(context.decisions, context.case.case_id, moment_ms)
        case_state.silent = _emit(context, Detection.NOT_HEARD, moment_ms, heard_ms=since_ms)
    if at_ms < long_ms:
        yield long_ms
    elif case_state.silent is Demand.RECORD:
        moment_ms = max(long_ms, from_ms)
        case_state.silent = _emit(context, Detection.NOT_HEARD_FOR_LONG, moment_ms, heard_ms=since_ms)


def _check_persons(context: CaseContext, at_ms: int) -> Iterator[int]:
    """Emits PROTECTED_DEVICE_LOST by silence and its end; yields the times of the next checks.

    A person without a device is never heard.
    """
    state, case_state = context.state, context.case_state
    for target in context.case.targets:
        if not target.is_person:
            continue
        heard_ms = _heard_ms(state, case_state, target.key)
        lost_ms = heard_ms + state.rules.protected_lost_after_ms
        if at_ms < lost_ms:
            if case_state.lost.pop(target.key, False):
                _emit(context, Detection.PERSON_FOUND, at_ms, target=target)
            yield lost_ms
        elif target.key not in case_state.lost:
            emitted = not _explained(case_state, target)
            if emitted:
                moment_ms = max(lost_ms, case_state.awaited_from_ms[target.key])
                demand = _emit(context, Detection.PERSON_LOST, moment_ms, target=target, heard_ms=heard_ms)
                emitted = demand > Demand.RECORD
            case_state.lost[target.key] = emitted


def _explained(case_state: CaseState, target: Target) -> bool:
    """Whether all devices of a person announced their silence. The police then know of it already."""
    devices = target.device_ids
    return bool(devices) and all(case_state.has_active(demands.EXPLAINS_SILENCE, device) for device in devices)


# ── reachability ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_reachability(context: CaseContext, at_ms: int) -> Iterator[int]:
    """Emits UNKNOWN_NEAR and its end; yields the times of the next checks."""
    state, case_state, case = context.state, context.case_state, context.case
    last = state.last_fix(case.tag_device_ids)
    if last and at_ms < last.time_ms + UNKNOWN_AFTER_MS:
        _end_unseen(context, last, at_ms)
        yield last.time_ms + UNKNOWN_AFTER_MS
        return
    if not case_state.unseen:
        case_state.unseen = True
        safe_region.drop_case(state, case)
    for target in case.targets:
        yield from _check_target(context, target, last, at_ms=at_ms)


def _end_unseen(context: CaseContext, last: Fix, at_ms: int) -> None:
    """Emits that the wearer's position is known again, unless the wearer still counts as unseen near a target."""
    case_state = context.case_state
    case_state.unseen = False
    for target in context.case.targets:
        if withheld_clearing.stays_unseen(context, target, last):
            case_state.unseen = True  # so that the next report of the case is checked, too
        elif case_state.near.pop(target.key, None):
            _emit(context, Detection.POSITION_REGAINED, at_ms, target=target)


def _check_target(context: CaseContext, target: Target, last: Fix | None, *, at_ms: int) -> Iterator[int]:
    """Emits that an unseen wearer may have reached a target; yields the time of the next check."""
    state, case_state, case = context.state, context.case_state, context.case
    possible_ms, detection = _possible_ms(state, case_state, last, target=target), Detection.IN_REACH
    if possible_ms is None and target.key not in case_state.near:
        return
    if possible_ms is not None and at_ms < possible_ms:
        yield possible_ms
        return
    if possible_ms is not None and (_shows_sign(case_state) or _was_near(state, case, last, target=target)):
        detection = Detection.IN_REACH_AFTER_A_SIGN
    else:
        likely_ms = _likely_ms(state, case_state, last, target=target)
        if at_ms < likely_ms:
            yield likely_ms
        else:
            possible_ms, detection = likely_ms, Detection.LIKELY_IN_REACH
    if possible_ms is not None and case_state.near.get(target.key, 0) < demands.DETECTIONS[detection][1]:
        moment_ms = max(possible_ms, case_state.awaited_from_ms[WEARER])
        # A device that reports without a position isn't affected by the outage, so its alert is not suppressed.
        heard_ms = _heard_ms(state, case_state, WEARER) if case_state.silent else None
        case_state.near[target.key] = _emit(context, detection, moment_ms, target=target, heard_ms=heard_ms)
        withheld_clearing.keep_last(state, case_state, target, last=last)


def _shows_sign(case_state: CaseState) -> bool:
    """Whether a sign of evasion is active: a tag was opened, jammed or shut down."""
    return any(case_state.has_active(demands.EVASION_SIGNS, tag_id) for tag_id in case_state.case.tag_device_ids)


def _was_near(state: State, case: Case, last: Fix | None, *, target: Target) -> bool:
    """Whether the last known positions of wearer and target were within a ring that demands NOTIFY or more."""
    apart = state.apart_mm(last, target) if last else None
    radius_mm = max((ring.radius_mm for ring in case.rings if ring.action >= Demand.NOTIFY), default=0)
    return apart is not None and apart[0] <= radius_mm


def _possible_ms(state: State, case_state: CaseState, last: Fix | None, *, target: Target) -> int | None:
    """The first moment at which an unseen wearer can be within the ring that demands a response; None if never.

    The wearer may be as far from the last position as its accuracy and the speed bound allow. A person may move at the same speed
    bound, but only for 3 minutes after the last position. A wearer without any position may be anywhere. That is emitted together with
    the notice of the silence.
    """
    if last is None:
        return case_state.awaited_from_ms[WEARER] + state.rules.silent_notify_after_ms
    at_ms = _reached_ms(state, case_state.case, last, target=target, mps=state.rules.reach_mps)
    return at_ms if at_ms is not None and at_ms <= last.time_ms + state.rules.max_reach_ms else None


def _likely_ms(state: State, case_state: CaseState, last: Fix | None, *, target: Target) -> int:
    """The first moment at which a presence within the ring is likely: the wearer arrives there at the own pace, or has been unseen
    for long."""
    rules = state.rules
    if last is None:
        return case_state.awaited_from_ms[WEARER] + rules.silent_notify_after_ms
    long_ms = last.time_ms + rules.silent_notify_after_ms
    tracks = [
        state.tracks[tag_device_id] for tag_device_id in case_state.case.tag_device_ids if tag_device_id in state.tracks
    ]
    paces = [track.pace_mps() for track in tracks if track.fixes and track.fixes[-1] is last]
    known_paces = [pace for pace in paces if pace is not None]
    mps = min(rules.reach_mps, max(rules.foot_mps, *known_paces)) if known_paces else rules.reach_mps
    at_ms = _reached_ms(state, case_state.case, last, target=target, mps=mps)
    return long_ms if at_ms is None else min(long_ms, at_ms)


def _reached_ms(state: State, case: Case, last: Fix, *, target: Target, mps: float) -> int | None:
    """Time at which the ring that demands a response is reached, if each side moves at a speed; None if the other side's position is
    unknown."""
    apart = state.apart_mm(last, target)
    if apart is None:
        return None
    apart_mm, there = apart
    responds = [ring.radius_mm for ring in case.rings if ring.action is Demand.RESPOND]
    gap_mm = apart_mm - (max(responds) if responds else case.rings[-1].radius_mm) - last.accuracy_mm
    if there is None:
        return _closed_ms(gap_mm, last.time_ms + UNKNOWN_AFTER_MS, last.time_ms, mps=mps)
    return _met_ms(gap_mm - there.accuracy_mm, last.time_ms, there.time_ms, mps=mps)


def _closed_ms(gap_mm: float, least_ms: int, from_ms: int, *, mps: float) -> int:
    """Time at which one side has closed a gap at a speed (m/s are mm/ms) from `from_ms` on; never before `least_ms`."""
    return max(least_ms, from_ms + math.ceil(gap_mm / mps))


def _met_ms(gap_mm: float, last_ms: int, there_ms: int, *, mps: float) -> int:
    """Time at which both sides have closed the gap between their last positions. The person moves only for 3 minutes after the last
    position."""
    least_ms = max(last_ms + UNKNOWN_AFTER_MS, there_ms)
    still_ms = there_ms + UNKNOWN_AFTER_MS
    both_ms = math.ceil((gap_mm / mps + last_ms + there_ms) / 2)
    if both_ms <= still_ms:
        return max(least_ms, both_ms)
    return _closed_ms(gap_mm - mps * UNKNOWN_AFTER_MS, least_ms, last_ms, mps=mps)


def is_unseen(case_state: CaseState) -> bool:
    """Whether the wearer's position is unknown: each report may be the one that ends that."""
    return case_state.unseen


def range_mm(_: State, case_state: CaseState) -> float:
    """All fixes, while the wearer's position is unknown."""
    return math.inf if case_state.unseen else 0


DETECTOR = Detector(on_time=check, on_amend=amend, on_end=end, awaits_report=is_unseen, range_mm=range_mm)
