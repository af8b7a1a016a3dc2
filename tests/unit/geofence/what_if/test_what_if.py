"""What-if questions: the answer equals a fold that starts empty, and an invalid question is rejected with its field."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging.bus import Bus
from services.common.rpc.errors import InvalidField, Unavailable
from services.geofence.domain import what_if
from services.geofence.domain.rules import Rules
from services.geofence.what_if import translate
from services.geofence.what_if.api import WhatIfServicer
from tandem.common.v1 import alert_pb2, encounter_pb2, geometry_pb2, log_pb2
from tandem.geofence.v1 import what_if_pb2
from tests.support.geofence import log
from tests.support.geofence.stories import T0_MS, Story, place_e7

Request = what_if_pb2.EvaluateRequest


def step(at_s: float, subject_id: str = "", north_m: float | None = None, event: str = "") -> what_if_pb2.WhatIfStep:
    """A step: somebody at this distance north of the protected person's home, an event of a device, or the passing of time."""
    made = what_if_pb2.WhatIfStep(at=times.to_timestamp(T0_MS + round(at_s * 1000)), subject_id=subject_id)
    if north_m is not None:
        lat_e7, lon_e7 = place_e7(north_m)
        made.position.point.lat_deg, made.position.point.lon_deg = lat_e7 / 1e7, lon_e7 / 1e7
        made.position.accuracy_m = 5
    if event:
        made.event = log_pb2.EquipmentKind.Value(event)
    return made


WALK = (
    step(0, "p1", 0),
    step(5, "w1", 2500),
    step(300, "w1", 900),
    step(495, "p1", 0),
    step(500, "w1", 60),
    step(510, "w1", event="STRAP_OPEN"),
    step(800),
)


def request(*steps: what_if_pb2.WhatIfStep) -> Request:
    return Request(case=log.case_entry("1").case, steps=steps or WALK)


def answered(asked: Request) -> what_if_pb2.EvaluateResponse:
    case = translate.inline_case(asked.case)
    outputs = what_if.play(case, Rules(), translate.steps_of(asked.steps, case))
    return translate.answer(case, Rules().rules_id, outputs)


def test_the_answer_equals_the_fold_of_the_same_log() -> None:
    story = Story()
    shared = {"wearer_id": "w1", "tag_device_ids": ["t1"], "order_id": "order-1", "valid_from_ms": 0}
    persons = [log_pb2.ProtectedTarget(person_id="p1", device_ids=["d1"])]
    story.case(0, "1", **shared, persons=persons, valid_until_ms=1 << 50)
    story.at(0, "d1", 0)
    story.at(5, "t1", 2500)
    story.at(300, "t1", 900)
    story.at(495, "d1", 0)
    story.at(500, "t1", 60)
    story.says(510, "t1", "STRAP_OPEN")
    story.tick(800)
    expected = [(a.kind.value, a.demand.value, a.ring_mm / 1000, a.at_ms, a.distance_mm) for a in story.alerts]
    answer = answered(request())
    assert [
        (
            alert_pb2.AlertKind.Name(alert.alert.kind),
            alert.alert.demand,
            alert.alert.ring_m,
            alert.alert.at.ToMilliseconds(),
            alert.measure.distance_m if alert.measure.HasField("distance_m") else None,
        )
        for alert in answer.alerts
    ] == [(*rest, None if mm is None else round(mm) / 1000) for *rest, mm in expected]
    entered = [alert.alert.ring_m for alert in answer.alerts if alert.alert.kind == alert_pb2.RING_ENTERED]
    assert entered == [2000, 1000, 100]
    assert alert_pb2.TAMPERED in {alert.alert.kind for alert in answer.alerts}
    assert alert_pb2.SILENT in {alert.alert.kind for alert in answer.alerts}, "time alone decides too"
    assert answer.rules_id == "default" and answer.case_version == 1 and not answer.dead_letters


def test_equal_questions_have_equal_answers_without_ids_of_real_alerts() -> None:
    first, second = answered(request()), answered(request())
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    real = Story()
    real.case(0, "1")
    real.at(0, "phone", 0)
    real.at(5, "tag", 60)
    assert {a.alert_id for a in real.alerts}.isdisjoint(
        answered_alert.alert.alert_id for answered_alert in first.alerts
    )


