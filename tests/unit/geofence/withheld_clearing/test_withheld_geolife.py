"""On real tracks, with a home on each so that its rings are entered and left all day, hardly anybody is suspected of spoofing."""

from __future__ import annotations

import random

import pytest

from bench.geolife import RINGS, Row, days_of
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import FOLD_VERSION, Body, Case, Entry, FoldVersion, Positions, Target, Tick
from services.geofence.domain.geometry import Disc, ecef_mm
from services.geofence.domain.state import State
from tests.support.geofence.geolife import require_geolife

ACCURACY_MM = 10_000
SEED = 51
MAX_SUSPECTED = 1
"""Maximum number of suspicions on all tracks; measured: 0."""


def play(day: list[Row], home: Row) -> list[Alert]:
    """The alerts of a wearer's track under an order that protects a home, a circle of 30 m round one of the track's positions."""
    begins_ms, ends_ms = day[0][0], day[-1][0] + 86_400_000
    shape = Disc(tuple(map(float, ecef_mm(home[2], home[3]))), 30_000.0)  # type: ignore[arg-type]
    target = Target("home", False, (), shape)
    case = Case("case", 1, "order", "wearer", ("tag",), (target,), RINGS, begins_ms, ends_ms)
    state, found = State(0), []

    def enter(at_ms: int, body: Body) -> None:
        while (due_ms := fold.next_due_ms(state)) is not None and due_ms < at_ms:
            found.extend(fold.step(state, Entry(state.sequence + 1, due_ms, Tick())))
        found.extend(fold.step(state, Entry(state.sequence + 1, at_ms, body)))

    enter(begins_ms, FoldVersion(FOLD_VERSION))
    enter(begins_ms, case)
    for at_ms, device_id, lat_e7, lon_e7 in day:
        enter(at_ms, Positions([device_id], [f"{at_ms}"], [at_ms], [lat_e7], [lon_e7], [ACCURACY_MM], 0))
    return [output for output in found if isinstance(output, Alert)]


def test_hardly_anybody_is_suspected_on_real_tracks(capsys: pytest.CaptureFixture[str]) -> None:
    folder, rng = require_geolife(), random.Random(SEED)
    days = [day for path in sorted(folder.glob("*.csv.gz")) for day in days_of(path) if len(day) >= 20]
    alerts = [alert for day in days for alert in play(day, rng.choice(day))]
    suspected = [alert for alert in alerts if alert.kind is AlertKind.SPOOFING_SUSPECTED and alert.destinations]
    cleared = [alert for alert in alerts if alert.kind is AlertKind.RING_CLEARED]
    with capsys.disabled():
        print(f"\n{len(days)} days of wearers, {len(cleared)} rings cleared, {len(suspected)} suspicions of spoofing")
    assert len(days) > 50 and len(cleared) > 100
    assert len(suspected) <= MAX_SUSPECTED


def test_hardly_anybody_is_suspected_of_repeating_the_ways_of_other_days(capsys: pytest.CaptureFixture[str]) -> None:
    """All days of a person are one track under one order, so that a departure is compared with those of the days before."""
    folder, rng = require_geolife(), random.Random(SEED)
    tracks = [list(days_of(path)) for path in sorted(folder.glob("*.csv.gz"))]
    whole = [[row for day in days for row in day] for days in tracks]
    alerts = [alert for track in whole for alert in play(track, rng.choice(track))]
    suspected = [alert for alert in alerts if alert.kind is AlertKind.SPOOFING_SUSPECTED and alert.destinations]
    cleared = [alert for alert in alerts if alert.kind is AlertKind.RING_CLEARED]
    with capsys.disabled():
        days = sum(map(len, tracks))
        print(
            f"\n{len(whole)} tracks of {days} days, {len(cleared)} rings cleared, {len(suspected)} suspicions of spoofing"
        )
    assert len(cleared) > 100
    assert len(suspected) <= MAX_SUSPECTED
