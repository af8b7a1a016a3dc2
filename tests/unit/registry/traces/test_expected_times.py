"""When each step of the response was expected, whether it came, and who may see that."""

from __future__ import annotations

from dataclasses import replace

from services.common.clock import MeshClock
from services.common.messaging.delivered import Delivered
from services.common.observability import spans
from services.common.observability.lateness import RECEIPT_WITHIN_MS
from services.registry.traces import translate
from services.registry.traces.domain.expected import AwaitedOutcome, AwaitedTime, ExpectedStep, expected_times
from services.registry.traces.domain.facts import AlertFact, StepFact
from services.registry.traces.domain.spans import OPERATOR, REVIEWER
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2

INCIDENT = "incident-1"
S = 1_000_000
OFFERED = StepFact("police", "assign-1", 1, "OFFERED", False, None, 0, 0, 1, offer=1, due_us=5 * S, level="UNIT")
"""Offer to a unit of a roster: its machine has 5 s."""
TO_DESK = replace(OFFERED, level="", due_us=30 * S)
"""Offer to a desk without a roster: a person has 30 s."""
WARNED = replace(TO_DESK, leg="warning", assignment_id="assign-2", due_us=10 * S, receipt_due_us=30 * S)
ENTERED = AlertFact(
    "alert-1", 0, 10, 0, 1, "RING_ENTERED", "RESPOND", "case-1", ("police", "warning"), False, 0, 0, 0, 0
)  # fmt: skip


def after(before: StepFact, state: str, at_s: float, **changes: object) -> StepFact:
    """The next step of an assignment."""
    changed = {
        "number": before.number + 1,
        "state": state,
        "done_us": round(at_s * S),
        "due_us": None,
        "receipt_due_us": None,
    }
    return replace(before, **{**changed, **changes})  # type: ignore[arg-type]


def outcomes(*steps: StepFact) -> dict[str, str]:
    """The outcome of each expectation by name; of several with one name, the last."""
    return {expected.expectation.name: expected.outcome.name for expected in expected_times(INCIDENT, steps)}


def found(expectation: ExpectedStep, *steps: StepFact) -> AwaitedTime:
    (expected,) = [each for each in expected_times(INCIDENT, steps) if each.expectation is expectation]
    return expected


def span_id(step: StepFact) -> str:
    return spans.span_id_of(INCIDENT, "step", step.assignment_id, step.number)


