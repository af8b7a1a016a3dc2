"""Test oracle of proximity in continuous time with PyPI `pymeos` (the MEOS C library), and a slow sampling oracle that checks it.

Choice of the formulation (pymeos 1.3, all 138 sessions of pairs.csv at 100, 500 and 1,000 m):

- `TGeomPoint.within_distance` (`tdwithin`), planar, in an azimuthal equidistant plane centred among the fixes, solves
  the quadratic of two moving points and is exact: it agrees with sampled WGS84 geodesics within the step (0.1 s on all
  sessions, 0.01 s where the formulations differ most). **The oracle uses this formulation.**
- `distance(...).at(FloatSpan)`, planar or geodetic, is *not* exact: the temporal distance has a turning point at each
  local minimum (so minima and maxima are right) but is linear in between, where the true distance is a hyperbola. Its
  crossings were up to 0.27 s off on these tracks.
- `TGeogPoint` has no `within_distance`, and its `nearest_approach_distance` was up to 0.08 m off (the plane's agrees
  with sampling every 5 ms to 1e-6 m in those cases).
- The error of the plane is small: at distance s from its centre, transverse lengths are too long by s^2 / (6 R^2), or
  0.4 mm in 1 km at 10 km.

Both oracles, like the fold, move a person on a straight line between consecutive fixes.

Equal times: MEOS requires strictly increasing times. A track is cut where fixes share a time: the piece before ends at
the *first* of them (exclusive), the piece after starts at the *last* (inclusive). So the person jumps in zero time, as
in a fold that orders by (time, arrival). Fixes between the first and the last of a tie have no duration and no interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import groupby, pairwise
from statistics import median
from typing import Any

import numpy as np
import pymeos
import shapely
from pyproj import Geod, Transformer
from shapely import Polygon

from tests.support.geofence.geolife import (
    Fix,
)

Interval = tuple[float, float]
"""Closed interval (from, to) in epoch seconds."""
LatLon = tuple[float, float]
"""Latitude and longitude, degrees."""


@dataclass(frozen=True, slots=True)
class PlanePoint:
    """A fix in a local plane."""

    epoch_s: float
    x_m: float
    """East of the plane's centre, m."""
    y_m: float
    """North of the plane's centre, m."""


def project(*tracks: Sequence[Fix]) -> tuple[list[PlanePoint], ...]:
    """Projects tracks into one azimuthal equidistant plane (WGS84), centred at the median of all their fixes."""
    # The median, not the mean, so that an outlier doesn't move the centre.
    lat_0 = median(fix.lat_deg for track in tracks for fix in track)
    lon_0 = median(fix.lon_deg for track in tracks for fix in track)
    to_plane = Transformer.from_crs(
        "EPSG:4326", f"+proj=aeqd +lat_0={lat_0} +lon_0={lon_0} +datum=WGS84", always_xy=True
    )

    def place(fix: Fix) -> PlanePoint:
        x_m, y_m = to_plane.transform(fix.lon_deg, fix.lat_deg)
        return PlanePoint(fix.epoch_s, float(x_m), float(y_m))

    return tuple([place(fix) for fix in track] for track in tracks)


class PairOracle:
    """Exact distances of two moving people. Each track is sorted by time, with equal times in file order, and not empty."""

    def __init__(self, track_a: Sequence[Fix], track_b: Sequence[Fix]) -> None:
        _initialize()
        plane_a, plane_b = project(track_a, track_b)
        self._a = pymeos.TGeomPointSeqSet(_ewkt(plane_a))
        self._b = pymeos.TGeomPointSeqSet(_ewkt(plane_b))

    def inside(self, radius_m: float) -> list[Interval]:
        """Maximal intervals with distance <= `radius_m`, in order, within the common time of both tracks."""
        within = self._a.within_distance(self._b, float(radius_m))
        held = within.at(True) if within is not None else None
        return merge(_intervals(held.time())) if held is not None else []

    def extremes_m(self, from_s: float, to_s: float) -> Interval:
        """(minimum, maximum) distance in m over `from_s`..`to_s`. Raises ValueError where the tracks share no moment of it."""
        # Restricting the points, not the distance, keeps the ends exact: MEOS's distance is linear between its turning points.
        span = pymeos.TsTzSpan(lower=_stamp(from_s), upper=_stamp(to_s), lower_inc=True, upper_inc=True)
        part_a, part_b = self._a.at(span), self._b.at(span)
        distance = part_a.distance(part_b) if part_a is not None and part_b is not None else None
        if distance is None:
            raise ValueError(f"the tracks share no moment of {from_s}..{to_s}")
        return float(distance.min_value()), float(distance.max_value())

    def min_distance_m(self) -> float:
        """Minimum distance in m over the common time of both tracks."""
        return float(self._a.nearest_approach_distance(self._b))


