"""Read a device's track from a GPX, CSV or NDJSON file: each line becomes a report, or a fault."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpxpy
from gpxpy.gpx import GPX, GPXException, GPXRoutePoint, GPXTrackPoint

from services.cli.csv_records import Fault
from services.cli.simulate.files import FileError, InputPlace, json_object, lines_of, message_of, read_text
from services.client.actors import Report, time_of
from services.common import times
from services.common.errors import InvalidField
from services.common.failure import MISUSED, CommandFailed
from services.common.ids import hash_id
from services.ingest.translate import parse_equipment, parse_position
from tandem.ingest.v1 import ingest_pb2

INTERVAL_S = 15
"""Interval between positions of a track without times, seconds: the interval at which a tag reports in pursuit."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = {
    "fix_time": ("time", "timestamp", "fix_time", "epoch_s"),
    "lat_deg": ("lat", "latitude", "lat_deg"),
    "lon_deg": ("lon", "lng", "longitude", "lon_deg"),
    "accuracy_m": ("accuracy", "accuracy_m"),
    "device_id": ("device_id", "device"),
}
"""Accepted column names, in lower case, by the field that the column fills."""
_OPTIONAL = ("accuracy_m", "device_id")
_POINT = re.compile(r"<(?:trkpt|rtept)\b")
_TIME = re.compile(r"<time\b")


@dataclass(slots=True)
class ReportedTrack:
    """Reports of one device from a file, in the order of the file and with its times."""

    reports: list[Report] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    timed: bool = True
    """Whether the times are from the file; otherwise they are INTERVAL_S apart."""
    others: int = 0
    """Number of lines left out, as they belong to other devices."""


def time_ms(report: Report) -> int:
    """Device time of a report, milliseconds since 1970 UTC."""
    return times.from_timestamp(time_of(report))


def read(path: Path, device_id: str, accuracy_m: float) -> ReportedTrack:
    """Reads the track of a device; the file's suffix tells its format. `accuracy_m` applies to positions without an accuracy.

    A report without an id gets a hash of the file's content and the line number. Raises CommandFailed if the file can't be read or
    holds no report of the device.
    """
    readers: dict[str, Callable[[_File], ReportedTrack]] = {".gpx": _gpx, ".csv": _csv, ".ndjson": _ndjson}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise CommandFailed(f"{path}: its name must end in one of {', '.join(readers)}", MISUSED)
    try:
        text = read_text(path)
        digest = hashlib.sha256(text.encode()).hexdigest()
        track = reader(_File(path=path, text=text, digest=digest, device_id=device_id, accuracy_m=accuracy_m))
    except FileError as error:
        raise CommandFailed(str(error), MISUSED) from None
    if not track.reports and not track.faults:
        of_it = f" of {device_id}" if track.others else ""
        raise CommandFailed(f"{path}: holds no report{of_it}", MISUSED)
    return track


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    text: str
    digest: str
    device_id: str
    accuracy_m: float

    def report_id(self, number: int) -> str:
        """The report id of a line without one."""
        return hash_id("report", self.digest, number)

    def position(self, number: int, moment_ms: int, lat_deg: float, *, lon_deg: float, accuracy_m: float) -> Report:
        """The checked position of a line. Raises InvalidField."""
        position = ingest_pb2.Position(
            device_id=self.device_id,
            report_id=self.report_id(number),
            fix_time=times.to_timestamp(moment_ms),
            lat_deg=lat_deg,
            lon_deg=lon_deg,
            accuracy_m=accuracy_m,
        )
        parse_position(position)
        return position


# ── GPX ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _gpx(file: _File) -> ReportedTrack:
    try:
        content = gpxpy.parse(file.text)
    except GPXException as error:
        raise FileError(InputPlace(file.path), f"isn't GPX: {str(error).splitlines()[0]}") from None
    points = list(_points(content))
    track = ReportedTrack(timed=_has_times(file.text))
    for number, (moment, lat_deg, lon_deg) in enumerate(points, 1):
        try:
            if track.timed and moment is None:
                raise InvalidField("time", "is missing, or isn't a time (example: 2026-07-06T00:00:00Z)")
            moment_ms = _since_1970(moment) if moment else number * INTERVAL_S * 1000
            track.reports.append(file.position(number, moment_ms, lat_deg, lon_deg=lon_deg, accuracy_m=file.accuracy_m))
        except InvalidField as error:
            track.faults.append(Fault(number, error.field, error.reason, counted="point"))
    return track


