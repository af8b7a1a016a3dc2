"""Cheap bounds save most of the work of an evaluation and change no result."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence.domain import codec
from services.geofence.domain.geometry import PERSON, Disc, PlanePolygon, Shape, ecef_mm, ecef_points_mm
from services.geofence.domain.kinematics import accuracy, plausibility, presence, rings
from services.geofence.domain.kinematics.track import Track
from tests.support.geofence.stories import Story, place_e7, polygon
from tests.support.geofence.travels import deliver, travels


def whole_series(distance_mm: float, radius_mm: float, accuracies_mm: tuple[int, ...]) -> float:
    """`accuracy.p_inside` with all 400 terms."""
    sigma = math.sqrt(sum(accuracy * accuracy for accuracy in accuracies_mm)) / 1.5095921854516636
    x, y = radius_mm / sigma, distance_mm / sigma
    if x > 12 or y > 12:
        return round(0.5 * math.erfc((y + 0.5 / max(y, 1.0) - x) / math.sqrt(2)), 6)
    half_x, half_y = x * x / 2, y * y / 2
    weight, term = math.exp(-half_y), math.exp(-half_x)
    tail, total = term, 0.0
    for k in range(1, 400):
        total += weight * (1 - tail)
        weight *= half_y / k
        term *= half_x / k
        tail += term
    return round(min(1.0, max(0.0, total)), 6)


metres_mm = st.floats(0, 5_000_000, allow_nan=False)


@given(
    metres_mm, st.sampled_from([50_000, 100_000, 1_000_000]), st.lists(st.integers(1, 900_000), min_size=1, max_size=2)
)
@settings(max_examples=1_000, deadline=None)
def test_the_shortened_series_equals_the_full_one(distance_mm: float, radius_mm: int, accuracies_mm: list[int]) -> None:
    known = tuple(accuracies_mm)
    for mm in (distance_mm, 0.0, float(radius_mm)):
        assert accuracy.p_inside(mm, radius_mm, known) == whole_series(mm, radius_mm, known)


def shapes() -> list[Shape]:
    """A person, a circle and a polygon, as the log gives them."""
    story = Story()
    story.case(places=[polygon("home", (0, 0), (0, 400), (150, 300), (500, 20))])
    case = story.state.cases["case-1"].case
    found = [PERSON, Disc(tuple(map(float, ecef_mm(*place_e7(0)))), 30_000.0)]  # type: ignore[arg-type]
    return [*found, *(target.shape for target in case.targets if isinstance(target.shape, PlanePolygon))]


@pytest.mark.parametrize("shape", shapes(), ids=["person", "circle", "polygon"])
@given(st.floats(-20_000, 20_000), st.floats(-20_000, 20_000), st.integers(1_000, 40_000_000))
@settings(max_examples=300, deadline=None)
def test_a_point_surely_within_is_within(shape: Shape, north_m: float, east_m: float, margin_mm: int) -> None:
    x, y, z = ecef_mm(*place_e7(north_m, east_m))
    origin = ecef_mm(*place_e7(0))
    point = (x - origin[0], y - origin[1], z - origin[2]) if shape is PERSON else (x, y, z)
    if shape.is_surely_within(point, margin_mm):
        assert shape.within(point, point, margin_mm)


@given(st.integers(0, 100_000))
@settings(max_examples=25, deadline=None)
def test_the_cheap_bounds_change_no_decision(seed: int) -> None:
    reports = travels(seed)
    quick = deliver(Story(), reports)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presence, "_is_far_unreachable", lambda *_, **__: False)
        patch.setattr(presence, "SURELY_BEYOND", math.inf)
        patch.setattr(rings, "least_apart_mm", lambda *_, **__: -math.inf)
        for shape in (Disc, PlanePolygon):
            patch.setattr(shape, "is_surely_within", lambda *_: False)
        whole = deliver(Story(), reports)
    assert quick.outputs == whole.outputs
    assert codec.encode(quick.state) == codec.encode(whole.state)


@pytest.mark.parametrize("shape", shapes(), ids=["person", "circle", "polygon"])
@given(st.floats(-20_000, 20_000), st.floats(-20_000, 20_000), st.sampled_from((0.0, 1.0, 1 / 3)))
@settings(max_examples=300, deadline=None)
def test_the_distance_of_a_point_equals_that_of_a_stay(shape: Shape, north_m: float, east_m: float, off: float) -> None:
    x_mm, y_mm, z_mm = ecef_mm(*place_e7(north_m, east_m))
    point = (x_mm + off, y_mm - off, z_mm + off)
    assert shape.distance_mm(point) == shape.least_distance_mm(point, point)


@given(st.lists(st.tuples(st.integers(-900_000_000, 900_000_000), st.integers(-1_800_000_000, 1_800_000_000))))
@settings(max_examples=300, deadline=None)
def test_the_points_of_a_batch_equal_single_ones(places: list[tuple[int, int]]) -> None:
    columns = [lat for lat, _ in places], [lon for _, lon in places]
    assert ecef_points_mm(*columns) == [ecef_mm(*place) for place in places]


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_what_a_track_holds_equals_what_its_fixes_give(seed: int) -> None:
    story = deliver(Story(), travels(seed))
    for track in story.state.tracks.values():
        unheld = Track(list(track.fixes))
        newest_ms, mps = track.recent[-1].time_ms, story.state.rules.reach_mps
        assert plausibility.left_by_jump(track) == plausibility.left_by_jump(unheld)
        assert plausibility.is_newest_believed(track, mps) == plausibility.is_newest_believed(unheld, mps)
        believed = (plausibility.believed(each, newest_ms, None, bound_mps=mps).recent for each in (track, unheld))
        assert next(believed) == next(believed)
