"""Expected times of an incident's response: when each step was due, and whether it came. Pure.

The leg that awaits a step sets its deadline and publishes it with the step before. An escalation gives the next unit or desk a deadline
of its own; here a step is held to the first deadline since the offer, so an answer after an escalation is late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from services.common.observability import spans
from services.registry.traces.domain.facts import StepFact
from services.registry.traces.domain.spans import (
    EVERYBODY,
    MOVES,
    OFFERS,
    SEE_ALL,
    SEE_PERSON_FLAG,
    WARNING,
    is_receipt,
)


class ExpectedStep(Enum):
    """A step of the response that has a deadline, as in tandem.registry.v1."""

    MACHINE_RECEIVES = 1
    PERSON_ANSWERS = 2
    UNIT_DISPATCHED = 3
    PERSON_WARNED = 4
    WARNING_RECEIVED = 5
    OTHER_LEG_ACTS = 6


class AwaitedOutcome(Enum):
    """What became of an expected step, as in tandem.registry.v1."""

    OPEN = 1
    IN_TIME = 2
    LATE = 3
    MISSED = 4
    LIFTED = 5


_MISSED_BY_REASON = {
    "NOT_RECEIVED": ExpectedStep.MACHINE_RECEIVES,
    "NOT_ACKNOWLEDGED": ExpectedStep.PERSON_ANSWERS,
    "NOT_DISPATCHED": ExpectedStep.UNIT_DISPATCHED,
}
"""The step that was missing, by the reason of an escalation. Any other reason isn't about a deadline."""
_UNREACHED = frozenset({"NO_RECEIPT", "NO_CONTACT"})
_ANSWERS = frozenset({"ACKNOWLEDGED", "REJECTED"})
_OVER = frozenset({"STOOD_DOWN", "CLOSED"})


@dataclass(slots=True)
class AwaitedTime:
    """When a step was expected and when it came. Times are wall time, microseconds since 1970 UTC."""

    expectation: ExpectedStep
    leg: str
    assignment_id: str
    since_us: int
    due_us: int
    since_span_id: str
    shows: frozenset[str]
    """Viewers who may see it."""
    met_us: int | None = None
    met_span_id: str = ""
    missed_span_ids: list[str] = field(default_factory=list)
    is_lifted: bool = False
    """It was no longer needed before it was due."""

    @property
    def outcome(self) -> AwaitedOutcome:
        """What became of the step."""
        if self.met_us is not None:
            return AwaitedOutcome.IN_TIME if self.met_us <= self.due_us else AwaitedOutcome.LATE
        if self.missed_span_ids:
            return AwaitedOutcome.MISSED
        return AwaitedOutcome.LIFTED if self.is_lifted else AwaitedOutcome.OPEN


def expected_times(incident_id: str, steps: Iterable[StepFact]) -> list[AwaitedTime]:
    """The expected times of all assignments, in the order in which they were due. A first contact with the wearer has none."""
    by_assignment: dict[str, list[StepFact]] = {}
    for step in steps:
        if not step.contact:
            by_assignment.setdefault(step.assignment_id, []).append(step)
    found: list[AwaitedTime] = []
    for own in by_assignment.values():
        found += _Assignment(incident_id).read(sorted(own, key=lambda step: step.number))
    return sorted(found, key=lambda expected: (expected.due_us, expected.assignment_id, expected.expectation.value))


