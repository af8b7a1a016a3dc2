"""Travel feasibility: whether a vehicle can have brought a device to its newest position. Each all-clear must pass this test.

The way of a device is followed from a known position on. A position that no vehicle reaches in time isn't believed, and neither are the
positions that follow it. Repeating a false claim proves nothing, because the device can't have been there at the first claim. The way
continues at the first position that a vehicle can reach from the last believed one. That position must be at least as far from each
false claim as the least error of that claim.

Speeds in m/s are mm/ms.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.rings import AGREEING_FIXES
from services.geofence.domain.kinematics.track import MIN_SPEED_MS, STEADY_MS

ROAD_MPS = 50
"""Top speed of a road vehicle, m/s. No car in Korea goes faster for long: this is 180 km/h, and motorways allow 110 or 120 km/h
(Road Traffic Act, Enforcement Rule 19)."""
ROAD_MPS2 = 4
"""Greatest acceleration of a road vehicle, m/s2: 0 to 100 km/h in 7 s, a sports car."""
RAIL_MPS = 85
"""Top speed of a train, m/s. The KTX runs at 300 to 305 km/h (Korail)."""
RAIL_MPS2 = 0.6
"""Greatest acceleration of a train, m/s2: 0.45 (KTX-Sancheon) to 0.6 (EMU-260)."""
AIR_MPS = 250
"""Speed of an airliner, m/s."""
AIR_AFTER_MS = 3_600_000
"""Least time, ms, between a passenger's position on a street and the takeoff of an airliner."""
MAX_ERROR_MM = 300_000
"""Greatest error, mm, beyond the stated accuracy that a receiver between high houses makes without any tampering."""
MAX_ACCURACY_MM = 1_000_000
"""Greatest accuracy, mm, that counts as an explanation of a distance. A stated accuracy of 10 km would explain every way, and is
easy to fake."""
UNKNOWN_MPS = RAIL_MPS
"""Speed of a device with a single known position, m/s: it may be in a train."""
HISTORY_MS = 60_000
"""How far back believed positions limit where a vehicle can be now. With the last position alone, each of many short steps would be
allowed a receiver's error."""
GAP_TIMES = 1.5
"""After a gap of more than a minute, a vehicle may be this many times as fast as its average in the gap."""
MAX_CLAIMS = 32
CLAIMS_APART = 4
"""The worst of several false claims represents those near it. Near is within the newest claim's error, divided by this number."""
MAX_ERROR_MS = STEADY_MS
"""Greatest duration of a receiver's error, 10 minutes: a device that seemed near for longer was near at least some of that time."""


class BelievedFix(NamedTuple):
    """A believed position, and the device's speed there."""

    fix: Fix
    mps: float


class Claim(NamedTuple):
    """A position that isn't believed, and the least error by which it was false."""

    fix: Fix
    false_mm: float


class FalseClaims(NamedTuple):
    """Unbelieved positions since the last believed one."""

    claims: tuple[Claim, ...]
    since_ms: int
    """Time of the first unbelieved position, which may have been dropped since."""


class Way(NamedTuple):
    """The movement of a device as far as it was followed, and which of its positions are believed."""

    believed: tuple[BelievedFix, ...]
    """The last believed position and those of the minute before it, 10 s apart; the newest last."""
    before: tuple[BelievedFix, ...] = ()
    """Believed positions from before the last step of more than MAX_ERROR_MM. Empty once AGREEING_FIXES positions confirm the step."""
    far: int = 0
    """Number of positions that confirm that step so far."""
    false: FalseClaims | None = None
    """None if the newest position is believed."""
    regained_ms: int | None = None
    """Time of the first believed position after unbelieved ones; None if all were believed."""

    @property
    def is_believed(self) -> bool:
        """Whether a vehicle can have brought the device to its newest position."""
        return self.false is None

    @property
    def last(self) -> Fix:
        """The last believed position."""
        return self.believed[-1].fix


class StartHistory(NamedTuple):
    """Indices of positions by which the start of a way is judged."""

    first: int
    start: int
    """Index of the position from which the way starts, the last one of its history."""


