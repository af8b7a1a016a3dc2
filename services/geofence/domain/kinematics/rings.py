"""One ring round one target: entered on assumed movements, cleared and accounted for on movements known for sure."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise, product
from typing import NamedTuple

from services.geofence.domain.geometry import Shape, Vector, between
from services.geofence.domain.kinematics.fixes import AFTER_ALL_MS, Fix
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Piece, Track, difference, minus

AGREEING_FIXES = 4
"""Number of each side's newest positions that must all be outside a ring that demands a response, before it is cleared."""
RAIL_ONLY_MPS = 40
"""Above this speed, m/s, a device is in a train: it is 144 km/h, and motorways allow 110 or 120 km/h (Road Traffic Act, Enforcement
Rule 19)."""
BRAKE_MPS2 = 1
"""Greatest deceleration of a train, m/s2, a passenger's comfort being its limit. From 40 m/s the train needs 40 s to stop."""
ALIKE_SHARE = 0.5
"""Two velocities are alike if they differ by at most this share of the greater one. Trains that pass each other differ by twice their
speed."""
MAX_AGREE_MS = 600_000
"""The longest time in which all positions must agree. If AGREEING_FIXES positions take longer, those of this time suffice."""


class Sides(NamedTuple):
    """The tracks of a tag and of a device of the target."""

    wearer: Track
    device: Track | None
    """None for a place, which has no device."""

    def are_fresh(self, now_ms: int) -> bool:
        """Whether the newest fixes of both sides still show where they are, by the interval that each device keeps."""
        return all(side.is_fresh(now_ms) for side in self if side is not None)


@dataclass(slots=True)
class Account:
    """Account of a cleared ring: when the wearer was inside. It is kept for as long as late reports can change it."""

    episode_id: str
    incident_id: str
    opened_ms: int
    """When the ring's entry was decided, mesh time."""
    until_ms: int
    """End of the time that the account covered at the clearing."""
    spans: list[Stretch]
    """Stretches of time that the account covers; every other moment belongs to another account."""
    inside: list[Stretch]
    """Stretches of time inside the ring, as published last."""
    min_mm: float | None
    """Least distance, as published last, mm."""
    final_inside: list[Stretch]
    """Stretches of time inside the ring that no report can change any more: those before `RingState.floor_ms`."""
    final_min_mm: float | None
    """Least distance before `RingState.floor_ms`, mm."""
    entered_mm: float | None
    """Distance that was assumed at the entry, mm; None once the movement at that moment is known."""
    entered_ms: int
    """Moment of the entry."""
    is_assumed: bool
    """Whether `min_mm` is the distance that was assumed at the entry."""
    due_ms: int | None = None
    """When an amended account is published, mesh time; None while no late report concerns it."""
    alert_id: str = ""
    """Id of the RING_CLEARED that first published the account."""


@dataclass(slots=True)
class RingState:
    """State of one ring of one target."""

    bound_ms: int
    """Earliest moment at which the newest reports can enter the ring: the start of the case, or the last clearing."""
    since_ms: int | None = None
    """When the ring was entered; None while the wearer is outside."""
    inside: list[Stretch] = field(default_factory=list)
    """Stretches of time inside the ring in the open episode, before `floor_ms`."""
    min_mm: float | None = None
    """Least distance in `inside`, mm."""
    entered_mm: float | None = None
    """Distance that was assumed at the entry, mm; None once the movement at that moment is known."""
    muted: bool = False
    """Whether the ring was entered under an authorised encounter, so that nobody was sent."""
    floor_ms: int = 0
    """No report changes anything before this moment: the start of the case, or the horizon of late reports."""
    opened_ms: int = 0
    """When the entry was decided, mesh time."""
    late_ms: int | None = None
    """When a late report last proved presence inside while the ring was open, mesh time; None if none did."""
    closed: list[Account] = field(default_factory=list)
    """Accounts of cleared episodes that late reports may still change, in the order of the clearings."""

    @property
    def open(self) -> bool:
        """Whether the ring was entered and not cleared."""
        return self.since_ms is not None

    def enter(self, at_ms: int, distance_mm: float, now_ms: int) -> None:
        """Marks the ring as entered."""
        self.since_ms = at_ms
        self.entered_mm = distance_mm
        self.min_mm = None
        self.inside = []
        self.muted = False
        self.opened_ms = now_ms
        self.late_ms = None

    def leave(self) -> None:
        """Marks the ring as left for good."""
        self.since_ms = None
        self.min_mm = None
        self.entered_mm = None
        self.inside = []
        self.muted = False