class PlaceOracle(PairOracle):
    """Exact distances of a moving person and a place, with corners (latitude, longitude, degrees) and holes."""

    def __init__(self, track: Sequence[Fix], outline: Sequence[LatLon], holes: Sequence[Sequence[LatLon]]) -> None:
        _initialize()
        lines = [[Fix(0.0, lat_deg, lon_deg) for lat_deg, lon_deg in line] for line in (outline, *holes)]
        points, *planes = project(track, *lines)
        # MEOS loses pieces of a track that returns over itself at an offset of 1e-8 m. Rounding to 0.1 mm keeps them.
        self._points = [PlanePoint(point.epoch_s, round(point.x_m, 4), round(point.y_m, 4)) for point in points]
        corners = [[(point.x_m, point.y_m) for point in plane] for plane in planes]
        self._area = Polygon(corners[0], corners[1:])
        self._a = pymeos.TGeomPointSeqSet(_ewkt(self._points))

    def inside(self, radius_m: float) -> list[Interval]:
        """Maximal intervals within `radius_m` of the area's edge or inside it, in order.

        MEOS's tdwithin approximates a circle by 32 sides. The 2,048 sides used here are accurate to 2 mm at 1 km.
        """
        held = self._a.at(self._area.buffer(radius_m, quad_segs=512))
        return merge(_intervals(held.time())) if held is not None else []

    def extremes_m(self, from_s: float, to_s: float) -> Interval:
        """(minimum, maximum) distance in m over `from_s`..`to_s`, sampled at both ends, at each fix and 2,000 times between."""
        own_s = np.array([point.epoch_s for point in self._points])
        at_s = np.union1d(np.linspace(from_s, to_s, 2001), own_s[(own_s >= from_s) & (own_s <= to_s)])
        x_m = np.interp(at_s, own_s, [point.x_m for point in self._points])
        y_m = np.interp(at_s, own_s, [point.y_m for point in self._points])
        distances_m = shapely.distance(self._area, shapely.points(x_m, y_m))
        return float(distances_m.min()), float(distances_m.max())

    def min_distance_m(self) -> float:
        """Minimum distance in m between the whole track and the place."""
        return float(self._a.nearest_approach_distance(self._area))


def min_distance_m(track_a: Sequence[Fix], track_b: Sequence[Fix]) -> float:
    """Exact minimum distance in m of two moving people over the common time of both tracks, by MEOS."""
    return PairOracle(track_a, track_b).min_distance_m()


def sampled_inside(
    track_a: Sequence[Fix], track_b: Sequence[Fix], radius_m: float, step_s: float = 0.05
) -> tuple[list[Interval], float]:
    """Slow check without MEOS and without a plane: WGS84 geodesics between positions linear in latitude and longitude.

    Returns:
        The intervals (ends within `step_s` seconds; shorter intervals may be missed) and the minimum sampled distance in m.
    """
    from_s = max(track_a[0].epoch_s, track_b[0].epoch_s)
    to_s = min(track_a[-1].epoch_s, track_b[-1].epoch_s)
    if from_s > to_s:
        return [], float("inf")
    at_s = np.append(np.arange(from_s, to_s, step_s), to_s)
    degrees = []
    for track in (track_a, track_b):
        times_s = np.array([fix.epoch_s for fix in track])
        # side="right" starts the next segment at the last fix of a tie, as the exact oracle does.
        after = np.clip(np.searchsorted(times_s, at_s, side="right"), 1, len(track) - 1)
        before = after - 1
        part = np.clip((at_s - times_s[before]) / np.maximum(times_s[after] - times_s[before], 1e-9), 0.0, 1.0)
        for values in (np.array([fix.lon_deg for fix in track]), np.array([fix.lat_deg for fix in track])):
            degrees.append(values[before] + part * (values[after] - values[before]))
    distances_m = Geod(ellps="WGS84").inv(*degrees)[2]
    within = np.concatenate(([False], distances_m <= radius_m, [False])).astype(int)
    turns = np.diff(within)
    starts, ends = np.flatnonzero(turns == 1), np.flatnonzero(turns == -1) - 1
    intervals = [(float(at_s[start]), float(at_s[end])) for start, end in zip(starts, ends, strict=True)]
    return intervals, float(distances_m.min())


