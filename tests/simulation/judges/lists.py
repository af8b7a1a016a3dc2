"""The judge of lists: each open incident with an offer is in the list of its leg (I6)."""

from __future__ import annotations

from services.common.messaging import flow
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.simulation.actors.supervisor import OpenList, Supervisor
from tests.simulation.jetstream.stream import Stored
from tests.simulation.judges.judge import SETTLED_S, Case, Judge

LISTED_WITHIN_S = 30.0
"""Maximum time without faults from the first offer of an incident until lists have it, seconds."""
ANSWERED_WITHIN_S = 90.0
"""Maximum time without faults from one complete list to the next, seconds: the supervisor's pause and some retries."""


class ListJudge(Judge):
    """I6: an incident that the police were offered, and that hasn't ended, is in each list of open incidents of their leg."""

    name = "I6"

    def __init__(self, case: Case, supervisor: Supervisor) -> None:
        super().__init__(case)
        self._supervisor = supervisor
        self._offered_s: dict[str, float] = {}
        """When INCIDENTS got the first offer of each incident to the police, seconds."""
        self._ended: set[str] = set()
        """Incidents that ended once. They are out of the judge's reach, because the server may lose the end that the leg has seen."""
        self._checked: OpenList | None = None

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.ALERTS.name:
            alert = alert_pb2.Alert.FromString(message.data)
            if alert.incident_ends:
                self._ended.add(alert.incident_id)
        elif stream == flow.INCIDENTS.name:
            assignment = dispatch_pb2.Step.FromString(message.data).assignment
            if assignment.leg == alert_pb2.POLICE and assignment.state == dispatch_pb2.AssignmentState.OFFERED:
                self._offered_s.setdefault(assignment.incident_id, self.world.elapsed_s)

    def each_second(self) -> None:
        latest, now_s = self._supervisor.latest, self.world.elapsed_s
        machine = self.case.mesh.processes["supervisor"]
        waits_s = now_s - max(latest.asked_s, machine.started_s)
        calm_s = self.case.faults.calm_s - SETTLED_S
        if machine.is_up and min(waits_s, calm_s) > ANSWERED_WITHIN_S:
            self.fail(f"I7: the police's leg has completed no list of open incidents for {waits_s:.0f} s")
            return
        if latest is self._checked:
            return
        self._checked = latest
        for incident_id, offered_s in self._offered_s.items():
            listed_within_s = min(latest.asked_s - offered_s, calm_s - (now_s - latest.asked_s))
            is_due = listed_within_s > LISTED_WITHIN_S and incident_id not in self._ended
            if is_due and incident_id not in latest.incident_ids:
                self.fail(
                    f"{incident_id} was offered to the police at {offered_s:.0f} s and hasn't ended, and the list of open incidents of "
                    f"{latest.asked_s:.0f} s doesn't have it"
                )
                return
