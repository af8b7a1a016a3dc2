"""One ring round one target: entered on assumed movements, cleared and accounted for on movements known for sure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from services.geofence.domain.kinematics.geometry import Shape, Vector
from services.geofence.domain.kinematics.intervals import Stretch, add_stretch, overlaps
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Piece, Track, difference

AGREEING_FIXES = 4
"""Number of each side's newest positions that must all be outside a ring that demands a response, before it is cleared."""
MAX_AGREE_MS = 600_000
"""The longest time in which all positions must agree. If AGREEING_FIXES positions take longer, those of this time suffice."""


class Sides(NamedTuple):
    """The tracks of a tag and of a device of the target."""

    wearer: Track
    device: Track | None
    """None for a place, which has no device."""


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
    entered_mm: float = 0.0
    """Distance at the entry, mm."""
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

    @property
    def least_mm(self) -> float:
        """Least distance, mm: the accounted one, else the distance at the entry."""
        return self.entered_mm if self.min_mm is None else self.min_mm

    def enter(self, at_ms: int, distance_mm: float, now_ms: int) -> None:
        """Marks the ring as entered."""
        self.since_ms, self.entered_mm, self.min_mm, self.inside = at_ms, distance_mm, None, []
        self.muted, self.opened_ms, self.late_ms = False, now_ms, None

    def leave(self) -> None:
        """Marks the ring as left for good."""
        self.since_ms, self.min_mm, self.inside, self.muted = None, None, [], False


def assumed(sides: Sides, from_ms: int, to_ms: int) -> list[list[Piece]]:
    """The wearer's assumed movement relative to the target's shape.

    One of two moving sides has reported later. The other side is assumed to have stayed (first list), and to have gone on as before
    (further lists, if any). So a decision never waits for the other side's next report.
    """
    wearer, device = sides
    wearer_pieces = list(wearer.assumed(from_ms, to_ms))
    if device is None:
        return [wearer_pieces]
    device_pieces = list(device.assumed(from_ms, to_ms))
    movements = [list(difference(wearer_pieces, device_pieces))]
    wearer_ahead, device_ahead = wearer.predicted(to_ms), device.predicted(to_ms)
    if wearer_ahead and wearer_ahead.to_ms > from_ms:
        movements.append(list(difference([wearer_ahead], device_pieces)))
    if device_ahead and device_ahead.to_ms > from_ms:
        movements.append(list(difference(wearer_pieces, [device_ahead])))
    return movements


def newest(sides: Sides) -> Vector:
    """The wearer's newest fix relative to the target's shape; both sides must have a fix."""
    wearer, device = sides
    here, there = wearer.fixes[-1], device.fixes[-1] if device else None
    return (here[3] - there[3], here[4] - there[4], here[5] - there[5]) if there else here.point


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
            if shape.min_distance_mm(piece.start) - math.dist(piece.start, piece.end) <= radius_mm:
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
            yield at_ms, shape.least(point, point)


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
            apart_mm = shape.least(part.start, part.end)
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
        fixes = side.fixes
        if len(fixes) >= AGREEING_FIXES and fixes[-AGREEING_FIXES].time_ms >= max(since_ms, until_ms - MAX_AGREE_MS):
            from_ms = min(from_ms, fixes[-AGREEING_FIXES].time_ms)
        elif since_ms <= until_ms - MAX_AGREE_MS:
            from_ms = min(from_ms, fixes[bisect_left(fixes, (until_ms - MAX_AGREE_MS,))].time_ms)
        else:
            return None
    return from_ms


def is_fresh(time_ms: int, now_ms: int) -> bool:
    """Whether a presence of that time still says something: it is at most 3 minutes old."""
    return now_ms - time_ms <= UNKNOWN_AFTER_MS


def are_fresh(sides: Sides, now_ms: int) -> bool:
    """Whether the newest fixes of both sides still show where they are, by the interval that each device keeps."""
    return all(side.is_fresh(now_ms) for side in sides if side is not None)
