"""Requests of the decision in the stream SENSING, which ingest stores as commands.

The command's id follows from the request's id, so that several ingest processes store one command for a request. From then on the
decision is one asker among others (`asks`). The requests of one device are stored in the order of the stream. A message to the
wearer is a command, too, with the id of its contact.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import NamedTuple

from services.common import ids
from services.common.clock import MeshClock
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.readiness import ReaderHealth
from services.common.rpc.errors import Conflict, InvalidField
from services.common.runs import runs
from services.ingest.commands.service import Commands
from services.ingest.sensing.asks import FOLD
from tandem.common.v1 import command_pb2, first_contact_pb2, sensing_pb2

REQUEST_KIND = "sensing"
REQUEST_IDS = f"{REQUEST_KIND}-"
"""Prefix of the ids of the decision's commands."""
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
        self._bus, self._commands, self._clock, self._health = bus, commands, clock, health
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
                await dead_letters.keep(self._bus, flow.SENSING_READER, message, error=error)
        for run in runs(readable, lambda read: read.command.device_id, at_most=CONCURRENCY):
            await asyncio.gather(*map(self._store, run))

    async def _store(self, read: _Read) -> None:
        message, command = read
        try:
            if command.expires_at_ms > self._clock.now_ms() and not self._commands.is_locating(command):
                await self._commands.store(command)
        except Conflict as error:
            await dead_letters.keep(self._bus, flow.SENSING_READER, message, error=error)


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