class Least(NamedTuple):
    """The least distance of an account, mm."""

    mm: float | None
    """None if neither an entry nor any movement is known."""
    is_assumed: bool
    """Whether the least distance is that of the entry, at a moment at which the position of one side is still unknown."""


def least(known_mm: float | None, entered_mm: float | None, radius_mm: int) -> Least:
    """The least distance of an account: the least known one if it is within the ring, else the assumed one if that is less."""
    if entered_mm is None or (known_mm is not None and known_mm <= max(radius_mm, entered_mm)):
        return Least(known_mm, is_assumed=False)
    return Least(entered_mm, is_assumed=True)


def assumed(sides: Sides, from_ms: int, to_ms: int) -> list[list[Piece]]:
    """The wearer's assumed movement relative to the target's shape.

    One of two moving sides has reported later. The other side is assumed to have stayed (first list), and to have gone on as before
    (further lists, if any). So a decision never waits for the other side's next report. Two sides that ride in the same train are the
    exception: neither can have stayed, so they keep their distance until the train could have stopped.
    """
    wearer, device = sides
    wearer_pieces = list(wearer.assumed(from_ms, to_ms))
    if device is None:
        return [wearer_pieces]
    device_pieces = list(device.assumed(from_ms, to_ms))
    relative = list(difference(wearer_pieces, device_pieces))
    if wearer.recent and device.recent and rides_along(wearer, device, to_ms):
        return [_carried(sides, relative, from_ms, to_ms=to_ms)]
    movements = [relative]
    wearer_ahead, device_ahead = wearer.predicted(to_ms), device.predicted(to_ms)
    if wearer_ahead and wearer_ahead.to_ms > from_ms:
        movements.append(list(difference([wearer_ahead], device_pieces)))
    if device_ahead and device_ahead.to_ms > from_ms:
        movements.append(list(difference(wearer_pieces, [device_ahead])))
    return movements


def assumed_to_stay(sides: Sides, from_ms: int, to_ms: int) -> list[Piece]:
    """The first of the `assumed` movements: the side that reported earlier has stayed, or rides on in the same train."""
    wearer, device = sides
    wearer_pieces = list(wearer.assumed(from_ms, to_ms))
    if device is None:
        return wearer_pieces
    relative = list(difference(wearer_pieces, list(device.assumed(from_ms, to_ms))))
    if wearer.recent and device.recent and rides_along(wearer, device, to_ms):
        return _carried(sides, relative, from_ms, to_ms=to_ms)
    return relative


def assumed_at(track: Track, at_ms: int) -> Vector | None:
    """Assumed position of a device at a moment: where its `assumed` movement from that moment begins. None before its first fix."""
    fixes = track.since(at_ms)
    index = bisect_right(fixes, (at_ms, AFTER_ALL_MS)) - 1
    if index < 0:
        return None
    fix = fixes[index]
    if index + 1 < len(fixes):
        following = fixes[index + 1]
        took_ms = following[0] - fix[0]
        if took_ms <= UNKNOWN_AFTER_MS:
            return between(fix[3:6], following[3:6], (at_ms - fix[0]) / took_ms)
    return fix[3:6]


def rides_along(wearer: Track, device: Track, at_ms: int) -> bool:
    """Whether both sides ride in the same train and can't have left it between the older of their newest fixes and a moment.

    Both last movements are faster than any car, and alike.
    """
    here = _velocity_mps(wearer)
    if here is None or math.hypot(*here) <= RAIL_ONLY_MPS:
        return False  # nearly always
    there = _velocity_mps(device)
    if there is None:
        return False
    slower_mps, faster_mps = sorted((math.hypot(*here), math.hypot(*there)))
    if slower_mps <= RAIL_ONLY_MPS or math.dist(here, there) > ALIKE_SHARE * faster_mps:
        return False
    unseen_ms = at_ms - min(wearer.recent[-1].time_ms, device.recent[-1].time_ms)
    return unseen_ms <= slower_mps / BRAKE_MPS2 * 1000


