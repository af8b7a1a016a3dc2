"""Presence within a ring that demands a response: whether it is likely enough to enter the ring, and whether it is possible."""

from __future__ import annotations

from collections.abc import Sequence
from math import dist
from typing import NamedTuple

from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.entries import Ring, Rules, Target
from services.geofence.domain.geometry import BOUND_ALLOWANCE_MM
from services.geofence.domain.kinematics import accuracy, plausibility, rings
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import PREDICT_MS, UNKNOWN_AFTER_MS, Track

POSSIBLE_P = 0.01
"""Least probability of a possible presence: nothing is emitted below it."""
POSSIBLE_TIMES = 2
"""Beyond a ring by this many times the accuracies, the probability of being inside is below POSSIBLE_P."""
SURELY_BEYOND = accuracy.SURELY_OUTSIDE / 1.5
"""Beyond a ring by this many times the accuracies, the probability of being inside is 0 to six places. An accuracy is 1.5 standard
deviations."""
DENSE_INTERVAL_MS = 45_000
"""A tag that keeps this interval or a shorter one reports densely: its next report comes before help has left."""
DENSE_P_PCT = 35
"""Least probability of being inside, in percent, at which the newest report of such a tag enters a ring. In the study of real tracks a
fifth of the rings entered for nothing are no longer entered, and breaches are missed as rarely as with a report a minute (ADR 54)."""


class PossiblePresence(NamedTuple):
    """A possible presence of the wearer within the ring."""

    at_ms: int
    distance_mm: float
    p: float
    anomaly: AnomalyKind | None
    """Why the presence can't be known better; None if good positions are at the edge. JUMP if the presence rests on an unbelieved
    position, or on a position from before a jump away."""


class RingEntry(NamedTuple):
    """The first moment at which the wearer counts as inside a ring."""

    at_ms: int
    distance_mm: float
    p: float
    """Probability of being inside."""


class Presence(NamedTuple):
    """The result of an evaluation of one ring."""

    entered: RingEntry | None = None
    """None if the wearer never counts as inside."""
    possible: PossiblePresence | None = None


NOTHING = Presence()
"""The result of nearly every evaluation: the wearer isn't within the ring."""


def evaluate(
    rules: Rules,
    sides: Sides,
    target: Target,
    *,
    ring: Ring,
    from_ms: int,
    until_ms: int,
    newest: bool,
) -> Presence:
    """Evaluates the presence within a ring between two moments. `newest` says that no later position of the reporting device is
    known."""
    if from_ms > until_ms:
        return NOTHING  # the whole stretch is before the last clearing
    mps = rules.reach_mps
    judged_until_ms = None if newest else until_ms
    raw = [side for side in sides if side]
    tracks = tuple([plausibility.believed(side, from_ms, judged_until_ms, bound_mps=mps) for side in raw])
    on_the_way = NOTHING
    # Nearly always both sides are too far apart for any accuracy that their scatter could leave them: then it isn't measured.
    if not _is_far_unreachable(
        tracks,
        target,
        ring.radius_mm,
        from_ms=from_ms,
        until_ms=until_ms,
        least_mm=accuracy.MAX_FLOOR_MM,
    ):
        on_the_way = _on_the_way(
            rules,
            tuple(map(_credible, tracks, raw)),
            target,
            ring=ring,
            from_ms=from_ms,
            until_ms=until_ms,
            reporting=sides.wearer if newest else None,
        )
    if on_the_way.entered or not newest:
        return Presence(on_the_way.entered)
    presence = _from_newest(rules, raw, tracks, target=target, ring=ring, best=on_the_way.possible)
    if presence.entered or presence.possible:
        return presence
    before_jump = _before_jumps(rules, sides, target, ring=ring)
    return Presence(possible=before_jump) if before_jump else NOTHING


def _is_dense(wearer: Track) -> bool:
    """Whether a tag reports so densely that its next report can decide."""
    kept_ms = wearer.kept_interval_ms()
    return kept_ms is not None and kept_ms <= DENSE_INTERVAL_MS


