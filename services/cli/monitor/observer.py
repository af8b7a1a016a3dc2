"""Observe canaries from outside the mesh: their alerts, and each leg's steps. Offers of canaries are acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import grpc
import grpc.aio

from services.cli.calls import RETRY, may_succeed_later
from services.cli.failure import of_rpc
from services.cli.monitor.series import WATCH, CanarySeries, OpenAssignment
from services.cli.stack.mesh import Clients
from services.common.messaging import flow
from services.common.observability.telemetry import logger
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.geofence.v1 import geofence_pb2

State = dispatch_pb2.AssignmentState
_UNANSWERED = (State.OFFERED, State.ESCALATED)
_OVER = (State.STOOD_DOWN, State.CLOSED)


class CanaryObserver:
    """Notes the progress of a series of canaries through the chain."""

    def __init__(self, clients: Clients, series: CanarySeries) -> None:
        self._clients, self._series = clients, series
        self._identity = clients.identity(WATCH)
        self._seen: dict[str, int] = {}
        """Sequence of the last step that was seen of each leg, so that a reopened stream loses no stand-down."""

    async def run(self) -> None:
        """Follows the alerts and all legs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_keep_following(self._follow_alerts, "alerts"))
            for leg in flow.LEGS:
                tasks.create_task(_keep_following(partial(self._follow_leg, leg), leg))

    async def _follow_alerts(self) -> None:
        request = geofence_pb2.WatchAlertsRequest(new_only=True)
        stream = self._clients.geofence.WatchAlerts(request, metadata=self._identity)
        async for message in stream:
            latest = self._series.latest_of([message.alert.order_id])
            if latest is not None and message.alert.demand == geometry_pb2.Demand.RESPOND:
                latest.decided = True

    async def _follow_leg(self, leg: str) -> None:
        # The first subscription needs no earlier steps: the leg repeats unanswered offers.
        after = self._seen.get(leg, 0)
        request = dispatch_pb2.SubscribeRequest(
            after_sequence=after, new_only=not after, others=leg in flow.AGENCY_LEGS
        )
        stream = self._clients.dispatch[leg].Subscribe(request, metadata=self._identity)
        try:
            async for message in stream:
                if message.HasField("other"):
                    self._note_other(leg, message.other)
                else:
                    self._seen[leg] = max(self._seen.get(leg, 0), message.sequence)
                    await self._note(leg, message.step.assignment)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                # The leg has lost its database with all open assignments.
                self._seen.pop(leg, None)
                for id_ in [id_ for id_, assignment in self._series.open.items() if assignment.leg == leg]:
                    del self._series.open[id_]
            raise

    def _note_other(self, leg: str, assignment: dispatch_pb2.Assignment) -> None:
        latest = self._series.latest_of(assignment.order_ids)
        if latest is not None and assignment.leg != alert_pb2.WARNING and assignment.state not in _OVER:
            latest.notified.add(leg)

    async def _note(self, leg: str, assignment: dispatch_pb2.Assignment) -> None:
        series = self._series
        slot = series.slot_of(assignment.order_ids)
        if slot is None:
            return
        latest = series.state.latest_of(slot)
        if assignment.state in _OVER:
            series.open.pop(assignment.assignment_id, None)
            if latest is not None and leg in latest.accepted:
                latest.stood_down.add(leg)
            return
        if assignment.state == State.NOTIFIED:
            return
        series.open[assignment.assignment_id] = OpenAssignment(leg, slot)
        if latest is not None:
            latest.offered.add(leg)
        accepted = assignment.state not in _UNANSWERED or await self._acknowledge(leg, assignment.assignment_id)
        if latest is not None and accepted:
            latest.accepted.add(leg)

    async def _acknowledge(self, leg: str, assignment_id: str) -> bool:
        request = dispatch_pb2.AcknowledgeRequest(assignment_id=assignment_id)
        try:
            await self._clients.dispatch[leg].Acknowledge(request, timeout=5.0, metadata=self._identity)
        except grpc.aio.AioRpcError as error:
            logger().warning("canary_not_accepted", leg=leg, reason=of_rpc(error).message)
            return False
        return True


async def _keep_following(work: Callable[[], Awaitable[None]], what: str) -> None:
    """Follows a stream until cancelled, and reopens it whenever it breaks: the watch must outlast the mesh's failures."""
    failures = 0
    while True:
        began_s = time.monotonic()
        try:
            await work()
        except grpc.aio.AioRpcError as error:
            if not may_succeed_later(error):
                logger().error("stream_refused", stream=what, reason=of_rpc(error).message)
        failures = 0 if time.monotonic() - began_s > RETRY.last_s else failures + 1
        await asyncio.sleep(RETRY.delay_s(failures))
