"""gRPC service of an order's burden: what each leg sent because of the order, for what, and how it ended.

The incidents of an order and this leg's steps are read from the leg's database. The steps are the only record of units sent earlier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from services.common import fields, times
from services.common.rpc.identity import Role
from services.dispatch.leg import tables
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.service import LegService
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2, order_burden_pb2, order_burden_pb2_grpc

MAX_INCIDENTS = 500


class OrderBurdenApi(order_burden_pb2_grpc.OrderBurdenServiceServicer):
    """OrderBurdenService of one leg."""

    def __init__(self, leg: LegService) -> None:
        self._leg = leg

    async def ListOrderIncidents(
        self, request: order_burden_pb2.ListOrderIncidentsRequest, context: Context
    ) -> order_burden_pb2.ListOrderIncidentsResponse:
        """Lists the incidents of an order, newest first, at most MAX_INCIDENTS."""
        admit(self._leg.name, Role.ROLE_REVIEWER)
        order_id = fields.required_id("order_id", request.order_id)
        from_ms = fields.moment("opened_from", request.opened_from, True) if request.HasField("opened_from") else 0
        found = await self._leg.store.reading_history(
            lambda connection: incidents_of(connection, order_id, from_ms, limit=MAX_INCIDENTS + 1)
        )
        return order_burden_pb2.ListOrderIncidentsResponse(
            incidents=map(_incident, found[:MAX_INCIDENTS]), incomplete=len(found) > MAX_INCIDENTS
        )


def _incident(found: IncidentOfOrder) -> order_burden_pb2.OrderIncident:
    incident = order_burden_pb2.OrderIncident(
        incident_id=found.incident_id,
        opened_at=times.to_timestamp(found.opened_ms),
        exercise=exercise_pb2.Exercise.ValueType(found.exercise),
        tasks=[
            *(_own(assignment, found.counts[assignment.assignment_id]) for assignment in found.own),
            *map(_other, found.others),
        ],
    )
    if found.ended_ms is not None:
        incident.ended_at.CopyFrom(times.to_timestamp(found.ended_ms))
    return incident


def _own(assignment: dispatch_pb2.Assignment, counts: TaskCounts) -> order_burden_pb2.OrderTask:
    task = _other(assignment)
    task.kind = assignment.kind
    task.notices, task.offers = counts.notices, len(counts.offers)
    task.dispatches = len(counts.sent)
    task.by_radio = counts.by_radio
    task.arrivals = counts.arrivals
    return task


def _other(assignment: dispatch_pb2.Assignment) -> order_burden_pb2.OrderTask:
    return order_burden_pb2.OrderTask(
        leg=assignment.leg,
        demand=assignment.demand,
        state=assignment.state,
        offers=int(assignment.HasField("offered_at")),
        close_cause=assignment.close_cause,
    )


_BATCH = 200
_WAITING = (dispatch_pb2.OFFERED, dispatch_pb2.ESCALATED)
_WITH_UNIT = (
    dispatch_pb2.ACKNOWLEDGED,
    dispatch_pb2.DISPATCHED,
    dispatch_pb2.EN_ROUTE,
    dispatch_pb2.ON_SCENE,
    dispatch_pb2.APPREHENDED,
)
"""States in which a unit may have an assignment."""
_RADIO = "radio "
_HAS_ORDER = {
    "sqlite": sa.text("EXISTS (SELECT 1 FROM json_each(incidents.order_ids) WHERE json_each.value = :order_id)"),
    "postgresql": sa.text("CAST(incidents.order_ids AS jsonb) @> to_jsonb(CAST(:order_id AS text))"),
}
"""Condition that an incident concerns an order, by SQL dialect."""


@dataclass(slots=True)
class TaskCounts:
    """What became of one assignment, counted over its steps. A step beside its progress, such as a note, counts nothing."""

    notices: int = 0
    offers: set[int] = field(default_factory=set)
    """Numbers of the offers to units and desks."""
    sent: set[tuple[str, int]] = field(default_factory=set)
    """Units that were sent, each with the number of its offer: of the roster, by radio, or as the agency's own system reported."""
    arrivals: int = 0
    _state: int = dispatch_pb2.ASSIGNMENT_STATE_UNSPECIFIED
    """State after the last step."""

    @property
    def by_radio(self) -> int:
        """Number of units that were sent by radio."""
        return sum(whose.startswith(_RADIO) for whose, _ in self.sent)

    def add(self, assignment: dispatch_pb2.Assignment) -> None:
        """Counts the next step of the assignment."""
        state = assignment.state
        before = self._state
        self._state = assignment.state
        self.notices += state == dispatch_pb2.NOTIFIED != before
        self.arrivals += state == dispatch_pb2.ON_SCENE != before
        if state in _WAITING:
            self.offers.add(assignment.offer_number)
        self.offers.update(offer.offer_number for offer in assignment.unit_offers)
        if state in _WITH_UNIT and (state != dispatch_pb2.ACKNOWLEDGED or assignment.choice.unit_id):
            radio = f"{_RADIO}{assignment.radio_unit}" if assignment.radio_unit else ""
            self.sent.add((radio or assignment.choice.unit_id, 0 if radio else assignment.offer_number))


