"""Translates reports between the endpoints' messages and the log. Parsing validates: errors name the field within the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from services.common import fields, times
from services.common.errors import InvalidField
from services.ingest.domain import (
    MAX_REPORTED_ACCURACY_M,
    EquipmentEvent,
    Position,
    Positions,
    ReportedCharge,
    UnitPresence,
)
from tandem.common.v1 import log_pb2, presence_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.ingest.v1 import presence_pb2 as ingest_presence_pb2

MAX_SPEED_MPS = 1_000.0


def parse_position(msg: ingest_pb2.Position) -> Position:
    """Parses and checks a position. Raises InvalidField."""
    fields.required_id("device_id", msg.device_id)
    fields.required_id("report_id", msg.report_id)
    fix_time_ms = fields.moment("fix_time", msg.fix_time, msg.HasField("fix_time"))
    lat_deg = fields.number("lat_deg", msg.lat_deg, -90, greatest=90)
    lon_deg = fields.number("lon_deg", msg.lon_deg, -180, greatest=180)
    accuracy_m = fields.number("accuracy_m", msg.accuracy_m, 0, greatest=MAX_REPORTED_ACCURACY_M)
    if accuracy_m == 0:
        raise InvalidField("accuracy_m", "is missing, or 0: it must be above 0 (example: 12.5)")
    if msg.HasField("speed_mps"):
        fields.number("speed_mps", msg.speed_mps, 0, greatest=MAX_SPEED_MPS)
    if msg.HasField("course_deg"):
        fields.number("course_deg", msg.course_deg, 0, greatest=360)
    if msg.HasField("battery_pct"):
        fields.number("battery_pct", msg.battery_pct, 0, greatest=100)
    return Position(
        device_id=msg.device_id,
        report_id=msg.report_id,
        fix_time_ms=fix_time_ms,
        lat_e7=round(lat_deg * 1e7),
        lon_e7=round(lon_deg * 1e7),
        accuracy_mm=max(1, round(accuracy_m * 1000)),
        source=_source(msg.source),
    )


def _source(number: int) -> int:
    if number not in _SOURCES:
        raise InvalidField("source", "is no known source (example: POSITION_SOURCE_GNSS)")
    return number


def parse_presence(msg: ingest_presence_pb2.Presence) -> UnitPresence:
    """Parses and checks a presence at a home unit or beacon. Raises InvalidField."""
    fields.required_id("device_id", msg.device_id)
    fields.required_id("report_id", msg.report_id)
    fields.required_id("unit_id", msg.unit_id)
    seen_ms = fields.moment("seen", msg.seen, msg.HasField("seen"))
    since_ms = fields.moment("since", msg.since, True) if msg.HasField("since") else seen_ms
    if since_ms > seen_ms:
        raise InvalidField("since", "must not be later than seen")
    return UnitPresence(
        device_id=msg.device_id,
        report_id=msg.report_id,
        unit_id=msg.unit_id,
        since_ms=since_ms,
        seen_ms=seen_ms,
        left=msg.left,
    )


def parse_equipment(msg: ingest_pb2.EquipmentEvent) -> EquipmentEvent:
    """Parses and checks an equipment event. Raises InvalidField."""
    fields.required_id("device_id", msg.device_id)
    fields.required_id("report_id", msg.report_id)
    if msg.event not in log_pb2.EquipmentKind.values() or not msg.event:
        raise InvalidField(
            "event", "is missing" if not msg.event else f"is no known event: {msg.event} isn't in EquipmentKind"
        )
    if msg.silent and msg.event != log_pb2.PANIC_BUTTON:
        raise InvalidField("silent", "is set with another event than PANIC_BUTTON: only a panic is called in silence")
    return EquipmentEvent(
        device_id=msg.device_id,
        report_id=msg.report_id,
        event=msg.event,
        event_time_ms=fields.moment("event_time", msg.event_time, msg.HasField("event_time")),
        silent=msg.silent,
    )


def read_positions(msgs: Sequence[ingest_pb2.Position]) -> Positions | None:
    """Parses all positions of a batch at once. Returns None if a position may break a rule of `parse_position`.

    Of the device ids, only missing ones are found here: `Routes` knows the registered ids, which are valid, and `Routes.resolve` checks
    any other.
    """
    device_ids = [msg.device_id for msg in msgs]
    fix_times = [msg.fix_time for msg in msgs]
    seconds = [fix_time.seconds for fix_time in fix_times]
    nanos = [fix_time.nanos for fix_time in fix_times]
    lat_deg = [msg.lat_deg for msg in msgs]
    lon_deg = [msg.lon_deg for msg in msgs]
    accuracy_m = [msg.accuracy_m for msg in msgs]
    report_ids = [msg.report_id for msg in msgs]
    sources = [msg.source for msg in msgs]
    # A missing time reads as the epoch, and a missing accuracy as 0.
    if not (
        min(seconds) > 0
        and max(seconds) < times.MAX_MS // 1000
        and min(nanos) >= 0
        and max(nanos) < 1_000_000_000
        and _all_within(lat_deg, -90, 90)
        and _all_within(lon_deg, -180, 180)
        and _all_within(accuracy_m, 0, MAX_REPORTED_ACCURACY_M)
        and min(accuracy_m) > 0
        and _absent_or_within([msg.speed_mps for msg in msgs], 0, MAX_SPEED_MPS)
        and _absent_or_within([msg.course_deg for msg in msgs], 0, 360)
        and _absent_or_within([msg.battery_pct for msg in msgs], 0, 100)
        and (not any(sources) or _SOURCES.issuperset(sources))
        and fields.are_ids(report_ids)
        and all(device_ids)
    ):
        return None
    return Positions(
        device_ids=device_ids,
        report_ids=report_ids,
        fix_times_ms=[s * 1000 + n // 1_000_000 for s, n in zip(seconds, nanos, strict=True)],
        lat_e7=[round(lat * 1e7) for lat in lat_deg],
        lon_e7=[round(lon * 1e7) for lon in lon_deg],
        accuracy_mm=[round(accuracy * 1000) or 1 for accuracy in accuracy_m],
        sources=[*sources] if any(sources) else [],
    )


def charges(msgs: Iterable[ingest_pb2.Position]) -> list[ReportedCharge]:
    """Returns the battery charges of positions; those that are out of range, or without a time, are left out."""
    return [
        ReportedCharge(msg.device_id, msg.battery_pct, times.from_timestamp(msg.fix_time))
        for msg in msgs
        if msg.HasField("battery_pct") and 0 <= msg.battery_pct <= 100 and msg.fix_time.seconds > 0
    ]


_SOURCES = frozenset(presence_pb2.PositionSource.values())


def _absent_or_within(values: list[float], least: float, greatest: float) -> bool:
    return not any(values) or _all_within(values, least, greatest)


def _all_within(values: list[float], least: float, greatest: float) -> bool:
    # A NaN passes min() and max(), but not the sum.
    return math.isfinite(sum(values)) and min(values) >= least and max(values) <= greatest


def positions_entry(positions: Positions, received_wall_us: int, backfilled: bool = False) -> log_pb2.LogEntry:
    """Makes the log entry of a batch of positions."""
    return log_pb2.LogEntry(
        positions=log_pb2.PositionBatch(
            device_id=positions.device_ids,
            report_id=positions.report_ids,
            fix_time_ms=positions.fix_times_ms,
            lat_e7=positions.lat_e7,
            lon_e7=positions.lon_e7,
            accuracy_mm=positions.accuracy_mm,
            received_wall_us=received_wall_us,
            backfilled=backfilled,
            source=map(presence_pb2.PositionSource.ValueType, positions.sources) if any(positions.sources) else None,
        )
    )


def presences_entry(presences: Sequence[UnitPresence], received_wall_us: int) -> log_pb2.LogEntry:
    """Makes the log entry of presences at home units and beacons."""
    return log_pb2.LogEntry(
        presences=presence_pb2.PresenceBatch(
            device_id=[presence.device_id for presence in presences],
            report_id=[presence.report_id for presence in presences],
            unit_id=[presence.unit_id for presence in presences],
            since_ms=[presence.since_ms for presence in presences],
            seen_ms=[presence.seen_ms for presence in presences],
            left=[presence.left for presence in presences],
            received_wall_us=received_wall_us,
        )
    )


def heard_entry(heard: Sequence[tuple[str, str]], received_wall_us: int) -> log_pb2.LogEntry:
    """Makes the log entry of devices that were heard without a usable position, from pairs of device id and report id."""
    return log_pb2.LogEntry(
        heard=log_pb2.HeardBatch(
            device_id=[device_id for device_id, _ in heard],
            report_id=[report_id for _, report_id in heard],
            received_wall_us=received_wall_us,
        )
    )


def equipment_entry(event: EquipmentEvent, received_wall_us: int) -> log_pb2.LogEntry:
    """Makes the log entry of an equipment event."""
    return log_pb2.LogEntry(
        equipment=log_pb2.EquipmentReport(
            device_id=event.device_id,
            report_id=event.report_id,
            event=log_pb2.EquipmentKind.ValueType(event.event),
            event_time_ms=event.event_time_ms,
            received_wall_us=received_wall_us,
            silent=event.silent,
        )
    )