def reachable_mm(took_ms: int, mps: float) -> float:
    """The greatest distance that any vehicle covers in a time, from a speed at its start, mm."""
    if took_ms <= 0:
        return 0.0
    road_mm = _gone_mm(took_ms, min(mps, ROAD_MPS), ROAD_MPS, mps2=ROAD_MPS2)
    rail_mm = _gone_mm(took_ms, min(mps, RAIL_MPS), RAIL_MPS, mps2=RAIL_MPS2)
    return max(road_mm, rail_mm, AIR_MPS * (took_ms - AIR_AFTER_MS))


def begin(fix: Fix) -> Way:
    """A way that begins at a position without any known history."""
    return Way((BelievedFix(fix, UNKNOWN_MPS),))


def follow(way: Way, fixes: Iterable[Fix]) -> Way:
    """The way after further positions, in order of time."""
    for fix in fixes:
        way = _step(way, fix)
    return way


def follow_on(way: Way, fixes: Sequence[Fix]) -> Way:
    """The way after those of some positions that are newer than its last believed one."""
    return follow(way, fixes[bisect_left(fixes, (way.last.time_ms + 1,)) :])


def history(fixes: Sequence[Fix], from_ms: int) -> StartHistory:
    """The positions by which the start of the ways of a device from a moment on is judged."""
    start = max(0, bisect_left(fixes, (from_ms,)) - 1)
    return StartHistory(_first_judged(fixes, start), start)


def ways(fixes: Sequence[Fix], from_ms: int) -> list[Way]:
    """The ways by which a device can have come to its newest position from its position before a moment. It suffices that one of them
    is believed.

    The first way starts from the position before that moment. The second way starts from an earlier position. It exists only if no
    vehicle can have reached the position before that moment, and only for a brief error. Then the receiver may have erred, and may now
    report the device's true place again.
    """
    index = history(fixes, from_ms).start
    after = fixes[index + 1 :]
    before = _until(fixes, index)
    if before.false is None:
        return [follow(before, after)]
    own = follow(own_way(fixes, index), after)
    erred = fixes[index].time_ms - before.false.since_ms <= MAX_ERROR_MS
    return [own, follow(before, after)] if erred else [own]


def own_way(fixes: Sequence[Fix], index: int) -> Way:
    """The way to a position that is assumed to be true, through the earlier positions from which a vehicle can have reached it."""
    before = _until(fixes, index)
    if before.false is None:
        return before
    first = bisect_left(fixes, (before.false.since_ms,), hi=index)
    own = follow(begin(fixes[first]), fixes[first + 1 : index + 1])
    return own if own.is_believed else begin(fixes[index])


def _until(fixes: Sequence[Fix], index: int) -> Way:
    """The way through the known positions before a position, up to that position."""
    first = _first_judged(fixes, index)
    return follow(begin(fixes[first]), fixes[first + 1 : index + 1])


def _first_judged(fixes: Sequence[Fix], index: int) -> int:
    """Index of the first position by which a position is judged."""
    return bisect_left(fixes, (fixes[index].time_ms - 2 * MAX_ERROR_MS,), hi=index)


def _step(way: Way, fix: Fix) -> Way:
    false_mm = _false_mm(way.believed, fix)
    if false_mm > 0:
        if _is_back(way, fix):
            return Way(_believe(way.before, fix), regained_ms=fix.time_ms)
        claims, since_ms = way.false or FalseClaims((), fix.time_ms)
        return way._replace(false=FalseClaims(_with_claim(claims, Claim(fix, false_mm)), since_ms))
    if way.false:
        if any(_apart_mm(claim.fix, fix) < claim.false_mm for claim in way.false.claims):
            return way
        return Way(_believe(way.believed, fix), regained_ms=fix.time_ms)
    if way.before:
        kept = way.far + 1 < AGREEING_FIXES
        before, far = (way.before, way.far + 1) if kept else ((), 0)
    else:
        is_far = _apart_mm(way.last, fix) > MAX_ERROR_MM
        before, far = (way.believed, 1) if is_far else ((), 0)
    return Way(_believe(way.believed, fix), before, far, regained_ms=way.regained_ms)


