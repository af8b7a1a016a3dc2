"""Pursuit: while a unit has to go to the wearer, the tag reports every 15 s. Only probation does this: tags are the Ministry's.

Each command expires on the device after a few minutes, and is renewed before that. So the battery isn't drained if the leg dies, or if
the command that ends the pursuit doesn't reach the device.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import NamedTuple

import grpc.aio

from services.client.calls import call_once
from services.common import ids
from services.common.clock import MeshClock, Moments
from services.common.observability.telemetry import logger
from services.common.rpc import client, server
from services.dispatch.domain.assignment import ACCEPTED, UNANSWERED, Assignment
from services.dispatch.domain.enums import Demand, Task
from services.dispatch.domain.incident import Incident
from services.dispatch.following.targets import CALLERS
from services.dispatch.leg.service import LegService
from services.dispatch.metrics import FollowingMetrics
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

INTERVAL_S = 15
"""Report interval during a pursuit, seconds."""
HOLDS_S = 900
"""Time until a command expires on the device, seconds."""
RENEW_INTERVAL_MS = 400_000
"""Interval at which a command is renewed, milliseconds of mesh time. It is less than half of HOLDS_S, since a command may be lost."""
COMMAND_DELAY_S = 0.05
"""Delay from an offer until the tag is commanded, seconds of wall time. The offers of all legs go first."""
RETRY_DELAY_S = 1.0
"""Delay before a command that failed is sent again, seconds of wall time."""
_OFTEN = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=INTERVAL_S, for_s=HOLDS_S))
_AS_USUAL = command_pb2.Instruction(report_as_usual=command_pb2.ReportAsUsual())


class _PursuedWearer(NamedTuple):
    """Key of a pursuit."""

    incident_id: str
    wearer_id: str


class _PursuitPeriod(NamedTuple):
    """Part of a pursuit for which a tag needs one command."""

    number: int
    """Number of the RENEW_INTERVAL_MS period."""
    offered_ms: int
    """Time of the last offer, mesh time. A pursuit that ended and began once more in the same period has a later one."""


class _SentCommand(NamedTuple):
    """The last command by which a tag reports often."""

    period: _PursuitPeriod
    at_ms: int
    """When it was sent, mesh time."""

    def has_lapsed(self, now_ms: int) -> bool:
        """Whether no tag can obey it any more: it has expired on the way, or on the tag after it arrived at the last moment."""
        return now_ms >= self.at_ms + 2 * HOLDS_S * 1000


class Pursuit:
    """Keeps the tags of pursued wearers at the short report interval."""

    def __init__(self, leg: LegService, settings: DispatchSettings, metrics: FollowingMetrics) -> None:
        self._leg = leg
        self._settings = settings
        self._metrics = metrics
        self._clock: MeshClock = settings.clock
        self._pursued: dict[str, _PursuedWearer] = {}
        """Pursuits by incident id."""
        self._offered_ms: dict[str, int] = {}
        """Time of the last offer of each pursuit, mesh time, by incident id."""
        self._commanded: dict[_PursuedWearer, _SentCommand] = {}
        """The last command of each pursuit that hasn't been ended."""
        self._due: Moments[_PursuedWearer] = Moments()
        """When each wearer's tag has to be commanded next."""
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Sends commands until cancelled."""
        connection = client.connection(self._settings, self._settings.ingest, CALLERS[self._leg.name])
        async with connection as (channel, metadata), asyncio.TaskGroup() as tasks:
            stub = ingest_pb2_grpc.CommandServiceStub(channel)
            tasks.create_task(self._follow_record())
            while True:
                await self._wait()
                await asyncio.sleep(COMMAND_DELAY_S)
                for wearer in self._due.pop_due(self._clock.now_ms()):
                    await self._command_tag(stub, metadata, wearer)

    async def _follow_record(self) -> None:
        async with self._leg.record.changes() as changes:
            while True:
                for incident in (await changes.next()).incidents.values():
                    self._apply(incident)
                self._wake.set()

    def _apply(self, incident: Incident) -> None:
        before = self._pursued.pop(incident.incident_id, None)
        wearer = _PursuedWearer(incident.incident_id, incident.wearer_id) if _is_pursued(incident) else None
        self._offered_ms.pop(incident.incident_id, None)
        if wearer:
            self._pursued[incident.incident_id] = wearer
            self._offered_ms[incident.incident_id] = max(offer.offered_ms or 0 for offer in _waiting(incident))
        for changed in (before, wearer) if before != wearer else ():
            if changed is not None:
                self._due.set(changed, self._clock.now_ms())

    async def _wait(self) -> None:
        """Returns when a command is due."""
        self._wake.clear()
        while await self._due.sleep(self._wake, self._clock):
            self._wake.clear()

    async def _command_tag(
        self, stub: ingest_pb2_grpc.CommandServiceStub, metadata: server.Metadata, wearer: _PursuedWearer
    ) -> None:
        """Begins, renews or ends a pursuit, and sets the moment of the next command or retry."""
        now_ms = self._clock.now_ms()
        # The wearers' periods begin at different times, so that not all of them are commanded together.
        offset_ms = zlib.crc32(wearer.incident_id.encode()) % RENEW_INTERVAL_MS
        number = (now_ms + offset_ms) // RENEW_INTERVAL_MS
        if self._pursued.get(wearer.incident_id) == wearer:
            period = _PursuitPeriod(number, self._offered_ms[wearer.incident_id])
            # Before the call: if the pursuit ends meanwhile, `_apply` sets an earlier moment.
            self._due.set(wearer, (number + 1) * RENEW_INTERVAL_MS - offset_ms)
            last = self._commanded.get(wearer)
            if last and last.period == period:
                return
            if await self._command(stub, metadata, _request(wearer, _OFTEN, period)):
                self._commanded[wearer] = _SentCommand(period, now_ms)
                return
        elif (last := self._commanded.get(wearer)) is not None:
            request = _request(wearer, _AS_USUAL, last.period)
            if last.has_lapsed(now_ms):
                logger().info("pursuit_lapsed", incident_id=wearer.incident_id)
            if last.has_lapsed(now_ms) or await self._command(stub, metadata, request):
                del self._commanded[wearer]
                return
        else:
            return
        self._due.set(wearer, now_ms + round(RETRY_DELAY_S * 1000 * self._clock.rate))

    async def _command(
        self,
        stub: ingest_pb2_grpc.CommandServiceStub,
        metadata: server.Metadata,
        request: ingest_pb2.SendCommandRequest,
    ) -> bool:
        """Sends a command. Returns True if no retry is needed in this period."""
        fields = {"incident_id": request.reference, "instruction": request.instruction.WhichOneof("kind")}
        try:
            await call_once(stub.SendCommand, request, metadata)
        except grpc.aio.AioRpcError as error:
            self._metrics.pursuit_failed.labels(error.code().name).inc()
            logger().warning("pursuit_failed", code=error.code().name, **fields)
            # A wearer without a tag won't get a tag within a second, so retry in the next period.
            return error.code() is grpc.StatusCode.NOT_FOUND
        logger().info("pursuit_commanded", **fields)
        return True


def _request(
    wearer: _PursuedWearer, instruction: command_pb2.Instruction, period: _PursuitPeriod
) -> ingest_pb2.SendCommandRequest:
    kind = instruction.WhichOneof("kind") or ""
    return ingest_pb2.SendCommandRequest(
        # A retry, or a second process of this leg, makes the same id, so the tag gets the command only once. A pursuit that begins once
        # more needs another id, as ingest keeps the first command with an id.
        command_id=ids.hash_id("pursuit", *wearer, kind, *period),
        subject_id=wearer.wearer_id,
        instruction=instruction,
        valid_for_s=HOLDS_S,
        reference=wearer.incident_id,
    )


def _is_pursued(incident: Incident) -> bool:
    """Whether a unit has to go to the wearer."""
    return bool(incident.wearer_id and _waiting(incident))


def _waiting(incident: Incident) -> list[Assignment]:
    """The open assignments for which a unit has to go to the wearer."""
    return [
        assignment
        for assignment in incident.assignments.values()
        if (assignment.demand is Demand.RESPOND or assignment.task is Task.CHECK)
        and assignment.state in UNANSWERED | ACCEPTED
    ]
