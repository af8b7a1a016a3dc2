"""Silence: alerts about wearers and persons who aren't heard, and about targets that an unseen wearer can have reached.

Each decision is made as of a moment that follows from the state alone, so it doesn't matter whether a tick or a report triggers the
check. Contact (`State.heard_at_ms`) ends a silence; only a position shows where somebody is.

Two kinds of position show it no more than silence does. A wearer whose newest positions are too vague counts as unseen since the last
position that wasn't: a tag that a jammer leaves nothing but the radio cell is heard and seems seen. A wearer whose newest positions no
vehicle can have reached counts as unseen since the last position that one can: otherwise a spoofed tag would hide a wearer near a
target, since the desks would be notified and nobody sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from services.geofence.domain import demands, safe_region
from services.geofence.domain.decisions import AlertDraft, Amendment, CaseContext, Detector
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import (
    ended_records,
    outages,
    presences,
    reachability,
    wearing,
    withheld_clearing,
)
from services.geofence.domain.detectors.reachability import Unseen, UnseenStage
from services.geofence.domain.entries import Case, Demand, Ring, Target
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Track, until
from services.geofence.domain.pairs import Pair, all_pairs
from services.geofence.domain.state import WEARER, CaseState, GroupedKey, State

AMBIGUOUS_FROM_MM = 300_000
"""Accuracy, mm, from which on a position doesn't show whether a wearer is near a target or at it: a radio cell."""


