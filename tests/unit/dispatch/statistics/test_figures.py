"""Figures of an assignment: first times, dispatches for nothing, and percentiles of counted times."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.percentiles import percentile
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import CloseCause, Task
from services.dispatch.domain.leg import Leg
from services.dispatch.statistics.domain import (
    AssignmentSeen,
    DispatchOutcome,
    Measure,
    ResponseFigures,
    due_ms,
    percentile_of_counts,
    rounded_ms,
)

SEEN = AssignmentSeen(
    state=AssignmentState.OFFERED,
    at_ms=1_000,
    offered_ms=1_000,
    received_ms=None,
    acknowledged_ms=None,
    sent_ms=None,
    travel_ms=None,
    office_id="seoul",
    kind=1,
    close_cause=None,
)
AT_DESK = replace(SEEN, state=AssignmentState.ACKNOWLEDGED, at_ms=21_000, acknowledged_ms=21_000)
"""The desk has accepted the assignment, and no unit has it."""
ACCEPTED = replace(AT_DESK, sent_ms=21_000, travel_ms=60_000)


def figures(*seen: AssignmentSeen, task: Task = Task.RESPOND) -> ResponseFigures:
    counted = ResponseFigures(task=task)
    for step in seen:
        counted = counted.after(step)
    return counted


def test_the_response_time_begins_with_the_first_offer() -> None:
    escalated = replace(SEEN, state=AssignmentState.ESCALATED, at_ms=31_000, offered_ms=31_000, office_id="busan")
    accepted = replace(ACCEPTED, at_ms=40_000, offered_ms=31_000, acknowledged_ms=40_000, office_id="busan")
    counted = figures(SEEN, escalated, accepted)
    assert counted.took_ms(Measure.ACCEPTANCE) == 39_000
    assert counted.office_id == "busan"


def test_an_acceptance_without_a_confirmed_receipt_is_a_receipt() -> None:
    assert figures(SEEN, ACCEPTED).took_ms(Measure.RECEIPT) == 20_000
    received = replace(SEEN, at_ms=2_000, received_ms=2_000)
    assert figures(SEEN, received, ACCEPTED).took_ms(Measure.RECEIPT) == 1_000


def test_repeated_and_later_offers_keep_the_first_times() -> None:
    reoffered = replace(SEEN, at_ms=500_000, offered_ms=500_000)
    second = replace(ACCEPTED, at_ms=501_000, offered_ms=500_000, acknowledged_ms=501_000)
    assert figures(SEEN, ACCEPTED, ACCEPTED, reoffered, second).took_ms(Measure.ACCEPTANCE) == 20_000


@pytest.mark.parametrize(
    ("arrived_ms", "in_time"), [(81_000, True), (81_001, False)], ids=["within the travel time", "later"]
)
def test_an_arrival_is_due_at_the_travel_time_after_the_acceptance(arrived_ms: int, in_time: bool) -> None:
    counted = figures(SEEN, ACCEPTED, replace(ACCEPTED, state=AssignmentState.ON_SCENE, at_ms=arrived_ms))
    assert counted.arrived_in_time is in_time


def test_an_arrival_is_due_from_the_units_acceptance_and_not_from_the_desks() -> None:
    accepted = replace(ACCEPTED, at_ms=41_000, acknowledged_ms=41_000, sent_ms=41_000)
    arrived = replace(accepted, state=AssignmentState.ON_SCENE, at_ms=101_000)
    counted = figures(SEEN, AT_DESK, accepted, arrived)
    assert counted.arrived_in_time is True and counted.took_ms(Measure.ACCEPTANCE) == 20_000


def test_an_arrival_without_an_estimate_is_neither_late_nor_in_time() -> None:
    accepted = replace(ACCEPTED, travel_ms=None)
    assert figures(SEEN, accepted, replace(accepted, state=AssignmentState.ON_SCENE)).arrived_in_time is None


@pytest.mark.parametrize(
    ("last", "arrives", "outcome"),
    [
        (replace(ACCEPTED, state=AssignmentState.STOOD_DOWN), False, DispatchOutcome.BEFORE_ARRIVAL),
        (replace(ACCEPTED, state=AssignmentState.STOOD_DOWN), True, DispatchOutcome.UNCLASSIFIED),
        (
            replace(ACCEPTED, state=AssignmentState.CLOSED, close_cause=CloseCause.OTHER),
            False,
            DispatchOutcome.UNCLASSIFIED,
        ),
        (
            replace(ACCEPTED, state=AssignmentState.CLOSED, close_cause=CloseCause.EQUIPMENT),
            False,
            DispatchOutcome.EQUIPMENT,
        ),
        (
            replace(ACCEPTED, state=AssignmentState.CLOSED, close_cause=CloseCause.BREACH_CONFIRMED),
            True,
            DispatchOutcome.BREACH_CONFIRMED,
        ),
        (replace(ACCEPTED, state=AssignmentState.EN_ROUTE), False, DispatchOutcome.UNDER_WAY),
        (replace(SEEN, state=AssignmentState.STOOD_DOWN), False, DispatchOutcome.BEFORE_ARRIVAL),
        (replace(SEEN, state=AssignmentState.STOOD_DOWN, arrived_before=True), False, DispatchOutcome.UNCLASSIFIED),
    ],
)
def test_the_outcome_of_a_dispatch(last: AssignmentSeen, arrives: bool, outcome: DispatchOutcome) -> None:
    scene = [replace(ACCEPTED, state=AssignmentState.ON_SCENE)] if arrives else []
    assert figures(SEEN, ACCEPTED, *scene, last).outcome is outcome


def test_an_offer_that_nobody_accepted_is_no_dispatch_and_neither_is_a_contact() -> None:
    assert figures(SEEN, replace(SEEN, state=AssignmentState.STOOD_DOWN)).outcome is DispatchOutcome.NOT_SENT
    assert figures(SEEN, AT_DESK, replace(AT_DESK, state=AssignmentState.CLOSED)).outcome is DispatchOutcome.NOT_SENT
    assert figures(ACCEPTED, task=Task.CONTACT).outcome is DispatchOutcome.NOT_SENT


def test_a_warning_has_ten_seconds_and_a_desks_machine_five() -> None:
    assert [due_ms(leg, Measure.RECEIPT) for leg in Leg] == [5_000, 5_000, 10_000]
    assert {due_ms(leg, Measure.ARRIVAL) for leg in Leg} == {None}


@given(st.lists(st.integers(0, 5_000_000), min_size=1, max_size=200), st.sampled_from([50, 90]))
def test_a_percentile_of_counts_is_that_of_the_rounded_times(times_ms: list[int], percent: int) -> None:
    rounded = [rounded_ms(ms) for ms in times_ms]
    counts = [(ms, rounded.count(ms)) for ms in set(rounded)]
    assert percentile_of_counts(counts, percent) == percentile(rounded, percent)


@given(st.integers(0, 10_000_000))
def test_rounding_never_makes_a_late_answer_one_in_time(ms: int) -> None:
    for limit in (5_000, 10_000, 30_000):
        assert (rounded_ms(ms) <= limit) is (ms <= limit)
    assert 0 <= rounded_ms(ms) - ms < 10_000
    assert percentile_of_counts([], 50) is None