def dense_stretches(*tracks: Sequence[Fix], gap_s: float = 60.0) -> list[Interval]:
    """Maximal intervals in which consecutive fixes of *every* track are at most `gap_s` seconds apart."""
    stretches: list[Interval] | None = None
    for track in tracks:
        own = merge((a.epoch_s, b.epoch_s) for a, b in pairwise(track) if b.epoch_s - a.epoch_s <= gap_s)
        stretches = own if stretches is None else clip(stretches, own)
    return [(from_s, to_s) for from_s, to_s in stretches or [] if to_s > from_s]


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Union of intervals as maximal intervals in order; touching intervals are joined."""
    merged: list[Interval] = []
    for from_s, to_s in sorted(intervals):
        if merged and from_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], to_s))
        else:
            merged.append((from_s, to_s))
    return merged


def clip(intervals: Iterable[Interval], stretches: Sequence[Interval]) -> list[Interval]:
    """Intersection of `intervals` with `stretches` (each list disjoint), in order."""
    return sorted(
        (max(from_s, lower_s), min(to_s, upper_s))
        for from_s, to_s in intervals
        for lower_s, upper_s in stretches
        if from_s <= upper_s and lower_s <= to_s
    )


@cache
def _initialize() -> None:
    # MEOS has global state, so it is initialized once per process and not at import. It is never finalized, because Python
    # may free MEOS objects after pymeos_finalize(), when the library's allocator is gone.
    pymeos.pymeos_initialize()


def _stamp(epoch_s: float) -> datetime:
    return datetime.fromtimestamp(epoch_s, UTC)


def _pieces(track: Sequence[PlanePoint]) -> list[list[PlanePoint]]:
    """Cuts a track at equal times; see the module's docstring."""
    pieces: list[list[PlanePoint]] = [[]]
    for _, group in groupby(track, key=lambda point: point.epoch_s):
        tied = list(group)
        pieces[-1].append(tied[0])
        if len(tied) > 1:
            pieces.append([tied[-1]])
    # A track that starts with a tie has a first piece of one point, which has no duration.
    return [piece for piece in pieces[:-1] if len(piece) > 1] + pieces[-1:]


def _ewkt(track: Sequence[PlanePoint]) -> str:
    sequences = [
        ", ".join(f"POINT({point.x_m!r} {point.y_m!r})@{_stamp(point.epoch_s).isoformat()}" for point in piece)
        for piece in _pieces(track)
    ]
    return "{" + ", ".join([f"[{text})" for text in sequences[:-1]] + [f"[{sequences[-1]}]"]) + "}"


def _intervals(time: Any) -> list[Interval]:
    """Intervals of a MEOS time value: a span or a span set (an instant comes as a span set too, or as a set)."""
    if isinstance(time, pymeos.TsTzSpan):
        return [(time.lower().timestamp(), time.upper().timestamp())]
    if isinstance(time, pymeos.TsTzSet):
        return [(moment.timestamp(), moment.timestamp()) for moment in time.elements()]
    return [(span.lower().timestamp(), span.upper().timestamp()) for span in time.spans()]


TOLERANCE_S = 1.0


BAND_M = 0.1


def in_band(oracle: PairOracle, from_s: float, to_s: float, radius_m: float) -> bool:
    """Whether the distance stays within 0.1 m of the radius from `from_s` to `to_s`."""
    least_m, greatest_m = oracle.extremes_m(from_s, to_s)
    return radius_m - BAND_M <= least_m and greatest_m <= radius_m + BAND_M


def is_shallow(oracle: PairOracle, interval: Interval, radius_m: float, *, gap: bool) -> bool:
    """Whether an interval (or a gap between two) depends on the last 0.1 m, by the oracle's distance.

    The part more than 1 s from the ends must lie wholly in the band. So a long interval or gap that the fold invented can't pass as
    shallow because its end touches the radius.
    """
    from_s, to_s = interval
    least_m, greatest_m = oracle.extremes_m(from_s, to_s)
    if abs((greatest_m if gap else least_m) - radius_m) > BAND_M:
        return False
    inner_s = (from_s + TOLERANCE_S, to_s - TOLERANCE_S)
    return inner_s[0] >= inner_s[1] or in_band(oracle, *inner_s, radius_m)


def merge_shallow(oracle: PairOracle, intervals: Sequence[Interval], radius_m: float) -> list[Interval]:
    """Close shallow gaps, then drop shallow intervals."""
    closed: list[Interval] = []
    for interval in intervals:
        if closed and is_shallow(oracle, (closed[-1][1], interval[0]), radius_m, gap=True):
            closed[-1] = (closed[-1][0], interval[1])
        else:
            closed.append(interval)
    return [interval for interval in closed if not is_shallow(oracle, interval, radius_m, gap=False)]