def _velocity_mps(track: Track) -> Vector | None:
    """Velocity between a device's newest two fixes, m/s; None unless they are at most 3 minutes apart."""
    if len(track.recent) < 2:
        return None
    before, last = track.recent[-2], track.recent[-1]
    took_ms = last.time_ms - before.time_ms
    if not 0 < took_ms <= UNKNOWN_AFTER_MS:
        return None
    x_mm = last[3] - before[3]
    y_mm = last[4] - before[4]
    z_mm = last[5] - before[5]
    return x_mm / took_ms, y_mm / took_ms, z_mm / took_ms


def _carried(sides: Sides, relative: list[Piece], from_ms: int, *, to_ms: int) -> list[Piece]:
    """The movement of two sides in the same train: known up to the older of their newest fixes, then without any change."""
    until_ms = known_until(sides)
    apart = relative_at(sides, until_ms) if until_ms is not None else None
    if until_ms is None or apart is None or until_ms >= to_ms:
        return relative
    known = [
        piece.clipped(piece.from_ms, min(piece.to_ms, until_ms)) for piece in relative if piece.from_ms <= until_ms
    ]
    return [*known, Piece(from_ms=max(from_ms, until_ms), to_ms=to_ms, start=apart, end=apart)]


def assumed_now(sides: Sides) -> list[Vector]:
    """Where the wearer may be now relative to the target's shape, by each of the `assumed` movements; both sides must have a fix."""
    times_ms = [side.recent[-1].time_ms for side in sides if side]
    return [pieces[-1].end for pieces in assumed(sides, min(times_ms), max(times_ms)) if pieces]


def relative_at(sides: Sides, at_ms: int) -> Vector | None:
    """The wearer's position relative to the target's shape at a moment; None unless both positions are known for sure then."""
    here = sides.wearer.known_at(at_ms)
    if here is None or sides.device is None:
        return here
    there = sides.device.known_at(at_ms)
    return None if there is None else (here[0] - there[0], here[1] - there[1], here[2] - there[2])


def newest(sides: Sides) -> Vector:
    """The wearer's newest fix relative to the target's shape; both sides must have a fix."""
    wearer, device = sides
    here, there = wearer.recent[-1], device.recent[-1] if device else None
    return (here[3] - there[3], here[4] - there[4], here[5] - there[5]) if there else here.point


def apart_mm(here: Fix, there: Fix | None, shape: Shape) -> float:
    """Distance between a fix of the wearer and a target of this shape, mm. `there` is a fix of the person; None for a place."""
    return math.dist(here.point, there.point) if there else shape.distance_mm(here.point)


def newest_apart_mm(sides: Sides, shape: Shape) -> float:
    """Distance between both sides by their newest fixes, mm; both must have a fix."""
    return apart_mm(sides.wearer.recent[-1], sides.device.recent[-1] if sides.device else None, shape)


def least_apart_mm(sides: Sides, shape: Shape, *, from_ms: int, until_ms: int) -> float:
    """A lower bound of the distance between both sides on all their assumed movements in a stretch of time, mm. The bound is cheap."""
    wearer, device = sides
    here = wearer.recent[-1].point
    if device is None:
        return shape.distance_bound_mm(here) - wearer.path_since_mm(from_ms)
    least_mm = math.dist(here, device.recent[-1].point)
    for track in (wearer, device):
        least_mm -= track.path_since_mm(from_ms)
        if ahead := track.predicted(until_ms):
            least_mm -= math.dist(ahead.start, ahead.end)
    return least_mm


def joined(sides: Sides, from_ms: int, to_ms: int) -> Iterator[Piece]:
    """The wearer's movement that is known for sure, relative to the target's shape."""
    wearer, device = sides
    moves = wearer.joined(from_ms, to_ms)
    if device is None:
        return moves
    return difference(list(moves), list(device.joined(from_ms, to_ms)))


def may_reach(ways: list[list[Piece]], shape: Shape, radius_mm: float) -> bool:
    """Whether any movement could come within the radius; False only if none can."""
    for pieces in ways:
        for piece in pieces:
            if shape.distance_bound_mm(piece.start) - math.dist(piece.start, piece.end) <= radius_mm:
                return True
    return False


