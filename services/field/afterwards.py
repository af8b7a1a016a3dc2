"""The route of what happened in incidents that are over, for her app. The app makes two sentences of each, in her language."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from aiohttp import web

from services.common import times
from services.field.guard import PhoneCall, PhoneGuard
from services.field.mesh import WITHIN_S, FieldMesh
from services.field.phones.sessions import PhoneSession
from tandem.dispatch.v1 import afterwards_pb2


class AfterwardsPages:
    """The route of the summaries: of the incidents of which the phone's own device was notified."""

    def __init__(self, guard: PhoneGuard, mesh: FieldMesh) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> Iterable[web.RouteDef]:
        """The route of the summaries."""
        return (self._guard.get("/api/afterwards", self._afterwards),)

    async def _afterwards(self, ask: PhoneCall) -> web.Response:
        listed = await self._mesh.afterwards.at_warning.ListNotifiedIncidents(
            afterwards_pb2.ListNotifiedIncidentsRequest(device_id=ask.session.device_id),
            metadata=self._mesh.to_warning,
            timeout=WITHIN_S,
        )
        found = [await self._summary(notified, ask.session) for notified in listed.incidents]
        return web.json_response({"summaries": [summary for summary in found if summary is not None]})

    async def _summary(self, notified: afterwards_pb2.NotifiedIncident, session: PhoneSession) -> dict[str, Any] | None:
        """The summary of an incident; None if there is none, or if the device was another person's at that time."""
        if notified.person_id != session.person_id:
            return None
        try:
            summary = await self._mesh.afterwards.at_police.ReadSummary(
                afterwards_pb2.ReadSummaryRequest(
                    incident_id=notified.incident_id, order_id=notified.order_id, person_id=notified.person_id
                ),
                metadata=self._mesh.to_police,
                timeout=WITHIN_S,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return {
            "began_ms": times.from_timestamp(summary.began_at),
            "sent_ms": times.from_timestamp(summary.sent_at) if summary.HasField("sent_at") else None,
            "arrived_ms": times.from_timestamp(summary.arrived_at) if summary.HasField("arrived_at") else None,
            "ended_ms": times.from_timestamp(summary.ended_at),
        }
