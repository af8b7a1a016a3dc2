"""Readers in ingest: routes of devices, commands and their steps, counts of refusals, and the end of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio

from services.common.messaging import flow, pull
from tandem.common.v1 import command_pb2, log_pb2, sensing_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.support.geofence import log
from tests.support.ingest.ingest import VENDOR, now_ms
from tests.support.registry.records import VENDOR_ID
from tests.support.stream_readers.alerts import LOG_ROWS
from tests.support.stream_readers.mesh import Connection
from tests.support.stream_readers.reader import Message, Reader

DESK = "spiffe://moj/desk/seoul"
OPERATOR = "spiffe://tandem/operator/test"


def route_message(device_id: str, *partitions: int) -> Message:
    """Route of a registered tag."""
    route = log_pb2.DeviceRoute(
        partitions=partitions or (0,), subject_id="w", vendor_id=VENDOR_ID, kind=log_pb2.DeviceKind.TAG
    )
    return f"$KV.{flow.DEVICES_BUCKET}.{device_id}", route.SerializeToString()


def command_message(name: str, subject_name: str = "") -> Message:
    """A desk's command for the device with this name."""
    command = command_pb2.Command(
        command_id=name,
        device_id=name,
        instruction=command_pb2.Instruction(locate_now=command_pb2.LocateNow()),
        issued_at_ms=now_ms(),
        expires_at_ms=now_ms() + 3_600_000,
        issued_by=DESK,
    )
    return f"command.ingest.{subject_name or name}", command.SerializeToString()


def step_message(name: str, subject_name: str = "") -> Message:
    """Step with which the command of that name expires."""
    state = command_pb2.COMMAND_STATE_EXPIRED
    step = command_pb2.CommandStep(command_id=name, device_id=name, state=state, at_ms=now_ms())
    return flow.command_step_subject(subject_name or name, "EXPIRED"), step.SerializeToString()


def sensing_message(name: str, subject_name: str = "") -> Message:
    """A request of the decision for an interval of the device with this name."""
    request = sensing_pb2.SensingRequest(
        request_id=name, device_id=name, decided_at_ms=now_ms(), until_ms=now_ms() + 1_800_000
    )
    request.report_every.interval_s = 60
    return flow.sensing_subject(0, subject_name or name), request.SerializeToString()


async def _listed(connection: Connection, name: str) -> list[ingest_pb2.CommandStatus] | None:
    """Commands of a device, or None if ingest doesn't know the device."""
    stub: Any = ingest_pb2_grpc.CommandServiceStub(connection.channels["ingest"])
    try:
        answer = await stub.ListCommands(ingest_pb2.ListCommandsRequest(device_id=name), **connection.call(DESK))
    except grpc.aio.AioRpcError:
        return None
    return list(answer.commands)


async def _route(connection: Connection, name: str) -> Sequence[Message]:
    return [route_message(name)]


async def _is_known(connection: Connection, name: str) -> int:
    return int(await _listed(connection, name) is not None)


async def _command_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
    return [route_message(name), command_message(name, f"{name}-x")]


async def _commands(connection: Connection, name: str) -> int:
    return sum(status.command.command_id == name for status in await _listed(connection, name) or ())


async def _route_and_command(connection: Connection, name: str) -> Sequence[Message]:
    return [route_message(name), command_message(name)]


async def _ended_command(connection: Connection, name: str) -> Sequence[Message]:
    return [route_message(name), command_message(name), step_message(name)]


async def _steps(connection: Connection, name: str) -> int:
    return sum(status.state == command_pb2.COMMAND_STATE_EXPIRED for status in await _listed(connection, name) or ())


async def _step_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
    return [*(await _route_and_command(connection, name)), step_message(name, f"{name}-x")]


async def _route_and_request(connection: Connection, name: str) -> Sequence[Message]:
    return [route_message(name), sensing_message(name)]


async def _request_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
    return [route_message(name), sensing_message(name, f"{name}-x")]


async def _asked(connection: Connection, name: str) -> int:
    return sum(status.issued_by == "geofence" for status in await _listed(connection, name) or ())


async def _fix_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
    fixes = ingest_pb2.ObservedFixes(device_ids=[name], fix_times_ms=[now_ms()])
    return [route_message(name), (f"observed.{name}", fixes.SerializeToString())]