@dataclass(frozen=True, slots=True)
class IncidentOfOrder:
    """An incident of an order, with the tasks of all legs as last known."""

    incident_id: str
    opened_ms: int
    ended_ms: int | None
    exercise: int
    own: list[dispatch_pb2.Assignment] = field(default_factory=list)
    others: list[dispatch_pb2.Assignment] = field(default_factory=list)
    counts: dict[str, TaskCounts] = field(default_factory=dict)
    """What this leg's steps say of each of its assignments."""


def incidents_of(connection: sa.Connection, order_id: str, from_ms: int, *, limit: int) -> list[IncidentOfOrder]:
    """Up to `limit` incidents of an order that were opened at `from_ms` or later, newest first. Canaries are left out."""
    incidents = tables.incidents.c
    query = (
        sa.select(incidents.incident_id, incidents.opened_ms, incidents.ended_ms, incidents.exercise)
        .where(sa.text("exercise <> 2"), incidents.opened_ms >= from_ms, _HAS_ORDER[connection.dialect.name])
        .order_by(incidents.opened_sequence.desc())
        .limit(limit)
    )
    found = {
        incident_id: IncidentOfOrder(incident_id, opened_ms, ended_ms, exercise=exercise)
        for incident_id, opened_ms, ended_ms, exercise in connection.execute(query, {"order_id": order_id})
    }
    for ids in _batches(list(found)):
        _add_own(connection, found, ids)
        _add_others(connection, found, ids)
    return list(found.values())


def _add_own(connection: sa.Connection, found: dict[str, IncidentOfOrder], incident_ids: Sequence[str]) -> None:
    assignments = tables.assignments.c
    query = sa.select(assignments.incident_id, assignments.payload).where(assignments.incident_id.in_(incident_ids))
    incident_of: dict[str, IncidentOfOrder] = {}
    for incident_id, payload in connection.execute(query.order_by(assignments.assignment_id)):
        assignment = dispatch_pb2.Assignment.FromString(payload)
        incident = incident_of[assignment.assignment_id] = found[incident_id]
        incident.own.append(assignment)
        incident.counts[assignment.assignment_id] = TaskCounts()
    for ids in _batches(list(incident_of)):
        steps = sa.select(tables.steps.c.payload).where(tables.steps.c.assignment_id.in_(ids))
        for (payload,) in connection.execute(steps.order_by(tables.steps.c.sequence)):
            step = dispatch_pb2.Step.FromString(payload).assignment
            incident_of[step.assignment_id].counts[step.assignment_id].add(step)


def _add_others(connection: sa.Connection, found: dict[str, IncidentOfOrder], incident_ids: Sequence[str]) -> None:
    peers = tables.peers.c
    query = sa.select(peers.incident_id, peers.payload).where(peers.incident_id.in_(incident_ids))
    for incident_id, payload in connection.execute(query.order_by(peers.assignment_id)):
        found[incident_id].others.append(dispatch_pb2.Assignment.FromString(payload))


def _batches(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))
