"""One ring round one target: entered on what must be assumed, cleared and accounted for on what is known for sure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from services.geofence.domain.entries import Ring
from services.geofence.domain.geometry import Shape, Vector
from services.geofence.domain.track import UNKNOWN_AFTER_MS, Piece, Track, difference

AGREE = 4
"""So many of the newest positions of each side must say that a ring was left which sends somebody ..."""
AGREE_MOST_MS = 600_000
"""... or all of so long, where that many take longer."""


@dataclass(slots=True)
class RingState:
    """What is remembered of one ring of one target."""

    bound_ms: int
    """Nothing before this moment counts: the start of the case, the last clearing, or what `inside` has accounted for."""
    since_ms: int | None = None
    """When it was entered; None while the wearer is outside."""
    inside: list[tuple[int, int]] = field(default_factory=list)
    """Stretches inside, accounted for up to `bound_ms`."""
    min_mm: float | None = None
    """Least distance accounted for."""
    entered_mm: float = 0.0
    """Distance with which it was entered."""
    muted: bool = False
    """It was entered under an authorised encounter, so that nobody was sent."""

    @property
    def open(self) -> bool:
        """Entered and not cleared."""
        return self.since_ms is not None

    @property
    def least_mm(self) -> float:
        """Least distance: accounted for, else that with which it was entered."""
        return self.entered_mm if self.min_mm is None else self.min_mm

    def enter(self, at_ms: int, distance_mm: float) -> None:
        """The wearer is inside."""
        self.since_ms, self.entered_mm, self.min_mm, self.inside = at_ms, distance_mm, None, []
        self.muted = False

    def leave(self) -> None:
        """The wearer has left for good."""
        self.since_ms, self.min_mm, self.inside, self.muted = None, None, [], False


def assumed(wearer: Track, device: Track | None, from_ms: int, to_ms: int) -> list[list[Piece]]:
    """The wearer's movement as the target's shape sees it, on what must be assumed.

    Of two who move, one has reported later. The other is assumed to have stayed (the first list) and to have gone on as before
    (the second, where there is one): a decision never waits for the other side's next report.
    """
    mine = list(wearer.assumed(from_ms, to_ms))
    if device is None:
        return [mine]
    theirs = list(device.assumed(from_ms, to_ms))
    found = [list(difference(mine, theirs))]
    going_on, going_on_too = wearer.predicted(to_ms), device.predicted(to_ms)
    if going_on and going_on.to_ms > from_ms:
        found.append(list(difference([going_on], theirs)))
    if going_on_too and going_on_too.to_ms > from_ms:
        found.append(list(difference(mine, [going_on_too])))
    return found


def newest(wearer: Track, device: Track | None) -> Vector:
    """The wearer's newest fix as the target's shape sees it; both have one."""
    here, there = wearer.fixes[-1], device.fixes[-1] if device else None
    return (here[3] - there[3], here[4] - there[4], here[5] - there[5]) if there else here.point


def joined(wearer: Track, device: Track | None, from_ms: int, to_ms: int) -> Iterator[Piece]:
    """The same, on what is known for sure."""
    moves = wearer.joined(from_ms, to_ms)
    if device is None:
        return moves
    return difference(list(moves), list(device.joined(from_ms, to_ms)))


def may_reach(ways: list[list[Piece]], shape: Shape, radius_mm: float) -> bool:
    """Whether any movement could come within the radius; false only where none can."""
    for pieces in ways:
        for piece in pieces:
            if shape.reach_mm(piece.start) - math.dist(piece.start, piece.end) <= radius_mm:
                return True
    return False


def moments_within(
    pieces: Iterable[Piece], shape: Shape, radius_mm: float, from_ms: int, beyond_mm: float = 0.0
) -> Iterator[tuple[int, float]]:
    """Moments from `from_ms` on within the radius, and the distance then, mm: of each stretch the first, the middle and the last.

    Of a straight movement the middle is the nearest. Of one that doesn't come within the radius, and does within so much more
    (`beyond_mm`), it is the middle of that.
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


def account(state: RingState, shape: Shape, radius_mm: float, pieces: Iterable[Piece]) -> None:
    """Adds to `inside` and `min_mm` what `pieces` tell."""
    for piece in pieces:
        length_ms = piece.to_ms - piece.from_ms
        for low, high in shape.within(piece.start, piece.end, radius_mm):
            add_stretch(state.inside, piece.from_ms + round(low * length_ms), piece.from_ms + round(high * length_ms))
        least = shape.least(piece.start, piece.end)
        if state.min_mm is None or least < state.min_mm:
            state.min_mm = least


def add_stretch(stretches: list[tuple[int, int]], from_ms: int, to_ms: int) -> None:
    """Adds a stretch, joined with those that it touches."""
    touched = [one for one in stretches if one[0] <= to_ms and from_ms <= one[1]]
    for one in touched:
        stretches.remove(one)
    stretches.append((min([from_ms, *(one[0] for one in touched)]), max([to_ms, *(one[1] for one in touched)])))
    stretches.sort()


def known_until(wearer: Track, device: Track | None) -> int | None:
    """The moment up to which both positions are known for sure; None where one isn't known at all."""
    mine, other = wearer.last(), device.last() if device else None
    if mine is None or (device is not None and other is None):
        return None
    return min(mine.time_ms, other.time_ms) if other else mine.time_ms


def clear_for(pieces: Iterable[Piece], shape: Shape, ring: Ring, margin_mm: int, from_ms: int, to_ms: int) -> bool:
    """Whether the wearer was beyond the margin all the way from `from_ms` to `to_ms`, with no stretch unknown."""
    covered_ms = from_ms
    for piece in pieces:
        if piece.from_ms > covered_ms or shape.within(piece.start, piece.end, ring.radius_mm + margin_mm):
            return False
        covered_ms = max(covered_ms, piece.to_ms)
    return covered_ms >= to_ms


def agree_from_ms(sides: tuple[Track | None, ...], since_ms: int, until_ms: int) -> int | None:
    """From when on all positions must say that a ring was left which sends somebody; None where too few are of after its entry.

    The four newest of each side must (None: a place), or all of ten minutes, where four take longer.
    """
    from_ms = until_ms
    for side in sides:
        if side is None:
            continue
        fixes = side.fixes
        if len(fixes) >= AGREE and fixes[-AGREE].time_ms >= max(since_ms, until_ms - AGREE_MOST_MS):
            from_ms = min(from_ms, fixes[-AGREE].time_ms)
        elif since_ms <= until_ms - AGREE_MOST_MS:
            from_ms = min(from_ms, fixes[bisect_left(fixes, (until_ms - AGREE_MOST_MS,))].time_ms)
        else:
            return None
    return from_ms


def is_fresh(time_ms: int, now_ms: int) -> bool:
    """Whether a position of that time still says where somebody is."""
    return now_ms - time_ms <= UNKNOWN_AFTER_MS