def _on_the_way(
    rules: Rules,
    believed: tuple[Track, ...],
    target: Target,
    *,
    ring: Ring,
    from_ms: int,
    until_ms: int,
    reporting: Track | None,
) -> Presence:
    """The presence by the assumed movements between believed positions. `reporting` is the wearer's track if its next report can still
    decide; None for a late report."""
    if _is_far_unreachable(believed, target, ring.radius_mm, from_ms=from_ms, until_ms=until_ms):
        return Presence()
    sides = Sides(believed[0], accuracy.averaged(believed[1]) if len(believed) > 1 else None)
    tracks = tuple(side for side in sides if side)
    vague_mm = sum(max(fix.accuracy_mm for fix in track.recent[-plausibility.LOOKBACK_FIXES :]) for track in tracks)
    beyond_mm = POSSIBLE_TIMES * vague_mm
    if rings.least_apart_mm(sides, target.shape, from_ms=from_ms, until_ms=until_ms) > ring.radius_mm + beyond_mm:
        return Presence()
    p_pct = max(rules.respond_p_pct, DENSE_P_PCT if reporting is not None and _is_dense(reporting) else 0)
    best: PossiblePresence | None = None
    for at_ms, distance_mm in (
        moment
        for pieces in rings.assumed(sides, from_ms, until_ms)
        for moment in rings.moments_within(pieces, target.shape, ring.radius_mm, from_ms=from_ms, beyond_mm=beyond_mm)
    ):
        if any(track.is_on_jump(at_ms) for track in tracks):
            continue
        p = accuracy.p_inside(distance_mm, ring.radius_mm, tuple(track.accuracy_at(at_ms) for track in tracks))
        if p >= p_pct / 100:
            return Presence(RingEntry(at_ms, distance_mm, p))
        if best is None or p > best.p:
            best = PossiblePresence(at_ms=at_ms, distance_mm=distance_mm, p=p, anomaly=None)
    return Presence(possible=best)


def _credible(believed: Track, raw: Track) -> Track:
    """The believed fixes of a device, with the accuracies that its scatter leaves them."""
    least_mm = accuracy.floor_mm(raw)
    if not least_mm:
        return believed
    return Track([fix._replace(accuracy_mm=max(fix.accuracy_mm, least_mm)) for fix in believed.recent])


def max_travel_mm(rules: Rules) -> int:
    """Greatest assumed distance of a wearer from the start of a jump, mm."""
    return rules.reach_mps * UNKNOWN_AFTER_MS


def _is_far_unreachable(
    tracks: tuple[Track, ...],
    target: Target,
    radius_mm: int,
    *,
    from_ms: int,
    until_ms: int,
    least_mm: int = 0,
) -> bool:
    """Whether a presence is surely impossible, by a cheaper bound, before stationary devices are averaged. Nearly all presences are.

    Each mean of positions lies within the greatest distance of any position from the newest one. No movement between two such means
    is longer than twice that distance. With `least_mm`, each accuracy counts as that or worse.
    """
    wearer = tracks[0]
    here = wearer.recent[-1]
    vague_mm = max([fix[6] for fix in wearer.recent[-plausibility.LOOKBACK_FIXES :]])
    away_mm = wearer.path_since_mm(from_ms) + POSSIBLE_TIMES * (vague_mm if vague_mm > least_mm else least_mm)
    if len(tracks) == 1:
        return target.shape.distance_bound_mm(here.point) - away_mm > radius_mm
    fixes = tracks[1].recent
    newest = fixes[-1]
    point = newest[3:6]
    wide_mm = max([dist(fix[3:6], point) for fix in fixes])
    vague_mm = max([fix[6] for fix in fixes])
    away_mm += wide_mm + POSSIBLE_TIMES * (vague_mm if vague_mm > least_mm else least_mm)
    if len(fixes) > 1 and until_ms > newest[0]:
        took_ms = max(1, newest[0] - fixes[-2][0])
        away_mm += 2 * wide_mm * min(PREDICT_MS, until_ms - newest[0]) / took_ms
    if ahead := wearer.predicted(until_ms):
        away_mm += dist(ahead.start, ahead.end)
    return dist(here[3:6], point) - away_mm - BOUND_ALLOWANCE_MM > radius_mm


