"""A vendor's head-end and its devices: they report where they are, keep what has no answer, and obey commands or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from services.cli.simulate.actors import VENDOR
from services.common.rpc import server
from tandem.ingest.v1 import ingest_pb2
from tandem.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from tests.simulation.actors.town import Device, Town
from tests.simulation.kernel.world import START_NS, World
from tests.simulation.mesh.processes import SECRET, address_of

RETRY_S = 0.5
BATCH, BATCH_INTERVAL_S = 200, 0.2
"""Most reports of a batch, and the interval of batches while more of them wait, seconds."""
FLOOD_REPORTS = 1_500
SENT_TWICE = 0.02
"""Share of reports that the head-end sends twice, under the same id."""
LATER = (ingest_pb2.REFUSAL_CODE_UNKNOWN_DEVICE, ingest_pb2.REFUSAL_CODE_TOO_OFTEN, ingest_pb2.REFUSAL_CODE_NOT_YOURS)
"""Refusals after which the same report may be accepted later."""


class ReportKey(NamedTuple):
    """Identity of a report."""

    device_id: str
    report_id: str


@dataclass(slots=True)
class Notice:
    """A warning that reached a protective device."""

    device_id: str
    warning_id: str
    at_s: float


class HeadEnd:
    """All devices of the world. What they keep survives a crash of the head-end, which has its own disk."""

    def __init__(self, world: World, town: Town) -> None:
        self.accepted: dict[ReportKey, float] = {}
        """When ingest said that a report is durable, seconds since the world's start."""
        self.refused: dict[ReportKey, str] = {}
        """Reports that ingest refused for good, with the reason."""
        self.notices: list[Notice] = []
        """Warnings in the order of their arrival."""
        self._world, self._town = world, town
        self._numbers: dict[str, int] = {}
        self._heard_s: dict[str, float] = {}
        self._waiting: dict[ReportKey, tuple[ingest_pb2.Position, bool]] = {}
        """Reports without an answer, and whether the device had kept them while it was offline."""
        self._made_s: dict[ReportKey, float] = {}
        self._receipts: dict[str, ingest_pb2.CommandReceipt] = {}
        self._intervals: dict[str, tuple[float, float]] = {}
        """Commanded interval of each device and when it ends, seconds."""
        self._next_batch = 0
        self._more = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Number of reports without an answer."""
        return len(self._waiting)

    def heard_s(self, device_id: str) -> tuple[float, ...]:
        """When ingest last accepted a report of a device, seconds; empty if never."""
        return (self._heard_s[device_id],) if device_id in self._heard_s else ()

    def unanswered_live(self) -> list[tuple[ReportKey, float]]:
        """Reports without an answer that no device had kept, with the time of their making, seconds."""
        return [(key, self._made_s[key]) for key, (_, is_kept) in self._waiting.items() if not is_kept]

    def unanswered(self) -> list[tuple[ReportKey, float]]:
        """Reports without an answer, with the time of their making, seconds since the world's start."""
        return [(key, self._made_s[key]) for key in self._waiting]

    async def run(self) -> None:
        """Runs until the head-end crashes."""
        self._more = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for device in self._town.devices.values():
                tasks.create_task(self._measure(device))
            tasks.create_task(self._send())

    async def _measure(self, device: Device) -> None:
        world = self._world
        await asyncio.sleep(world.between(1.0, device.interval_s))
        while True:
            self._note(device)
            interval_s, until_s = self._intervals.get(device.device_id, (device.interval_s, 0.0))
            if world.elapsed_s >= until_s:
                interval_s = device.interval_s
            await asyncio.sleep(interval_s * world.between(0.95, 1.05))

    def flood(self, random: Random) -> None:
        """Lets a device deliver a report of each second so far, as if it had kept them."""
        device = random.choice(list(self._town.devices.values()))
        if not device.clock_ahead_s and not device.lies_s:
            for second in range(max(1, int(self._world.elapsed_s) - FLOOD_REPORTS), int(self._world.elapsed_s)):
                self._note(device, float(second))

    def _note(self, device: Device, at_s: float | None = None) -> None:
        """Makes a report of this moment, or one that was kept since another, seconds; unless the device is dead."""
        now_s = self._world.elapsed_s if at_s is None else at_s
        if device.is_dead(now_s):
            return
        number = self._numbers[device.device_id] = self._numbers.get(device.device_id, 0) + 1
        lat_deg, lon_deg = device.reported_position(now_s)
        fix_time = Timestamp()
        fix_time.FromNanoseconds(START_NS + int((now_s + device.clock_ahead_s) * 1_000) * 1_000_000)
        report = ingest_pb2.Position(
            device_id=device.device_id,
            report_id=f"r{number}",
            fix_time=fix_time,
            lat_deg=lat_deg,
            lon_deg=lon_deg,
            accuracy_m=self._world.between(4.0, 15.0),
        )
        key = ReportKey(device.device_id, report.report_id)
        is_kept = at_s is not None or device.is_offline(now_s)
        self._waiting[key], self._made_s[key] = (report, is_kept), self._world.elapsed_s
        self._more.set()

    # ── the stream to ingest ────────────────────────────────────────────────────────────────────────────────────────

    async def _send(self) -> None:
        stub = IngestServiceStub(server.channel(address_of("ingest")))
        while True:
            sent: dict[int, list[ReportKey]] = {}
            stream = stub.Report(self._requests(sent), metadata=server.bearer(VENDOR, SECRET))
            try:
                async for answer in stream:
                    if answer.commands:
                        for command in answer.commands:
                            self._obey(command)
                    else:
                        self._note_answer(sent.pop(answer.batch, []), answer)
            except grpc.aio.AioRpcError:
                pass  # what has no answer is sent again
            finally:
                stream.cancel()
            await asyncio.sleep(RETRY_S)

    async def _requests(self, sent: dict[int, list[ReportKey]]) -> AsyncIterator[ingest_pb2.ReportRequest]:
        under_way: dict[ReportKey, float] = {}
        while True:
            self._more.clear()
            now_s = self._world.elapsed_s
            keys = [
                key
                for key in self._waiting
                if not self._town.devices[key.device_id].is_offline(now_s)
                and not self._town.devices[key.device_id].is_dead(now_s)
                and under_way.get(key, -60.0) + 20.0 < now_s
            ]
            receipts, self._receipts = list(self._receipts.values())[:200], {}
            live = [key for key in keys if not self._waiting[key][1]][:BATCH]
            kept = [key for key in keys if self._waiting[key][1]][:BATCH]
            for part, backfill in ((live, False), (kept, True)):
                if part or (receipts and not backfill):
                    yield self._request(part, receipts if not backfill else [], sent, backfill=backfill)
                under_way.update((key, now_s) for key in part)
            if len(keys) > len(live) + len(kept):
                await asyncio.sleep(BATCH_INTERVAL_S)
                continue
            # Devices come back from offline times, and answers may be lost: check again after some seconds.
            try:
                async with asyncio.timeout(5.0):
                    await self._more.wait()
            except TimeoutError:
                pass

    def _request(
        self,
        keys: list[ReportKey],
        receipts: list[ingest_pb2.CommandReceipt],
        sent: dict[int, list[ReportKey]],
        *,
        backfill: bool,
    ) -> ingest_pb2.ReportRequest:
        self._next_batch += 1
        ordered = [key for key in keys for _ in range(2 if self._world.random.random() < SENT_TWICE else 1)]
        sent[self._next_batch] = ordered
        return ingest_pb2.ReportRequest(
            batch=self._next_batch,
            positions=[self._waiting[key][0] for key in ordered],
            receipts=receipts,
            backfill=backfill,
        )

    def _note_answer(self, keys: list[ReportKey], answer: ingest_pb2.ReportResponse) -> None:
        refusals = {refusal.index: refusal for refusal in answer.refusals}
        for i, key in enumerate(keys):
            refusal = refusals.get(i)
            if refusal is None:
                if key in self._waiting:
                    del self._waiting[key]
                    self.accepted[key] = self._heard_s[key.device_id] = self._world.elapsed_s
            elif refusal.code not in LATER and key in self._waiting:
                del self._waiting[key]
                self.refused[key] = f"{refusal.field}: {refusal.reason}"

    def _obey(self, command: ingest_pb2.DeviceCommand) -> None:
        device = self._town.devices[command.device_id]
        now_s = self._world.elapsed_s
        if device.is_dead(now_s) or device.is_offline(now_s):
            return
        kind = command.instruction.WhichOneof("kind")
        if kind == "show_notice":
            notice = command.instruction.show_notice
            self.notices.append(Notice(device.device_id, notice.warning_id, now_s))
        elif device.obeys and kind == "report_every":
            every = command.instruction.report_every
            self._intervals[device.device_id] = (float(every.interval_s), now_s + (every.for_s or 86_400))
        elif device.obeys and kind == "report_as_usual":
            self._intervals.pop(device.device_id, None)
        elif device.obeys and kind == "locate_now":
            self._note(device)
        refused = "" if device.obeys or kind == "show_notice" else "this device knows no such instruction"
        self._receipts[command.command_id] = ingest_pb2.CommandReceipt(
            command_id=command.command_id, device_id=command.device_id, refused_because=refused
        )
        self._more.set()