def moments_within(
    pieces: Iterable[Piece], shape: Shape, radius_mm: float, *, from_ms: int, beyond_mm: float = 0.0
) -> Iterator[tuple[int, float]]:
    """Moments from `from_ms` on within the radius, and the distance then, mm: the first, the middle and the last of each stretch.

    The middle of a straight movement is its nearest point. A movement that stays outside the radius but comes within `beyond_mm`
    more gives the middle of that stretch.
    """
    for piece in pieces:
        if piece.to_ms < from_ms:
            continue
        part = piece.clipped(from_ms, piece.to_ms)
        shares = [
            share
            for low, high in shape.within(part.start, part.end, radius_mm)
            for share in (low, (low + high) / 2, high)
        ]
        if not shares and beyond_mm:
            shares = [(low + high) / 2 for low, high in shape.within(part.start, part.end, radius_mm + beyond_mm)]
        for share in shares:
            at_ms = part.from_ms + round(share * (part.to_ms - part.from_ms))
            point = part.at(at_ms)
            yield at_ms, shape.distance_mm(point)


def measure_inside(
    inside: list[Stretch],
    least_mm: float | None,
    shape: Shape,
    *,
    radius_mm: float,
    pieces: Iterable[Piece],
    spans: list[Stretch],
) -> float | None:
    """Adds to `inside` the times in `spans` at which `pieces` are within the radius. Returns the least distance, including `least_mm`,
    mm.

    A piece that leaves a span is measured whole and cut afterwards, so that its ends don't depend on the cut.
    """
    for piece in pieces:
        length_ms = piece.to_ms - piece.from_ms
        for from_ms, to_ms in overlaps(spans, piece.from_ms, piece.to_ms):
            for low, high in shape.within(piece.start, piece.end, radius_mm):
                start_ms = max(from_ms, piece.from_ms + round(low * length_ms))
                end_ms = min(to_ms, piece.from_ms + round(high * length_ms))
                if start_ms <= end_ms:
                    add_stretch(inside, start_ms, end_ms)
            part = piece.clipped(from_ms, to_ms)
            apart_mm = shape.least_distance_mm(part.start, part.end)
            if least_mm is None or apart_mm < least_mm:
                least_mm = apart_mm
    return least_mm


def known_until(sides: Sides) -> int | None:
    """The moment up to which both positions are known for sure; None if one side has no position."""
    wearer, device = sides
    wearer_fix, device_fix = wearer.last(), device.last() if device else None
    if wearer_fix is None or (device is not None and device_fix is None):
        return None
    return min(wearer_fix.time_ms, device_fix.time_ms) if device_fix else wearer_fix.time_ms


def agree_from_ms(sides: tuple[Track | None, ...], since_ms: int, until_ms: int) -> int | None:
    """Moment from which on all positions must agree that a ring was left; None if too few positions are newer than the ring's entry.

    Only a ring that demands a response needs this agreement. The four newest positions of each side (None: a place) must agree, or all
    of ten minutes if four take longer.
    """
    from_ms = until_ms
    for side in sides:
        if side is None:
            continue
        fixes = side.recent
        if len(fixes) >= AGREEING_FIXES and fixes[-AGREEING_FIXES].time_ms >= max(since_ms, until_ms - MAX_AGREE_MS):
            from_ms = min(from_ms, fixes[-AGREEING_FIXES].time_ms)
        elif since_ms <= until_ms - MAX_AGREE_MS:
            fixes = side.since(until_ms - MAX_AGREE_MS)
            from_ms = min(from_ms, fixes[bisect_left(fixes, (until_ms - MAX_AGREE_MS,))].time_ms)
        else:
            return None
    return from_ms


def is_known_beyond(sides: Sides, shape: Shape, radius_mm: int, *, from_ms: int, to_ms: int, mps: int | None) -> bool:
    """Whether the wearer was beyond a radius all the way from `from_ms` to `to_ms`, without an unknown stretch.

    Fixes up to 3 minutes apart are joined by a line. If a device keeps a longer interval, it may have gone anywhere between two fixes,
    at the speed bound `mps`, as far as it could come back in time. If `mps` is None, such fixes are joined by a line, too. A longer gap
    is an unknown stretch.
    """
    times_ms = {from_ms, to_ms}
    for side in sides:
        if side is not None:
            times_ms.update(fix.time_ms for fix in side.since(from_ms) if from_ms < fix.time_ms < to_ms)
    return all(
        _is_beyond(sides, shape, radius_mm, from_ms=low_ms, to_ms=high_ms, mps=mps)
        for low_ms, high_ms in pairwise(sorted(times_ms))
    )


