"""Links and sign-ins of units: who may use which, and the reason for each refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, InvalidField, NotFound
from services.dispatch.domain.answers import Acknowledge, Assure, Close, Progress, Receive, Reject
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import CloseCause
from services.dispatch.duty import api, links
from services.dispatch.duty.links import UnitLink, UnitSignIn
from tandem.dispatch.v1 import dispatch_pb2, unit_duty_pb2
from tests.support.dispatch.roster import unit

NOW_MS, END_MS = 1_000_000, 2_000_000
LINK = UnitLink(b"x", "a1", END_MS, NOW_MS + 900_000, used_ms=None, issued_by="spiffe://npa/desk/a")
CAR = unit("a1", "a", shift_ms=(0, END_MS))


def test_a_link_is_good_once_in_its_time_and_shift() -> None:
    assert links.check_link(LINK, NOW_MS) is LINK
    with pytest.raises(NotFound):
        links.check_link(None, NOW_MS)
    for link, now_ms, code in (
        (replace(LINK, used_ms=NOW_MS), NOW_MS, "LINK_USED"),
        (LINK, LINK.expires_ms, "LINK_EXPIRED"),
        (LINK, END_MS, "SHIFT_OVER"),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            links.check_link(link, now_ms)
        assert refused.value.code == code


def test_only_a_unit_with_a_shift_gets_a_link() -> None:
    assert links.check_unit(CAR, NOW_MS) is CAR
    for given, now_ms, code in (
        (None, NOW_MS, "UNIT_REMOVED"),
        (replace(CAR, removed=True), NOW_MS, "UNIT_REMOVED"),
        (CAR, END_MS, "SHIFT_OVER"),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            links.check_unit(given, now_ms)
        assert refused.value.code == code


def test_a_sign_in_ends_with_its_shift_a_newer_one_and_the_units_place_on_the_roster() -> None:
    sign_in = UnitSignIn(b"x", "a1", END_MS)
    assert links.check_sign_in(sign_in, CAR, END_MS - 1, has_assignment=lambda: False) is CAR
    for stored, car, now_ms, code in (
        (None, None, NOW_MS, "SIGN_IN_ENDED"),
        (replace(sign_in, ended_ms=NOW_MS), CAR, NOW_MS, "SIGN_IN_ENDED"),
        (sign_in, replace(CAR, shift_until_ms=2 * END_MS), END_MS, "SHIFT_OVER"),
        (sign_in, replace(CAR, shift_until_ms=NOW_MS), NOW_MS, "SHIFT_OVER"),
        (sign_in, replace(CAR, removed=True), NOW_MS, "UNIT_REMOVED"),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            links.check_sign_in(stored, car, now_ms, has_assignment=lambda: False)
        assert refused.value.code == code


def test_a_unit_on_the_scene_keeps_its_page_after_its_shift_until_its_assignment_is_over() -> None:
    sign_in, engaged = UnitSignIn(b"x", "a1", END_MS), [True]
    assert links.check_sign_in(sign_in, CAR, 2 * END_MS, has_assignment=lambda: engaged[0]) is CAR
    for stored, car, code in (
        (replace(sign_in, ended_ms=NOW_MS), CAR, "SIGN_IN_ENDED"),
        (sign_in, replace(CAR, removed=True), "UNIT_REMOVED"),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            links.check_sign_in(stored, car, 2 * END_MS, has_assignment=lambda: engaged[0])
        assert refused.value.code == code
    engaged[0] = False
    with pytest.raises(FailedPrecondition, match="the shift is over"):
        links.check_sign_in(sign_in, CAR, 2 * END_MS, has_assignment=lambda: engaged[0])


def test_the_validity_of_a_link_is_bounded() -> None:
    assert (links.valid_for_s(0), links.valid_for_s(60)) == (900, 60)
    for asked_s in (59, 86_401):
        with pytest.raises(InvalidField, match="example"):
            links.valid_for_s(asked_s)


def test_each_answer_of_a_unit_is_a_command_for_its_offer() -> None:
    def command(**answer: object) -> object:
        request = unit_duty_pb2.AnswerTaskRequest(assignment_id="assign-1", offer_number=3, **answer)  # type: ignore[arg-type]
        return api.parse_answer(request, "a1", by="unit")

    assert command(received=unit_duty_pb2.TaskReceived()) == Receive("assign-1", "unit", 3)
    assert command(accepted=unit_duty_pb2.TaskAccepted()) == Acknowledge("assign-1", "unit", 3, unit_id="a1")
    assert command(assured=unit_duty_pb2.TaskAssured()) == Assure("assign-1", "unit", 3)
    assert command(rejected=unit_duty_pb2.TaskRejected(reason="no car")) == Reject(
        "assign-1", "unit", 3, reason="no car"
    )
    assert command(progress=dispatch_pb2.ON_SCENE) == Progress(
        "assign-1", "unit", AssignmentState.ON_SCENE, offer_number=3
    )
    closed = unit_duty_pb2.TaskClosed(cause=dispatch_pb2.NOBODY_FOUND)
    assert command(closed=closed) == Close("assign-1", "unit", CloseCause.NOBODY_FOUND, note="", offer_number=3)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"assignment_id": ""}, "assignment_id"),
        ({"offer_number": 0}, "offer_number"),
        ({}, "answer"),
        ({"progress": dispatch_pb2.DISPATCHED}, "progress"),
        ({"rejected": unit_duty_pb2.TaskRejected()}, "rejected.reason"),
        ({"closed": unit_duty_pb2.TaskClosed()}, "closed.cause"),
        ({"closed": unit_duty_pb2.TaskClosed(cause=dispatch_pb2.OTHER)}, "closed.note"),
    ],
)
def test_an_answer_that_says_nothing_is_refused_with_its_field(change: dict[str, object], field: str) -> None:
    given = {"assignment_id": "assign-1", "offer_number": 3} | change
    with pytest.raises(InvalidField) as refused:
        api.parse_answer(unit_duty_pb2.AnswerTaskRequest(**given), "a1", by="unit")  # type: ignore[arg-type]
    assert refused.value.field == field
