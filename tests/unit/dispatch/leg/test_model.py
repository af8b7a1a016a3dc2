"""An incident of one leg against a small reference without units and events, for any sequence of actions.

I3: each demand to respond is accepted, escalated by its deadline, or over. I4: one record for each destination. I6: nothing ends
silently: each alert is recorded once, and each answer changes the record, repeats an earlier answer, or is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.common.errors import FailedPrecondition, NotFound
from services.dispatch.domain.assignment import ACCEPTED, PROGRESS, UNANSWERED, AssignmentState, step_id
from services.dispatch.domain.enums import CloseCause, Demand
from services.dispatch.domain.escalation import LATE_SHARE
from services.dispatch.domain.events import AlertFolded, AlertWasMissing, Event, TargetsShown
from services.dispatch.domain.following import Approach, Follow, TargetUpdate
from services.dispatch.domain.incident import Alert, Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import NO_ROSTER, Status, UnitReport
from services.dispatch.leg import chain
from tests.support.dispatch.incidents import DEADLINES, WITHIN_MS, Story, alert
from tests.support.dispatch.roster import AT_DAY

SUBJECTS = ("p1", "p2")
SEQUENCES = 10
WAITING = "waiting"
ACCEPTED_BY_SOMEBODY = "taken"
NOTICED = "noticed"
CLOSED = "closed"
OVER = "over"
STATES = {
    WAITING: UNANSWERED,
    ACCEPTED_BY_SOMEBODY: ACCEPTED,
    NOTICED: {AssignmentState.NOTIFIED},
    CLOSED: {AssignmentState.CLOSED},
    OVER: {AssignmentState.STOOD_DOWN},
}
"""States of the record by status of the reference."""


WORK_MS = {1: DEADLINES.depart_ms, 2: round(LATE_SHARE * DEADLINES.arrive_ms), 3: DEADLINES.word_ms}
"""Time in which a unit owes its next step, by the step that it made, mesh time: PROGRESS. No travel time is known."""


@dataclass
class Destination:
    """State of a destination in the reference; alerts are numbered by their sequences in the log."""

    status: str = ""
    demanded: int = 0
    asked: int = 0
    """Last demand to respond."""
    answered: int = 0
    """Last demand to respond that was known at the acceptance."""
    closed: int = 0
    """Last demand to respond that was known at the closing."""
    offered: bool = False
    since_ms: int = 0
    """When the destination began to wait, mesh time."""
    progress: int = 0
    accepted_ms: int = 0
    progressed_ms: int = 0
    """When the unit made its last step, mesh time."""


@dataclass
class Reference:
    """The rules of a leg in a few lines."""

    destinations: dict[str, Destination] = field(default_factory=dict)
    clearings: set[int] = field(default_factory=set)
    end: int = 0

    def alert(self, sequence: int, folded: Alert, now_ms: int) -> None:
        if folded.demand is Demand.RECORD and (folded.subject_ids or folded.ends):
            self.clearings.add(sequence)
        if folded.ends:
            self.end = max(self.end, sequence)
        for subject in folded.subject_ids if folded.demand >= Demand.NOTIFY else ():
            destination = self.destinations.setdefault(subject, Destination())
            destination.demanded = max(destination.demanded, sequence)
            asks = folded.demand is Demand.RESPOND
            new = destination.status in ("", NOTICED) or (destination.status == OVER and sequence > self.end)
            new |= destination.status == CLOSED and sequence > max(self.end, destination.closed)
            new |= asks and destination.status in (OVER, CLOSED) and not destination.offered
            if asks:
                destination.asked = max(destination.asked, sequence)
            if new and (asks or destination.status != NOTICED):
                self._begin(destination, asks, now_ms)
        for destination in self.destinations.values():
            if destination.status == ACCEPTED_BY_SOMEBODY and any(
                destination.answered < c < destination.asked for c in self.clearings
            ):
                self._begin(destination, True, now_ms)
            if destination.status in (WAITING, ACCEPTED_BY_SOMEBODY, NOTICED) and destination.demanded <= self.end:
                destination.status = OVER

    def _begin(self, destination: Destination, asks: bool, now_ms: int) -> None:
        destination.status = WAITING if asks else NOTICED
        destination.offered = asks
        destination.since_ms = now_ms


class IncidentMachine(RuleBasedStateMachine):
    """Actions of the desk, time, the roster, the log and crashes on an incident."""

    @initialize(roster=st.booleans())
    def begin(self, roster: bool) -> None:
        self.roster = roster
        self.story = Story("police", AT_DAY if roster else NO_ROSTER)
        self.reference = Reference()
        self.alerts: dict[int, Alert] = {}

    # ── alerts and time ─────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        sequence=st.integers(1, SEQUENCES),
        demand=st.sampled_from((Demand.RECORD, Demand.NOTIFY, Demand.RESPOND, Demand.RESPOND)),
        subjects=st.sampled_from(((), SUBJECTS[:1], SUBJECTS[:1], SUBJECTS)),
        ends=st.sampled_from((False, False, False, False, True)),
    )
    def an_alert_comes_in_any_order_or_twice(
        self, sequence: int, demand: Demand, subjects: tuple[str, ...], ends: bool
    ) -> None:
        if sequence in self.alerts:
            assert self.story.fold(self.alerts[sequence]) == ()
            return
        folded = self.alerts[sequence] = alert(sequence, demand, *subjects, ends=ends)
        events = self.story.fold(folded)
        concerns = bool(subjects) or ends
        assert sum(isinstance(event, AlertFolded) for event in events) == concerns
        self.reference.alert(sequence, folded, self.story.now_ms)

    @rule(ms=st.one_of(st.integers(1, 10_000), st.sampled_from((WITHIN_MS, DEADLINES.dispatch_ms, 500_000, 10**8))))
    def time_passes(self, ms: int) -> None:
        units = {subject: self.story.of(subject).unit_id for subject in self.reference.destinations}
        self.story.pass_time(ms)
        for subject, destination in self.reference.destinations.items():
            if (
                self.roster
                and destination.status == ACCEPTED_BY_SOMEBODY
                and self._is_late(destination, units[subject])
            ):
                destination.status = WAITING

    def _is_late(self, destination: Destination, unit_id: str) -> bool:
        """Whether the next step of an accepted assignment is overdue. A desk that goes nowhere itself owes the dispatch alone."""
        if destination.progress == 0:
            return self.story.now_ms - destination.accepted_ms >= DEADLINES.dispatch_ms
        if not unit_id or destination.progress not in WORK_MS:
            return False
        return self.story.now_ms - destination.progressed_ms >= WORK_MS[destination.progress] + DEADLINES.react_ms

    @rule(
        subject=st.sampled_from(SUBJECTS),
        wearer_s=st.sampled_from((None, 0, 200, 400, 1_000)),
        moved_m=st.sampled_from((0, 500)),
    )
    def a_target_is_updated(self, subject: str, wearer_s: int | None, moved_m: int) -> None:
        """No travel time is known, so no unit is replaced. Deadlines may get shorter, and no status changes."""
        update = TargetUpdate("incident-1", self.story.id_of(subject), subject, Approach(wearer_s), moved_m)
        self.story.do(Follow(update))

    @rule()
    def the_process_is_killed_and_refolds_its_events(self) -> None:
        head, incident = chain.ChainHead(), Incident("incident-1", Leg.POLICE)
        for event in self.story.events:
            link = chain.write(head, "incident-1", event)
            head = chain.ChainHead(link.id, link.hash)
            incident = evolve(incident, chain.read(link.kind, link.body))
        assert incident == self.story.incident
        self.story.incident = incident

    @precondition(lambda self: self.roster)
    @rule(unit_id=st.sampled_from(sorted(AT_DAY.units)), status=st.sampled_from(Status))
    def a_unit_reports_its_status(self, unit_id: str, status: Status) -> None:
        before = self.story.board.units
        had = {subject: self.story.of(subject).unit_id for subject in self.reference.destinations}
        self.story.change_roster(
            replace(self.story.board, units={**before, unit_id: (before[unit_id][0], UnitReport(status))})
        )
        for subject, destination in self.reference.destinations.items():
            if (
                status is Status.OFF
                and had[subject] == unit_id
                and destination.status == ACCEPTED_BY_SOMEBODY
                and destination.progress < 3
            ):
                destination.status, destination.since_ms = WAITING, self.story.now_ms

    # ── answers of the desk ───────────────────────────────────────────────────────────────────────────────────────────

    def answer(self, subject: str, expected: str, events: object) -> bool:
        """Whether an answer changes the record. Its result, or its refusal, must be the one that the reference expects."""
        assert callable(events)
        try:
            changes: tuple[Event, ...] = events()
        except (NotFound, FailedPrecondition) as refusal:
            assert expected == "refused" and refusal.reason
            return False
        assert expected == ("changes" if changes else "nothing")
        return expected == "changes"

    def status(self, subject: str) -> Destination:
        return self.reference.destinations.get(subject, Destination())

    @rule(subject=st.sampled_from(SUBJECTS))
    def the_machine_receives_an_offer(self, subject: str) -> None:
        destination = self.status(subject)
        if destination.status:
            received = self.story.of(subject).received_ms is not None
            expected = "changes" if destination.status == WAITING and not received else "nothing"
            self.answer(subject, expected, lambda: self.story.receive(subject))

    @rule(subject=st.sampled_from(SUBJECTS))
    def a_person_accepts_an_offer(self, subject: str) -> None:
        destination = self.status(subject)
        expected = {WAITING: "changes", ACCEPTED_BY_SOMEBODY: "nothing"}.get(destination.status, "refused")
        if self.answer(subject, expected, lambda: self.story.acknowledge(subject)):
            destination.status = ACCEPTED_BY_SOMEBODY
            destination.answered = destination.asked
            destination.progress = 0
            destination.accepted_ms = self.story.now_ms

    @rule(subject=st.sampled_from(SUBJECTS))
    def an_assignment_is_refused_or_given_back(self, subject: str) -> None:
        destination = self.status(subject)
        if not destination.status:
            return
        can = destination.status == WAITING or (destination.status == ACCEPTED_BY_SOMEBODY and destination.progress < 3)
        if self.answer(subject, "changes" if can else "refused", lambda: self.story.reject(subject)):
            destination.status, destination.since_ms = WAITING, min(destination.since_ms, self.story.now_ms)

    @rule(subject=st.sampled_from(SUBJECTS), step=st.integers(1, 4))
    def the_unit_progresses(self, subject: str, step: int) -> None:
        destination = self.status(subject)
        expected = "refused"
        if destination.status == ACCEPTED_BY_SOMEBODY and step <= destination.progress + 1:
            expected = "changes" if step > destination.progress else "nothing"
        if expected == "changes" and self.roster and not self.story.of(subject).unit_id:
            expected = "refused"  # a desk with a roster accepted, and sent nobody who could go
        if self.answer(subject, expected, lambda: self.story.progress(subject, PROGRESS[step])):
            destination.progress, destination.progressed_ms = step, self.story.now_ms

    @rule(subject=st.sampled_from(SUBJECTS), cause=st.sampled_from(list(CloseCause)[:2]))
    def an_assignment_is_closed(self, subject: str, cause: CloseCause) -> None:
        destination = self.status(subject)
        expected = "changes" if destination.status in (ACCEPTED_BY_SOMEBODY, OVER) else "refused"
        if destination.status == CLOSED and self.story.of(subject).close_cause is cause:
            expected = "nothing"
        if self.answer(subject, expected, lambda: self.story.close(subject, cause)):
            destination.status, destination.closed = CLOSED, destination.asked

    # ── invariants ────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def i3_each_demand_is_accepted_or_escalated_by_its_deadline_or_over(self) -> None:
        for subject, destination in self.reference.destinations.items():
            record = self.story.of(subject)
            assert record.state in STATES[destination.status], subject
            if destination.status == WAITING:
                assert record.due_ms is not None and record.due_ms > self.story.now_ms
                if self.story.now_ms - destination.since_ms >= WITHIN_MS:
                    assert record.state is AssignmentState.ESCALATED
            elif destination.status != ACCEPTED_BY_SOMEBODY:
                assert record.due_ms is None
            elif self.roster and destination.progress == 0:
                assert record.due_ms == destination.accepted_ms + DEADLINES.dispatch_ms

    @invariant()
    def i4_one_record_for_each_destination(self) -> None:
        records = self.story.incident.assignments
        assert {record.subject_id for record in records.values()} == set(self.reference.destinations)
        assert all(self.story.id_of(record.subject_id) == id_ for id_, record in records.items())

    def teardown(self) -> None:
        """I6: each step has a unique number and id."""
        incident, seen = Incident("incident-1", Leg.POLICE), set()
        for event in self.story.events:
            incident = evolve(incident, event)
            if not isinstance(event, AlertFolded | AlertWasMissing | TargetsShown):
                seen.add(step_id(incident.assignments[event.assignment_id]))
        assert len(seen) == sum(
            not isinstance(event, AlertFolded | AlertWasMissing | TargetsShown) for event in self.story.events
        )
        for id_, assignment in self.story.incident.assignments.items():
            steps = [event for event in self.story.events if getattr(event, "assignment_id", None) == id_]
            assert assignment.number == len(steps)


TestIncident = IncidentMachine.TestCase
TestIncident.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)


@pytest.mark.soak
def test_thousands_of_incidents() -> None:
    run_state_machine_as_test(
        IncidentMachine, settings=settings(max_examples=5_000, stateful_step_count=60, deadline=None)
    )
