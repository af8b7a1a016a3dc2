"""Pursuit: while somebody has to go to the wearer, the tag reports every 15 s. The probation leg's alone: tags are the Ministry's.

Each command holds for a few minutes by the device itself and is renewed before it ends, so that a leg that dies, or a closing that
the device never hears of, costs no battery.
"""

from __future__ import annotations

import asyncio

import grpc.aio
from prometheus_client import Counter

from services.common import ids
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc import client, server
from services.dispatch.domain.events import Demand
from services.dispatch.domain.incident import TAKEN, UNANSWERED, Incident
from services.dispatch.following.targets import CALLERS
from services.dispatch.leg.service import LegService
from services.dispatch.retrying import retried
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

INTERVAL_S = 15
HOLDS_S = 300
"""How long the device goes on by itself."""
RENEWED_MS = 120_000
"""How often it is told again, mesh time: two commands may be lost."""
CHECK_INTERVAL_S = 1.0

_FAILED = Counter("tandem_dispatch_pursuit_failed", "Commands of a pursuit that ingest didn't take", ["code"])


class Pursuit:
    """Keeps the tags of pursued wearers at the short interval."""

    def __init__(self, leg: LegService, settings: DispatchSettings) -> None:
        self._leg = leg
        self._settings = settings
        self._clock: MeshClock = settings.clock
        self._told: dict[tuple[str, str], int] = {}
        """By incident and wearer: the period that the last command was of."""

    async def run(self) -> None:
        """Commands for ever."""
        async with client.connection(self._settings, self._settings.ingest, CALLERS[self._leg.name]) as (
            channel,
            metadata,
        ):
            stub = ingest_pb2_grpc.CommandServiceStub(channel)
            while True:
                await self._look(stub, metadata)
                await asyncio.sleep(CHECK_INTERVAL_S)

    async def _look(self, stub: ingest_pb2_grpc.CommandServiceStub, metadata: server.Metadata) -> None:
        pursued = {
            (one.incident_id, one.wearer_id)
            for one in await retried(self._leg.record.open_incidents)
            if _is_pursued(one)
        }
        period = self._clock.now_ms() // RENEWED_MS
        often = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=INTERVAL_S, for_s=HOLDS_S))
        usual = command_pb2.Instruction(report_as_usual=command_pb2.ReportAsUsual())
        for key in pursued:
            if self._told.get(key) != period and await self._command(stub, metadata, key, often, period):
                self._told[key] = period
        for key in self._told.keys() - pursued:
            if await self._command(stub, metadata, key, usual, self._told[key]):
                del self._told[key]

    async def _command(
        self,
        stub: ingest_pb2_grpc.CommandServiceStub,
        metadata: server.Metadata,
        key: tuple[str, str],
        instruction: command_pb2.Instruction,
        period: int,
    ) -> bool:
        """Whether nothing more is to be done about it now."""
        incident_id, wearer_id = key
        kind = instruction.WhichOneof("kind") or ""
        request = ingest_pb2.SendCommandRequest(
            # Of its cause, so that two processes of this leg, or a second try, command once.
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
            # A wearer without a tag has none in the next second either: asked again with the next period.
            return error.code() is grpc.StatusCode.NOT_FOUND
        logger().info("pursuit_commanded", incident_id=incident_id, instruction=kind)
        return True


def _is_pursued(incident: Incident) -> bool:
    """Whether somebody has to go to the wearer."""
    waiting = (assignment for assignment in incident.assignments.values() if assignment.demand is Demand.RESPOND)
    return bool(incident.wearer_id) and any(one.state in UNANSWERED | TAKEN for one in waiting)
