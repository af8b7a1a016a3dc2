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


OFFERED_WITHIN_S = 10.0
"""Maximum time without faults from an alert that demands a response until somebody is asked, and from an offer until the desk has
it, seconds."""
SHOWN_WITHIN_S = 30.0
"""Maximum time without faults until a warning shows on a device with network, seconds."""
MAX_WAIT_S = 300.0
"""Time after which a warning has expired, seconds."""
REPUBLISHED_WITHIN_S = 120.0
"""Maximum time until steps that INCIDENTS has lost are published once more, seconds."""


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
        self._unasked: dict[Target, Demanded] = {}
        """Demands after which no step of the destination was ever stored, not even after the incident's end."""
        self._stored: dict[int, str] = {}
        self._published: set[str] = set()
        self._lost: dict[str, float] = {}
        """Steps that INCIDENTS has lost, and when, seconds."""
        self._accepted: set[str] = set()
        """Assignments that somebody has acknowledged."""

    def torn(self, stream: str, first_lost: int) -> None:
        if stream == flow.INCIDENTS.name:
            for sequence in [sequence for sequence in self._stored if sequence >= first_lost]:
                self._lost[self._stored.pop(sequence)] = self.world.elapsed_s

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.ALERTS.name:
            alert = alert_pb2.Alert.FromString(message.data)
            if alert.demand >= geometry_pb2.RESPOND and not alert.incident_ends:
                for destination in alert.destinations:
                    if destination.leg in (alert_pb2.PROBATION, alert_pb2.POLICE):
                        target = Target(alert.incident_id, destination.leg, destination.subject_id)
                        known = self.steps.get(target)
                        if known is None:
                            self._unasked.setdefault(target, Demanded(alert.alert_id, self.world.elapsed_s))
                        if known is None or known.state not in UNDER_WAY:
                            self._demanded.setdefault(target, Demanded(alert.alert_id, self.world.elapsed_s))
            if alert.incident_ends:
                self._ended.add(alert.incident_id)
        elif stream == flow.INCIDENTS.name:
            step = dispatch_pb2.Step.FromString(message.data)
            self._stored[message.sequence] = step.step_id
            self._published.add(step.step_id)
            self._lost.pop(step.step_id, None)
            self._note(step)

    def _note(self, step: dispatch_pb2.Step) -> None:
        assignment = step.assignment
        target = Target(assignment.incident_id, assignment.leg, assignment.subject_id)
        self._unasked.pop(target, None)
        if assignment.state == State.ACKNOWLEDGED:
            self._accepted.add(assignment.assignment_id)
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
        if calm_s > SETTLED_S + OFFERED_WITHIN_S:
            self._check_offers(now_s)
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

    def _check_offers(self, now_s: float) -> None:
        for target, demanded in self._unasked.items():
            if now_s - demanded.since_s > OFFERED_WITHIN_S:
                leg = alert_pb2.Leg.Name(target.leg)
                self.fail(
                    f"{demanded.alert_id} demands a response, and after {now_s - demanded.since_s:.0f} s the {leg} leg has "
                    f"asked nobody for {target.subject_id}"
                )
                return
        for target, steps in self.steps.items():
            desk = self.case.desks.get(alert_pb2.Leg.Name(target.leg).lower())
            if desk is None or steps.state not in (State.OFFERED, State.ESCALATED):
                continue
            machine = self.case.mesh.processes[f"desk-{desk.leg}"]
            waits_s = now_s - max(steps.last_s, machine.started_s + SETTLED_S)
            if machine.is_up and waits_s > OFFERED_WITHIN_S and steps.assignment_id not in desk.assignments:
                self.fail(f"I6: the desk of {desk.leg} hasn't got {steps.assignment_id} after {waits_s:.0f} s")
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
        self._shown = 0
        self._unshown: dict[str, tuple[str, float]] = {}
        """Device and time of each warning that hasn't shown on its device, by the warning's id, seconds."""

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
            self._unshown[command.instruction.show_notice.warning_id] = (command.device_id, self.world.elapsed_s)
            person_id = command.device_id.replace("phone-", "person-")
            self._flagged.add((command.reference, person_id))
            self._waiting.pop((command.reference, person_id), None)
        elif stream == flow.INCIDENTS.name:
            assignment = dispatch_pb2.Step.FromString(message.data).assignment
            if assignment.HasField("person_flag"):
                self._flagged.add((assignment.incident_id, assignment.subject_id))
                self._waiting.pop((assignment.incident_id, assignment.subject_id), None)

    def _check_devices(self, now_s: float) -> None:
        """Fails if a device that was heard since a warning doesn't show it."""
        for notice in self.case.head_end.notices[self._shown :]:
            self._unshown.pop(notice.warning_id, None)
        self._shown = len(self.case.head_end.notices)
        head_end = self.case.mesh.processes["head-end"]
        if not head_end.is_up or min(self.case.faults.calm_s, now_s - head_end.started_s) < SETTLED_S + SHOWN_WITHIN_S:
            return
        for warning_id, (device_id, since_s) in list(self._unshown.items()):
            device = self.case.town.devices.get(device_id)
            if device is None:
                self.fail(f"warning {warning_id} went to {device_id}, which nobody has")
                return
            if now_s - since_s > MAX_WAIT_S or any(map(device.is_offline, (now_s, since_s))) or device.is_dead(now_s):
                del self._unshown[warning_id]  # nothing is promised about a device without network
            elif any(since_s < heard_s < now_s - SHOWN_WITHIN_S for heard_s in self.case.head_end.heard_s(device_id)):
                self.fail(f"warning {warning_id} doesn't show on {device_id}, which was heard since")
                return

    def each_second(self) -> None:
        calm_s, now_s = self.case.faults.calm_s, self.world.elapsed_s
        self._check_devices(now_s)
        for key, since_s in self._waiting.items():
            if now_s - since_s > WARNED_WITHIN_S and calm_s > SETTLED_S + WARNED_WITHIN_S:
                self.fail(
                    f"{key[1]} wasn't warned in {key[0]} within {now_s - since_s:.0f} s, and the police weren't told"
                )
                return
