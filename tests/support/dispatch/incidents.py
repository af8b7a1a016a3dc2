"""Stories of an incident of one leg: alerts, deadlines and answers, and the resulting events."""

from __future__ import annotations

from collections.abc import Iterable

from services.dispatch.domain.answers import Acknowledge, Close, Progress, Receive, Reject, SendByRadio, SendUnit
from services.dispatch.domain.assignment import Assignment, AssignmentState, assignment_id
from services.dispatch.domain.decisions import Command, FoldAlert, decide
from services.dispatch.domain.enums import CloseCause, Demand, SubjectKind
from services.dispatch.domain.escalation import Deadlines, LoseUnit, PassDeadline, Situation
from services.dispatch.domain.events import Cause, Event
from services.dispatch.domain.incident import Alert, AlertPanic, Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import NO_ROSTER, Board
from services.dispatch.leg.chain import ChainedEvent
from tandem.common.v1 import alert_pb2

WITHIN_MS = 30_000
DEADLINES = Deadlines(WITHIN_MS)
BY = "spiffe://npa/desk/a"


class Story:
    """An incident with all of its events."""

    def __init__(self, leg: str = "police", board: Board = NO_ROSTER) -> None:
        self.incident = Incident("incident-1", Leg(leg))
        self.board = board
        self.events: list[Event] = []
        self.now_ms = 1_000

    def do(self, command: Command, now_ms: int | None = None) -> tuple[Event, ...]:
        situation = Situation(self.now_ms if now_ms is None else now_ms, DEADLINES, self.board)
        events = decide(self.incident, command, situation)
        for event in events:
            self.incident = evolve(self.incident, event)
        self.events += events
        return events

    def fold(self, alert: Alert) -> tuple[Event, ...]:
        return self.do(FoldAlert(alert))

    def receive(self, subject_id: str, offer_number: int | None = None) -> tuple[Event, ...]:
        number = self.of(subject_id).offer_number if offer_number is None else offer_number
        return self.do(Receive(self.id_of(subject_id), BY, number))

    def acknowledge(self, subject_id: str, by: str = BY) -> tuple[Event, ...]:
        """The unit of the present offer accepts, or the desk if a desk is asked."""
        present = self.of(subject_id) if self.id_of(subject_id) in self.incident.assignments else None
        unit_id = present.responding_unit_id if present else ""
        return self.do(Acknowledge(self.id_of(subject_id), by, unit_id=unit_id))

    def accept(self, subject_id: str, unit_id: str) -> tuple[Event, ...]:
        """A unit accepts the offer to it."""
        return self.do(Acknowledge(self.id_of(subject_id), f"unit/{unit_id}", unit_id=unit_id))

    def accept_at_desk(self, subject_id: str, by: str = BY) -> tuple[Event, ...]:
        """The desk takes the assignment itself."""
        return self.do(Acknowledge(self.id_of(subject_id), by))

    def send(self, subject_id: str, unit_id: str, by: str = BY, seen: int | None = None) -> tuple[Event, ...]:
        """An officer asks a unit. `seen` is the newest offer that the officer saw."""
        number = self.of(subject_id).newest_offer_number if seen is None else seen
        return self.do(SendUnit(self.id_of(subject_id), by, unit_id, number))

    def radio(self, subject_id: str, name: str, by: str = BY, seen: int | None = None) -> tuple[Event, ...]:
        """An officer enters a unit that was sent by radio."""
        number = self.of(subject_id).newest_offer_number if seen is None else seen
        return self.do(SendByRadio(self.id_of(subject_id), by, name, number))

    def reject(self, subject_id: str, offer_number: int | None = None) -> tuple[Event, ...]:
        number = self.of(subject_id).offer_number if offer_number is None else offer_number
        return self.do(Reject(self.id_of(subject_id), BY, number, "no car"))

    def progress(self, subject_id: str, state: AssignmentState) -> tuple[Event, ...]:
        return self.do(Progress(self.id_of(subject_id), BY, state))

    def close(self, subject_id: str, cause: CloseCause = CloseCause.BREACH_CONFIRMED) -> tuple[Event, ...]:
        return self.do(Close(self.id_of(subject_id), BY, cause, ""))

    def change_roster(self, board: Board) -> tuple[Event, ...]:
        self.board = board
        ids = list(self.incident.assignments)
        return tuple(event for id_ in ids for event in self.do(LoseUnit(id_)))

    def pass_time(self, ms: int) -> tuple[Event, ...]:
        self.now_ms += ms
        ids = list(self.incident.assignments)
        return tuple(event for id_ in ids for event in self.do(PassDeadline(id_)))

    def id_of(self, subject_id: str) -> str:
        return assignment_id("incident-1", self.incident.leg, subject_id)

    def of(self, subject_id: str) -> Assignment:
        return self.incident.assignments[self.id_of(subject_id)]


