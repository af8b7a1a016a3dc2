"""Judges of the response: both legs answer or escalate (I3), each assignment exists once (I4), and she is warned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, command_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.simulation.jetstream.stream import Stored
from tests.simulation.judges.judge import Case, Judge

State = dispatch_pb2.AssignmentState
ANSWERED = (
    State.ACKNOWLEDGED,
    State.DISPATCHED,
    State.EN_ROUTE,
    State.ON_SCENE,
    State.APPREHENDED,
    State.CLOSED,
    State.STOOD_DOWN,
    State.ESCALATED,
)
UNDER_WAY = (
    State.ACKNOWLEDGED,
    State.DISPATCHED,
    State.EN_ROUTE,
    State.ON_SCENE,
    State.APPREHENDED,
    State.ESCALATED,
    State.CLOSED,
)
"""States in which no new offer is due: people are on their way or are asked already, or the desk has closed the assignment and no
threat was over since."""
ACKNOWLEDGE_WITHIN_S = 30.0
"""The desks' deadline, as the legs are set, seconds."""
SLACK_S = 5.0
"""Time of the way from an alert to a stored step, seconds."""
WARNED_WITHIN_S = 10.0
"""Maximum time without faults from an alert that warns her until a message for her is on its way, or the police are told, seconds."""
SETTLED_S = 20.0
"""Calm after a fault before a bound on a delay counts, seconds: a restart, a reconnect and a retry fit into it."""


class Target(NamedTuple):
    """One destination of an incident."""

    incident_id: str
    leg: alert_pb2.Leg.ValueType
    subject_id: str


@dataclass(slots=True)
class Demanded:
    """A destination that an alert has demanded a response for."""

    alert_id: str
    since_s: float


@dataclass(slots=True)
class Steps:
    """The steps of one assignment."""

    assignment_id: str
    state: State.ValueType = State.ASSIGNMENT_STATE_UNSPECIFIED
    number: int = 0
    last_s: float = 0.0
    flags: set[int] = field(default_factory=set)


class ResponseJudge(Judge):
    """I3, I4 and I6 of assignments."""

    name = "I3"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.steps: dict[Target, Steps] = {}
        self._demanded: dict[Target, Demanded] = {}
        self._ended: set[str] = set()

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.ALERTS.name:
            alert = alert_pb2.Alert.FromString(message.data)
            if alert.demand >= geometry_pb2.RESPOND and not alert.incident_ends:
                for destination in alert.destinations:
                    if destination.leg in (alert_pb2.PROBATION, alert_pb2.POLICE):
                        target = Target(alert.incident_id, destination.leg, destination.subject_id)
                        known = self.steps.get(target)
                        if known is None or known.state not in UNDER_WAY:
                            self._demanded.setdefault(target, Demanded(alert.alert_id, self.world.elapsed_s))
            if alert.incident_ends:
                self._ended.add(alert.incident_id)
        elif stream == flow.INCIDENTS.name:
            self._note(dispatch_pb2.Step.FromString(message.data))

    def _note(self, step: dispatch_pb2.Step) -> None:
        assignment = step.assignment
        target = Target(assignment.incident_id, assignment.leg, assignment.subject_id)
        known = self.steps.setdefault(target, Steps(assignment.assignment_id))
        if known.assignment_id != assignment.assignment_id:
            self.fail(f"I4: {target} has two assignments: {known.assignment_id} and {assignment.assignment_id}")
        if assignment.HasField("person_flag"):
            known.flags.add(assignment.person_flag.flag)
        if step.number >= known.number:
            known.number, known.state, known.last_s = step.number, assignment.state, self.world.elapsed_s
        if assignment.state in ANSWERED:
            self._demanded.pop(target, None)

    def each_second(self) -> None:
        calm_s, now_s = self.case.faults.calm_s, self.world.elapsed_s
        if calm_s < SETTLED_S:
            return
        for target, demanded in self._demanded.items():
            if target.incident_id in self._ended and target not in self.steps:
                continue  # it ended before anybody was asked
            waits_s = now_s - demanded.since_s
            if waits_s > ACKNOWLEDGE_WITHIN_S + SLACK_S and calm_s > SETTLED_S + ACKNOWLEDGE_WITHIN_S + SLACK_S:
                leg = alert_pb2.Leg.Name(target.leg)
                self.fail(
                    f"{demanded.alert_id} demands a response, and after {waits_s:.0f} s the {leg} leg has neither an answer nor an "
                    f"escalation for {target.subject_id}: {self.steps.get(target)}"
                )
                return

    def finish(self) -> None:
        for target, steps in self.steps.items():
            if target.incident_id in self._ended and steps.state in (State.OFFERED, State.ESCALATED):
                self.fail(f"I6: {target} stays {State.Name(steps.state)} although its incident has ended")


class WarningJudge(Judge):
    """She is warned within 10 s, or the police are told why not."""

    name = "warned"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._waiting: dict[tuple[str, str], float] = {}
        """When a warning became due, by incident and person, seconds."""
        self._flagged: set[tuple[str, str]] = set()

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.ALERTS.name:
            alert = alert_pb2.Alert.FromString(message.data)
            for destination in alert.destinations:
                key = (alert.incident_id, destination.subject_id)
                if destination.leg == alert_pb2.WARNING and not alert.incident_ends and key not in self._flagged:
                    self._waiting.setdefault(key, self.world.elapsed_s)
            if alert.incident_ends:
                for key in [key for key in self._waiting if key[0] == alert.incident_id]:
                    del self._waiting[key]
        elif stream == flow.COMMANDS.name and message.subject.startswith("command.dispatch-warning."):
            command = command_pb2.Command.FromString(message.data)
            person_id = command.device_id.replace("phone-", "person-")
            self._flagged.add((command.reference, person_id))
            self._waiting.pop((command.reference, person_id), None)
        elif stream == flow.INCIDENTS.name:
            assignment = dispatch_pb2.Step.FromString(message.data).assignment
            if assignment.HasField("person_flag"):
                self._flagged.add((assignment.incident_id, assignment.subject_id))
                self._waiting.pop((assignment.incident_id, assignment.subject_id), None)

    def each_second(self) -> None:
        calm_s, now_s = self.case.faults.calm_s, self.world.elapsed_s
        for key, since_s in self._waiting.items():
            if now_s - since_s > WARNED_WITHIN_S and calm_s > SETTLED_S + WARNED_WITHIN_S:
                self.fail(
                    f"{key[1]} wasn't warned in {key[0]} within {now_s - since_s:.0f} s, and the police weren't told"
                )
                return
