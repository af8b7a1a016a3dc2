"""gRPC service of an order's burden: what each leg sent because of the order, for what, and how it ended."""

from __future__ import annotations

from collections import Counter
from typing import Any

import grpc.aio

from services.common import fields, times
from services.common.rpc.identity import Role
from services.dispatch.burden import store
from services.dispatch.burden.store import IncidentOfOrder
from services.dispatch.leg.api import admit
from services.dispatch.leg.service import LegService
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2, order_burden_pb2, order_burden_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
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
            lambda connection: store.incidents_of(connection, order_id, from_ms, limit=MAX_INCIDENTS + 1)
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


def _own(assignment: dispatch_pb2.Assignment, counts: Counter[int]) -> order_burden_pb2.OrderTask:
    task = _other(assignment)
    task.kind = assignment.kind
    task.notices, task.offers = counts[dispatch_pb2.NOTIFIED], counts[dispatch_pb2.OFFERED]
    task.dispatches, task.arrivals = counts[dispatch_pb2.DISPATCHED], counts[dispatch_pb2.ON_SCENE]
    return task


def _other(assignment: dispatch_pb2.Assignment) -> order_burden_pb2.OrderTask:
    return order_burden_pb2.OrderTask(
        leg=assignment.leg,
        demand=assignment.demand,
        state=assignment.state,
        offers=assignment.offer_number,
        close_cause=assignment.close_cause,
    )