class _Assignment:
    """Reads the steps of one assignment."""

    def __init__(self, incident_id: str) -> None:
        self._incident_id = incident_id
        self._found: list[AwaitedTime] = []
        self._open: dict[ExpectedStep, AwaitedTime] = {}
        """Awaited steps of this leg."""
        self._absent: dict[str, AwaitedTime] = {}
        """The step that each absent leg owes, by leg. No new offer of this leg ends it."""
        self._asked: StepFact | None = None
        """Step that made the present offer. The time for an answer counts from it."""

    def read(self, steps: Sequence[StepFact]) -> list[AwaitedTime]:
        """The expected times of all steps, which are in order."""
        before: StepFact | None = None
        for step in steps:
            is_offer = step.state in OFFERS and (before is None or before.state not in OFFERS)
            is_offer = is_offer or (before is not None and step.state == "OFFERED" and step.offer != before.offer)
            if is_offer:
                self._lift(step)
            self._apply(step, before)
            if is_offer or before is None or step.offer != before.offer:
                self._asked = step
            self._await(step, is_offer)
            before = step
        return self._found

    def _span_id(self, step: StepFact) -> str:
        return spans.span_id_of(self._incident_id, "step", step.assignment_id, step.number)

    def _apply(self, step: StepFact, before: StepFact | None) -> None:
        """Notes what a step met, missed or ended."""
        state_before = before.state if before else ""
        self._note_flag(step, before)
        self._note_absence(step, before)
        if is_receipt(step, before):
            self._meet(step, ExpectedStep.MACHINE_RECEIVES)
        if step.state != state_before and step.state in _ANSWERS:
            # A person who answers has the offer, whether or not the machine said so before.
            self._meet(step, ExpectedStep.MACHINE_RECEIVES, ExpectedStep.PERSON_ANSWERS, ExpectedStep.PERSON_WARNED)
        if step.leg == WARNING and step.state == "ACKNOWLEDGED" != state_before:
            # A warning is acknowledged by the receipt of her phone, or by a gateway that has reached her.
            self._meet(step, ExpectedStep.WARNING_RECEIVED)
        if step.state != state_before and step.state in MOVES:
            self._meet(step, ExpectedStep.UNIT_DISPATCHED)
        if before and step.state == "ACKNOWLEDGED" == state_before and step.offer != before.offer:
            # The desk had accepted, and now a unit has: that is what the desk was awaited for. The unit has a time of its own to go.
            self._meet(step, ExpectedStep.UNIT_DISPATCHED)
        if step.state == "ESCALATED" and (before is None or not step.same_as(before)) and not is_receipt(step, before):
            self._escalate(step)
        if step.state != state_before and step.state in _OVER:
            self._lift(step)

    def _escalate(self, step: StepFact) -> None:
        missing = _MISSED_BY_REASON.get(step.escalation_reason)
        if missing is None:
            self._lift(step)  # the offer goes to somebody else for another reason, who gets a time of their own
            return
        if missing is ExpectedStep.PERSON_ANSWERS and step.leg == WARNING:
            missing = ExpectedStep.PERSON_WARNED
        if expected := self._open.get(missing):
            expected.missed_span_ids.append(self._span_id(step))
            # While the race is being lost, a leg waits for less time, and publishes that only by its escalation.
            expected.due_us = min(expected.due_us, step.done_us)

    def _note_flag(self, step: StepFact, before: StepFact | None) -> None:
        if before is None or step.flag == before.flag:
            return
        if step.flag == "REACHED":
            self._meet(step, ExpectedStep.WARNING_RECEIVED)
        elif step.flag in _UNREACHED:
            # Without an open wait the flag is about a later message of the same offer. Until when that was awaited isn't published.
            expected = self._open.get(ExpectedStep.WARNING_RECEIVED)
            expected = expected or self._expect(ExpectedStep.WARNING_RECEIVED, step, step.done_us)
            expected.missed_span_ids.append(self._span_id(step))

    def _note_absence(self, step: StepFact, before: StepFact | None) -> None:
        for leg in sorted(self._absent.keys() - set(step.absent)):
            self._note_met(self._absent.pop(leg), step)
        for leg in sorted(set(step.absent) - set(before.absent if before else ())):
            # This leg doesn't publish until when it waited; it notices the absence then.
            expected = self._add(ExpectedStep.OTHER_LEG_ACTS, step, step.done_us)
            expected.missed_span_ids.append(self._span_id(step))
            self._absent[leg] = expected

    def _meet(self, step: StepFact, *expectations: ExpectedStep) -> None:
        for expectation in expectations:
            if expected := self._open.pop(expectation, None):
                self._note_met(expected, step)

    def _note_met(self, expected: AwaitedTime, step: StepFact) -> None:
        expected.met_us, expected.met_span_id = step.done_us, self._span_id(step)

    def _lift(self, step: StepFact) -> None:
        """Ends all waits for this leg's steps: a new offer begins, or the assignment is over. A wait that was due stays missed."""
        for expected in self._open.values():
            expected.is_lifted = step.done_us <= expected.due_us
        self._open.clear()

    def _await(self, step: StepFact, is_offer: bool) -> None:
        """Notes what is awaited after a step."""
        if step.due_us is not None and (awaited := _awaited(step)) and awaited not in self._open:
            self._expect(awaited, step, step.due_us)
        if is_offer and step.receipt_due_us is not None:
            self._expect(ExpectedStep.WARNING_RECEIVED, step, step.receipt_due_us)

    def _expect(self, expectation: ExpectedStep, step: StepFact, due_us: int) -> AwaitedTime:
        """Awaits a step of this leg."""
        expected = self._open[expectation] = self._add(expectation, step, due_us)
        return expected

    def _add(self, expectation: ExpectedStep, step: StepFact, due_us: int) -> AwaitedTime:
        since = self._asked if self._asked and expectation in _SINCE_OFFER else step
        expected = AwaitedTime(
            expectation=expectation,
            leg=step.leg,
            assignment_id=step.assignment_id,
            since_us=since.done_us,
            due_us=due_us,
            since_span_id=self._span_id(since),
            shows=_SHOWS.get(expectation, EVERYBODY) | _own_desk(expectation, step.leg),
        )
        self._found.append(expected)
        return expected


_SINCE_OFFER = frozenset({ExpectedStep.MACHINE_RECEIVES, ExpectedStep.PERSON_ANSWERS, ExpectedStep.PERSON_WARNED})
_SHOWS = {
    ExpectedStep.UNIT_DISPATCHED: SEE_ALL,
    ExpectedStep.OTHER_LEG_ACTS: SEE_ALL,
    ExpectedStep.WARNING_RECEIVED: SEE_PERSON_FLAG,
}
"""Viewers of an expected time that isn't everybody's, as for the steps that meet it."""


def _own_desk(expectation: ExpectedStep, leg: str) -> frozenset[str]:
    return frozenset({leg}) if expectation is not ExpectedStep.WARNING_RECEIVED else frozenset()


def _awaited(step: StepFact) -> ExpectedStep | None:
    """The step that a leg awaits until the deadline of another step; None if it awaits none."""
    if step.state == "ACKNOWLEDGED":
        return ExpectedStep.UNIT_DISPATCHED
    if step.state not in ("OFFERED", "ESCALATED"):
        return None
    if step.leg == WARNING:
        return ExpectedStep.PERSON_WARNED
    return ExpectedStep.MACHINE_RECEIVES if step.level and not step.received else ExpectedStep.PERSON_ANSWERS
