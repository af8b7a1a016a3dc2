"""Reports for bench.ingest, bench.geofence and their peers, of 50,000 devices in turn, generated while they are sent.

A batch holds reports of consecutive devices. They share the report id, which is unique for each device, and the fix time, in whole
seconds as receivers report it. So a batch is a join of prepared bytes and costs almost nothing to generate.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bench.mesh.load import Plan, Shape
from services.client import load_generator
from services.client.load_generator import DueRequest
from services.common import times
from tandem.ingest.v1 import ingest_pb2

DEVICES = 50_000
"""Enough to stay below the limit of 10 reports/s for a device: 150,000 reports/s are 3 for each device."""
BATCH = 100
ACCURACY_M = 10.0
Place: TypeAlias = Callable[[int], tuple[float, float]]
"""Function from a device's number to its latitude and longitude, degrees."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch of reports as columns for a database."""

    report_id: str
    fix_time_s: int
    device_ids: Sequence[str]
    lat_deg: Sequence[float]
    lon_deg: Sequence[float]


class Reports:
    """Endless source of batches of `size` reports. Sources that share `numbers` never generate the same report twice.

    Requests with single reports allow combined answers (`together`), as the contract recommends for streams.
    """

    def __init__(
        self,
        size: int,
        numbers: Iterator[int],
        kind: type[ingest_pb2.ReportRequest | ingest_pb2.ReportBatchRequest] = ingest_pb2.ReportRequest,
        *,
        places: Sequence[Place] = (),
        devices: int = DEVICES,
    ) -> None:
        self.size, self._numbers = size, numbers
        # In each turn of all devices, every device is at the next of the given places.
        groups = [
            (range(first, first + size), where) for where in places or (place,) for first in range(0, devices, size)
        ]
        self._places = [[where(device) for device in group] for group, where in groups]
        self._names = [[device_id(device) for device in group] for group, _ in groups]
        together = kind is ingest_pb2.ReportRequest and size == 1
        self._head = ingest_pb2.ReportRequest(together=True).SerializeToString() if together else b""
        placeholder = shared_fields(report_id(0), int(time.time()))
        self._pieces = [
            kind(positions=[_position(device, where(device), placeholder) for device in group])
            .SerializeToString()
            .split(placeholder)
            for group, where in groups
        ]

    def next(self) -> bytes:
        """The next request, with the present second as fix time."""
        return self._message(next(self._numbers), int(time.time()))

    def next_numbered(self) -> tuple[int, bytes]:
        """The next request for a stream and its batch number, with the present second as fix time."""
        number = next(self._numbers)
        return number, batch_field(number) + self._message(number, int(time.time()))

    def next_of(self, fix_time_s: int, batch: int) -> bytes:
        """The next request for a stream, with this fix time and batch number."""
        return batch_field(batch) + self._message(next(self._numbers), fix_time_s)

    def next_columns(self) -> Columns:
        """The next batch as columns for a database."""
        number = next(self._numbers)
        group = number % len(self._pieces)
        lat_deg, lon_deg = zip(*self._places[group], strict=True)
        return Columns(
            report_id=report_id(number),
            fix_time_s=int(time.time()),
            device_ids=self._names[group],
            lat_deg=lat_deg,
            lon_deg=lon_deg,
        )

    def _message(self, number: int, fix_time_s: int) -> bytes:
        return self._head + shared_fields(report_id(number), fix_time_s).join(self._pieces[number % len(self._pieces)])


def device_id(device: int) -> str:
    """Id of the device with this number."""
    return f"tag-{device:05d}"


def device_number(device: str) -> int:
    """Number of the device with this id."""
    return int(device.removeprefix("tag-"))


def report_id(number: int) -> str:
    """Id of the reports of the batch with this number."""
    return f"r{number:09d}"


def place(device: int) -> tuple[float, float]:
    """Latitude and longitude of a device that doesn't move, degrees."""
    return 34.0 + device % 250 * 0.0123456789, 126.5 + device // 250 * 0.0123456789


def plan(reports: Reports, shape: Shape, seconds: float, *, seed: int) -> Plan:
    """A load whose requests are due at independent random moments."""
    dues_s = load_generator.moments_s(random.Random(seed), round(seconds * shape.reports_per_s / shape.batch), seconds)
    # Generating a prepared request of any size takes less time than one report elsewhere, so the lead time counts requests.
    starts_at_ms = load_generator.starts_at_ms(len(dues_s))
    requests = [
        DueRequest(due_s, shape.batch, reports.next_of(int(starts_at_ms / 1000 + due_s), i))
        for i, due_s in enumerate(dues_s)
    ]
    return Plan(starts_at_ms, requests, {})


def batch_field(number: int) -> bytes:
    """Serialized batch number. Protobuf merges concatenated messages, so a request may follow these bytes."""
    return ingest_pb2.ReportRequest(batch=number).SerializeToString()


def _position(device: int, where: tuple[float, float], shared: bytes) -> ingest_pb2.Position:
    lat_deg, lon_deg = where
    position = ingest_pb2.Position(device_id=device_id(device), lat_deg=lat_deg, lon_deg=lon_deg, accuracy_m=ACCURACY_M)
    position.MergeFromString(shared)
    return position


def shared_fields(report: str, fix_time_s: int) -> bytes:
    """Serialized fields of a position that differ from batch to batch. They are adjacent, because fields are written in order."""
    return ingest_pb2.Position(report_id=report, fix_time=times.to_timestamp(fix_time_s * 1000)).SerializeToString()
