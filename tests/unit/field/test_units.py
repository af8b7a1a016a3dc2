"""What units' pages send, and what they get, without a mesh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.common import times
from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.dispatch.domain.answers import AssignmentHolder
from services.field import units as answers
from services.field.news import UnitNews
from services.field.views import STATIC, page_file
from tandem.common.v1 import alert_pb2, notice_pb2, subject_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2, unit_duty_pb2

FRONTEND = Path(__file__).parents[3] / "services" / "field" / "frontend"
TASK = {"assignment": "assign-1", "offer": 3}


@pytest.mark.parametrize("name", ["received", "accepted", "assured"])
def test_a_plain_answer_names_its_offer(name: str) -> None:
    request = answers.parse_answer("token", TASK | {"answer": name})
    assert (request.token, request.assignment_id, request.offer_number) == ("token", "assign-1", 3)
    assert request.WhichOneof("answer") == name


def test_steps_reasons_and_causes_are_passed_on() -> None:
    assert answers.parse_answer("t", TASK | {"answer": "on_scene"}).progress == dispatch_pb2.ON_SCENE
    assert answers.parse_answer("t", TASK | {"answer": "rejected", "reason": "no car"}).rejected.reason == "no car"
    closed = answers.parse_answer("t", TASK | {"answer": "closed", "cause": "other", "note": "asleep"}).closed
    assert (closed.cause, closed.note) == (dispatch_pb2.OTHER, "asleep")
    assert "exercise" not in answers.CAUSES, "an exercise is closed by the desk that runs it"


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (None, "offer"),
        ([], "offer"),
        (TASK | {"answer": "maybe"}, "answer"),
        (TASK, "answer"),
        ({"answer": "accepted", "assignment": "assign-1", "offer": True}, "offer"),
        ({"answer": "accepted", "assignment": "assign-1", "offer": 1 << 40}, "offer"),
        ({"answer": "accepted", "assignment": "a b", "offer": 1}, "assignment"),
        (TASK | {"answer": "closed", "cause": "exercise"}, "cause"),
        (TASK | {"answer": "rejected", "reason": "\ud800"}, "reason"),
    ],
)
def test_a_bad_answer_is_refused_with_its_field_and_an_example(content: Any, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        answers.parse_answer("token", content)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "status"),
        (None, "status"),
        ({"status": "asleep"}, "status"),
        ({"status": "busy", "lat": 1}, "lon"),
        ({"status": "busy", "lat": 91, "lon": 0}, "lat"),
        ({"status": "busy", "lat": True, "lon": 0}, "lat"),
        ({"status": "busy", "lat": float("nan"), "lon": 0}, "lat"),
        ({"status": "busy", "lat": 10**400, "lon": 0}, "lat"),
    ],
)
def test_a_bad_report_is_refused_with_its_field(content: Any, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        answers.parse_report("token", content, 1_000)
    assert refused.value.field == field


def test_a_report_may_lack_a_position() -> None:
    assert not answers.parse_report("token", {"status": "available"}, 1_000).HasField("position")
    given = answers.parse_report("token", {"status": "off", "lat": 37.5, "lon": 127.0}, 1_000)
    assert (given.position.lat_deg, times.from_timestamp(given.at)) == (37.5, 1_000)


@pytest.mark.parametrize(
    ("leg", "task", "subject", "kind", "to"),
    [
        (alert_pb2.PROBATION, notice_pb2.TASK_UNSPECIFIED, "wearer-1", subject_pb2.WEARER, "wearer"),
        (alert_pb2.POLICE, notice_pb2.TASK_UNSPECIFIED, "person-1", subject_pb2.PROTECTED_PERSON, "person"),
        (alert_pb2.POLICE, notice_pb2.TASK_UNSPECIFIED, "order-1/home", subject_pb2.PROTECTED_PLACE, "place"),
        (alert_pb2.POLICE, notice_pb2.CHECK, "wearer-1", subject_pb2.WEARER, "wearer"),
    ],
)
def test_a_task_says_where_to_go(leg: Any, task: Any, subject: str, kind: Any, to: str) -> None:
    assignment = dispatch_pb2.Assignment(
        leg=leg,
        task=task,
        subject_id=subject,
        subject_kind=kind,
        state=dispatch_pb2.OFFERED,
        kind=alert_pb2.RING_ENTERED,
    )
    [shown] = answers.duty_content(
        unit_duty_pb2.GetDutyResponse(tasks=[unit_duty_pb2.UnitTask(assignment=assignment)])
    )["tasks"]
    assert (shown["to"], shown["state"], shown["kind"], shown["is_exercise"]) == (to, "offered", "ring_entered", False)


def test_a_task_whose_kind_and_states_are_newer_than_field_is_shown_with_the_others() -> None:
    newer: Any = 99
    known = dispatch_pb2.Assignment(leg=alert_pb2.POLICE, subject_id="person-1", state=dispatch_pb2.OFFERED)
    unknown = dispatch_pb2.Assignment(leg=alert_pb2.POLICE, subject_id="person-2", state=newer, kind=newer)
    unknown.person_flag.flag = newer
    other = unit_duty_pb2.OtherLegStep(leg=newer, state=newer)
    tasks = [unit_duty_pb2.UnitTask(assignment=known), unit_duty_pb2.UnitTask(assignment=unknown, others=[other])]
    first, second = answers.duty_content(unit_duty_pb2.GetDutyResponse(tasks=tasks))["tasks"]
    assert (first["state"], first["kind"]) == ("offered", "alert_kind_unspecified")
    assert (second["state"], second["kind"], second["flag"]) == ("other", "other", "other")
    assert (second["others"][0]["leg"], second["others"][0]["state"]) == ("other", "other")
    texts = json.loads(page_file(STATIC / "unit-ko.json"))
    assert {f"{part}_{answers.OTHER}" for part in ("kind", "state", "leg")} <= texts.keys()


def test_a_target_without_a_position_has_none() -> None:
    event = following_pb2.TargetEvent(incident_id="incident-1")
    event.target.subject_id, event.target.unknown = "wearer-1", True
    assert "lat" not in answers.target_content(event) and answers.target_content(event)["unknown"]
    event.not_followed.SetInParent()
    assert answers.target_content(event) == {"incident": "incident-1", "followed": False}


def test_a_leg_that_is_not_followed_is_named() -> None:
    none: Any = None
    news = UnitNews({"probation": none, "police": none}, none, none, clock=MeshClock(), metrics=none)
    assert (
        news.not_followed() == "offers can't be followed: the probation leg's (STARTING), the police leg's (STARTING)"
    )
    news.followed["probation"].found()
    news.followed["police"].lost("UNAVAILABLE")
    assert news.not_followed() == "offers can't be followed: the police leg's (UNAVAILABLE)"
    news.followed["police"].found()
    assert not news.not_followed()


def test_both_languages_have_the_same_texts_and_each_state_and_reason_has_one() -> None:
    texts = {name: json.loads(page_file(STATIC / f"unit-{name}.json")) for name in ("ko", "en")}
    assert texts["ko"].keys() == texts["en"].keys()
    states = {f"state_{name.lower()}" for name in tuple(dispatch_pb2.AssignmentState.keys())} - {
        "state_assignment_state_unspecified"
    }
    assert states <= texts["ko"].keys()
    assert {f"end_{reason}" for reason in answers._ENDS.values()} <= texts["ko"].keys()
    assert {f"end_{reason.value.lower()}" for reason in AssignmentHolder} <= texts["ko"].keys()
    for name in (
        "offered_on",
        "moved_on",
        "cant_take",
        "cant_go_on",
        "cant_close",
        "step_left_out",
        "closed_otherwise",
    ):
        assert f"no_{name}" in texts["ko"]


def test_the_page_can_be_installed() -> None:
    manifest = json.loads((FRONTEND / "public" / "unit.webmanifest").read_text())
    assert manifest["scope"] == manifest["start_url"] == manifest["id"] == "/unit/"
    assert manifest["display"] == "standalone" and {"192x192", "512x512"} <= {i["sizes"] for i in manifest["icons"]}
    html = (FRONTEND / "public" / "unit.html").read_text()
    assert 'rel="manifest" href="/unit/manifest.webmanifest"' in html and "<script>" not in html


def asked(assignment_state: Any, offer_state: Any) -> dict[str, Any]:
    """The page's task of a unit, by the states of the assignment and of its own offer."""
    assignment = dispatch_pb2.Assignment(
        leg=alert_pb2.POLICE, subject_id="person-1", state=assignment_state, offer_number=9
    )
    assignment.choice.unit_id, assignment.choice.travel_s = "another", 900
    for name in ("due_at", "arrival_due_at", "panic_at"):
        getattr(assignment, name).FromMilliseconds(5_000)
    choice = dispatch_pb2.Choice(unit_id="car-1", travel_s=60)
    made = dispatch_pb2.UnitOffer(offer_number=3, choice=choice, state=offer_state)
    made.asked_at.FromMilliseconds(1_000)
    made.open_until.FromMilliseconds(31_000)
    task = unit_duty_pb2.UnitTask(assignment=assignment, offer=made)
    [shown] = answers.duty_content(unit_duty_pb2.GetDutyResponse(tasks=[task]))["tasks"]
    return dict(shown)


