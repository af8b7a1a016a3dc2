"""Plays a week through the fold, and notes what her map shows each 15 s while a notice is open. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from bench.burden.lives import HER_HOME
from bench.decision.placement import Spot, offset_m
from bench.geolife import RINGS
from bench.region.lives import DAYS, Sample, Week, e7, ms
from services.common.privacy.notices import NoticeGround
from services.geofence.domain import fold, her_map
from services.geofence.domain.entries import FOLD_VERSION, Case, Entry, FoldVersion, Positions, Target
from services.geofence.domain.geometry import PERSON, Vector, lat_lon_deg
from services.geofence.domain.her_map import MapView, ViewOutcome
from services.geofence.domain.state import State

ACCURACY_MM = 12_000


class Sighting(NamedTuple):
    """A view that put him somewhere. Points are metres east and north of her home."""

    at_s: float
    wearer: complex
    """Middle of the region's first circle."""
    person: complex
    """Where she was."""
    rim_m: float
    """Distance from her to the nearest edge of the region."""


class Watched(NamedTuple):
    """What an attacker with her phone can see in a week."""

    home: complex
    """The wearer's home."""
    shown: tuple[Sighting, ...]
    """By the rules of her map."""
    bare: tuple[Sighting, ...]
    """As if each region were shown, exactly, as long as a notice is open."""
    outcomes: Counter[str]


def watch(week: Week) -> Watched:
    """Plays a week by an order that protects her with her phone and has a ground for notices."""
    state = State(0, log_id=week.name)

    def step(at_ms: int, body: FoldVersion | Case | Positions) -> None:
        fold.step(state, Entry(state.sequence + 1, at_ms, body))

    step(ms(0) - 2_000, FoldVersion(FOLD_VERSION))
    step(ms(0) - 1_000, _case())
    shown = list[Sighting]()
    bare = list[Sighting]()
    outcomes = Counter[str]()
    for sample in week.samples:
        at_ms = ms(sample.at_s) + 1_000
        step(at_ms, _positions(sample))
        for view in her_map.views(state, "phone", at_ms):
            outcomes[view.outcome.value] += 1
            if view.outcome is ViewOutcome.SHOWN:
                shown.append(_sighting(sample, _of_view(view), view.circles[0].radius_m))
            found = her_map.possible_region(state, state.cases["case"].case, at_ms)
            if found is not None:
                circle = found.circles[0]
                bare.append(_sighting(sample, _metres(circle.centre), circle.radius_mm / 1000))
    return Watched(week.home, tuple(shown), tuple(bare), outcomes)


def _sighting(sample: Sample, wearer: complex, radius_m: float) -> Sighting:
    return Sighting(sample.at_s, wearer, sample.person, max(0.0, abs(wearer - sample.person) - radius_m))


def _of_view(view: MapView) -> complex:
    circle = view.circles[0]
    return _offset(circle.lat_e7, circle.lon_e7)


def _metres(point: Vector) -> complex:
    lat_deg, lon_deg = lat_lon_deg(point)
    return _offset(round(lat_deg * 1e7), round(lon_deg * 1e7))


def _offset(lat_e7: int, lon_e7: int) -> complex:
    north, east = offset_m(HER_HOME, Spot(0, lat_e7, lon_e7))
    return complex(east, north)


def _case() -> Case:
    return Case(
        case_id="case",
        version=1,
        order_id="order",
        wearer_id="w",
        tag_device_ids=("tag",),
        targets=(Target("p", True, ("phone",), PERSON),),
        rings=RINGS,
        valid_from_ms=ms(0) - 1_000,
        valid_until_ms=ms((DAYS + 1) * 86_400),
        notice_ground=NoticeGround.JUDGMENT,
    )


def _positions(sample: Sample) -> Positions:
    places = [e7(sample.wearer), e7(sample.person)]
    return Positions(
        device_ids=["tag", "phone"],
        report_ids=[f"{sample.at_s:.0f}"] * 2,
        fix_times_ms=[ms(sample.at_s)] * 2,
        lat_e7=[lat for lat, _ in places],
        lon_e7=[lon for _, lon in places],
        accuracy_mm=[ACCURACY_MM] * 2,
        received_wall_us=0,
    )


def encounters(sightings: Sequence[Sighting]) -> list[list[Sighting]]:
    """Sightings by encounter: one ends when nothing is seen for 20 minutes."""
    groups: list[list[Sighting]] = []
    for sighting in sightings:
        if groups and sighting.at_s - groups[-1][-1].at_s < 1_200:
            groups[-1].append(sighting)
        else:
            groups.append([sighting])
    return groups
