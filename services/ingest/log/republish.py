"""Republishes the last report of a device to each partition that newly needs it.

With more than one partition, an order that arrives after the last reports of both parties may be decided in a partition that
hasn't seen the protected person. Whenever a device's route names a partition that lacks the device's last report, ingest publishes
that report there. The fold drops duplicates by report id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from services.common.clock import wall_us
from services.common.messaging import flow, stored
from services.common.messaging.bus import Bounds, Bus
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField, RetryableError
from services.ingest.admission.routes import Partitions, Routes
from services.ingest.batch import Batch
from services.ingest.domain import Position, Positions
from services.ingest.held import read_held
from services.ingest.log.writer import LogWriter, Origin

SENDER = "again"
"""Sender key of republished reports in the fair queues of the log writers."""
TAIL_MESSAGES = 50_000
"""Number of the newest messages of each partition that are read at the start."""


class LastReports:
    """Last position of each device and the partitions that hold it. Empty if there is only one partition."""

    def __init__(self, routes: Routes, writers: Mapping[int, LogWriter]) -> None:
        self._routes, self._writers = routes, writers
        self._last: dict[str, tuple[Position, set[int]]] = {}
        self._due: asyncio.Queue[str] = asyncio.Queue()

    def stored(self, positions: Positions, partitions: Sequence[Partitions]) -> None:
        """Notes the partitions that hold each position."""
        if len(self._writers) == 1:
            return
        for i in range(len(positions)):
            self._stored(positions.row(i), partitions[i])

    def _stored(self, position: Position, partitions: Partitions) -> None:
        known = self._last.get(position.device_id)
        if known and known[0].report_id == position.report_id:
            known[1].update(partitions)
        elif not known or position.fix_time_ms >= known[0].fix_time_ms:
            self._last[position.device_id] = (position, set(partitions))
        self.route_changed(position.device_id, self._routes.partitions(position.device_id))

    def route_changed(self, device_id: str, partitions: Partitions) -> None:
        """Queues the last report of a device for the partitions that need and lack it."""
        known = self._last.get(device_id)
        if known and set(partitions) - known[1]:
            self._due.put_nowait(device_id)

    async def read_tail(self, bus: Bus) -> None:
        """Learns the last reports from the newest TAIL_MESSAGES of each partition."""
        if len(self._writers) == 1:
            return
        for partition in self._writers:
            stream = flow.log_stream(partition)
            bounds = await bus.bounds_of(stream)
            tail = Bounds(max(bounds.first, bounds.last - TAIL_MESSAGES), bounds.last)
            async for messages in read_held(bus, stream, tail):
                for message in messages:
                    if message.subject == flow.log_subject(partition, "report"):
                        self._read(message.data, partition)

    def _read(self, data: bytes, partition: int) -> None:
        try:
            batch = stored.positions(data)
        except InvalidField:
            return  # the evaluators keep it as a dead letter
        for i, device_id in enumerate(batch.device_id):
            position = Position(
                device_id=device_id,
                report_id=batch.report_id[i],
                fix_time_ms=batch.fix_time_ms[i],
                lat_e7=batch.lat_e7[i],
                lon_e7=batch.lon_e7[i],
                accuracy_mm=batch.accuracy_mm[i],
                source=batch.source[i] if batch.source else 0,
            )
            self._stored(position, (partition,))

    async def run(self) -> None:
        """Publishes the queued reports until cancelled."""
        while True:
            device_id = await self._due.get()
            position, present = self._last[device_id]
            for partition in set(self._routes.partitions(device_id)) - present:
                batch = Batch()
                batch.check()
                self._writers[partition].positions(Origin(batch, SENDER, wall_us()), Positions.of([position]))
                batch.write()
                try:
                    await batch.ended()
                except RetryableError as error:
                    logger().warning("last_report_retried", partition=partition, reason=error.reason)
                    await asyncio.sleep(1)
                    self._due.put_nowait(device_id)
                else:
                    present.add(partition)
                    logger().info("last_report_published_again", partition=partition)
