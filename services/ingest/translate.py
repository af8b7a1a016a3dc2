"""Messages of the door <-> what the log keeps. Parsing is the validation: errors name the field within the report."""

from __future__ import annotations

from collections.abc import Sequence

from services.common import fields
from services.common.errors import InvalidField
from services.ingest.domain import ACCURACY_MOST_M, Equipment, Position
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2


def parse_position(msg: ingest_pb2.Position) -> Position:
    """A position. Raises InvalidField."""
    fields.required_id("device_id", msg.device_id)
    fields.required_id("report_id", msg.report_id)
    fix_time_ms = fields.moment("fix_time", msg.fix_time, msg.HasField("fix_time"))
    lat_deg = fields.number("lat_deg", msg.lat_deg, -90, 90)
    lon_deg = fields.number("lon_deg", msg.lon_deg, -180, 180)
    accuracy_m = fields.number("accuracy_m", msg.accuracy_m, 0, ACCURACY_MOST_M)
    if accuracy_m == 0:
        raise InvalidField("accuracy_m", "is missing")
    if msg.HasField("speed_mps"):
        fields.number("speed_mps", msg.speed_mps, 0, 1_000)
    if msg.HasField("course_deg"):
        fields.number("course_deg", msg.course_deg, 0, 360)
    if msg.HasField("battery_pct"):
        fields.number("battery_pct", msg.battery_pct, 0, 100)
    return Position(
        msg.device_id,
        msg.report_id,
        fix_time_ms,
        round(lat_deg * 1e7),
        round(lon_deg * 1e7),
        max(1, round(accuracy_m * 1000)),
    )


def parse_equipment(msg: ingest_pb2.EquipmentEvent) -> Equipment:
    """An equipment event. Raises InvalidField."""
    fields.required_id("device_id", msg.device_id)
    fields.required_id("report_id", msg.report_id)
    if msg.event not in log_pb2.EquipmentKind.values() or not msg.event:
        raise InvalidField("event", "is missing" if not msg.event else "is no known event")
    return Equipment(
        msg.device_id, msg.report_id, msg.event, fields.moment("event_time", msg.event_time, msg.HasField("event_time"))
    )


def positions_entry(positions: Sequence[Position], received_wall_us: int) -> log_pb2.LogEntry:
    """The entry of a batch of positions."""
    return log_pb2.LogEntry(
        positions=log_pb2.PositionBatch(
            device_id=[one.device_id for one in positions],
            report_id=[one.report_id for one in positions],
            fix_time_ms=[one.fix_time_ms for one in positions],
            lat_e7=[one.lat_e7 for one in positions],
            lon_e7=[one.lon_e7 for one in positions],
            accuracy_mm=[one.accuracy_mm for one in positions],
            received_wall_us=received_wall_us,
        )
    )


def equipment_entry(event: Equipment, received_wall_us: int) -> log_pb2.LogEntry:
    """The entry of an equipment event."""
    return log_pb2.LogEntry(
        equipment=log_pb2.EquipmentReport(
            device_id=event.device_id,
            report_id=event.report_id,
            event=log_pb2.EquipmentKind.ValueType(event.event),
            event_time_ms=event.event_time_ms,
            received_wall_us=received_wall_us,
        )
    )
