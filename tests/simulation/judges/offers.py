"""The judge of offers to units: at most one unit has an assignment, and each offer to one ends (I6)."""

from __future__ import annotations

from tandem.dispatch.v1 import dispatch_pb2
from tests.simulation.judges.judge import SETTLED_S, Judge

ENDS_WITHIN_S = 10.0
"""Maximum time without faults from the moment until which an offer is open until the desk sees that it has ended, seconds."""
State = dispatch_pb2.AssignmentState
ACCEPTED = (State.ACKNOWLEDGED, State.DISPATCHED, State.EN_ROUTE, State.ON_SCENE, State.APPREHENDED)
GOING = ACCEPTED[1:]
WAITING = (State.OFFERED, State.ESCALATED)


class OffersJudge(Judge):
    """I6: as the desks see it, at most one unit has an assignment, no offer is open while somebody goes, and each offer ends.

    Nothing is DISPATCHED by a leg with a roster unless a unit accepted or an officer entered one by radio.
    """

    name = "I6"

    def each_second(self) -> None:
        for desk in self.case.desks.values():
            machine = self.case.mesh.processes[f"desk-{desk.leg}"]
            calm_s = min(self.case.faults.calm_s, self.world.elapsed_s - machine.started_s) - SETTLED_S
            for assignment in desk.assignments.values():
                if assignment.unit_offers:
                    self._check(assignment)
                if machine.is_up and calm_s > ENDS_WITHIN_S:
                    self._check_ends(assignment)

    def _check(self, assignment: dispatch_pb2.Assignment) -> None:
        open_, accepted = (
            _open(assignment),
            [o for o in assignment.unit_offers if o.state == dispatch_pb2.UNIT_ACCEPTED],
        )
        unit_id = assignment.choice.unit_id if assignment.state in ACCEPTED else ""
        if len(accepted) > 1 or (unit_id and [offer.choice.unit_id for offer in accepted] != [unit_id]):
            self.fail(
                f"{assignment.assignment_id} is {unit_id or 'nobody'}'s, and {len(accepted)} units have accepted it"
            )
        somebody_goes = bool(unit_id or assignment.radio_unit)
        if open_ and (somebody_goes or assignment.state not in (*ACCEPTED, *WAITING)):
            name = State.Name(assignment.state)
            self.fail(f"{assignment.assignment_id} is {name}, and {len(open_)} units may still accept it")
        if assignment.state in GOING and not somebody_goes:
            self.fail(f"{assignment.assignment_id} is {State.Name(assignment.state)}, and nobody was sent")

    def _check_ends(self, assignment: dispatch_pb2.Assignment) -> None:
        for offer in _open(assignment):
            over_s = self.world.now_ns / 1e9 - offer.open_until.ToMilliseconds() / 1000
            if over_s > ENDS_WITHIN_S:
                self.fail(
                    f"the offer of {assignment.assignment_id} to {offer.choice.unit_id} should have ended {over_s:.0f} s ago"
                )


def _open(assignment: dispatch_pb2.Assignment) -> list[dispatch_pb2.UnitOffer]:
    return [offer for offer in assignment.unit_offers if offer.state == dispatch_pb2.UNIT_ASKED]
