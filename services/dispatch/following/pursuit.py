"""Pursuit: while a unit has to go to the wearer, the tag reports every 15 s. Only the probation leg does it: tags are the Ministry's.

Each command expires on the device after a few minutes, and is renewed before that. So a dead leg, or an end of the pursuit that
doesn't reach the device, doesn't drain the battery.
"""

from __future__ import annotations

import asyncio

import grpc.aio
from prometheus_client import Counter

from services.common import ids
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc import client, server
from services.dispatch.domain.assignment import ACCEPTED, UNANSWERED
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.incident import Incident
from services.dispatch.following.targets import CALLERS
from services.dispatch.leg.service import LegService
from services.dispatch.retrying import retried
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

INTERVAL_S = 15
"""Report interval during a pursuit, seconds."""
HOLDS_S = 300
"""Time until a command expires on the device, seconds."""
RENEW_INTERVAL_MS = 120_000
"""Interval at which a command is renewed, milliseconds of mesh time: two commands in a row may be lost."""
CHECK_INTERVAL_S = 1.0

_FAILED = Counter("tandem_dispatch_pursuit_failed", "Commands of a pursuit that ingest didn't accept", ["code"])


class Pursuit:
    """Keeps the tags of pursued wearers at the short report interval."""

    def __init__(self, leg: LegService, settings: DispatchSettings) -> None:
        self._leg = leg
        self._settings = settings
        self._clock: MeshClock = settings.clock
        self._commanded: dict[tuple[str, str], int] = {}
        """Period of the last command, by incident and wearer."""

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
        pursued = {
            (incident.incident_id, incident.wearer_id)
            for incident in await retried(self._leg.record.open_incidents)
            if _is_pursued(incident)
        }
        period = self._clock.now_ms() // RENEW_INTERVAL_MS
        often = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=INTERVAL_S, for_s=HOLDS_S))
        usual = command_pb2.Instruction(report_as_usual=command_pb2.ReportAsUsual())
        for key in pursued:
            if self._commanded.get(key) != period and await self._command(
                stub, metadata, key, instruction=often, period=period
            ):
                self._commanded[key] = period
        for key in self._commanded.keys() - pursued:
            if await self._command(stub, metadata, key, instruction=usual, period=self._commanded[key]):
                del self._commanded[key]

    async def _command(
        self,
        stub: ingest_pb2_grpc.CommandServiceStub,
        metadata: server.Metadata,
        key: tuple[str, str],
        *,
        instruction: command_pb2.Instruction,
        period: int,
    ) -> bool:
        """Sends a command. Returns whether it is done for this period."""
        incident_id, wearer_id = key
        kind = instruction.WhichOneof("kind") or ""
        request = ingest_pb2.SendCommandRequest(
            # The id is derived from the cause, so that a retry or a second process of this leg commands only once.
            command_id=ids.hash_id("pursuit", incident_id, wearer_id, kind, period),
            subject_id=wearer_id,
            instruction=instruction,
            valid_for_s=HOLDS_S,
            reference=incident_id,
        )
        try:
            await stub.SendCommand(request, metadata=metadata, timeout=server.UNARY_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            _FAILED.labels(error.code().name).inc()
            logger().warning("pursuit_failed", incident_id=incident_id, instruction=kind, code=error.code().name)
            # A wearer without a tag won't get one within a second: retry with the next period.
            return error.code() is grpc.StatusCode.NOT_FOUND
        logger().info("pursuit_commanded", incident_id=incident_id, instruction=kind)
        return True


def _is_pursued(incident: Incident) -> bool:
    """Whether a unit has to go to the wearer."""
    waiting = (assignment for assignment in incident.assignments.values() if assignment.demand is Demand.RESPOND)
    return bool(incident.wearer_id) and any(assignment.state in UNANSWERED | ACCEPTED for assignment in waiting)
