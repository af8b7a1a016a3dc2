"""The gRPC edge of commands: each agency's desk commands the devices of its own side."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields, ids, times
from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, NotFound, PermissionDenied, Unavailable
from services.ingest.admission.routes import Routes
from services.ingest.commands.service import ActiveCommand, Commands, to_device
from tandem.common.v1 import access_pb2, command_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

DAY_S = 86_400
INTERVAL_MOST_S = 3_600
VIBRATE_MOST_S = 60
RESERVED = ("command-", flow.NOTICE_IDS)
"""How ids begin that the mesh makes of a cause: of one device of a subject, below, and of a notice (dispatch/warning/sender.py).

All commands share one space of ids, and the first with an id keeps it. Who could give one of these could guess it, and what is
meant for another agency's device would never go out.
"""

_KINDS = {
    access_pb2.ROLE_MOJ_DESK: (log_pb2.TAG,),
    access_pb2.ROLE_NPA_DESK: (log_pb2.PROTECTIVE_DEVICE,),
    access_pb2.ROLE_OPERATOR: (log_pb2.TAG, log_pb2.PROTECTIVE_DEVICE),
}
"""Whose devices are whose."""


class CommandApi(ingest_pb2_grpc.CommandServiceServicer):
    """Takes commands and tells what became of them."""

    def __init__(self, commands: Commands, routes: Routes, clock: MeshClock) -> None:
        self._commands, self._routes, self._clock = commands, routes, clock

    async def SendCommand(
        self, request: ingest_pb2.SendCommandRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.SendCommandResponse:
        fields.required_id("command_id", request.command_id)
        if request.command_id.startswith(RESERVED):
            raise InvalidField("command_id", f"begins with {' or '.join(RESERVED)}, as only ids of the mesh's own do")
        devices = self._devices(request)
        _check_instruction(request.instruction)
        fields.number("valid_for_s", request.valid_for_s, 1, DAY_S)
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
                expires_at_ms=now_ms + request.valid_for_s * 1000,
                issued_by=server.caller().spiffe_id,
                reference=request.reference,
            )
            try:
                stands = await self._commands.command(command)
            except TimeoutError:
                raise Unavailable("the command is stored and not yet on its way: send it again") from None
            expires_at_ms.append(stands.expires_at_ms)
        return ingest_pb2.SendCommandResponse(expires_at=times.to_timestamp(min(expires_at_ms)))

    async def ListCommands(
        self, request: ingest_pb2.ListCommandsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ListCommandsResponse:
        self._must_be_ours(request.device_id)
        return ingest_pb2.ListCommandsResponse(
            commands=[_status(one) for one in self._commands.of_device(request.device_id)]
        )

    def _devices(self, request: ingest_pb2.SendCommandRequest) -> dict[str, str]:
        """The devices that are commanded, each under its command's id; at least one."""
        if not request.subject_id:
            self._must_be_ours(request.device_id)
            return {request.command_id: request.device_id}
        if request.device_id:
            raise InvalidField("subject_id", "goes without device_id")
        fields.required_id("subject_id", request.subject_id)
        kinds = _KINDS[server.caller().role]
        # Who has only devices of the other agency has none here: that they exist at all is that agency's.
        ours = self._routes.of_subject(request.subject_id, kinds)
        if not ours:
            raise NotFound("no such subject has a registered device")
        return {ids.hash_id("command", request.command_id, one): one for one in ours}

    def _must_be_ours(self, device_id: str) -> None:
        fields.required_id("device_id", device_id)
        known = self._routes.registration(device_id)
        if known is None:
            raise NotFound("no such device is registered")
        if known.kind not in _KINDS[server.caller().role]:
            raise PermissionDenied("the device is of the other agency")


def _check_instruction(instruction: command_pb2.Instruction) -> None:
    match instruction.WhichOneof("kind"):
        case "report_every":
            fields.number(
                "instruction.report_every.interval_s", instruction.report_every.interval_s, 1, INTERVAL_MOST_S
            )
            fields.number("instruction.report_every.for_s", instruction.report_every.for_s, 0, DAY_S)
        case "vibrate":
            fields.number("instruction.vibrate.duration_s", instruction.vibrate.duration_s, 1, VIBRATE_MOST_S)
        case "locate_now" | "report_as_usual":
            pass
        case "show_notice":
            raise InvalidField("instruction.show_notice", "is the warning leg's to give")
        case _:
            raise InvalidField("instruction", "is missing")


def _status(standing: ActiveCommand) -> ingest_pb2.CommandStatus:
    command = standing.command
    shown = to_device(command)
    if shown.instruction.HasField("show_notice"):
        # How near somebody is, and the link by which its holder answers as the protected person, are that person's alone.
        shown.instruction.show_notice.ClearField("text")
        shown.instruction.show_notice.ClearField("answer_url")
    return ingest_pb2.CommandStatus(
        command=shown,
        state=standing.state,
        since=times.to_timestamp(standing.since_ms),
        issued_by=command.issued_by,
        reference=command.reference,
        reason=standing.reason,
    )