def _is_beyond(sides: Sides, shape: Shape, radius_mm: int, *, from_ms: int, to_ms: int, mps: int | None) -> bool:
    """Whether the wearer was beyond a radius in a stretch of time in which no side has a fix, except at its ends."""
    wearer = _anchors(sides.wearer, from_ms, to_ms, mps=mps)
    device = _anchors(sides.device, from_ms, to_ms, mps=mps) if sides.device else _PLACE
    bounds = []
    for here, there in product(wearer, device):
        start, end = minus(here.start, there.start), minus(here.end, there.end)
        if here.at_ms is None and there.at_ms is None:
            return not shape.within(start, end, radius_mm)
        least_mm, speed = shape.least_distance_mm(start, end), mps or 0
        bounds.append(
            tuple(
                least_mm - speed * sum(abs(time_ms - side.at_ms) for side in (here, there) if side.at_ms is not None)
                for time_ms in (from_ms, to_ms)
            )
        )
    return bool(bounds) and _lowest(bounds) > radius_mm


class _Anchor(NamedTuple):
    """A known movement, or a known position to which a movement at the speed bound leads, or from which it comes."""

    start: Vector
    end: Vector
    at_ms: int | None
    """Time of the known position, outside the stretch or at its end; None for a known movement."""


_PLACE = [_Anchor((0, 0, 0), (0, 0, 0), None)]


def _anchors(track: Track, from_ms: int, to_ms: int, *, mps: int | None) -> list[_Anchor]:
    """What is known of a device in a stretch without a fix inside it: its movement on a line, or the fixes before and after. Empty if
    the gap between these fixes is an unknown stretch."""
    before, after = track.round(from_ms)
    if before is None or after is None:
        return []
    gap_ms = after.time_ms - before.time_ms
    if gap_ms > track.unknown_after_ms():
        return []
    if gap_ms <= UNKNOWN_AFTER_MS or mps is None:
        piece = Piece(from_ms=before.time_ms, to_ms=after.time_ms, start=before.point, end=after.point).clipped(
            from_ms, to_ms
        )
        return [_Anchor(piece.start, piece.end, None)]
    return [_Anchor(fix.point, fix.point, fix.time_ms) for fix in (before, after)]


def _lowest(bounds: Sequence[Sequence[float]]) -> float:
    """The least value, over a stretch, of the greatest of several bounds. Each bound is linear, given by its values at both ends."""
    shares = [0.0, 1.0]
    for (a, b), (c, d) in combinations(bounds, 2):
        slope = (b - a) - (d - c)
        if slope and 0 < (share := (c - a) / slope) < 1:
            shares.append(share)
    return min(max(start + share * (end - start) for start, end in bounds) for share in shares)


# ── stretches of time ────────────────────────────────────────────────────────────────────────────────────────────────


Stretch = tuple[int, int]
"""First and last moment of a stretch of time."""


def add_stretch(stretches: list[Stretch], from_ms: int, to_ms: int) -> None:
    """Adds a stretch, joined with the stretches that it touches."""
    touched = [stretch for stretch in stretches if stretch[0] <= to_ms and from_ms <= stretch[1]]
    for stretch in touched:
        stretches.remove(stretch)
    stretches.append(
        (min([from_ms, *(stretch[0] for stretch in touched)]), max([to_ms, *(stretch[1] for stretch in touched)]))
    )
    stretches.sort()


def without(spans: list[Stretch], others: Iterable[Stretch]) -> list[Stretch]:
    """The parts of `spans` outside `others`, which may overlap each other."""
    for from_ms, to_ms in others:
        remaining: list[Stretch] = []
        for start_ms, end_ms in spans:
            if to_ms <= start_ms or end_ms <= from_ms:
                remaining.append((start_ms, end_ms))
                continue
            if start_ms < from_ms:
                remaining.append((start_ms, from_ms))
            if to_ms < end_ms:
                remaining.append((to_ms, end_ms))
        spans = remaining
    return spans


def overlaps(spans: Iterable[Stretch], from_ms: int, to_ms: int) -> Iterator[Stretch]:
    """The parts of a stretch that lie in `spans`. A span that only touches the stretch at one end gives none, unless the stretch is
    a single moment."""
    for start_ms, end_ms in spans:
        low_ms, high_ms = max(start_ms, from_ms), min(end_ms, to_ms)
        if low_ms < high_ms or low_ms == high_ms == from_ms == to_ms:
            yield low_ms, high_ms


def meets(spans: Iterable[Stretch], from_ms: int, to_ms: int) -> bool:
    """Whether a stretch has a moment in common with `spans`."""
    return any(start_ms <= to_ms and from_ms <= end_ms for start_ms, end_ms in spans)
