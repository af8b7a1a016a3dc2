"""Into the log: what arrives while a publish is under way becomes the next message.

A caller waits until its reports are stored; the publish itself belongs to the writer, so a caller that goes away doesn't break it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from services.common import flow
from services.common.bus import Bus
from services.common.clock import wall_us
from services.common.errors import RetryableError, StoreFull
from services.common.telemetry import logger
from services.ingest import translate
from services.ingest.domain import Equipment, Position
from tandem.common.v1 import log_pb2

IN_FLIGHT = 4
MESSAGE_MOST = 2_000
"""Most positions in one message: about 130 KB."""
GIVE_UP_AFTER_S = 8.0
"""How long an unknown outcome is tried again before the caller is told to send again."""


@dataclass(slots=True)
class _Waiting:
    positions: Sequence[Position]
    received_wall_us: int
    stored: asyncio.Future[None]


class LogWriter:
    """Writes to one partition of the log."""

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus = bus
        self._subject = flow.log_subject(partition, "report")
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Publishes for ever, a few messages at a time."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(self._work())

    def positions(self, positions: Sequence[Position], received_wall_us: int) -> asyncio.Future[None]:
        """Done once the positions are stored. Fails with StoreFull or Unavailable (perhaps stored: send again)."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(positions, received_wall_us, stored))
        self._wake.set()
        return stored

    async def equipment(self, event: Equipment) -> None:
        """Returns once the event is stored; the same errors."""
        entry = translate.equipment_entry(event, wall_us())
        await self._store(entry, f"{event.device_id}/{event.report_id}")

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            taken = [self._waiting.popleft()]
            total = len(taken[0].positions)
            while self._waiting and total + len(self._waiting[0].positions) <= MESSAGE_MOST:
                taken.append(self._waiting.popleft())
                total += len(taken[-1].positions)
            positions = [position for one in taken for position in one.positions]
            entry = translate.positions_entry(positions, min(one.received_wall_us for one in taken))
            try:
                await self._store(entry, uuid.uuid4().hex)
            except RetryableError as error:
                logger().warning("reports_not_stored", reports=len(positions), reason=error.reason)
                for one in taken:
                    if not one.stored.done():
                        one.stored.set_exception(error)
            else:
                for one in taken:
                    if not one.stored.done():
                        one.stored.set_result(None)

    async def _store(self, entry: log_pb2.LogEntry, msg_id: str) -> None:
        data = entry.SerializeToString()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GIVE_UP_AFTER_S
        while True:
            try:
                await self._bus.publish(self._subject, data, msg_id=msg_id)
                return
            except StoreFull:
                raise
            except RetryableError:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(0.1)