def _with_claim(claims: tuple[Claim, ...], new: Claim) -> tuple[Claim, ...]:
    """Adds a claim. Of claims near each other only the worst is kept, and at most MAX_CLAIMS in all."""
    near_mm = new.false_mm / CLAIMS_APART
    for claim in claims:
        if claim.false_mm >= new.false_mm and math.dist(claim.fix[3:6], new.fix[3:6]) <= near_mm:
            return claims
    kept = tuple(claim for claim in claims if math.dist(claim.fix[3:6], new.fix[3:6]) > near_mm)
    if len(kept) == MAX_CLAIMS:
        least = min(kept, key=lambda claim: claim.false_mm)
        kept = tuple(claim for claim in kept if claim is not least)
    return (*kept, new)


def _is_back(way: Way, fix: Fix) -> bool:
    """Whether the device was far away in only a few positions and is now back.

    That is so if a vehicle can have reached this position from the positions before the step, and it is nearer to them than the
    position before it.
    """
    if not way.before or _false_mm(way.before, fix) > 0:
        return False
    last = way.before[-1].fix
    return math.dist(last[3:6], fix[3:6]) < math.dist(last[3:6], way.last[3:6])


def _false_mm(believed: tuple[BelievedFix, ...], fix: Fix) -> float:
    return max(_beyond_mm(seen, fix) for seen in believed)


def _apart_mm(fix: Fix, other: Fix) -> float:
    return math.dist(fix[3:6], other[3:6]) - _vague_mm(fix, other)


def _beyond_mm(seen: BelievedFix, fix: Fix) -> float:
    """The part of a distance, mm, that a vehicle, the accuracies and a receiver's error don't explain; 0 or less if all is
    explained."""
    apart_mm = math.dist(seen.fix[3:6], fix[3:6]) - MAX_ERROR_MM
    if apart_mm <= 0:
        return apart_mm
    return apart_mm - _vague_mm(seen.fix, fix) - reachable_mm(fix.time_ms - seen.fix.time_ms, seen.mps)


def _vague_mm(fix: Fix, other: Fix) -> int:
    return min(fix.accuracy_mm, MAX_ACCURACY_MM) + min(other.accuracy_mm, MAX_ACCURACY_MM)


def _believe(believed: tuple[BelievedFix, ...], fix: Fix) -> tuple[BelievedFix, ...]:
    last = believed[-1].fix
    earlier = next((seen.fix for seen in reversed(believed) if fix.time_ms - seen.fix.time_ms >= MIN_SPEED_MS), None)
    if earlier is None:
        mps = believed[-1].mps  # too early to measure a speed
    else:
        took_ms = fix.time_ms - earlier.time_ms
        mps = math.dist(earlier[3:6], fix[3:6]) / took_ms * (GAP_TIMES if took_ms > HISTORY_MS else 1)
    kept = believed if _is_apart(believed) else believed[:-1]
    kept = tuple(seen for seen in kept if fix.time_ms - seen.fix.time_ms <= HISTORY_MS or seen.fix is last)
    return (*kept, BelievedFix(fix, mps))


def _is_apart(believed: tuple[BelievedFix, ...]) -> bool:
    """Whether the newest believed position is far enough in time from the one before it to be kept."""
    return len(believed) < 2 or believed[-1].fix.time_ms - believed[-2].fix.time_ms >= MIN_SPEED_MS


def _gone_mm(took_ms: int, mps: float, most_mps: float, *, mps2: float) -> float:
    """Distance of a vehicle that accelerates up to its top speed, mm."""
    gaining_ms = min(took_ms, (most_mps - mps) / mps2 * 1000)
    return mps * gaining_ms + mps2 * gaining_ms * gaining_ms / 2000 + most_mps * (took_ms - gaining_ms)


def to_json(way: Way) -> list[Any]:
    """A way as JSON values."""
    claims, since_ms = way.false or ((), 0)
    return [way.believed, way.before, way.far, claims, since_ms, way.regained_ms or 0]


def of_json(content: list[Any]) -> Way:
    """The inverse of `to_json`."""
    believed, before, far, claims, since_ms, regained_ms = content
    false = tuple(Claim(Fix._make(fix), false_mm) for fix, false_mm in claims)
    return Way(
        believed=_believed_of(believed),
        before=_believed_of(before),
        far=far,
        false=FalseClaims(false, since_ms) if false else None,
        regained_ms=regained_ms or None,
    )


def _believed_of(content: list[Any]) -> tuple[BelievedFix, ...]:
    return tuple(BelievedFix(Fix._make(fix), mps) for fix, mps in content)
