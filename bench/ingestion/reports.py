"""The reports that bench.ingest, bench.geofence and their peers get: of 50,000 devices in turn, made while they are sent.

A batch is of devices that follow one another. They share the report id, which is unique within each device for ever, and the fix
time, a whole second as receivers give it. So a batch is a join of bytes that were prepared, and making one costs next to nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bench.mesh.load import Plan, Shape
from services.cli.simulate import load_generator
from services.cli.simulate.load_generator import DueRequest
from services.common import times
from tandem.ingest.v1 import ingest_pb2

DEVICES = 50_000
"""Enough that none comes near the 10 reports/s that a device may send: 150,000/s are 3."""
BATCH = 100
ACCURACY_M = 10.0
Place: TypeAlias = Callable[[int], tuple[float, float]]
"""Where a device is, degrees."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch as a database takes it."""

    report_id: str
    fix_time_s: int
    device_ids: Sequence[str]
    lat_deg: Sequence[float]
    lon_deg: Sequence[float]


class Reports:
    """Batches of `size` without end. `numbers` is shared by all that must not give the same report twice.

    On streams of single reports answers may come together, as the contract recommends.
    """

    def __init__(
        self,
        size: int,
        numbers: Iterator[int],
        kind: type[ingest_pb2.ReportRequest | ingest_pb2.ReportBatchRequest] = ingest_pb2.ReportRequest,
        places: Sequence[Place] = (),
        devices: int = DEVICES,
    ) -> None:
        self.size, self._numbers = size, numbers
        # Whoever moves is at the first place in the first turn of all devices, at the next in the next turn, and so on.
        groups = [
            (range(first, first + size), where) for where in places or (place,) for first in range(0, devices, size)
        ]
        self._places = [[where(one) for one in group] for group, where in groups]
        self._names = [[device_id(one) for one in group] for group, _ in groups]
        together = kind is ingest_pb2.ReportRequest and size == 1
        self._head = ingest_pb2.ReportRequest(together=True).SerializeToString() if together else b""
        blank = _said(report_id(0), int(time.time()))
        self._pieces = [
            kind(positions=[_position(one, where(one), blank) for one in group]).SerializeToString().split(blank)
            for group, where in groups
        ]

    def next(self) -> bytes:
        """The next request, with fixes of now."""
        return self._message(next(self._numbers), int(time.time()))

    def next_numbered(self) -> tuple[int, bytes]:
        """The same for a stream, with the number of its batch in it."""
        number = next(self._numbers)
        return number, _batch(number) + self._message(number, int(time.time()))

    def next_of(self, fix_time_s: int, batch: int) -> bytes:
        """The next request for a stream, with fixes of that second and the sender's number of the batch."""
        return _batch(batch) + self._message(next(self._numbers), fix_time_s)

    def next_columns(self) -> Columns:
        """The next batch, for a database."""
        number = next(self._numbers)
        group = number % len(self._pieces)
        lat_deg, lon_deg = zip(*self._places[group], strict=True)
        return Columns(report_id(number), int(time.time()), self._names[group], lat_deg, lon_deg)

    def _message(self, number: int, fix_time_s: int) -> bytes:
        return self._head + _said(report_id(number), fix_time_s).join(self._pieces[number % len(self._pieces)])


def device_id(device: int) -> str:
    """Id of a device."""
    return f"tag-{device:05d}"


def device_number(device: str) -> int:
    """Which device has this id."""
    return int(device.removeprefix("tag-"))


def report_id(number: int) -> str:
    """Id of the reports of the batch with this number."""
    return f"r{number:09d}"


def place(device: int) -> tuple[float, float]:
    """Where a device is, degrees."""
    return 34.0 + device % 250 * 0.0123456789, 126.5 + device // 250 * 0.0123456789


def plan(reports: Reports, shape: Shape, seconds: float, seed: int) -> Plan:
    """A load whose requests are due at independent random moments."""
    dues_s = load_generator.moments_s(random.Random(seed), round(seconds * shape.reports_per_s / shape.batch), seconds)
    # A request is made sooner than otherwise a report, however many it holds.
    starts_at_ms = load_generator.starts_at_ms(len(dues_s))
    requests = [
        DueRequest(due_s, shape.batch, reports.next_of(int(starts_at_ms / 1000 + due_s), i))
        for i, due_s in enumerate(dues_s)
    ]
    return Plan(starts_at_ms, requests, {})


def _batch(number: int) -> bytes:
    """The sender's number of a batch. The bytes of two messages one behind the other are both in one."""
    return ingest_pb2.ReportRequest(batch=number).SerializeToString()


def _position(device: int, where: tuple[float, float], said: bytes) -> ingest_pb2.Position:
    lat_deg, lon_deg = where
    position = ingest_pb2.Position(device_id=device_id(device), lat_deg=lat_deg, lon_deg=lon_deg, accuracy_m=ACCURACY_M)
    position.MergeFromString(said)
    return position


def _said(report: str, fix_time_s: int) -> bytes:
    """The bytes of a position that differ from batch to batch. They stand together, since fields are written in their order."""
    return ingest_pb2.Position(report_id=report, fix_time=times.to_timestamp(fix_time_s * 1000)).SerializeToString()