def test_a_unit_that_answers_in_time_keeps_each_deadline_that_its_leg_published() -> None:
    received = after(OFFERED, "OFFERED", 1, received=True, due_us=30 * S)
    accepted = after(received, "ACKNOWLEDGED", 12, due_us=72 * S)
    steps = (OFFERED, received, accepted, after(accepted, "DISPATCHED", 20))
    expected = expected_times(INCIDENT, steps)
    assert [
        (each.expectation.name, each.due_us // S, (each.met_us or 0) // S, each.outcome.name) for each in expected
    ] == [
        ("MACHINE_RECEIVES", 5, 1, "IN_TIME"),
        ("PERSON_ANSWERS", 30, 12, "IN_TIME"),
        ("UNIT_DISPATCHED", 72, 20, "IN_TIME"),
    ]
    assert [each.since_us // S for each in expected] == [0, 0, 12], (
        "an answer counts from the offer, not from its receipt"
    )
    assert expected[0].since_span_id == span_id(OFFERED) and expected[0].met_span_id == span_id(received)


def test_an_answer_after_an_escalation_is_late_although_the_next_desk_kept_its_own_deadline() -> None:
    escalated = after(TO_DESK, "ESCALATED", 30, due_us=60 * S, escalation_reason="NOT_ACKNOWLEDGED")
    accepted = after(escalated, "ACKNOWLEDGED", 45)
    answer = found(ExpectedStep.PERSON_ANSWERS, TO_DESK, escalated, accepted)
    assert (answer.outcome, answer.due_us, answer.met_us) == (AwaitedOutcome.LATE, 30 * S, 45 * S)
    assert answer.missed_span_ids == [span_id(escalated)] and answer.met_span_id == span_id(accepted)
    repeated = after(escalated, "ESCALATED", 60, due_us=120 * S)
    over = after(repeated, "STOOD_DOWN", 90)
    unanswered = found(ExpectedStep.PERSON_ANSWERS, TO_DESK, escalated, repeated, over)
    assert unanswered.outcome is AwaitedOutcome.MISSED and unanswered.missed_span_ids == [
        span_id(escalated),
        span_id(repeated),
    ]


def test_an_escalation_before_the_published_deadline_shows_that_the_leg_waited_for_less_time() -> None:
    in_a_race = after(TO_DESK, "ESCALATED", 10, due_us=20 * S, escalation_reason="NOT_ACKNOWLEDGED")
    answer = found(ExpectedStep.PERSON_ANSWERS, TO_DESK, in_a_race, after(in_a_race, "ACKNOWLEDGED", 12))
    assert (answer.outcome, answer.due_us) == (AwaitedOutcome.LATE, 10 * S)


def test_a_machine_that_is_silent_is_missed_and_the_next_unit_has_a_time_of_its_own_for_its_answer() -> None:
    next_unit = after(
        OFFERED, "ESCALATED", 5, offer=2, due_us=10 * S, level="NEXT_UNIT", escalation_reason="NOT_RECEIVED"
    )
    received = after(next_unit, "ESCALATED", 6, received=True, due_us=35 * S)
    steps = (OFFERED, next_unit, received, after(received, "ACKNOWLEDGED", 31))
    assert outcomes(*steps) == {"MACHINE_RECEIVES": "LATE", "PERSON_ANSWERS": "IN_TIME"}


def test_a_refusal_is_an_answer_and_the_next_unit_starts_from_nothing() -> None:
    received = after(OFFERED, "OFFERED", 1, received=True, due_us=30 * S)
    refused = after(received, "REJECTED", 4)
    next_unit = after(refused, "ESCALATED", 4, received=False, offer=4, due_us=9 * S, escalation_reason="REFUSED")
    gone = after(next_unit, "ESCALATED", 6, offer=5, due_us=11 * S, escalation_reason="UNIT_GONE")
    expected = expected_times(INCIDENT, (OFFERED, received, refused, next_unit, gone))
    assert [(each.expectation.name, each.outcome.name) for each in expected] == [
        ("MACHINE_RECEIVES", "IN_TIME"), ("MACHINE_RECEIVES", "LIFTED"), ("MACHINE_RECEIVES", "OPEN"), ("PERSON_ANSWERS", "IN_TIME"),
    ]  # fmt: skip


def test_an_offer_that_is_stood_down_before_it_is_due_is_not_late_and_one_that_is_open_is_awaited() -> None:
    assert outcomes(TO_DESK, after(TO_DESK, "STOOD_DOWN", 12)) == {"PERSON_ANSWERS": "LIFTED"}
    assert outcomes(TO_DESK) == {"PERSON_ANSWERS": "OPEN"}
    reoffered = after(after(TO_DESK, "ACKNOWLEDGED", 2), "OFFERED", 100, offer=3, due_us=130 * S)
    expected = expected_times(INCIDENT, (TO_DESK, after(TO_DESK, "ACKNOWLEDGED", 2), reoffered))
    assert [(each.due_us // S, each.outcome.name) for each in expected] == [(30, "IN_TIME"), (130, "OPEN")]


def test_a_warning_is_due_at_its_gateway_and_its_receipt_half_a_minute_after_the_offer() -> None:
    repeated = after(WARNED, "ESCALATED", 10, due_us=20 * S, escalation_reason="NOT_ACKNOWLEDGED")
    assert found(ExpectedStep.PERSON_WARNED, WARNED, repeated).missed_span_ids == [span_id(repeated)]
    unreached = after(repeated, "ESCALATED", 30, flag="NO_RECEIPT")
    missing = found(ExpectedStep.WARNING_RECEIVED, WARNED, repeated, unreached)
    assert missing.outcome is AwaitedOutcome.MISSED and missing.missed_span_ids == [span_id(unreached)]
    delivered = after(unreached, "ACKNOWLEDGED", 50, flag="NO_RECEIPT")
    receipt = found(ExpectedStep.WARNING_RECEIVED, WARNED, repeated, unreached, delivered)
    assert (receipt.outcome, receipt.met_us) == (AwaitedOutcome.LATE, 50 * S)


def test_the_receipt_of_a_warning_acknowledges_it_and_is_not_needed_only_if_it_is_over_before() -> None:
    delivered = after(WARNED, "ACKNOWLEDGED", 1)
    receipt = found(ExpectedStep.WARNING_RECEIVED, WARNED, delivered)
    assert (receipt.outcome, receipt.met_us, receipt.met_span_id) == (
        AwaitedOutcome.IN_TIME, 1 * S, span_id(delivered),
    )  # fmt: skip
    nearer = after(delivered, "OFFERED", 5, offer=3, due_us=15 * S, receipt_due_us=35 * S)
    over = after(nearer, "STOOD_DOWN", 20)
    expected = expected_times(INCIDENT, (WARNED, delivered, nearer, over))
    receipts = [each for each in expected if each.expectation is ExpectedStep.WARNING_RECEIVED]
    assert [each.outcome.name for each in receipts] == ["IN_TIME", "LIFTED"]
    unknown = found(ExpectedStep.WARNING_RECEIVED, WARNED, after(WARNED, "STOOD_DOWN", 60))
    assert unknown.outcome is AwaitedOutcome.OPEN, "neither a receipt nor a flag came in time"


def test_a_later_warning_without_a_receipt_is_missed_until_it_comes() -> None:
    delivered = after(WARNED, "ACKNOWLEDGED", 1)
    unreached = after(delivered, "ACKNOWLEDGED", 41, flag="NO_RECEIPT")
    reached = after(unreached, "ACKNOWLEDGED", 50, flag="REACHED")
    for steps, outcome in (((), AwaitedOutcome.MISSED), ((reached,), AwaitedOutcome.LATE)):
        expected = expected_times(INCIDENT, (WARNED, delivered, unreached, *steps))
        receipts = [each for each in expected if each.expectation is ExpectedStep.WARNING_RECEIVED]
        assert [(each.outcome, each.due_us // S) for each in receipts] == [(AwaitedOutcome.IN_TIME, 30), (outcome, 41)]


def test_a_leg_that_is_missed_is_marked_and_a_contact_with_the_wearer_has_no_expected_times() -> None:
    alone = after(TO_DESK, "OFFERED", 10, due_us=30 * S, absent=("probation",))
    missed = found(ExpectedStep.OTHER_LEG_ACTS, TO_DESK, alone)
    assert missed.outcome is AwaitedOutcome.MISSED and missed.missed_span_ids == [span_id(alone)]
    back = after(alone, "OFFERED", 15, due_us=30 * S, absent=())
    assert found(ExpectedStep.OTHER_LEG_ACTS, TO_DESK, alone, back).outcome is AwaitedOutcome.LATE
    assert expected_times(INCIDENT, [replace(TO_DESK, contact="CONTACT_SENT")]) == []


def test_each_of_two_absent_legs_has_a_time_of_its_own_which_no_new_offer_ends() -> None:
    alone = after(TO_DESK, "OFFERED", 10, due_us=30 * S, absent=("probation",))
    both = after(alone, "OFFERED", 20, due_us=30 * S, absent=("probation", "warning"))
    next_offer = replace(after(both, "OFFERED", 40, due_us=60 * S, absent=both.absent), offer=both.number + 1)
    one_back = after(next_offer, "OFFERED", 50, due_us=60 * S, absent=("warning",))
    steps = (TO_DESK, alone, both, next_offer, one_back)
    legs = [each for each in expected_times(INCIDENT, steps) if each.expectation is ExpectedStep.OTHER_LEG_ACTS]
    assert [(each.outcome, each.due_us // S, each.met_us) for each in legs] == [
        (AwaitedOutcome.LATE, 10, 50 * S), (AwaitedOutcome.MISSED, 20, None),
    ]  # fmt: skip


def test_the_other_agency_sees_no_dispatch_and_nobody_but_the_police_sees_receipts() -> None:
    received = after(OFFERED, "OFFERED", 1, received=True, due_us=30 * S)
    steps = (OFFERED, received, after(received, "ACKNOWLEDGED", 12, due_us=72 * S), WARNED)
    seen = {
        viewer: {each.expectation.name for each in expected_times(INCIDENT, steps) if viewer in each.shows}
        for viewer in (REVIEWER, OPERATOR, "police", "probation")
    }
    assert seen[REVIEWER] == seen["police"] == {
        "MACHINE_RECEIVES", "PERSON_ANSWERS", "UNIT_DISPATCHED", "PERSON_WARNED", "WARNING_RECEIVED",
    }  # fmt: skip
    assert seen[OPERATOR] == seen["police"] - {"WARNING_RECEIVED"}
    assert seen["probation"] == seen["police"] - {"WARNING_RECEIVED", "UNIT_DISPATCHED"}


def test_a_step_of_the_stream_has_the_deadline_of_its_leg_and_a_warnings_receipt_that_of_the_warning_leg() -> None:
    assignment = dispatch_pb2.Assignment(
        assignment_id="assign-2", incident_id=INCIDENT, leg=alert_pb2.WARNING, state=dispatch_pb2.OFFERED
    )
    assignment.due_at.FromMilliseconds(1_010_000)
    step = dispatch_pb2.Step(step_id="s", number=1, assignment=assignment)
    step.at.FromMilliseconds(1_000_000)
    delivered = Delivered(f"incident.warning.{INCIDENT}", step.SerializeToString(), "INCIDENTS", 1, 0, 0, "")
    read = translate.step_fact(delivered, MeshClock())
    assert read is not None
    assert read[1].due_us == 1_010_000_000 and read[1].receipt_due_us == (1_000_000 + RECEIPT_WITHIN_MS) * 1000
