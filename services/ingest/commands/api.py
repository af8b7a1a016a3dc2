"""gRPC endpoint for commands to devices. Each agency's desk may command only the devices of its own side."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields, ids, times
from services.common.clock import MeshClock
from services.common.messaging import flow, stored
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, NotFound, Unavailable
from services.ingest.admission.routes import Routes
from services.ingest.commands.delivery import to_device
from services.ingest.commands.service import Commands
from services.ingest.commands.states import ActiveCommand
from services.ingest.sensing.asks import FOLD
from services.ingest.sensing.intervals import CORRECTION_IDS
from services.ingest.sensing.reporting import ReportingList
from services.ingest.sensing.requests import REQUEST_IDS
from tandem.common.v1 import access_pb2, command_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

DAY_S = 86_400
MAX_VIBRATE_S = 60
MAX_PAGE, USUAL_PAGE = 1_000, 100
RESERVED = ("command-", CORRECTION_IDS, flow.NOTICE_IDS, REQUEST_IDS, flow.CONTACT_IDS)
"""Prefixes of command ids that only the mesh makes: for a subject's device (`_devices`), for a correction of an interval
(sensing/intervals.py), for a notice (dispatch/warning/sender.py), for a request of the decision (sensing/requests.py), and for a first
contact with a wearer (geofence/domain/contacts).

All commands share one namespace of ids, and the first command with an id keeps it. A caller who may use these prefixes could guess
an id and so block a command for another agency's device.
"""

DEVICE_KINDS = {
    access_pb2.ROLE_MOJ_DESK: (log_pb2.TAG,),
    access_pb2.ROLE_NPA_DESK: (log_pb2.PROTECTIVE_DEVICE,),
    access_pb2.ROLE_OPERATOR: (log_pb2.TAG, log_pb2.PROTECTIVE_DEVICE),
}
"""Kinds of devices that each role may command."""


class CommandApi(ingest_pb2_grpc.CommandServiceServicer):
    """Accepts commands for devices, and lists their states and what the devices do."""

    def __init__(self, commands: Commands, reporting: ReportingList, routes: Routes, *, clock: MeshClock) -> None:
        self._commands, self._reporting, self._routes, self._clock = commands, reporting, routes, clock

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
