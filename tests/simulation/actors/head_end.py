"""A vendor's head-end and its devices: they report where they are, keep what has no answer, and obey commands or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeAlias, TypeVar

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from services.client.actors import VENDOR
from services.common.rpc import server
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from tests.simulation.actors.town import Device, Town
from tests.simulation.kernel.world import START_NS, World
from tests.simulation.mesh.processes import SECRET, address_of

RETRY_S = 0.5
RESEND_S, RESEND_KEPT_S = 20.0, 120.0
"""Time without an answer after which the head-end sends a live or a kept report once more, seconds."""
BATCH, BATCH_INTERVAL_S = 200, 0.2
"""Most reports of a batch, and the interval of batches while more of them wait, seconds."""
FLOOD_REPORTS = 1_500
SENT_TWICE = 0.02
"""Share of reports that the head-end sends twice, under the same id."""
EVENTS = {
    "tag": ((log_pb2.STRAP_OPEN, log_pb2.STRAP_CLOSED), (log_pb2.BATTERY_LOW, log_pb2.BATTERY_RECOVERED)),
    "phone": ((log_pb2.PANIC_BUTTON, log_pb2.PANIC_CANCELLED), (log_pb2.BATTERY_LOW, log_pb2.BATTERY_RECOVERED)),
}
"""Equipment events by the kind of device, each with the event that ends it."""
EVENT_GAP_S, EVENT_LASTS_S = (200.0, 3_000.0), (20.0, 300.0)
LATER = (ingest_pb2.REFUSAL_CODE_UNKNOWN_DEVICE, ingest_pb2.REFUSAL_CODE_TOO_OFTEN, ingest_pb2.REFUSAL_CODE_NOT_YOURS)
"""Refusals after which the same report may be accepted later."""


Report: TypeAlias = ingest_pb2.Position | ingest_pb2.EquipmentEvent
T = TypeVar("T", ingest_pb2.Position, ingest_pb2.EquipmentEvent)


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
        self._waiting: dict[ReportKey, tuple[Report, bool]] = {}
        """Reports without an answer, and whether the device had kept them while it was offline."""
        self._made_s: dict[ReportKey, float] = {}
        self._receipts: dict[str, ingest_pb2.CommandReceipt] = {}
        self._intervals: dict[str, tuple[float, float]] = {}
        """Commanded interval of each device and when it ends, seconds."""
        self._next_batch = 0
        self._more = {False: asyncio.Event(), True: asyncio.Event()}
        """Set when there is more to send, of reports that weren't kept and of those that were."""

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
        self._more = {False: asyncio.Event(), True: asyncio.Event()}
        async with asyncio.TaskGroup() as tasks:
            for device in self._town.devices.values():
                tasks.create_task(self._measure(device))
                tasks.create_task(self._happen(device))
            tasks.create_task(self._send(kept=False))
            tasks.create_task(self._send(kept=True))

    async def _measure(self, device: Device) -> None:
        world = self._world
        await asyncio.sleep(world.between(1.0, device.interval_s))
        while True:
            self._note(device)
            interval_s, until_s = self._intervals.get(device.device_id, (device.interval_s, 0.0))
            if world.elapsed_s >= until_s:
                interval_s = device.interval_s
            await asyncio.sleep(interval_s * world.between(0.95, 1.05))

    async def _happen(self, device: Device) -> None:
        """Makes equipment events: a panic, an open strap, an empty battery, and their ends."""
        world = self._world
        while True:
            await asyncio.sleep(world.between(*EVENT_GAP_S))
            begin, end = world.random.choice(EVENTS[device.device_id.partition("-")[0]])
            self._note_event(device, begin)
            await asyncio.sleep(world.between(*EVENT_LASTS_S))
            self._note_event(device, end)

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
        lat_deg, lon_deg = device.reported_position(now_s)
        report = ingest_pb2.Position(
            device_id=device.device_id,
            report_id=self._new_id(device),
            fix_time=_stamp(device, now_s),
            lat_deg=lat_deg,
            lon_deg=lon_deg,
            accuracy_m=self._world.between(4.0, 15.0),
        )
        self._keep(report, is_kept=at_s is not None or device.is_offline(now_s))

    def _note_event(self, device: Device, kind: log_pb2.EquipmentKind.ValueType) -> None:
        now_s = self._world.elapsed_s
        if not device.is_dead(now_s):
            event = ingest_pb2.EquipmentEvent(
                device_id=device.device_id,
                report_id=self._new_id(device),
                event=kind,
                event_time=_stamp(device, now_s),
            )
            self._keep(event, is_kept=device.is_offline(now_s))

    def _new_id(self, device: Device) -> str:
        number = self._numbers[device.device_id] = self._numbers.get(device.device_id, 0) + 1
        return f"r{number}"

    def _keep(self, report: Report, *, is_kept: bool) -> None:
        key = ReportKey(report.device_id, report.report_id)
        self._waiting[key], self._made_s[key] = (report, is_kept), self._world.elapsed_s
        self._more[is_kept].set()

    # ── the streams to ingest: kept reports have one of their own, as answers of one stream keep their order ─────────

    async def _send(self, *, kept: bool) -> None:
        stub = IngestServiceStub(server.channel(address_of("ingest")))
        while True:
            sent: dict[int, list[ReportKey]] = {}
            stream = stub.Report(self._requests(sent, kept=kept), metadata=server.bearer(VENDOR, SECRET))
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

    async def _requests(
        self, sent: dict[int, list[ReportKey]], *, kept: bool
    ) -> AsyncIterator[ingest_pb2.ReportRequest]:
        under_way: dict[ReportKey, float] = {}
        more = self._more[kept]
        while True:
            more.clear()
            now_s = self._world.elapsed_s
            resend_before_s = now_s - (RESEND_KEPT_S if kept else RESEND_S)
            keys = [
                key
                for key, (_, is_kept) in self._waiting.items()
                if is_kept is kept
                and not self._town.devices[key.device_id].is_offline(now_s)
                and not self._town.devices[key.device_id].is_dead(now_s)
                and under_way.get(key, -RESEND_KEPT_S) < resend_before_s
            ]
            receipts: list[ingest_pb2.CommandReceipt] = []
            if not kept:
                receipts, self._receipts = list(self._receipts.values())[:200], {}
            part = keys[:BATCH]
            if part or receipts:
                yield self._request(part, receipts, sent, kept=kept)
            under_way.update((key, now_s) for key in part)
            if len(keys) > len(part):
                await asyncio.sleep(BATCH_INTERVAL_S)
                continue
            # Devices come back from offline times, and answers may be lost: check again after some seconds.
            try:
                async with asyncio.timeout(5.0):
                    await more.wait()
            except TimeoutError:
                pass

    def _request(
        self,
        keys: list[ReportKey],
        receipts: list[ingest_pb2.CommandReceipt],
        sent: dict[int, list[ReportKey]],
        *,
        kept: bool,
    ) -> ingest_pb2.ReportRequest:
        self._next_batch += 1
        doubled = [key for key in keys for _ in range(2 if self._world.random.random() < SENT_TWICE else 1)]
        positions = self._reports(doubled, ingest_pb2.Position)
        events = self._reports(doubled, ingest_pb2.EquipmentEvent)
        # An answer counts positions first, then equipment events.
        ordered: list[Report] = [*positions, *events]
        sent[self._next_batch] = [ReportKey(report.device_id, report.report_id) for report in ordered]
        return ingest_pb2.ReportRequest(
            batch=self._next_batch, positions=positions, equipment=events, receipts=receipts, backfill=kept
        )

    def _reports(self, keys: Iterable[ReportKey], kind: type[T]) -> list[T]:
        reports = (self._waiting[key][0] for key in keys)
        return [report for report in reports if isinstance(report, kind)]

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
        self._more[False].set()


def _stamp(device: Device, at_s: float) -> Timestamp:
    """A time by the device's clock."""
    stamp = Timestamp()
    stamp.FromNanoseconds(START_NS + int((at_s + device.clock_ahead_s) * 1_000) * 1_000_000)
    return stamp