def check(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Evaluates silence and reachability in a case that is in force. Returns the times of the next checks.

    The evaluation is as of `at_ms`. No time is returned if only a report can change anything.
    """
    state = context.state
    case_state = context.case_state
    case = context.case
    next_check_ms = quiet_until_ms(state, case_state, at_ms)
    if next_check_ms is not None:
        return (next_check_ms,)
    check_times_ms = [*_check_persons(context, at_ms)]
    if case.tag_device_ids:
        # Exercises don't count in outages, neither as silent nor as watched wearers.
        if case.is_live:
            state.watched.add(case.case_id)
        check_times_ms += _check_contact(context, at_ms)
        check_times_ms += _check_reachability(context, at_ms)
    else:
        check_times_ms += _end_untagged(context, at_ms)
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
    track = state.last_track(case.tag_device_ids)
    if track is None or case.case_id not in state.watched or _is_newest_vague(track):
        return None
    tag_ids, after_ms = case.tag_device_ids, track.unknown_after_ms()
    silent_after_ms = after_ms if len(tag_ids) == 1 else _silent_after_ms(state, case)
    is_evading = case_state.raised and reachability.shows_sign(state, case_state)
    unseen_after_ms = UNKNOWN_AFTER_MS if is_evading else after_ms
    lost_after_ms = state.rules.protected_lost_after_ms
    check_ms = min(
        track.recent[-1][0] + unseen_after_ms,
        _last_heard_ms(heard_at_ms, tag_ids) + silent_after_ms,
        at_ms + UNKNOWN_AFTER_MS,
    )
    for target in case.targets:
        if target.is_person:
            lost_ms = _last_heard_ms(heard_at_ms, target.device_ids) + lost_after_ms
            if lost_ms < check_ms:
                check_ms = lost_ms
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
    devices. The end of the record of the last tag retracts nothing by itself."""
    before, case = context.case, amendment.case
    devices = {WEARER: case.tag_device_ids} | {t.key: t.device_ids for t in case.targets}
    replaced = {t.key for t in before.targets if set(devices.get(t.key, ())) != set(t.device_ids)}
    if set(case.tag_device_ids) != set(before.tag_device_ids):
        replaced.add(WEARER)
    dropped = {WEARER, *(t.key for t in before.targets)} - (devices.keys() if amendment.in_force else set())
    _close(context, context.state.now_ms, dropped)
    if before.tag_device_ids and not case.tag_device_ids:
        context.state.watched.discard(case.case_id)
        if context.case_state.silent:
            outages.note_heard(context.decisions, context.case_state, context.state.now_ms)
    for key in replaced | dropped:
        context.case_state.awaited_from_ms.pop(key, None)


def end(context: CaseContext) -> None:
    """Retracts all alerts of a case that ends, and awaits no more reports."""
    keys = {WEARER, *(target.key for target in context.case.targets)}
    _close(context, context.case.end_ms, keys)
    context.case_state.awaited_from_ms.clear()


def _close(context: CaseContext, at_ms: int, keys: set[str]) -> None:
    """Retracts the alerts about the wearer and targets that the order no longer covers."""
    case_state = context.case_state
    for target in context.case.targets:
        if not keys & {target.key, WEARER}:
            continue
        _retract_near(context, target, at_ms, unconfirmed=True)
        if target.key in keys and case_state.lost.pop(target.key, False):
            _emit(context, Detection.PERSON_FOUND, at_ms, target=target, unconfirmed=True)
    if WEARER not in keys:
        return
    case_state.unseen = False
    context.state.watched.discard(context.case.case_id)
    if case_state.silent:
        case_state.silent = None
        _emit(context, Detection.HEARD_AGAIN, at_ms, unconfirmed=True)
        if context.case.tag_device_ids:  # else no outage counts the wearer any more
            outages.note_heard(context.decisions, case_state, at_ms)


def _retract_near(context: CaseContext, target: Target, at_ms: int, *, unconfirmed: bool) -> None:
    """Retracts the alert that an unseen wearer may have reached a target, if it was emitted."""
    reachability.PUT_OFF.of(context.case_state).pop(target.key, None)
    if context.case_state.near.pop(target.key, None):
        _emit(context, Detection.POSITION_REGAINED, at_ms, target=target, unconfirmed=unconfirmed)


def _end_untagged(context: CaseContext, at_ms: int) -> Iterator[int]:
    """Retracts the alerts about a wearer for whom the records have named no tag for too long; yields the time of the next check."""
    until_ms = ended_records.untagged_until_ms(context.state, context.case_state)
    if until_ms is not None and at_ms < until_ms:
        yield until_ms
    elif until_ms is not None:
        _close(context, at_ms, {WEARER})


def _emit(
    context: CaseContext,
    detection: Detection,
    at_ms: int,
    *,
    target: Target | None = None,
    heard_ms: int | None = None,
    unconfirmed: bool = False,
) -> Demand:
    """Emits a detection and returns its demand. `unconfirmed`: no report shows that what it ends is over.

    `heard_ms` is the time of the last contact before a silence. If an outage explains the silence, a NOTIFY is only recorded: the
    notice of the outage covers it.
    """
    alert_type = detection.alert_type
    # While an episode is open, the end of a mere possibility is no all-clear.
    is_mere = detection is Detection.PRESENT_AT_UNIT and bool(context.case_state.episode_id)
    record_only = detection is Detection.IN_REACH or is_mere
    outage_id = "" if heard_ms is None else outages.covering(context.state, heard_ms)
    key = GroupedKey(detection, target.key if target else WEARER)
    if key in context.case_state.grouped:
        return Demand.RECORD
    if outage_id and alert_type.demand is Demand.NOTIFY:
        record_only, alert_type = True, alert_type._replace(demand=Demand.RECORD)
        outages.group(context.state, context.case_state, key)
    context.alert(
        AlertDraft(
            alert_type,
            at_ms,
            target=target,
            cause=context.cause,
            record_only=record_only,
            outage_id=outage_id,
            unconfirmed=unconfirmed,
        )
    )
    return alert_type.demand


def _heard_ms(state: State, case_state: CaseState, key: str) -> int:
    """When somebody's devices were last heard; if never, since when a report has been awaited."""
    heard = [state.heard_at_ms[device] for device in case_state.devices(key) if device in state.heard_at_ms]
    return max(heard, default=case_state.awaited_from_ms[key])


def _was_heard(state: State, case_state: CaseState, key: str) -> bool:
    """Whether any of somebody's devices was ever heard."""
    return any(device in state.heard_at_ms for device in case_state.devices(key))


# ── contact ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_contact(context: CaseContext, at_ms: int) -> Iterator[int]:
    """Emits SILENT and its end; yields the times of the next checks."""
    state, case_state = context.state, context.case_state
    since_ms, from_ms = _heard_ms(state, case_state, WEARER), case_state.awaited_from_ms[WEARER]
    silent_ms = since_ms + _silent_after_ms(state, context.case)
    long_silent_ms = wearing.first_uncovered_ms(context.case.removals, since_ms + state.rules.silent_notify_after_ms)
    if at_ms < silent_ms:
        if case_state.silent:
            case_state.silent = None
            unconfirmed = not _was_heard(state, case_state, WEARER)  # another tag was put
            _emit(context, Detection.HEARD_AGAIN, at_ms, unconfirmed=unconfirmed)
            outages.note_heard(context.decisions, case_state, at_ms)
        yield _no_later(silent_ms, at_ms)
        return
    if case_state.silent is None:
        moment_ms = max(silent_ms, from_ms)
        if _was_heard(state, case_state, WEARER) and context.case.is_live:
            outages.note_silence(context.decisions, context.case.case_id, moment_ms)
        case_state.silent = _emit(context, Detection.NOT_HEARD, moment_ms, heard_ms=since_ms)
    if at_ms < long_silent_ms:
        yield long_silent_ms
    elif case_state.silent is Demand.RECORD:
        moment_ms = max(long_silent_ms, from_ms)
        case_state.silent = _emit(context, Detection.NOT_HEARD_FOR_LONG, moment_ms, heard_ms=since_ms)


def _silent_after_ms(state: State, case: Case) -> int:
    """Time without contact after which a wearer counts as silent, ms: 3 minutes, or longer if a tag keeps a longer interval."""
    tag_ids, tracks = case.tag_device_ids, state.tracks
    if len(tag_ids) == 1:  # nearly always
        return tracks[tag_ids[0]].unknown_after_ms() if tag_ids[0] in tracks else UNKNOWN_AFTER_MS
    return max((tracks[tag_id].unknown_after_ms() for tag_id in tag_ids if tag_id in tracks), default=UNKNOWN_AFTER_MS)


def _check_persons(context: CaseContext, at_ms: int) -> Iterator[int]:
    """Emits PROTECTED_DEVICE_LOST for persons who fell silent or are heard again; yields the times of the next checks.

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
                # Never heard: her device was replaced, or its record ended.
                unconfirmed = not _was_heard(state, case_state, target.key)
                _emit(context, Detection.PERSON_FOUND, at_ms, target=target, unconfirmed=unconfirmed)
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
    state = context.state
    case_state = context.case_state
    case = context.case
    track = state.last_track(case.tag_device_ids)
    removed = _unseen_while_off(case_state, track) if track else None
    unseen = removed or (Unseen(track, _unseen_ms(state, case_state, track)) if track else None)
    if unseen and at_ms < unseen.from_ms:
        yield from _end_unseen(context, unseen.track, at_ms)
        yield _no_later(unseen.from_ms, at_ms)
        return
    if not case_state.unseen:
        case_state.unseen = True
        safe_region.drop_case(state, case)
    # A unit hears the tag. While the tag is off by permission, that says nothing about the wearer.
    asks_unit = state.stays and not removed and not reachability.shows_sign(state, case_state)
    at_unit = presences.unseen_at_unit(state, case) if asks_unit else None
    for target in case.targets:
        jumped = _before_jump_out(context, target, track) if track and not removed else None
        since = _unseen_since(context, track, jumped) if track and jumped else unseen
        yield from _check_target(context, target, since, at_unit=at_unit, at_ms=at_ms)


def _unseen_while_off(case_state: CaseState, track: Track) -> Unseen | None:
    """The wearer as last known before a strap was opened by permission; None if no tag is off. `track` has the newest fix."""
    off_ms = wearing.off_since_ms(case_state)
    if off_ms is None:
        return None
    fixes = track.fixes
    before = [fix for fix in fixes if fix.time_ms <= off_ms]
    return Unseen(Track(before or fixes[:1]), off_ms)


def _end_unseen(context: CaseContext, track: Track, at_ms: int) -> Iterator[int]:
    """Emits that the wearer's position is known again, unless no vehicle can have reached it: the wearer then still counts as unseen
    near a target since the last believed position. Yields the times of the next checks."""
    state, case_state = context.state, context.case_state
    case_state.unseen = False
    for target in context.case.targets:
        believed = withheld_clearing.believed_unseen(context, target, track.recent[-1])
        ambiguity = _find_ambiguity(context, target, track) if believed is None else None
        if ambiguity is not None and ambiguity.last is None:
            case_state.unseen = True
            continue
        believed = believed or (ambiguity.last if ambiguity else _before_jump_out(context, target, track))
        if believed is not None:
            case_state.unseen = True  # so that the next report of the case is checked, too
            yield from _check_target(context, target, _unseen_since(context, track, believed), at_ms=at_ms)
            continue
        until_ms = ended_records.unmeasured_until_ms(state, case_state, target)
        if until_ms is not None and at_ms < until_ms:
            yield until_ms
            continue
        _retract_near(context, target, at_ms, unconfirmed=until_ms is not None)


def _check_target(
    context: CaseContext, target: Target, unseen: Unseen | None, *, at_unit: Unseen | None = None, at_ms: int
) -> Iterator[int]:
    """Emits that an unseen wearer may have reached a target; yields the times of the next checks.

    A presence at a unit (`at_unit`) only puts that off, and ends what sent nobody: a beacon can be carried away.
    """
    state, case_state = context.state, context.case_state
    if at_unit and not reachability.is_beyond_response(state, context.case, at_unit.last, target=target):
        at_unit = None
    demanded = case_state.near.get(target.key, 0)
    now: UnseenStage | None = None
    for stage in reachability.stages(context, target, unseen):
        if stage.demand <= demanded and at_unit is None:
            continue
        if at_ms < stage.from_ms:
            yield stage.from_ms
        elif now is None or now.demand < stage.demand:
            now = stage
    put_off = reachability.PUT_OFF.of(case_state)
    if target.key in put_off and (now is None or now.demand < put_off[target.key].alert_type.demand):
        now = UnseenStage(at_ms if at_unit is None else 0, put_off[target.key])
    if at_unit and now:
        put_off[target.key] = now.detection
        if at_ms < at_unit.from_ms and 0 < demanded < Demand.RESPOND:
            demanded = 0
            del case_state.near[target.key]
            _emit(context, Detection.PRESENT_AT_UNIT, at_ms, target=target)
        from_unit = reachability.from_unit(context, target, at_unit, now)
        yield from (stage.from_ms for stage in from_unit if at_ms < stage.from_ms)
        now = max(
            (stage for stage in from_unit if stage.from_ms <= at_ms), key=lambda stage: stage.demand, default=None
        )
    if now is not None and now.demand > demanded:
        moment_ms = max(now.from_ms, case_state.awaited_from_ms[WEARER])
        # A device that reports without a position isn't affected by the outage, so its alert is not suppressed.
        heard_ms = _heard_ms(state, case_state, WEARER) if case_state.silent else None
        case_state.near[target.key] = _emit(context, now.detection, moment_ms, target=target, heard_ms=heard_ms)
        withheld_clearing.keep_last(state, case_state, target, last=unseen.last if unseen else None)


def _unseen_since(context: CaseContext, track: Track, last: Fix) -> Unseen:
    """A wearer who counts as unseen since an earlier position."""
    seen = until(track, last)
    return Unseen(seen, _unseen_ms(context.state, context.case_state, seen))


def _unseen_ms(state: State, case_state: CaseState, track: Track) -> int:
    """The moment from which on the wearer's position is unknown: after 3 minutes, or later if the tag keeps a longer interval and
    shows no sign of evasion."""
    after_ms = UNKNOWN_AFTER_MS if reachability.shows_sign(state, case_state) else track.unknown_after_ms()
    return track.recent[-1].time_ms + after_ms


def _no_later(check_ms: int, at_ms: int) -> int:
    """The time of the next check, at most 3 minutes from now: new reports may show a shorter kept interval meanwhile."""
    return min(check_ms, at_ms + UNKNOWN_AFTER_MS)


def is_unseen(case_state: CaseState) -> bool:
    """Whether the wearer's position is unknown: each report may be the one that ends that."""
    return case_state.unseen


def range_mm(_: State, case_state: CaseState) -> float:
    """All fixes, while the wearer's position is unknown."""
    return math.inf if case_state.unseen else 0


# ── positions that don't show where a wearer is ──────────────────────────────────────────────────────────────────────


class _Ambiguity(NamedTuple):
    """The newest position of a wearer doesn't say where the wearer is."""

    last: Fix | None
    """The last position that says it, if the wearer counts as unseen since then. None: what was demanded stays, and nothing more is."""


def _find_ambiguity(context: CaseContext, target: Target, track: Track) -> _Ambiguity | None:
    """The ambiguity about a wearer who was near a target. None if the newest position says where the wearer is.

    Nor is there any once somebody was sent: such positions clear no ring that demands a response.
    """
    state, case_state = context.state, context.case_state
    if case_state.is_response_open(target):
        return None
    if not _may_be_there(state, context.case, track.recent[-1], target=target):
        return None
    last = _before_vague(context, target, track)
    if last and (
        reachability.was_near(state, context.case, last, target=target) or reachability.shows_sign(state, case_state)
    ):
        return _Ambiguity(last)
    return _Ambiguity(None) if case_state.near.get(target.key) else None


def _is_newest_vague(track: Track) -> bool:
    """Whether the newest position of a tag may be too vague to show where the wearer is."""
    return track.recent[-1].accuracy_mm >= AMBIGUOUS_FROM_MM


def _may_be_there(state: State, case: Case, fix: Fix, *, target: Target) -> bool:
    """Whether a position is so vague that the wearer may be within the response ring, or anywhere near it."""
    return fix.accuracy_mm >= AMBIGUOUS_FROM_MM and not reachability.is_beyond_response(state, case, fix, target=target)


def _before_vague(context: CaseContext, target: Target, track: Track) -> Fix | None:
    """The last position before the vague ones. None if it was dropped, or if the wearer was stationary without a sign of evasion:
    indoors, tags fall back on radio cells each evening."""
    state, case_state = context.state, context.case_state
    last = next((fix for fix in track.backwards() if not _may_be_there(state, context.case, fix, target=target)), None)
    if last is None or reachability.shows_sign(state, case_state):
        return last
    rest_ms = state.rules.rest_ms
    is_known = not track.is_truncated or track.began_by(last.time_ms - rest_ms)
    return last if is_known and reachability.rest_ms(until(track, last)) < rest_ms else None


def _before_jump_out(context: CaseContext, target: Target, track: Track) -> Fix | None:
    """The last believed position of a wearer who jumped out of a ring that demands NOTIFY. None if the newest position is believed, or
    still within such a ring.

    Nor is there any once a ring that demands a response is entered: a jump doesn't clear it.
    """
    state = context.state
    case_state = context.case_state
    case = context.case
    if not case_state.episode_id:
        return None
    left = [ring for ring in case.rings if ring.action >= Demand.NOTIFY and case_state.ring(target, ring).open]
    if not left or any(ring.responds for ring in left):
        return None
    pairs = [pair for pair in all_pairs(state, case, target) if pair.sides.wearer is track]
    found = [fix for ring in left for pair in pairs if (fix := _before_jump(context, target, ring, pair=pair))]
    return max(found, default=None)


def _before_jump(context: CaseContext, target: Target, ring: Ring, *, pair: Pair) -> Fix | None:
    """The last believed position on the tag's way out of a ring, by the positions of a pair of devices."""
    state, case_state = context.state, context.case_state
    if rings.newest_apart_mm(pair.sides, target.shape) <= withheld_clearing.near_mm(state, ring, pair.sides):
        return None  # the last near moment would be now
    near = withheld_clearing.last_near(state, case_state, target, ring=ring, pair=pair)
    ways = next(withheld_clearing.since_near(case_state, target, ring=ring, pair=pair, near=near))
    return max(way.last for way in ways) if ways and all(way.false for way in ways) else None


DETECTOR = Detector(
    on_time=check, on_amend=amend, on_end=end, awaits_report=is_unseen, range_mm=range_mm, parts=(reachability.PUT_OFF,)
)
