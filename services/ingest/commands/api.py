"""Who commands devices: desks by gRPC, each its own side's, and the decision by the stream SENSING; and what devices were asked.

The id of a command of the decision follows from the request's id, so that several ingest processes store one command for a request.
From then on the decision is one asker among others (`asks`). The requests of one device are stored in the order of the stream. A
message to the wearer is a command, too, with the id of its contact. The list of what devices were asked holds no position and no
name.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import grpc.aio

from services.common import fields, ids, times
from services.common.clock import MeshClock
from services.common.errors import Conflict, InvalidField, NotFound, Unavailable
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.health import ReaderHealth
from services.common.rpc import server
from services.common.rpc.identity import Caller
from services.common.runs import runs
from services.ingest.admission.routes import DEVICE_KINDS, Routes
from services.ingest.commands.asks import FOLD, Asker, DeviceAsks, IntervalAsk
from services.ingest.commands.service import Commands, to_device
from services.ingest.commands.states import CORRECTION_IDS, ActiveCommand
from services.ingest.observed import ASKED_ABOUT_MS, SLOW_MS, Obedience, ObservedReports
from tandem.common.v1 import access_pb2, command_pb2, first_contact_pb2, log_pb2, sensing_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

DAY_S = 86_400
MAX_VIBRATE_S = 60
MAX_PAGE, USUAL_PAGE = 1_000, 100
REQUEST_KIND = "sensing"
REQUEST_IDS = f"{REQUEST_KIND}-"
"""Prefix of the ids of the decision's commands."""
RESERVED = ("command-", CORRECTION_IDS, flow.NOTICE_IDS, REQUEST_IDS, flow.CONTACT_IDS)
"""Prefixes of command ids that only the mesh makes: for a subject's device (`_devices`), for a correction of an interval
(commands/states.py), for a notice (dispatch/warning/sender.py), for a request of the decision (`SensingRequests`), and for a first
contact with a wearer (geofence/domain/detectors/first_contact.py).

All commands share one namespace of ids, and the first command with an id keeps it. A caller who may use these prefixes could guess
an id and so block a command for another agency's device.
"""


