"""gRPC edge of what happened in an incident, for a protected person's phone. The warning and the police leg serve a part each."""

from __future__ import annotations

from services.common import fields, times
from services.common.rpc.errors import NotFound, PermissionDenied, Unavailable
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.api import Context
from services.dispatch.phones.ended import EndedIncidents
from services.dispatch.phones.state_api import require_police
from services.dispatch.phones.store import PhoneStore
from tandem.dispatch.v1 import afterwards_pb2, afterwards_pb2_grpc


class AfterwardsApi(afterwards_pb2_grpc.AfterwardsServiceServicer):
    """AfterwardsService of one leg."""

    def __init__(self, leg: Leg, phones: PhoneStore) -> None:
        self._leg, self._phones = leg, phones
        self._ended: EndedIncidents | None = None

    def connected(self, ended: EndedIncidents) -> None:
        """Sets the incidents that are over, once the warnings are open."""
        self._ended = ended

    async def ListNotifiedIncidents(
        self, request: afterwards_pb2.ListNotifiedIncidentsRequest, context: Context
    ) -> afterwards_pb2.ListNotifiedIncidentsResponse:
        """Lists the incidents whose end a device was notified of."""
        if not self._leg.policy.warns_persons:
            raise PermissionDenied(f"the {self._leg} leg warns nobody")
        device_id = fields.required_id("device_id", request.device_id)
        if self._ended is None:
            raise Unavailable("the warnings are being opened")
        return afterwards_pb2.ListNotifiedIncidentsResponse(
            incidents=[
                afterwards_pb2.NotifiedIncident(
                    incident_id=notified.incident_id, order_id=notified.order_id, person_id=notified.person_id
                )
                for notified in await self._ended.of_device(device_id)
            ]
        )

    async def ReadSummary(
        self, request: afterwards_pb2.ReadSummaryRequest, context: Context
    ) -> afterwards_pb2.ReadSummaryResponse:
        """Says what the police did for a person in an incident."""
        require_police(self._leg)
        incident_id = fields.required_id("incident_id", request.incident_id)
        order_id = fields.required_id("order_id", request.order_id)
        person_id = fields.required_id("person_id", request.person_id)
        found = await self._phones.summary(incident_id, person_id=person_id, order_id=order_id)
        if found is None:
            raise NotFound("incident_id: there is no summary of this incident for this person")
        answer = afterwards_pb2.ReadSummaryResponse(
            began_at=times.to_timestamp(found.began_ms), ended_at=times.to_timestamp(found.ended_ms)
        )
        if found.sent_ms is not None:
            answer.sent_at.CopyFrom(times.to_timestamp(found.sent_ms))
        if found.arrived_ms is not None:
            answer.arrived_at.CopyFrom(times.to_timestamp(found.arrived_ms))
        return answer
