"""Receipts of offers: they tell a leg that the desk's machine has an offer, before a person answers."""

from __future__ import annotations

import asyncio

import grpc.aio

from services.common.observability.telemetry import logger
from services.console.domain.live_page import LivePage
from services.console.domain.people import Role
from services.console.live.viewers import Viewers
from services.console.mesh import MeshClient
from tandem.dispatch.v1 import dispatch_pb2

CHECK_INTERVAL_S = 0.5
DEADLINE_S = 5.0
_NOT_NEEDED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)
"""Answers to a receipt of an offer that has ended or changed meanwhile."""


class OfferReceipts:
    """Confirms each offer of a page to its leg, once, while a browser views the page."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers) -> None:
        self._mesh, self._role, self._page, self._viewers = mesh, role, page, viewers

    async def run(self) -> None:
        """Confirms offers until cancelled."""
        confirmed: dict[str, int] = {}
        while True:
            waiting = {to.assignment_id: to.offer_number for to in self._page.offers_of(self._role.leg)}
            confirmed = {id_: number for id_, number in confirmed.items() if id_ in waiting}
            if self._viewers:
                for id_, number in waiting.items():
                    if confirmed.get(id_) != number and await self._confirm(id_, number):
                        confirmed[id_] = number
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _confirm(self, assignment_id: str, number: int) -> bool:
        """Confirms an offer. Returns whether the offer is confirmed or needs no receipt any more."""
        request = dispatch_pb2.ReceiveRequest(assignment_id=assignment_id, offer_number=number)
        dispatch = self._mesh.leg_of(self._role).dispatch
        try:
            await dispatch.Receive(request, metadata=self._mesh.own_identity(self._role), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            logger().info("offer_not_received", assignment_id=assignment_id, code=error.code().name)
            return error.code() in _NOT_NEEDED
        return True
