"""`tandem feasibility`: what an order would have caused on past days, and what would spare most of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.cli.commands import feasibility as tables
from services.cli.commands.feasibility import feasibility
from services.common.failure import MISUSED, CommandFailed
from services.court.feasibility import history as history_of_days
from services.court.feasibility import study
from services.court.feasibility.history import DAY_MS, Coverage, History, HistoryEntry, Visit, coverage_of
from services.court.feasibility.study import AlertCause, ExceptionAdded, ExceptionLeftOut, SmallerRing
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Case, Demand, Encounter, Positions, Ring, Target
from services.geofence.domain.geometry import PERSON, Disc, ecef_mm

LAT, LON = 37.5665, 126.978
NORTH_M, EAST_M = 110_990.0, 88_390.0
"""Metres a degree at the place, by WGS84."""
T0 = 1_783_263_600_000
"""Midnight in Korea."""
HOME = Target("home", is_person=False, device_ids=(), shape=Disc(ecef_mm(round(LAT * 1e7), round(LON * 1e7)), 0))
HER = Target("her", is_person=True, device_ids=(), shape=PERSON)
RINGS = (Ring(2_000_000, Demand.WARN), Ring(1_000_000, Demand.NOTIFY), Ring(100_000, Demand.RESPOND))
MIN_MS = 60_000


def e7(east_m: float, north_m: float) -> tuple[int, int]:
    return round((LAT + north_m / NORTH_M) * 1e7), round((LON + east_m / EAST_M) * 1e7)


def case(targets: Sequence[Target] = (HER, HOME), encounters: Sequence[Encounter] = ()) -> Case:
    return Case(
        case_id="case",
        version=1,
        order_id="order",
        wearer_id="him",
        tag_device_ids=("tag",),
        targets=tuple(targets),
        rings=RINGS,
        valid_from_ms=T0,
        valid_until_ms=T0 + 90 * DAY_MS,
        encounters=tuple(encounters),
    )


def history(fixes: Iterable[tuple[int, float, float]], device_id: str = "tag") -> History:
    """Fixes as time, ms, and metres east and north of her home."""
    entries = []
    for at_ms, east_m, north_m in fixes:
        lat_e7, lon_e7 = e7(east_m, north_m)
        entries.append(
            HistoryEntry(
                at_ms,
                Positions(
                    device_ids=[device_id],
                    report_ids=[str(at_ms)],
                    fix_times_ms=[at_ms],
                    lat_e7=[lat_e7],
                    lon_e7=[lon_e7],
                    accuracy_mm=[10_000],
                    received_wall_us=0,
                ),
            )
        )
    return History(tuple(entries), ("tag",))


def alert(kind: AlertKind, demand: Demand, at_ms: int, *, ring_mm: int = 0, warns: bool = False) -> Alert:
    return Alert(
        alert_id=str(at_ms),
        sequence=1,
        ordinal=0,
        kind=kind,
        demand=demand,
        order_id="order",
        case_id="case",
        episode_id="",
        incident_id="",
        wearer_id="him",
        target_id="home",
        ring_mm=ring_mm,
        at_ms=at_ms,
        decided_at_ms=at_ms,
        late=False,
        destinations=((Leg.WARNING, "her"),) if warns else ((Leg.POLICE, "her"),),
        incident_opens=False,
        incident_ends=False,
        cause=None,
        cause_of_wearer=True,
        distance_mm=None,
        probability=None,
        fold_version=1,
        rules_id="default",
    )


WEEK = Coverage(T0, T0 + 7 * DAY_MS, ())


# ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_demands_to_respond_within_10_minutes_are_one_dispatch_with_the_cause_of_the_first() -> None:
    entered = AlertKind.RING_ENTERED
    alerts = [
        alert(AlertKind.CONTACT_PREDICTED, Demand.RESPOND, T0, ring_mm=100_000, warns=True),
        alert(entered, Demand.RESPOND, T0 + 9 * MIN_MS, ring_mm=100_000, warns=True),
        alert(entered, Demand.RESPOND, T0 + 18 * MIN_MS, ring_mm=100_000, warns=True),
        alert(entered, Demand.NOTIFY, T0 + 20 * MIN_MS, ring_mm=1_000_000),
        alert(entered, Demand.RESPOND, T0 + 28 * MIN_MS, ring_mm=100_000),
    ]
    counted = study.count(alerts, WEEK, [])
    assert counted.dispatches == {
        AlertCause("RESPOND", 100.0, "CONTACT_PREDICTED"): 1,
        AlertCause("RESPOND", 100.0, "RING_ENTERED"): 1,
    }
    assert counted.notices == {AlertCause("NOTIFY", 1000.0, "RING_ENTERED"): 1}
    assert counted.pushes == 3
    assert counted.a_week(counted.pushes) == 3


def test_a_break_of_the_history_counts_neither_as_time_nor_by_its_alerts() -> None:
    fixes = history([(T0, 0, 0), (T0 + DAY_MS, 0, 0), (T0 + 4 * DAY_MS, 0, 0), (T0 + 5 * DAY_MS, 0, 0)]).tag_fixes()
    covered = coverage_of(fixes)
    assert (covered.days, covered.breaks) == (2, ((T0 + DAY_MS, T0 + 4 * DAY_MS),))
    silent = [alert(AlertKind.SILENT, Demand.NOTIFY, T0 + days * DAY_MS) for days in (1, 2, 4)]
    counted = study.count(silent, covered, [])
    assert counted.notices.total() == 2
    assert counted.a_week(2) == 7


@pytest.mark.parametrize(
    ("respond_ms", "cleared_ms", "answered"),
    [
        (-9 * MIN_MS, None, True),  # the ring is open when the visit begins
        (-9 * MIN_MS, -1 * MIN_MS, False),
        (-8 * MIN_MS, -1 * MIN_MS, True),  # cleared, but the unit is there by then
        (6 * MIN_MS, None, True),  # a minute after the end
        (6 * MIN_MS + 1, None, False),
    ],
)
def test_a_visit_is_missed_unless_a_demand_to_respond_comes_in_time(
    respond_ms: int, cleared_ms: int | None, answered: bool
) -> None:
    begin_ms = T0 + DAY_MS
    alerts = [alert(AlertKind.RING_ENTERED, Demand.RESPOND, begin_ms + respond_ms, ring_mm=100_000)]
    if cleared_ms is not None:
        alerts.append(alert(AlertKind.RING_CLEARED, Demand.RECORD, begin_ms + cleared_ms, ring_mm=100_000))
    visit = Visit(begin_ms, begin_ms + 5 * MIN_MS, "home")
    assert (study.count(alerts, WEEK, [visit]).missed == ()) is answered


def test_the_notice_before_a_visit_is_a_median_and_none_counts_as_zero() -> None:
    visits = [Visit(T0 + hours * 60 * MIN_MS, T0 + hours * 60 * MIN_MS + 1, "home") for hours in (10, 12, 14)]
    alerts = [
        alert(AlertKind.RING_ENTERED, Demand.NOTIFY, visits[0].from_ms - 4 * MIN_MS),
        alert(AlertKind.RING_ENTERED, Demand.RESPOND, visits[0].from_ms - 1 * MIN_MS),
        alert(AlertKind.RING_ENTERED, Demand.NOTIFY, visits[1].from_ms - 6 * MIN_MS),
    ]
    assert study.count(alerts, WEEK, visits).notice_s == 240
    assert study.count(alerts, WEEK, []).notice_s is None


# ── presence ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_visit_between_two_reports_is_measured_in_continuous_time() -> None:
    past = history([(T0, -1000, 60), (T0 + 100_000, 1000, 60)])
    (visit,) = history_of_days.visits_of(case(), past.tracks(), 100_000)
    # Within 100 m for 2 x 80 m of 2,000 m in 100 s.
    assert visit.from_ms == pytest.approx(T0 + 46_000, abs=20)
    assert visit.until_ms == pytest.approx(T0 + 54_000, abs=20)


def test_reports_more_than_3_minutes_apart_prove_no_visit() -> None:
    past = history([(T0, -1000, 0), (T0 + 180_001, 1000, 0)])
    assert history_of_days.visits_of(case(), past.tracks(), 100_000) == []


def test_stays_along_the_edge_are_one_visit() -> None:
    def stay(from_min: int) -> list[tuple[int, float, float]]:
        return [(T0 + (from_min + i) * MIN_MS, distance, 0) for i, distance in enumerate((500, 50, 50, 500))]

    past = history([*stay(0), *stay(10), *stay(40)])
    assert len(history_of_days.visits_of(case(), past.tracks(), 100_000)) == 2


def test_an_authorised_stay_is_no_visit() -> None:
    past = history([(T0 + i * MIN_MS, 50, 0) for i in range(60)])
    allowed = Encounter("work", T0, T0 + DAY_MS, places=(HOME.shape,), daily_from_s=0, daily_until_s=1800)
    here = replace(allowed, places=(Disc(ecef_mm(*e7(50, 0)), 20_000),))
    assert len(history_of_days.visits_of(case(encounters=[allowed]), past.tracks(), 100_000)) == 1
    (visit,) = history_of_days.visits_of(case(encounters=[here]), past.tracks(), 100_000)
    assert (visit.from_ms, visit.until_ms) == (T0 + 30 * MIN_MS, T0 + 59 * MIN_MS)


def test_unseen_within_reach_is_the_time_in_which_both_ends_allow_presence() -> None:
    # 1,500 m before and after the gap. With 10 m of accuracy the 100 m ring is 1,390 m away: 99.3 s at 14 m/s.
    past = history([(T0, 1500, 0), (T0 + 600_000, 1500, 0)])
    unseen_ms = history_of_days.unseen_within_reach_ms(
        case(), past.tracks(), 100_000, reach_mps=14, fixes=past.tag_fixes()
    )
    # Unseen from 180 s on, until 99.3 s before the next report.
    assert unseen_ms == pytest.approx(600_000 - 180_000 - 1_390_000 / 14, abs=150)
    far = history([(T0, 6000, 0), (T0 + 600_000, 6000, 0)])
    assert (
        history_of_days.unseen_within_reach_ms(case(), far.tracks(), 100_000, reach_mps=14, fixes=far.tag_fixes()) == 0
    )


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def at_home_by_night(days: int, home_m: float) -> list[tuple[int, float, float]]:
    """Home all day but for work from 9 to 18 h, 8 km away; a report each 2 minutes, with a sway of 20 m."""
    fixes = []
    for minute in range(0, days * 1440, 2):
        east_m = home_m if not 540 <= minute % 1440 < 1080 else 8000.0
        fixes.append((T0 + minute * MIN_MS, east_m + 20 * math.sin(minute), 0.0))
    return fixes


def test_stays_are_places_of_several_days_with_their_usual_hours() -> None:
    home, work = history_of_days.stays_of(history(at_home_by_night(4, 900)).tag_fixes())
    assert math.dist(home.middle, ecef_mm(*e7(900, 0))) < 20_000
    assert (home.days, home.daily_from_s, home.daily_until_s) == (4, 0, 0)  # 18 to 9 h passes midnight
    assert (work.days, work.daily_from_s // 3600, work.daily_until_s // 3600) == (4, 9, 17)
    assert history_of_days.stays_of(history(at_home_by_night(2, 900)).tag_fixes()) == []


def test_a_candidate_exception_that_hides_visits_is_never_the_best_change() -> None:
    # His home is 95 m from hers: 3 days of true visits. Only an exception could remove them.
    known = study.study(case(), history(at_home_by_night(3, 95)), progress=lambda *_: None)
    hiding = [each for each in known.alternatives if isinstance(each.change, ExceptionAdded)]
    assert hiding
    assert hiding[0].expectation.dispatches.total() < known.expectation.dispatches.total()
    assert set(hiding[0].expectation.missed) - set(known.expectation.missed)
    assert known.best not in hiding


def test_the_best_change_removes_most_at_no_more_misses() -> None:
    # He walks to and fro over the edge of the 1 km ring, and beyond its clearing margin of 100 m.
    fixes = [
        (at_ms, east_m * (1.15 if at_ms // MIN_MS % 60 < 30 else 1.0), 0.0)
        for at_ms, east_m, _ in at_home_by_night(2, 980)
    ]
    known = study.study(case(), history(fixes), progress=lambda *_: None)
    assert known.expectation.notices[AlertCause("NOTIFY", 1000.0, "RING_ENTERED")] > 10
    tried = {each.change.radius_mm for each in known.alternatives if isinstance(each.change, SmallerRing)}
    assert tried == {1_500_000, 750_000, 500_000}  # not under 100 m, and no radius twice
    assert known.best is not None
    assert known.best.change == SmallerRing(RINGS[1], 750_000)
    assert known.best.expectation.notices.total() < known.expectation.notices.total()
    assert json.loads(json.dumps(tables.study_to_json(known)))["best"] == 1
    repeated = study.study(case(), history(fixes), progress=lambda *_: None)
    assert tables.study_to_json(repeated) == tables.study_to_json(known)


def test_a_proposed_exception_shows_what_it_spares() -> None:
    allowed = Encounter("home-of-his", T0, T0 + 9 * DAY_MS, places=(), daily_from_s=0, daily_until_s=0)
    fixes = history(
        [(T0 + i * 30 * MIN_MS + j * MIN_MS, d, 0) for i in range(50) for j, d in enumerate((3000, 900, 900, 3000))]
    )
    known = study.study(case(encounters=[allowed]), fixes, progress=lambda *_: None)
    left_out = next(each for each in known.alternatives if each.change == ExceptionLeftOut("home-of-his"))
    assert left_out.expectation.notices.total() > known.expectation.notices.total()


# ── input ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def record(**changes: Any) -> dict[str, Any]:
    number = "900101-1000000"
    order = {
        "order_id": "O-1",
        "respondent": {"national_id": number, "name": "R", "birth_date": "1990-01-01"},
        "protected_person_ids": ["P-1"],
        "places": [{"place_id": "home", "circle": {"lat_deg": LAT, "lon_deg": LON, "radius_m": 30}}],
        "rings": [{"radius_m": 1000, "action": "NOTIFY"}, {"radius_m": 100, "action": "RESPOND"}],
        "valid_from": "2026-07-06T00:00:00Z",
        "valid_until": "2026-08-06T00:00:00Z",
        "type": "ORDER_TYPE_STALKING_APPROACH",
    } | changes
    return {
        "wearers": [{"wearer_id": "W-1", "national_id": number, "name": "W", "birth_date": "1990-01-01"}],
        "tags": [{"device_id": "tag-1", "wearer_id": "W-1"}],
        "protected_persons": [{"person_id": "P-1", "name": "P"}],
        "orders": [{key: value for key, value in order.items() if value is not None}],
    }


def days(count: float) -> str:
    lines = [f"{T0 // 1000 + i * 120},{LAT + 0.05},{LON}\n" for i in range(round(count * 720) + 1)]
    return "time,lat,lon\n" + "".join(lines)


def run(folder: Path, order: object, track: str | None, name: str = "track.csv", **options: Any) -> None:
    (folder / "order.json").write_text(json.dumps(order))
    if track is not None:
        (folder / name).write_text(track)
    given: dict[str, Any] = {"device": "", "accuracy": 10.0, "as_json": True} | options
    feasibility(str(folder / "order.json"), folder / name, **given)


@pytest.mark.parametrize(
    ("order", "track", "name", "expected"),
    [
        (record(), None, "track.csv", "there is no such file"),
        (record(), "time,lat,lon\n", "track.csv", "holds no report"),
        (record(), days(0.5), "track.csv", "holds 12.0 h of the wearer's positions"),
        (record(), days(2), "track.txt", "its name must end in one of .gpx, .csv, .ndjson"),
        (record(), "time,lat,lon\nnever,1,2\n", "track.csv", "line 2: time: must be ISO 8601"),
        (
            record(),
            '{"device_id": "other", "report_id": "1", "fix_time": "2026-07-06T00:00:00Z", "lat_deg": 1, "lon_deg": 2, "accuracy_m": 5}',
            "track.ndjson",
            "line 1: device_id: isn't a device of the scenario",
        ),
        (
            record(),
            '{"kind": "equipment", "device_id": "tag-1", "report_id": "1", "event": "BATTERY_LOW", '
            '"event_time": "2026-07-06T00:00:00Z"}',
            "track.ndjson",
            "holds no position of tag-1",
        ),
        (record(rings=None), days(2), "track.csv", "orders[0].rings: is missing: propose rings (example:"),
        (
            record(rings=[{"radius_m": 500, "action": "NOTIFY"}]),
            days(2),
            "track.csv",
            "orders[0].rings: has no ring that demands RESPOND (example:",
        ),
        (record() | {"tags": []}, days(2), "track.csv", "tags: has none of W-1 (example:"),
        (record() | {"orders": []}, days(2), "track.csv", "orders: must hold one order, not 0"),
        (
            record() | {"wearers": [], "tags": []},
            days(2),
            "track.csv",
            "orders[0].respondent.national_id: is the number of 0",
        ),
        (record(places=None), days(2), "track.csv", "the order protects no place"),
        ("no object", days(2), "track.csv", "must be one JSON object"),
    ],
)
def test_bad_input_names_the_file_the_field_and_an_example(
    tmp_path: Path, order: object, track: str | None, name: str, expected: str
) -> None:
    with pytest.raises(CommandFailed) as failed:
        run(tmp_path, order, track, name)
    assert expected in failed.value.message
    assert failed.value.exit_code == MISUSED


def test_a_missing_order_and_a_foreign_tag_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="there is no such file"):
        feasibility(str(tmp_path / "none.json"), tmp_path / "track.csv")
    with pytest.raises(CommandFailed, match=r"--device: tag-9 isn't a tag of W-1 \(tags: tag-1\)"):
        run(tmp_path, record(), days(2), device="tag-9")


def test_quiet_days_print_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, record(), days(2))
    printed = json.loads(capsys.readouterr().out)
    assert (printed["dispatches_a_week"], printed["notices_a_week"], printed["pushes_a_week"]) == (0, 0, 0)
    assert (printed["history"]["days"], printed["visits"], printed["best"]) == (2.0, [], None)
    run(tmp_path, record(), days(2), as_json=False)
    assert "no change that was tried removes" in capsys.readouterr().out
