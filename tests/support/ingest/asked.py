"""A device that is asked for its reports, the decision that asks, and the stream of commands as it was stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio

from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus, PubAck
from services.common.rpc import server
from tandem.common.v1 import command_pb2, sensing_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.support.ingest.ingest import SECRET, WITHIN_S, Client, now_ms, position, request

OPERATOR = "spiffe://tandem/operator/test"
MOJ_DESK, NPA_DESK = "spiffe://moj/desk/test", "spiffe://npa/desk/test"


def sensing(
    request_id: str, device_id: str, interval_s: int | None, for_s: float = 1_800, **changes: Any
) -> sensing_pb2.SensingRequest:
    """A request of the decision from now on: for an interval, or for the position now if the interval is None."""
    now = now_ms()
    message = sensing_pb2.SensingRequest(
        request_id=request_id,
        device_id=device_id,
        decided_at_ms=now,
        until_ms=now + round(for_s * 1000),
        sequence=7,
        fold_version=1,
    )
    if interval_s is None:
        message.locate_now.SetInParent()
    else:
        message.report_every.interval_s = interval_s
    for name, value in changes.items():
        setattr(message, name, value)
    return message


async def publish_request(bus: Bus, message: sensing_pb2.SensingRequest) -> PubAck:
    """Stores a request in SENSING, as an evaluator does but without its check for an earlier one."""
    return await bus.publish(flow.sensing_subject(0, message.request_id), message.SerializeToString())


async def stored_commands(bus: Bus, device_id: str) -> list[command_pb2.Command]:
    """Returns the commands of a device in COMMANDS, oldest first."""
    bounds = await bus.bounds_of(flow.COMMANDS.name)
    found = []
    if bounds.first <= bounds.last:
        async for message in pull.between(bus, flow.COMMANDS.name, bounds.first, last=bounds.last):
            if message.subject.startswith("command."):
                command = command_pb2.Command.FromString(message.data)
                found += [command] if command.device_id == device_id else []
    return found


class Tag:
    """A tag on an open stream, whose fixes have the times that the test says."""

    def __init__(self, client: Client, device_id: str, *, obeys: bool = True, least_interval_s: int = 1) -> None:
        self._client = client
        self._obeys = obeys
        self._least_interval_s = least_interval_s
        self.device_id = device_id
        self.received: list[ingest_pb2.DeviceCommand] = []
        self.interval_s = 0
        """Interval that the tag keeps. 0 for its usual one."""
        self._changed = asyncio.Event()
        self._number = 0
        self._call: Any = None
        self._one_at_a_time = asyncio.Lock()
        """gRPC refuses a write while another one waits: receipts are written beside reports."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Tag]:
        """Keeps a stream open, on which the tag was heard."""
        self._call = self._client.open()
        reading = asyncio.create_task(self._read())
        try:
            await self.report(now_ms())
            yield self
        finally:
            reading.cancel()
            self._call.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await reading

    async def report(self, *fix_times_ms: int) -> None:
        """Reports fixes of these times."""
        for fix_time_ms in fix_times_ms:
            self._number += 1
            await self._write(request(self._number, position(self.device_id, f"r-{fix_time_ms}", fix_time_ms)))

    async def report_each(self, interval_s: int) -> None:
        """Reports five fixes from now on at an interval. Times up to 2 minutes ahead are accepted, so that a test needn't wait."""
        await self.report(*(now_ms() + n * interval_s * 1000 for n in range(5)))

    async def until(self, condition: Callable[[Tag], bool]) -> None:
        """Waits for a change by a command."""
        async with asyncio.timeout(WITHIN_S):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    @property
    def instructed(self) -> list[tuple[str, int]]:
        """Kind of each received command, with its interval."""
        return [
            (command.instruction.WhichOneof("kind") or "", command.instruction.report_every.interval_s)
            for command in self.received
        ]

    async def _read(self) -> None:
        while (response := await self._call.read()) is not grpc.aio.EOF:
            for command in response.commands:
                await self._receive(command)
            self._changed.set()

    async def _receive(self, command: ingest_pb2.DeviceCommand) -> None:
        self.received.append(command)
        receipt = ingest_pb2.CommandReceipt(command_id=command.command_id, device_id=command.device_id)
        every = command.instruction.report_every
        if command.instruction.HasField("report_every") and every.interval_s < self._least_interval_s:
            receipt.refused_because = f"at least {self._least_interval_s} s"
        elif self._obeys and command.instruction.HasField("report_every"):
            self.interval_s = every.interval_s
        elif self._obeys and command.instruction.HasField("report_as_usual"):
            self.interval_s = 0
        await self._write(ingest_pb2.ReportRequest(batch=10_000, receipts=[receipt]))

    async def _write(self, message: ingest_pb2.ReportRequest) -> None:
        async with self._one_at_a_time:
            await self._call.write(message)


class Reporting:
    """The list of what devices were asked and do, as people read it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = ingest_pb2_grpc.CommandServiceStub(channel)

    async def ask(
        self,
        device_id: str,
        command_id: str,
        interval_s: int | None,
        *,
        for_s: int = 0,
        who: str = MOJ_DESK,
        reference: str = "",
    ) -> None:
        """Asks for an interval as a desk does, or withdraws what its agency asks."""
        instruction = command_pb2.Instruction()
        if interval_s is None:
            instruction.report_as_usual.SetInParent()
        else:
            instruction.report_every.interval_s, instruction.report_every.for_s = interval_s, for_s
        command = ingest_pb2.SendCommandRequest(
            command_id=command_id, device_id=device_id, instruction=instruction, valid_for_s=600, reference=reference
        )
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    await self._stub.SendCommand(command, metadata=server.bearer(who, SECRET), timeout=WITHIN_S)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                    await asyncio.sleep(0.02)  # ingest doesn't know the route yet
                else:
                    return

    async def page(
        self, who: str = OPERATOR, *, device_id: str = "", page_size: int = 0, page_token: str = ""
    ) -> ingest_pb2.ListReportingResponse:
        """Returns a page of the list."""
        asked = ingest_pb2.ListReportingRequest(device_id=device_id, page_size=page_size, page_token=page_token)
        answer: ingest_pb2.ListReportingResponse = await self._stub.ListReporting(
            asked, metadata=server.bearer(who, SECRET), timeout=WITHIN_S
        )
        return answer

    async def row(self, device_id: str, who: str = OPERATOR) -> ingest_pb2.DeviceReporting:
        """Returns the row of a device."""
        (row,) = (await self.page(who, device_id=device_id)).devices
        return row

    async def until(
        self, device_id: str, condition: Callable[[ingest_pb2.DeviceReporting], bool]
    ) -> ingest_pb2.DeviceReporting:
        """Waits until the row of a device meets a condition, and returns the row."""
        async with asyncio.timeout(WITHIN_S):
            while not condition(row := await self.row(device_id)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return row

    async def expired_because(self, device_id: str, command_id: str) -> str:
        """Waits until a command is expired, and returns the reason."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                listed = await self.commands(device_id, OPERATOR)
                (status,) = [status for status in listed if status.command.command_id == command_id]
                if status.state == command_pb2.COMMAND_STATE_EXPIRED:
                    return status.reason
                await asyncio.sleep(0.05)

    async def commands(self, device_id: str, who: str) -> list[ingest_pb2.CommandStatus]:
        """Returns the commands of a device."""
        answer = await self._stub.ListCommands(
            ingest_pb2.ListCommandsRequest(device_id=device_id), metadata=server.bearer(who, SECRET), timeout=WITHIN_S
        )
        return list(answer.commands)