async def _observed(connection: Connection, name: str) -> int:
    stub: Any = ingest_pb2_grpc.CommandServiceStub(connection.channels["ingest"])
    try:
        request = ingest_pb2.ListReportingRequest(device_id=name)
        answer = await stub.ListReporting(request, **connection.call(OPERATOR))
    except grpc.aio.AioRpcError:
        return 0
    return sum(row.HasField("last_fix") for row in answer.devices)


async def _refusal(connection: Connection, name: str) -> Sequence[Message]:
    quarantined = ingest_pb2.Quarantined(device_id=name, sender=VENDOR, code=ingest_pb2.REFUSAL_CODE_INVALID, count=1)
    return [(f"quarantine.{name}", ingest_pb2.QuarantineCounts(quarantined=[quarantined]).SerializeToString())]


async def _refusals(connection: Connection, name: str) -> int:
    stub: Any = ingest_pb2_grpc.IngestServiceStub(connection.channels["ingest"])
    try:
        request = ingest_pb2.ListQuarantineRequest(device_id=name)
        answer = await stub.ListQuarantine(request, **connection.call(OPERATOR))
    except grpc.aio.AioRpcError:
        return 0
    return sum(quarantined.count for quarantined in answer.quarantined)


async def _last_report(connection: Connection, name: str) -> Sequence[Message]:
    entry = log.positions_entry(log.position(name, now_ms() - 1000, 90_000.0))
    return [route_message(name, 0, 1), (flow.log_subject(0, "report"), entry.SerializeToString())]


async def _republished(connection: Connection, name: str) -> int:
    stream = flow.log_stream(1)
    bounds = await connection.bus.bounds_of(stream)
    count = 0
    if bounds.first <= bounds.last:
        async for message in pull.between(connection.bus, stream, bounds.first, last=bounds.last):
            if message.subject == flow.log_subject(1, "report"):
                count += name in log_pb2.LogEntry.FromString(message.data).positions.device_id
    return count


READERS = (
    Reader(
        name="ingest-routes",
        service="ingest",
        rows=((flow.ROUTES.subject, "ingest"),),
        valid=_route,
        effects=_is_known,
        garbage=(f"$KV.{flow.DEVICES_BUCKET}.junk-{{name}}",),
        logs=("ingest", "route_unreadable"),
    ),
    Reader(
        name="ingest-commands",
        service="ingest",
        rows=(("command.{by}.{command_id}", "ingest"),),
        valid=_route_and_command,
        effects=_commands,
        misplaced=_command_elsewhere,
        garbage=("command.ingest.junk-{name}",),
        logs=("ingest", "message_passed_over"),
    ),
    Reader(
        name="ingest-command-steps",
        service="ingest",
        rows=(("command_step.{command_id}.{state}", "ingest"),),
        valid=_ended_command,
        effects=_steps,
        misplaced=_step_elsewhere,
        garbage=("command_step.junk-{name}.EXPIRED",),
        logs=("ingest", "message_passed_over"),
    ),
    Reader(
        name=flow.SENSING_READER,
        service="ingest",
        rows=(("sensing.{p}.{request_id}", "ingest"),),
        valid=_route_and_request,
        effects=_asked,
        misplaced=_request_elsewhere,
        garbage=("sensing.0.junk-{name}",),
        dead_letter_by=flow.SENSING_READER,
    ),
    Reader(
        name="ingest-observed",
        service="ingest",
        rows=(("observed.{ingest}", "ingest"),),
        valid=_fix_elsewhere,
        effects=_observed,
        garbage=("observed.junk-{name}",),
        logs=("ingest", "message_passed_over"),
    ),
    Reader(
        name="ingest-quarantine",
        rows=(("quarantine.{ingest}", "ingest"),),
        valid=_refusal,
        effects=_refusals,
        garbage=("quarantine.junk-{name}",),
        logs=("ingest", "message_passed_over"),
        counts_duplicates=True,
        at_reuse=False,
    ),
    Reader(
        name="ingest-last-reports",
        service="ingest",
        rows=tuple((subject, "ingest") for subject in LOG_ROWS),
        valid=_last_report,
        effects=_republished,
        garbage=("log.0.report",),
        dead_letter_by="fold",
        only_at_start=True,
        counts_duplicates=True,
    ),
)
