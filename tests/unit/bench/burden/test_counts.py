"""What a week brings is counted as it reaches people, and sums and goals follow from the counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from bench.burden import tables
from bench.burden.counts import Counts, Moment, from_json, to_json
from bench.burden.journeys import Doing
from bench.burden.lives import HER_HOME, START_MS, Event, Life
from bench.burden.week import perform
from bench.burden.world import LifeWorld
from bench.decision.arms import ARMS
from bench.decision.noise import PHONE, TAG
from bench.decision.placement import moved
from services.geofence.domain.alerts import Alert, ContactRequest, Output
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import (
    FOLD_VERSION,
    Demand,
    EquipmentKind,
    EquipmentReport,
    FoldVersion,
    Positions,
)
from tests.support.decision_quality import ScriptedFold, alert, interval, position_now

HOUR_MS = 3_600_000
START_S = START_MS // 1000
THERE = moved(HER_HOME, 500, 0)
LIFE = Life(
    name="an hour",
    home_m=500,
    seed=0,
    wearer=(THERE, THERE._replace(at_ms=START_MS + HOUR_MS)),
    person=(HER_HOME, HER_HOME._replace(at_ms=START_MS + HOUR_MS)),
    doings=(Doing(0, "at home"), Doing(1_800, "walking around")),
    events=(Event(START_MS + 60_000, EquipmentKind.BATTERY_LOW),),
)
WORLD = LifeWorld(LIFE)
WARNED = ((Leg.POLICE, "p"), (Leg.WARNING, "p"))
CAUSES = ("at home", "gap")


def _counts() -> Counts:
    return Counts(home_m=300, seed=0, protects="person", arm="asked", days=7)


def _respond(at_s: int, kind: AlertKind = AlertKind.UNKNOWN_NEAR) -> Alert:
    return alert(kind, Demand.RESPOND, at_s * 1000)


def _noted(*alerts: Alert) -> Counts:
    counts = _counts()
    for each in alerts:
        counts.note(each, each.at_ms, CAUSES)
    return counts


def test_demands_to_respond_of_every_kind_within_ten_minutes_are_one_moment() -> None:
    counts = _noted(_respond(0), _respond(599, AlertKind.RING_ENTERED), _respond(1198), _respond(1798))
    assert [(moment.at_ms, moment.kind) for moment in counts.moments] == [
        (0, "UNKNOWN_NEAR"),
        (1_798_000, "UNKNOWN_NEAR"),
    ]
    assert counts.responds == {"UNKNOWN_NEAR, at home, gap": 3, "RING_ENTERED, at home, gap": 1}
    assert (tables.responds(counts, "UNKNOWN_NEAR"), tables.responds(counts)) == (3, 0)


def test_a_notice_is_neither_a_dispatch_nor_a_push() -> None:
    counts = _noted(alert(AlertKind.UNKNOWN_NEAR, Demand.NOTIFY, 0))
    assert (counts.moments, counts.notices, counts.pushes) == ([], {"UNKNOWN_NEAR": 1}, {})


def test_counts_survive_a_file() -> None:
    counts = _noted(_respond(0), alert(AlertKind.UNKNOWN_NEAR, Demand.NOTIFY, 0))
    assert from_json(json.loads(json.dumps(to_json(counts)))) == counts


def _performed(
    outputs: Mapping[int, Output], arm: str = "asked", *, is_place: bool = False
) -> tuple[Counts, ScriptedFold]:
    scripted = ScriptedFold({START_S + at_s: output for at_s, output in outputs.items()})
    return perform(WORLD, ARMS[arm], is_place=is_place, step=scripted.step), scripted


def test_the_phone_reports_only_where_a_person_is_protected() -> None:
    devices = [
        {
            device
            for body in _performed({}, is_place=is_place)[1].bodies
            if isinstance(body, Positions)
            for device in body.device_ids
        }
        for is_place in (False, True)
    ]
    assert devices == [{TAG, PHONE}, {TAG}]


def test_the_log_has_the_version_of_the_fold_and_the_events_of_the_tag() -> None:
    bodies = _performed({})[1].bodies
    assert bodies[0] == FoldVersion(FOLD_VERSION)
    assert [body.event for body in bodies if isinstance(body, EquipmentReport)] == [EquipmentKind.BATTERY_LOW]


def test_a_moment_says_what_the_wearer_did() -> None:
    counts, _ = _performed({600: _respond(START_S + 600), 2_400: _respond(START_S + 2_400)})
    assert [(moment.at_ms, moment.doing) for moment in counts.moments] == [
        (START_MS + 600_000, "at home"),
        (START_MS + 2_400_000, "walking around"),
    ]


def test_a_tag_that_obeys_reports_as_often_as_it_is_asked() -> None:
    usual, _ = _performed({})
    asked, _ = _performed({5: interval(START_S + 5, 30, START_S + 3_600), 1_000: position_now(START_S + 1_000)})
    assert (usual.commands, usual.locates) == (0, 0)
    assert (asked.commands, asked.locates) == (1, 1)
    assert 1.7 * usual.reports < asked.reports <= 2 * usual.reports + 2
    never, _ = _performed({5: interval(START_S + 5, 30, START_S + 3_600)}, "60 s")
    assert never.reports == usual.reports


def test_a_message_to_the_wearer_is_a_contact_and_sends_nobody() -> None:
    at_ms = (START_S + 600) * 1000
    message = ContactRequest(
        "contact", 1, 0, TAG, decided_at_ms=at_ms, until_ms=at_ms + 60_000, fold_version=FOLD_VERSION
    )
    counts, _ = _performed({600: message})
    assert (counts.contacts, counts.moments, counts.notices) == (1, [], {})


def test_a_week_is_the_same_each_time() -> None:
    first, second = (perform(WORLD, ARMS["asked"], is_place=False) for _ in range(2))
    assert replace(first, cpu_s=0) == replace(second, cpu_s=0)


def _week(arm: str, home_m: int, moments: int, **values: object) -> Counts:
    week = Counts(home_m=home_m, seed=0, protects="person", arm=arm, days=7, **values)  # type: ignore[arg-type]
    week.moments = [Moment(i, "UNKNOWN_NEAR", *CAUSES, None) for i in range(moments)]
    return week


@pytest.mark.parametrize(("moments", "met"), [(9, True), (10, False)])
def test_the_goals_compare_with_a_report_each_minute_of_the_run_before(moments: int, met: bool) -> None:
    pushes = Counter({"CHANGED (DISTANCE_CHANGED, WARN)": 22})
    now = [_week("asked", 300, moments, reports=7 * 1_600, pushes=pushes), _week("60 s", 300, 1)]
    goals = tables.goals(now, [_week("60 s", 300, 31), _week("60 s", 900, 1)])
    assert [(goal.name.split(",")[0], goal.met) for goal in goals] == [
        ("dispatch moments", None),
        ("dispatch moments", met),
        ("pushes to her", False),
        ("reports of the tag", True),
    ]
    assert goals[0].value == pytest.approx(31 / 7)


def test_a_spread_is_the_mean_day_with_the_least_and_the_greatest_week() -> None:
    weeks = [_week("asked", 300, moments) for moments in (7, 14, 0)]
    assert tables.a_day(weeks, tables.moments) == (1, 0, 2)
    assert str(tables.a_day(weeks, tables.moments)) == "1.00 [0.00-2.00]"