def _before_jumps(rules: Rules, sides: Sides, target: Target, *, ring: Ring) -> PossiblePresence | None:
    """The possible presence if one side is still where it was before it jumped away.

    From there, a wearer is assumed to go on for 3 minutes at the own pace, and at least on foot. A person's device is assumed to stay.
    """
    wearer, device = sides
    wearer_left, device_left = plausibility.left_by_jump(wearer), plausibility.left_by_jump(device) if device else ()
    if not wearer_left and not device_left:
        return None
    at_ms = max(side.recent[-1].time_ms for side in sides if side)
    wearer_starts = [(wearer.recent[-1], 0.0), *wearer_left]
    device_starts = [device.recent[-1], *(fix for fix, _ in device_left)] if device else [None]
    for i, (here, pace_mps) in enumerate(wearer_starts):
        mps = min(rules.reach_mps, max(rules.foot_mps, pace_mps))
        went_mm = mps * min(UNKNOWN_AFTER_MS, at_ms - here.time_ms) if i else 0.0
        for there in device_starts if i else device_starts[1:]:
            accuracies = (here.accuracy_mm, there.accuracy_mm) if there else (here.accuracy_mm,)
            apart_mm = rings.apart_mm(here, there, target.shape)
            if max(accuracies) < plausibility.VAGUE_FROM_MM and apart_mm <= ring.radius_mm + sum(accuracies) + went_mm:
                return PossiblePresence(
                    at_ms=at_ms,
                    distance_mm=apart_mm,
                    p=accuracy.p_inside(apart_mm, ring.radius_mm, accuracies),
                    anomaly=AnomalyKind.JUMP,
                )
    return None


def _from_newest(
    rules: Rules,
    raw: Sequence[Track],
    believed: tuple[Track, ...],
    *,
    target: Target,
    ring: Ring,
    best: PossiblePresence | None,
) -> Presence:
    """The presence by the newest positions alone, even unbelieved ones. Earlier positions at the same place can make it more likely."""
    here, there = raw[0].recent[-1], raw[1].recent[-1] if len(raw) > 1 else None
    at_ms = max(here.time_ms, there.time_ms if there else 0)
    if best is None:
        least_mm = dist(here[3:6], there[3:6]) if there else target.shape.distance_bound_mm(here.point)
        beyond_mm = least_mm - ring.radius_mm - BOUND_ALLOWANCE_MM
        # An upper bound of the accuracies, without any measurement of scatter, nearly always decides.
        for accuracy_of in (accuracy.worst_credible_mm, accuracy.credible_mm):
            if beyond_mm > SURELY_BEYOND * sum(map(accuracy_of, raw)):
                return NOTHING
    accuracies = tuple(map(accuracy.credible_mm, raw))
    apart_mm = rings.apart_mm(here, there, target.shape)
    held = any(
        believed_track.recent[-1][:3] != raw_track.recent[-1][:3]
        for believed_track, raw_track in zip(believed, raw, strict=True)
    )
    p = accuracy.p_inside(apart_mm, ring.radius_mm, accuracies)
    if not held and apart_mm <= ring.radius_mm:
        steady = accuracy.p_inside(apart_mm, ring.radius_mm, tuple(accuracy.steady_mm(track) for track in raw))
        if steady >= rules.respond_p_pct / 100:
            return Presence(RingEntry(here.time_ms, apart_mm, steady))
    # Positions too vague to enter the ring even from its middle may be anywhere in their discs.
    vague = accuracy.p_inside(0, ring.radius_mm, accuracies) < rules.respond_p_pct / 100
    if (best is None or p > best.p or vague) and (
        p >= POSSIBLE_P or (vague and apart_mm - sum(accuracies) <= ring.radius_mm)
    ):
        anomaly = AnomalyKind.VAGUE if vague else AnomalyKind.JUMP if held else None
        return Presence(possible=PossiblePresence(at_ms=at_ms, distance_mm=apart_mm, p=p, anomaly=anomaly))
    if best is not None and best.p >= POSSIBLE_P:
        return Presence(possible=best)
    return Presence()