class CommandApi(ingest_pb2_grpc.CommandServiceServicer):
    """Accepts commands for devices, and lists their states and what the devices do."""

    def __init__(self, commands: Commands, reporting: ReportingList, routes: Routes, *, clock: MeshClock) -> None:
        self._commands = commands
        self._reporting = reporting
        self._routes = routes
        self._clock = clock

    async def SendCommand(
        self, request: ingest_pb2.SendCommandRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.SendCommandResponse:
        fields.required_id("command_id", request.command_id)
        if request.command_id.startswith(RESERVED):
            raise InvalidField(
                "command_id", f"begins with {' or '.join(RESERVED)}, which the mesh reserves: choose another id"
            )
        devices = self._devices(request)
        _check_instruction(request.instruction)
        fields.number("valid_for_s", request.valid_for_s, 1, greatest=DAY_S)
        if request.reference:
            fields.required_id("reference", request.reference)
        now_ms = self._clock.now_ms()
        expires_at_ms = []
        for command_id, device_id in devices.items():
            command = command_pb2.Command(
                command_id=command_id,
                device_id=device_id,
                instruction=request.instruction,
                issued_at_ms=now_ms,
                expires_at_ms=now_ms + _valid_for_s(request) * 1000,
                issued_by=server.caller().spiffe_id,
                reference=request.reference,
            )
            try:
                stored = await self._commands.command(command)
            except TimeoutError:
                raise Unavailable(
                    "the command is stored but not yet on its way: send it again with the same command_id"
                ) from None
            expires_at_ms.append(stored.expires_at_ms)
        return ingest_pb2.SendCommandResponse(expires_at=times.to_timestamp(min(expires_at_ms)))

    async def ListCommands(
        self, request: ingest_pb2.ListCommandsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ListCommandsResponse:
        role = server.caller().role
        self._routes.required(request.device_id, DEVICE_KINDS[role])
        return ingest_pb2.ListCommandsResponse(
            commands=[_status(command, role) for command in self._commands.of_device(request.device_id)]
        )

    async def ListReporting(
        self, request: ingest_pb2.ListReportingRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ListReportingResponse:
        caller = server.caller()
        if request.device_id:
            self._routes.required(request.device_id, DEVICE_KINDS[caller.role])
            return ingest_pb2.ListReportingResponse(devices=[self._reporting.of_device(request.device_id, caller)])
        if request.page_token:
            fields.required_id("page_token", request.page_token)
        size = int(fields.number("page_size", request.page_size, 0, greatest=MAX_PAGE)) or USUAL_PAGE
        found = self._reporting.page(DEVICE_KINDS[caller.role], request.page_token, size + 1)
        return ingest_pb2.ListReportingResponse(
            devices=[self._reporting.of_device(device_id, caller) for device_id in found[:size]],
            next_page_token=found[size - 1] if len(found) > size else "",
        )

    def _devices(self, request: ingest_pb2.SendCommandRequest) -> dict[str, str]:
        """Returns the commanded devices by command id; at least one."""
        kinds = DEVICE_KINDS[server.caller().role]
        if not request.subject_id:
            self._routes.required(request.device_id, kinds)
            return {request.command_id: request.device_id}
        if request.device_id:
            raise InvalidField("subject_id", "is set together with device_id: set only one of them")
        fields.required_id("subject_id", request.subject_id)
        # A subject that has only devices of the other agency gets the answer of an unknown subject, so that they aren't disclosed.
        ours = self._routes.of_subject(request.subject_id, kinds)
        if not ours:
            raise NotFound("subject_id: no registered device of this subject can be commanded by this agency")
        return {ids.hash_id("command", request.command_id, device_id): device_id for device_id in ours}


def _check_instruction(instruction: command_pb2.Instruction) -> None:
    match instruction.WhichOneof("kind"):
        case "report_every":
            fields.number(
                "instruction.report_every.interval_s",
                instruction.report_every.interval_s,
                1,
                greatest=stored.MAX_INTERVAL_S,
            )
            fields.number("instruction.report_every.for_s", instruction.report_every.for_s, 0, greatest=DAY_S)
        case "vibrate":
            fields.number("instruction.vibrate.duration_s", instruction.vibrate.duration_s, 1, greatest=MAX_VIBRATE_S)
        case "locate_now" | "report_as_usual":
            pass
        case "show_notice":
            raise InvalidField("instruction.show_notice", "is reserved for the warning leg")
        case "remind_wearer":
            raise InvalidField("instruction.remind_wearer", "is reserved for the decision: use vibrate instead")
        case _:
            raise InvalidField("instruction", "is missing")


def _valid_for_s(request: ingest_pb2.SendCommandRequest) -> int:
    """Returns the time during which a command is sent, seconds. An interval holds from its issue, so it isn't sent after its end."""
    for_s = request.instruction.report_every.for_s
    return min(request.valid_for_s, for_s) if for_s else request.valid_for_s


def _status(active: ActiveCommand, role: access_pb2.Role.ValueType) -> ingest_pb2.CommandStatus:
    command = active.command
    shown = to_device(command, command.issued_at_ms)
    if shown.instruction.HasField("show_notice"):
        # The text says how near a wearer is, and the link lets its holder answer as the protected person. Only she may get them.
        shown.instruction.show_notice.ClearField("text")
        shown.instruction.show_notice.ClearField("answer_url")
    if shown.instruction.HasField("report_every") and command.issued_by == FOLD and role != access_pb2.ROLE_OPERATOR:
        # Three of these intervals and the wearer's track reveal where she is, as three distances do.
        shown.instruction.report_every.ClearField("interval_s")
    return ingest_pb2.CommandStatus(
        command=shown,
        state=active.state,
        since=times.to_timestamp(active.since_ms),
        issued_by=command.issued_by,
        reference=command.reference,
        reason=active.reason,
    )


_LEGS = {
    "moj": "spiffe://tandem/service/dispatch-probation",
    "npa": "spiffe://tandem/service/dispatch-police",
}
"""Leg that leads the pursuits of each agency."""


class ReportingList:
    """Lists devices of which an interval is asked."""

    def __init__(self, commands: Commands, observed: ObservedReports, routes: Routes, *, clock: MeshClock) -> None:
        self._commands = commands
        self._observed = observed
        self._routes = routes
        self._clock = clock

    def page(self, kinds: Collection[log_pb2.DeviceKind.ValueType], after: str, size: int) -> Sequence[str]:
        """Returns the ids of up to `size` devices of these kinds that follow `after`, sorted."""
        now_ms, intervals = self._clock.now_ms(), self._commands.intervals
        found = [
            device_id
            for device_id in intervals
            if device_id > after
            and self._is_one_of(device_id, kinds)
            and intervals.of_device(device_id).in_force(now_ms)
        ]
        return sorted(found)[:size]

    def of_device(self, device_id: str, caller: Caller) -> ingest_pb2.DeviceReporting:
        """Returns a device's row as a caller may see it. From then on the device is observed for an hour."""
        now_ms = self._clock.now_ms()
        self._observed.watch(device_id, now_ms + ASKED_ABOUT_MS)
        asks, observed = self._commands.intervals.of_device(device_id), self._observed.get(device_id)
        in_force, in_effect = asks.in_force(now_ms), asks.in_effect(now_ms)
        shown = [ask for ask in in_force if _may_see(caller, ask)]
        row = ingest_pb2.DeviceReporting(
            device_id=device_id,
            asks=[_ask(ask, asks.is_refused(ask.interval_s, now_ms)) for ask in shown],
            own_ask_in_effect=in_effect in shown,
            obeys=ingest_pb2.Obedience.ValueType(self._obeys(device_id, now_ms)),
            locates_sent=observed.locates_sent,
            locates_answered=observed.locates_answered,
        )
        if in_force:
            self._add_delivery(row, asks, in_effect or in_force[0])
        interval_ms = observed.interval_ms(now_ms)
        if interval_ms is not None:
            row.slow = interval_ms >= SLOW_MS
            # The interval that a device keeps gives away the one that the decision asks for.
            if row.own_ask_in_effect or not in_force or caller.role == access_pb2.ROLE_OPERATOR:
                row.observed_interval_s = round(interval_ms / 1000)
        if observed.fixes_ms:
            row.last_fix.CopyFrom(times.to_timestamp(observed.fixes_ms[-1]))
        return row

    def count_disobeying(self) -> int:
        """Returns the number of devices that don't keep the interval in effect, of those that this process hears."""
        now_ms = self._clock.now_ms()
        return sum(self._obeys(device_id, now_ms) is Obedience.NO for device_id in self._commands.intervals)

    def _is_one_of(self, device_id: str, kinds: Collection[log_pb2.DeviceKind.ValueType]) -> bool:
        known = self._routes.registration(device_id)
        return known is not None and known.kind in kinds

    def _obeys(self, device_id: str, now_ms: int) -> Obedience:
        asks = self._commands.intervals.of_device(device_id)
        in_effect = asks.in_effect(now_ms)
        if in_effect is None:
            return Obedience.NO if asks.in_force(now_ms) else Obedience.NOT_ASKED
        return self._observed.get(device_id).obeys(in_effect.interval_s, now_ms)

    def _add_delivery(self, row: ingest_pb2.DeviceReporting, asks: DeviceAsks, ask: IntervalAsk) -> None:
        row.delivery, since_ms = command_pb2.COMMAND_STATE_WAITING, ask.issued_at_ms
        refusal = asks.refusals.get(ask.interval_s)
        current = asks.current if asks.current and asks.current.ask_id == ask.command_id else None
        active = self._commands.get(current.command_id) if current else None
        if refusal is not None and asks.is_refused(ask.interval_s, self._clock.now_ms()):
            row.delivery, since_ms = command_pb2.COMMAND_STATE_REFUSED, refusal.at_ms
            row.refused_because = refusal.reason
        elif active is not None:
            row.delivery, since_ms = active.state, active.since_ms
        row.delivery_since.CopyFrom(times.to_timestamp(since_ms))


def _may_see(caller: Caller, ask: IntervalAsk) -> bool:
    """Whether a caller may see an ask. The decision's interval depends on how near the wearer is to a protected person."""
    agency = Asker.of(caller.spiffe_id, "").name
    return caller.role == access_pb2.ROLE_OPERATOR or ask.asker.name in (agency, _LEGS.get(agency))


def _ask(ask: IntervalAsk, refused: bool) -> ingest_pb2.ReportingAsk:
    return ingest_pb2.ReportingAsk(
        asked_by=ask.issued_by,
        interval_s=ask.interval_s,
        asked_at=times.to_timestamp(ask.issued_at_ms),
        until=times.to_timestamp(ask.until_ms),
        refused=refused,
    )


REMINDER = command_pb2.Instruction(
    remind_wearer=first_contact_pb2.RemindWearer(
        text="접근금지 결정 안내: 접근이 금지된 사람이나 장소에 가까워지지 않도록 지금 방향을 바꾸십시오. 문의: 관할 보호관찰소",
        language="ko",
        vibrate_s=5,
    )
)
"""Message to the wearer. It is the same near and far, because contacts without a cause must look like the others."""
CONCURRENCY = 64
"""Requests of different devices that are stored as commands at once. One after the other, each would wait for the server's disk and for
the reader of the commands."""


class _Read(NamedTuple):
    """A request of the stream, and its command."""

    message: pull.Delivered
    command: command_pb2.Command


class SensingRequests:
    """Reader of the decision's requests. Every ingest process reads all of them, from the start of the stream."""

    def __init__(self, bus: Bus, commands: Commands, clock: MeshClock, *, health: ReaderHealth | None = None) -> None:
        self._bus = bus
        self._commands = commands
        self._clock = clock
        self._health = health
        self._cursor: StreamCursor | None = None
        """Position up to which the stream is read."""

    async def follow(self) -> None:
        """Follows the stream until cancelled. A stream that went back is read again from its start; known requests change nothing."""
        while True:
            try:
                async for messages in pull.read(self._bus, flow.SENSING.name, self._cursor or 1, health=self._health):
                    await self._accept(messages)
                    self._cursor = messages[-1].cursor
            except StreamWentBack as error:
                cursors.alarm(self._bus, error)
                self._cursor = None

    async def _accept(self, messages: Sequence[pull.Delivered]) -> None:
        """Stores the commands of requests. Those of one device keep their order, because a request may depend on the one before it."""
        readable: list[_Read] = []
        for message in messages:
            try:
                readable.append(_Read(message, _command(stored.sensing_request(message.data, message.subject))))
            except InvalidField as error:
                await dead_letters.keep(
                    self._bus, flow.SENSING_READER, message.stream, sequence=message.sequence, error=error
                )
        for run in runs(readable, lambda read: read.command.device_id, at_most=CONCURRENCY):
            await asyncio.gather(*map(self._store, run))

    async def _store(self, read: _Read) -> None:
        message, command = read
        try:
            if command.expires_at_ms > self._clock.now_ms() and not self._commands.is_locating(command):
                await self._commands.store(command)
        except Conflict as error:
            await dead_letters.keep(
                self._bus, flow.SENSING_READER, message.stream, sequence=message.sequence, error=error
            )


def _command(request: sensing_pb2.SensingRequest) -> command_pb2.Command:
    """Returns the command of a request. The same request gives the same command in every process."""
    is_contact = request.HasField("remind_wearer")
    command = command_pb2.Command(
        command_id=request.request_id if is_contact else ids.hash_id(REQUEST_KIND, request.request_id),
        device_id=request.device_id,
        issued_at_ms=request.decided_at_ms,
        expires_at_ms=request.until_ms,
        issued_by=FOLD,
    )
    if is_contact:
        command.instruction.CopyFrom(REMINDER)
    elif request.HasField("locate_now"):
        command.instruction.locate_now.SetInParent()
    else:
        command.instruction.report_every.interval_s = request.report_every.interval_s
        command.instruction.report_every.for_s = math.ceil((request.until_ms - request.decided_at_ms) / 1000)
    return command
