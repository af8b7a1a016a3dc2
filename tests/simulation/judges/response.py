"""The judge of the response: both legs answer or escalate (I3), each assignment exists once (I4), and ends with its incident (I6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, geometry_pb2, notice_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.simulation.jetstream.stream import Stored
from tests.simulation.judges.judge import SETTLED_S, Case, Judge

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
    State.NOBODY_AVAILABLE,
)
UNDER_WAY = (
    State.ACKNOWLEDGED,
    State.DISPATCHED,
    State.EN_ROUTE,
    State.ON_SCENE,
    State.APPREHENDED,
    State.ESCALATED,
    State.NOBODY_AVAILABLE,
    State.CLOSED,
)
"""States in which no new offer is due: people are on their way or are asked already, or the desk has closed the assignment and no
threat was over since."""
ACKNOWLEDGE_WITHIN_S = 30.0
"""The desks' deadline, as the legs are set, seconds."""
SLACK_S = 5.0
"""Time of the way from an alert to a stored step, seconds."""
OFFERED_WITHIN_S = 10.0
"""Maximum time without faults from an alert that demands a response until somebody is asked, and from an offer until the desk has
it, seconds."""
STOOD_DOWN_WITHIN_S = 15.0
"""Maximum time without faults from the end of an incident until all its assignments are over, seconds."""
OTHER_LEG_WITHIN_S = 10.0
"""Time after which a leg says that another leg shows no step, as the legs are set, seconds."""
REPUBLISHED_WITHIN_S = 120.0
"""Maximum time until steps that INCIDENTS has lost are published once more, seconds."""


OVER = (State.STOOD_DOWN, State.CLOSED)
DEMANDED_LEGS = {
    alert_pb2.PROBATION: geometry_pb2.RESPOND,
    alert_pb2.POLICE: geometry_pb2.RESPOND,
    alert_pb2.WARNING: geometry_pb2.WARN,
}
"""Least demand for which each leg makes an assignment that somebody must accept."""
DESK_LEGS = (alert_pb2.PROBATION, alert_pb2.POLICE)


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
    sequence: int
    """Sequence of the alert in ALERTS."""


@dataclass(slots=True)
class Steps:
    """The steps of one assignment."""

    assignment_id: str
    state: State.ValueType = State.ASSIGNMENT_STATE_UNSPECIFIED
    number: int = 0
    last_s: float = 0.0
    flags: set[int] = field(default_factory=set)