def alert(
    sequence: int,
    demand: Demand = Demand.RESPOND,
    *subjects: str,
    ends: bool = False,
    order: str = "order-1",
    threat: str = "ring-100",
    kind: int = alert_pb2.RING_ENTERED,
    panic: AlertPanic | None = None,
) -> Alert:
    cause = Cause("tag-1", f"report-{sequence}", sequence)
    fields = (f"alert-{sequence}", "incident-1", (sequence, 0), kind, demand, order, threat, subjects, ends, cause)
    return Alert(*fields, subject_kinds=kinds_of(subjects, "w1"), panic=panic)


def kinds_of(subjects: Iterable[str], wearer_id: str) -> dict[str, SubjectKind]:
    """What the destinations of an alert about a wearer are."""
    return {
        subject: SubjectKind.WEARER
        if subject == wearer_id
        else SubjectKind.PROTECTED_PLACE
        if "/" in subject
        else SubjectKind.PROTECTED_PERSON
        for subject in subjects
    }


EARLIER_EVENTS = [
    ChainedEvent(
        1,
        "incident-1",
        "AlertFolded",
        '{"alert_id":"alert-5","assignment_ids":["assign-26f7667f72c6f9b75208"],"at_ms":1000,"demand":3,"ends":false,'
        '"order_id":"order-1","place":[5,0]}',
        "6a986cc58616293e2aa3598ac15aaef450adff6984e7d513ee30cd26562375c4",
    ),
    ChainedEvent(
        2,
        "incident-1",
        "Notified",
        '{"assignment_id":"assign-26f7667f72c6f9b75208","at_ms":1000,"cause":{"device_id":"tag-1",'
        '"received_wall_us":5,"report_id":"r-5"},"demand":3,"place":[5,0],"subject_id":"p1"}',
        "e336ec74249377b78ba35ee5aa073d8847462109cecb4be09f6f03465ab3092a",
    ),
    ChainedEvent(
        3,
        "incident-1",
        "AlertFolded",
        '{"alert_id":"alert-6","assignment_ids":["assign-26f7667f72c6f9b75208"],"at_ms":2000,"demand":4,"ends":false,'
        '"order_id":"order-1","place":[6,0]}',
        "5dc29d1dc5fd8a16256f57d5906a9fd31ed57bb8a372b09caded8aaf6aa35595",
    ),
    ChainedEvent(
        4,
        "incident-1",
        "Offered",
        '{"assignment_id":"assign-26f7667f72c6f9b75208","at_ms":2000,"cause":{"device_id":"tag-1",'
        '"received_wall_us":5,"report_id":"r-6"},"demand":4,"due_ms":32000,"place":[6,0],"subject_id":"p1"}',
        "3b62d0d7f178691c7585db9d8675eb7703f2bad52e142ef3f8989e9a11ae2aa2",
    ),
    ChainedEvent(
        5,
        "incident-1",
        "Escalated",
        '{"assignment_id":"assign-26f7667f72c6f9b75208","at_ms":32000,"due_ms":92000}',
        "10a918444042d6e74fbdb1bb01479477561c888fe3217b6add715a715a4f7756",
    ),
    ChainedEvent(
        6,
        "incident-1",
        "Acknowledged",
        '{"assignment_id":"assign-26f7667f72c6f9b75208","at_ms":33000,"by":"spiffe://npa/desk/a"}',
        "7520155d65317721971f5ffafad262a1a4030f33d599aee28dcbd47d51212965",
    ),
]
"""Events that a police leg wrote before events held kinds, threats and clearings: a notice, an offer, an escalation and the answer."""