def _has_times(text: str) -> bool:
    """Whether the points of a GPX file have times. gpxpy gives a time that it can't read as None, as if there were none."""
    # The file's own time stands before its points.
    first = _POINT.search(text)
    return first is not None and _TIME.search(text, first.end()) is not None


def _points(content: GPX) -> Iterator[tuple[datetime | None, float, float]]:
    """The points of all tracks; if there are none, those of all routes."""
    recorded: list[GPXTrackPoint | GPXRoutePoint] = [
        point for track in content.tracks for segment in track.segments for point in segment.points
    ]
    for point in recorded or [point for route in content.routes for point in route.points]:
        yield point.time, point.latitude, point.longitude


def _since_1970(moment: datetime) -> int:
    # GPX times are UTC even without an offset.
    delta = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return (delta.days * 86400 + delta.seconds) * 1000 + delta.microseconds // 1000


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _csv(file: _File) -> ReportedTrack:
    lines = lines_of(file.text)
    number, first = next(lines, (1, ""))
    try:
        header = [cell.strip() for cell in _cells(first)]
    except InvalidField as error:
        raise FileError(InputPlace(file.path, number), error.reason) from None
    columns = _columns(file.path, number, header)
    track = ReportedTrack()
    for number, line in lines:
        try:
            cells = _cells(line)
            if len(cells) != len(header):
                raise InvalidField("", "has another number of columns than the header")
            row = {name: cells[i].strip() for name, i in columns.items()}
            if (row.get("device_id") or file.device_id) != file.device_id:
                track.others += 1
                continue
            track.reports.append(_row(file, number, row))
        except InvalidField as error:
            name = header[columns[error.field]] if error.field in columns else error.field
            track.faults.append(Fault(number, name, error.reason))
    return track


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise InvalidField("", str(error)) from None


def _columns(path: Path, number: int, header: list[str]) -> dict[str, int]:
    """Index of the column that fills each field."""
    indices = {}
    for name, known in _COLUMNS.items():
        fitting = [i for i, column in enumerate(header) if column.lower() in known]
        if len(fitting) > 1:
            twice = " and ".join(header[i] for i in fitting)
            raise FileError(InputPlace(path, number), f"the columns {twice} fill the same field; keep one of them")
        if fitting:
            indices[name] = fitting[0]
        elif name not in _OPTIONAL:
            raise FileError(InputPlace(path, number), f"must name the columns; one of {', '.join(known)} is missing")
    return indices


def _row(file: _File, number: int, row: Mapping[str, str]) -> Report:
    accuracy_m = _number(row, "accuracy_m") if row.get("accuracy_m") else file.accuracy_m
    moment_ms = _moment_ms(row["fix_time"])
    return file.position(
        number, moment_ms, _number(row, "lat_deg"), lon_deg=_number(row, "lon_deg"), accuracy_m=accuracy_m
    )


def _number(row: Mapping[str, str], name: str) -> float:
    try:
        return float(row[name])
    except ValueError:
        raise InvalidField(name, "must be a number") from None


def _moment_ms(text: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        try:
            return times.from_rfc3339(text)
        except ValueError:
            raise InvalidField(
                "fix_time",
                "must be ISO 8601 with an offset, or seconds since 1970 UTC (examples: 2026-07-06T09:00:00+09:00, 1783296000)",
            ) from None
    if not math.isfinite(seconds) or not times.MIN_MS <= seconds * 1000 <= times.MAX_MS:
        raise InvalidField("fix_time", "must be between the years 1 and 9999, in seconds since 1970 UTC")
    return round(seconds * 1000)


# ── NDJSON ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ndjson(file: _File) -> ReportedTrack:
    track = ReportedTrack()
    for number, line in lines_of(file.text):
        try:
            content = json_object(InputPlace(file.path, number), line)
            if content.setdefault("device_id", file.device_id) != file.device_id:
                track.others += 1
                continue
            track.reports.append(_arrival(file, number, content))
        except FileError as error:
            track.faults.append(Fault(number, error.field, error.reason))
    return track


def _arrival(file: _File, number: int, content: dict[str, Any]) -> Report:
    place = InputPlace(file.path, number)
    name = content.pop("kind", "position")
    if name not in ("position", "equipment"):
        raise FileError(place.of("kind"), "must be position or equipment")
    content.pop("received_at", None)
    content.setdefault("report_id", file.report_id(number))
    if name == "position":
        content.setdefault("accuracy_m", file.accuracy_m)
        return message_of(place, content, ingest_pb2.Position, parse=parse_position)
    return message_of(place, content, ingest_pb2.EquipmentEvent, parse=parse_equipment)
