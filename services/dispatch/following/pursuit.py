"""Pursuit: while a unit has to go to the wearer, the tag reports every 15 s. Only probation does this: tags are the Ministry's.

Each command expires on the device after a few minutes, and is renewed before that. So the battery isn't drained if the leg dies, or if
the command that ends the pursuit doesn't reach the device.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import grpc.aio

from services.common import ids
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.retrying import retried
from services.common.rpc import client, server
from services.dispatch.domain.assignment import ACCEPTED, UNANSWERED
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.incident import Incident
from services.dispatch.following.metrics import FollowingMetrics
from services.dispatch.following.targets import CALLERS
from services.dispatch.leg.service import LegService
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

INTERVAL_S = 15
"""Report interval during a pursuit, seconds."""
HOLDS_S = 300
"""Time until a command expires on the device, seconds."""
RENEW_INTERVAL_MS = 120_000
"""Interval at which a command is renewed, milliseconds of mesh time. It is less than half of HOLDS_S, since a command may be lost."""
CHECK_INTERVAL_S = 1.0
_OFTEN = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=INTERVAL_S, for_s=HOLDS_S))
_AS_USUAL = command_pb2.Instruction(report_as_usual=command_pb2.ReportAsUsual())


class _PursuedWearer(NamedTuple):
    """Key of a pursuit."""

    incident_id: str
    wearer_id: str


class Pursuit:
    """Keeps the tags of pursued wearers at the short report interval."""

    def __init__(self, leg: LegService, settings: DispatchSettings, metrics: FollowingMetrics) -> None:
        self._leg, self._settings, self._metrics = leg, settings, metrics
        self._clock: MeshClock = settings.clock
        self._commanded: dict[_PursuedWearer, int] = {}
        """Number of the RENEW_INTERVAL_MS period in which the last command was sent."""

    async def run(self) -> None:
        """Sends commands until cancelled."""
        async with client.connection(self._settings, self._settings.ingest, CALLERS[self._leg.name]) as (
            channel,
            metadata,
        ):
            stub = ingest_pb2_grpc.CommandServiceStub(channel)
            while True:
                await self._command_tags(stub, metadata)
                await asyncio.sleep(CHECK_INTERVAL_S)

    async def _command_tags(self, stub: ingest_pb2_grpc.CommandServiceStub, metadata: server.Metadata) -> None:
        incidents = await retried(self._leg.record.open_incidents)
        pursued = {
            _PursuedWearer(incident.incident_id, incident.wearer_id) for incident in incidents if _is_pursued(incident)
        }
        period = self._clock.now_ms() // RENEW_INTERVAL_MS
        for wearer in pursued:
            request = _request(wearer, _OFTEN, period)
            if self._commanded.get(wearer) != period and await self._command(stub, metadata, request):
                self._commanded[wearer] = period
        for wearer in self._commanded.keys() - pursued:
            if await self._command(stub, metadata, _request(wearer, _AS_USUAL, self._commanded[wearer])):
                del self._commanded[wearer]

    async def _command(
        self,
        stub: ingest_pb2_grpc.CommandServiceStub,
        metadata: server.Metadata,
        request: ingest_pb2.SendCommandRequest,
    ) -> bool:
        """Sends a command. Returns True if no retry is needed in this period."""
        fields = {"incident_id": request.reference, "instruction": request.instruction.WhichOneof("kind")}
        try:
            await stub.SendCommand(request, metadata=metadata, timeout=server.UNARY_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            self._metrics.pursuit_failed.labels(error.code().name).inc()
            logger().warning("pursuit_failed", code=error.code().name, **fields)
            # A wearer without a tag won't get a tag within a second, so retry in the next period.
            return error.code() is grpc.StatusCode.NOT_FOUND
        logger().info("pursuit_commanded", **fields)
        return True


def _request(
    wearer: _PursuedWearer, instruction: command_pb2.Instruction, period: int
) -> ingest_pb2.SendCommandRequest:
    kind = instruction.WhichOneof("kind") or ""
    return ingest_pb2.SendCommandRequest(
        # A retry, or a second process of this leg, makes the same id, so the tag gets the command only once.
        command_id=ids.hash_id("pursuit", wearer.incident_id, wearer.wearer_id, kind, period),
        subject_id=wearer.wearer_id,
        instruction=instruction,
        valid_for_s=HOLDS_S,
        reference=wearer.incident_id,
    )


def _is_pursued(incident: Incident) -> bool:
    """Whether a unit has to go to the wearer."""
    waiting = (assignment for assignment in incident.assignments.values() if assignment.demand is Demand.RESPOND)
    return bool(incident.wearer_id) and any(assignment.state in UNANSWERED | ACCEPTED for assignment in waiting)