def test_an_event_that_a_device_cannot_report_is_answered_with_its_reason() -> None:
    assert list(answered(request(step(0, "w1", event="PANIC_BUTTON"))).dead_letters) == [
        "PANIC_BUTTON from a device that can't say so"
    ]


def _no_steps(asked: Request) -> None:
    del asked.steps[:]


def _too_many_steps(asked: Request) -> None:
    asked.steps.extend([step(900)] * translate.MAX_STEPS)


def _backwards(asked: Request) -> None:
    asked.steps.append(step(0))


def _two_days(asked: Request) -> None:
    asked.steps.append(step(86_401))


def _no_time(asked: Request) -> None:
    asked.steps[1].ClearField("at")


def _unknown_subject(asked: Request) -> None:
    asked.steps[1].subject_id = "somebody"


def _no_device(asked: Request) -> None:
    del asked.case.tag_device_ids[:]


def _nothing_reported(asked: Request) -> None:
    asked.steps[1].ClearField("position")


def _nowhere(asked: Request) -> None:
    asked.steps[1].position.point.lat_deg = math.nan


def _no_accuracy(asked: Request) -> None:
    asked.steps[1].position.ClearField("accuracy_m")


def _unknown_event(asked: Request) -> None:
    asked.steps[1].event = 999  # type: ignore[assignment]


def _many_rings(asked: Request) -> None:
    rings = (geometry_pb2.Ring(radius_m=n, action=geometry_pb2.WARN) for n in range(1, 12))
    asked.case.rings.extend(rings)


def _place_of_no_number(asked: Request) -> None:
    asked.case.places.add(place_id="x", circle=geometry_pb2.Circle(lat_deg=math.nan))


def _area(corners: int) -> geometry_pb2.Place:
    turns = [2 * math.pi * n / corners for n in range(corners)]
    points = [geometry_pb2.Point(lat_deg=37.5 + math.sin(a) / 100, lon_deg=127 + math.cos(a) / 100) for a in turns]
    return geometry_pb2.Place(place_id=f"area-{corners}", polygon=geometry_pb2.Polygon(vertices=points))


def _corners_without_end(asked: Request) -> None:
    asked.case.encounters.append(encounter_pb2.Encounter(places=[_area(200)] * 11))


def _too_much_work(asked: Request) -> None:
    asked.case.places.extend(_area(n) for n in range(191, 201))
    asked.case.rings.extend(geometry_pb2.Ring(radius_m=n, action=geometry_pb2.WARN) for n in range(1, 8))
    asked.steps.extend([step(900)] * 100)


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (_no_steps, "steps"),
        (_too_many_steps, "steps"),
        (_too_much_work, "steps"),
        (_backwards, "steps[7].at"),
        (_two_days, "steps[7].at"),
        (_no_time, "steps[1].at"),
        (_unknown_subject, "steps[1].subject_id"),
        (_no_device, "steps[1].subject_id"),
        (_nothing_reported, "steps[1].report"),
        (_nowhere, "steps[1].position.point.lat_deg"),
        (_no_accuracy, "steps[1].position.accuracy_m"),
        (_unknown_event, "steps[1].event"),
        (_many_rings, "case.rings"),
        (_place_of_no_number, "case"),
        (_corners_without_end, "case"),
    ],
)
def test_an_invalid_what_if_is_rejected_with_its_field(spoil: Callable[[Request], None], field: str) -> None:
    asked = request()
    answered(asked)
    spoil(asked)
    with pytest.raises(InvalidField) as rejected:
        answered(asked)
    assert rejected.value.field == field


def test_a_what_if_at_the_work_limit_is_answered() -> None:
    asked = request()
    del asked.steps[:]
    asked.case.places.extend(_area(n) for n in (198, 199, 200, 197))
    asked.steps.extend(step(n * 10, "w1", 1500 - n * 5) for n in range(translate.MAX_STEPS))
    case = translate.inline_case(asked.case)
    assert what_if.work_of(case, len(asked.steps)) > 0.9 * translate.MAX_WORK
    assert answered(asked).alerts


async def test_an_evaluator_without_a_partition_sends_callers_to_another() -> None:
    servicer = WhatIfServicer(bus=cast(Bus, None), evaluators={}, partitions=1, clock=MeshClock())
    with pytest.raises(Unavailable, match="another evaluator"):
        await servicer.Evaluate(Request(case=log_pb2.CaseSnapshot(case_id="c")), cast(Any, None))
