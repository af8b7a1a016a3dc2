"""Reader of the stream COMMANDS. Every ingest process reads the whole stream, from its start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.readiness import ReaderHealth
from services.common.rpc.errors import InvalidField
from services.ingest.held import read_held
from tandem.common.v1 import command_pb2


class Accepts(Protocol):
    """Accepts the messages of the stream, in their order."""

    def add(self, command: command_pb2.Command) -> None:
        """Adds a command. A known one changes nothing."""

    def apply(self, step: command_pb2.CommandStep) -> None:
        """Applies a step to its command."""


class CommandStream:
    """Reads commands and their steps, and passes over messages that are neither."""

    def __init__(self, bus: Bus, to: Accepts, *, health: ReaderHealth | None) -> None:
        self._bus, self._to, self._health = bus, to, health
        self._cursor: StreamCursor | None = None
        """Position up to which the stream is read."""
        self._progress = asyncio.Event()

    async def load(self) -> None:
        """Reads the messages that the stream holds now."""
        async for messages in read_held(self._bus, flow.COMMANDS.name, await self._bus.bounds_of(flow.COMMANDS.name)):
            self._read(messages)

    async def follow(self, on_went_back: Callable[[], None]) -> None:
        """Follows the stream until cancelled. A stream that went back is read again from its start."""
        while True:
            try:
                async for messages in pull.read(self._bus, flow.COMMANDS.name, self._cursor or 1, health=self._health):
                    self._read(messages)
            except StreamWentBack as error:
                cursors.alarm(self._bus, error)
                self._cursor = None
                on_went_back()

    async def reached(self, sequence: int) -> None:
        """Waits until the stream is read up to a sequence."""
        while self._cursor is None or self._cursor.sequence < sequence:
            self._progress.clear()
            await self._progress.wait()

    def _read(self, messages: Sequence[pull.Delivered]) -> None:
        for message in messages:
            try:
                if message.subject.startswith("command_step."):
                    self._to.apply(stored.command_step(message.data, message.subject))
                else:
                    self._to.add(stored.command(message.data, message.subject))
            except InvalidField as error:
                dead_letters.pass_over(
                    self._bus, "ingest-commands", message.stream, sequence=message.sequence, error=error
                )
        self._cursor = messages[-1].cursor
        self._progress.set()