class ResponseJudge(Judge):
    """I3, I4 and I6 of assignments.

    An alert that the server loses is published once more, unless the log has lost its entry too. Then it demands nothing (seed 2105).
    An alert whose entry the log has lost stays in ALERTS, and at the legs. Nothing in the log ends its threat, so the desk closes the
    assignment (seed 2926).
    """

    name = "I3"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.steps: dict[Target, Steps] = {}
        self._demanded: dict[Target, Demanded] = {}
        self._ended: dict[str, float] = {}
        """Incidents that have ended, and when, seconds."""
        self._entry: dict[str, int] = {}
        """Sequence of the last entry of the log that led to an alert, by incident."""
        self._unfounded: set[str] = set()
        """Incidents with an alert whose entry the log has lost."""
        self._shown_s: dict[tuple[str, alert_pb2.Leg.ValueType], float] = {}
        """When INCIDENTS got the first step of each leg in each incident, seconds."""
        self._unasked: dict[Target, Demanded] = {}
        """Demands after which no step of the destination was ever stored, not even after the incident's end."""
        self._stored: dict[int, str] = {}
        self._published: set[str] = set()
        self._lost: dict[str, float] = {}
        """Steps that INCIDENTS has lost, and when, seconds."""
        self._accepted: set[str] = set()
        """Assignments that somebody has acknowledged."""
        self._alerts: set[str] = set()
        """Alerts that ALERTS has stored. A lost one is stored once more, which demands nothing of who was asked before."""
        self._open: dict[Target, Steps] = {}
        """The steps of the assignments that aren't over."""

    def torn(self, stream: str, first_lost: int) -> None:
        if stream == flow.INCIDENTS.name:
            for sequence in [sequence for sequence in self._stored if sequence >= first_lost]:
                self._lost[self._stored.pop(sequence)] = self.world.elapsed_s
            self._shown_s.clear()
        if stream == flow.ALERTS.name:
            self._demanded = _before(first_lost, self._demanded)
            self._unasked = _before(first_lost, self._unasked)
        if stream == flow.log_stream(0):
            self._ended.clear()  # the fold may decide differently without the lost entries
            self._unfounded |= {id_ for id_, sequence in self._entry.items() if sequence >= first_lost}

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.ALERTS.name:
            self._note_alert(alert_pb2.Alert.FromString(message.data), message.sequence)
        elif stream == flow.INCIDENTS.name:
            step = dispatch_pb2.Step.FromString(message.data)
            self._stored[message.sequence] = step.step_id
            self._published.add(step.step_id)
            self._lost.pop(step.step_id, None)
            if step.assignment.state == State.ACKNOWLEDGED:
                self._accepted.add(step.assignment.assignment_id)
            if step.assignment.task == notice_pb2.TASK_UNSPECIFIED:
                self._note(step)

    def _note_alert(self, alert: alert_pb2.Alert, sequence: int) -> None:
        if alert.incident_ends:
            self._ended.setdefault(alert.incident_id, self.world.elapsed_s)
            return
        self._entry[alert.incident_id] = max(alert.sequence, self._entry.get(alert.incident_id, 0))
        is_repeated = alert.alert_id in self._alerts
        self._alerts.add(alert.alert_id)
        for destination in alert.destinations:
            if alert.demand < DEMANDED_LEGS[destination.leg]:
                continue
            target = Target(alert.incident_id, destination.leg, destination.subject_id)
            demanded = Demanded(alert.alert_id, self.world.elapsed_s, sequence)
            known = self.steps.get(target)
            if known is None:
                self._unasked.setdefault(target, demanded)
            if destination.leg in DESK_LEGS and (known is None or not (is_repeated or known.state in UNDER_WAY)):
                self._demanded.setdefault(target, demanded)

    def _note(self, step: dispatch_pb2.Step) -> None:
        assignment = step.assignment
        target = Target(assignment.incident_id, assignment.leg, assignment.subject_id)
        self._unasked.pop(target, None)
        self._shown_s.setdefault((assignment.incident_id, assignment.leg), self.world.elapsed_s)
        self._check_absence(assignment)
        known = self.steps.setdefault(target, Steps(assignment.assignment_id))
        if known.assignment_id != assignment.assignment_id:
            self.fail(f"I4: {target} has two assignments: {known.assignment_id} and {assignment.assignment_id}")
        if assignment.HasField("person_flag"):
            known.flags.add(assignment.person_flag.flag)
        if step.number >= known.number:
            known.number = step.number
            known.state = assignment.state
            known.last_s = self.world.elapsed_s
            self._open[target] = known
            if known.state in OVER:
                del self._open[target]
        if assignment.state in ANSWERED:
            self._demanded.pop(target, None)

    def _check_absence(self, assignment: dispatch_pb2.Assignment) -> None:
        """Fails if a leg says that another one shows no step, although that one has shown one long ago."""
        for leg in assignment.absent_legs:
            shown_s = self.world.elapsed_s - self._shown_s.get((assignment.incident_id, leg), self.world.elapsed_s)
            if min(shown_s, self.case.faults.calm_s - SETTLED_S) > OTHER_LEG_WITHIN_S:
                name = alert_pb2.Leg.Name
                self.fail(
                    f"I6: {name(assignment.leg)} says that {name(leg)} shows no step in {assignment.incident_id}, which it did "
                    f"{shown_s:.0f} s ago"
                )

    def each_second(self) -> None:
        calm_s, now_s = self.case.faults.calm_s, self.world.elapsed_s
        if calm_s < SETTLED_S:
            return
        if calm_s > SETTLED_S + SLACK_S:
            self._check_deadlines(now_s)
        if calm_s > SETTLED_S + OFFERED_WITHIN_S:
            self._check_offers(now_s)
            self._check_ends(now_s)
        for target, demanded in self._demanded.items():
            if target.incident_id in self._ended:
                continue  # nobody has to answer any more; that somebody was asked is checked by itself
            waits_s = now_s - demanded.since_s
            if waits_s > ACKNOWLEDGE_WITHIN_S + SLACK_S and calm_s > SETTLED_S + ACKNOWLEDGE_WITHIN_S + SLACK_S:
                leg = alert_pb2.Leg.Name(target.leg)
                self.fail(
                    f"{demanded.alert_id} demands a response, and after {waits_s:.0f} s the {leg} leg has neither an answer nor an "
                    f"escalation for {target.subject_id}: {self.steps.get(target)}"
                )
                return

    def _check_deadlines(self, now_s: float) -> None:
        """Fails if the deadline of an offer has passed without an answer or an escalation, also if a fault came after the offer."""
        for target, steps in self._open.items():
            is_asked = (
                steps.state == State.OFFERED and target.leg in DESK_LEGS and target.incident_id not in self._ended
            )
            if is_asked and now_s - steps.last_s > ACKNOWLEDGE_WITHIN_S + SLACK_S:
                self.fail(
                    f"the offer {steps.assignment_id} to {target} has had neither an answer nor an escalation for "
                    f"{now_s - steps.last_s:.0f} s"
                )
                return

    def _check_offers(self, now_s: float) -> None:
        for target, demanded in self._unasked.items():
            if now_s - demanded.since_s > OFFERED_WITHIN_S:
                leg = alert_pb2.Leg.Name(target.leg)
                self.fail(
                    f"{demanded.alert_id} demands a response, and after {now_s - demanded.since_s:.0f} s the {leg} leg has "
                    f"asked nobody for {target.subject_id}"
                )
                return
        for target, steps in self._open.items():
            if steps.state not in (State.OFFERED, State.ESCALATED) or target.leg not in DESK_LEGS:
                continue
            desk = self.case.desks[alert_pb2.Leg.Name(target.leg).lower()]
            machine = self.case.mesh.processes[f"desk-{desk.leg}"]
            waits_s = now_s - max(steps.last_s, machine.started_s + SETTLED_S)
            if machine.is_up and waits_s > OFFERED_WITHIN_S and steps.assignment_id not in desk.assignments:
                self.fail(f"I6: the desk of {desk.leg} hasn't got {steps.assignment_id} after {waits_s:.0f} s")
                return

    def _check_ends(self, now_s: float) -> None:
        for target, steps in self._open.items():
            if target.incident_id in self._unfounded:
                continue
            ended_s = self._ended.get(target.incident_id, now_s)
            if now_s - max(ended_s, steps.last_s) > STOOD_DOWN_WITHIN_S:
                self.fail(
                    f"I6: {target} is {State.Name(steps.state)}, {now_s - ended_s:.0f} s after its incident has ended"
                )
                return

    def finish(self) -> None:
        now_s = self.world.elapsed_s
        for step_id, since_s in self._lost.items():
            if now_s - since_s > REPUBLISHED_WITHIN_S:
                self.fail(f"I6: INCIDENTS has lost step {step_id}, and it wasn't published once more")
        for desk in self.case.desks.values():
            for step_id, since_s in desk.received.items():
                if now_s - since_s > REPUBLISHED_WITHIN_S and step_id not in self._published:
                    self.fail(f"I6: the desk of {desk.leg} has got step {step_id}, which INCIDENTS never had")
                    return
            for assignment_id, since_s in desk.acknowledged.items():
                if now_s - since_s > SETTLED_S and assignment_id not in self._accepted:
                    self.fail(f"I6: {desk.leg} has acknowledged {assignment_id}, and no step says so")


def _before(first_lost: int, demanded: dict[Target, Demanded]) -> dict[Target, Demanded]:
    """The demands of alerts that ALERTS hasn't lost."""
    return {target: demand for target, demand in demanded.items() if demand.sequence < first_lost}
