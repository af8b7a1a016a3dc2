"""gRPC service of handovers: the shifts of a leg's desk write and acknowledge them, and reviewers read them."""

from __future__ import annotations

from typing import Any

import grpc.aio
import sqlalchemy as sa

from services.common import fields
from services.common.clock import MeshClock
from services.common.rpc import server
from services.common.rpc.errors import NotFound
from services.common.rpc.identity import Role
from services.dispatch.handover import domain, store, translate
from services.dispatch.handover.domain import ShiftHandover
from services.dispatch.leg.api import admit
from services.dispatch.leg.service import LegService
from tandem.dispatch.v1 import handover_pb2, handover_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
USUAL_PAGE, MAX_PAGE = 20, 100


class HandoverApi(handover_pb2_grpc.HandoverServiceServicer):
    """HandoverService of one leg."""

    def __init__(self, leg: LegService, clock: MeshClock) -> None:
        self._leg, self._clock = leg, clock

    async def WriteHandover(
        self, request: handover_pb2.WriteHandoverRequest, context: Context
    ) -> handover_pb2.WriteHandoverResponse:
        """Stores a handover with the incidents that are open now."""
        admit(self._leg.name)
        by, now_ms = server.caller().spiffe_id, self._clock.now_ms()
        translate.written(request, by, now_ms)  # an invalid request needs no transaction

        def work(connection: sa.Connection) -> ShiftHandover:
            known = store.handover(connection, request.handover_id)
            written = translate.written(
                request, by, now_ms, open_incident_ids=store.open_incident_ids(connection) if known is None else ()
            )
            if not domain.decide_write(known, written) and known is not None:
                return known
            store.append(connection, written)
            return ShiftHandover(written)

        return handover_pb2.WriteHandoverResponse(handover=translate.message(await self._leg.store.transaction(work)))

    async def AcknowledgeHandover(
        self, request: handover_pb2.AcknowledgeHandoverRequest, context: Context
    ) -> handover_pb2.AcknowledgeHandoverResponse:
        """Stores that the next shift has acknowledged a handover."""
        admit(self._leg.name)
        acknowledged = translate.acknowledged(request, server.caller().spiffe_id, self._clock.now_ms())

        def work(connection: sa.Connection) -> ShiftHandover:
            known = store.handover(connection, acknowledged.handover_id)
            if known is None:
                raise NotFound(f"no handover {acknowledged.handover_id} in the {self._leg.name} leg")
            if not domain.decide_acknowledge(known, acknowledged):
                return known
            store.append(connection, acknowledged)
            return ShiftHandover(known.written, acknowledged)

        stored = await self._leg.store.transaction(work)
        return handover_pb2.AcknowledgeHandoverResponse(handover=translate.message(stored))

    async def ListHandovers(
        self, request: handover_pb2.ListHandoversRequest, context: Context
    ) -> handover_pb2.ListHandoversResponse:
        """Lists handovers, newest first. The token of a page is the id of its last handover."""
        admit(self._leg.name, Role.ROLE_REVIEWER)
        size = int(fields.number("page_size", request.page_size, 0, greatest=MAX_PAGE)) or USUAL_PAGE
        if request.page_token:
            fields.required_id("page_token", request.page_token)
        found = await self._leg.store.reading_history(
            lambda connection: store.newest(connection, size + 1, request.page_token)
        )
        return handover_pb2.ListHandoversResponse(
            handovers=map(translate.message, found[:size]),
            next_page_token=found[size - 1].written.handover_id if len(found) > size else "",
        )