@pytest.mark.parametrize(
    ("state", "with_desk"),
    [(dispatch_pb2.OFFERED, False), (dispatch_pb2.ESCALATED, False), (dispatch_pb2.ACKNOWLEDGED, True)],
)
def test_a_unit_sees_its_own_offer_also_if_others_are_asked(state: Any, with_desk: bool) -> None:
    shown = asked(state, dispatch_pb2.UNIT_ASKED)
    assert (shown["state"], shown["offer"], shown["with_desk"]) == ("offered", 3, with_desk)
    assert (shown["asked_ms"], shown["open_until_ms"], shown["travel_s"]) == (1_000, 31_000, 60)
    assert shown["due_ms"] is None and shown["arrival_due_ms"] is None, "these are of others"
    assert shown["panic_ms"] == 5_000
    accepted = asked(dispatch_pb2.EN_ROUTE, dispatch_pb2.UNIT_ACCEPTED)
    assert (accepted["state"], accepted["offer"], accepted["open_until_ms"]) == ("en_route", 9, None)


class RecordedNews(UnitNews):
    """News of units that keeps whom it wakes, and for what."""

    def __init__(self) -> None:
        none: Any = None
        super().__init__({"police": none}, none, none, clock=MeshClock(), metrics=none)
        self.woken: set[str] = set()
        self.pushed: set[tuple[str, str]] = set()

    def wake(self, device_id: str) -> None:
        self.woken.add(device_id)

    def push_about(self, tasks: Any, device_id: str, news_id: str, *, expires_ms: int) -> None:
        self.pushed.add((device_id, news_id))

    def woken_by(self, *units: unit_duty_pb2.UnitChange) -> set[str]:
        """The pages that a change of an assignment wakes."""
        self.woken.clear()
        tasks: Any = None
        message = unit_duty_pb2.WatchUnitsResponse(incident_id="incident-1", assignment_id="assign-1", units=units)
        self._apply(tasks, "police", message)
        return set(self.woken)


def test_each_unit_that_is_asked_is_woken_and_each_that_is_asked_no_more() -> None:
    news = RecordedNews()
    first = "unit/police/car-1"
    second = "unit/police/car-2"
    offers = [unit_duty_pb2.UnitChange(unit_id=f"car-{n}", is_offer=True, offer_number=n) for n in (1, 2)]
    assert news.woken_by(offers[0]) == {first}
    assert news.woken_by(*offers) == {first, second}
    assert news.pushed == {(first, "assign-1/1"), (second, "assign-1/2")}
    assert news.woken_by(unit_duty_pb2.UnitChange(unit_id="car-2", offer_number=2)) == {first, second}
    assert news.woken_by() == {second}
