"""Test support: log entries of a case with one protected person and one place, and positions north of the person."""

from __future__ import annotations

from services.common.messaging import flow
from services.ingest import translate
from services.ingest.domain import Position, Positions
from tandem.common.v1 import geometry_pb2, log_pb2

LAT_E7, LON_E7 = 375_000_000, 1_270_000_000
"""Position of the protected person, 1e-7 degrees."""
E7_PER_KM = 90_092
"""Difference in latitude of one kilometre to the north at that position, 1e-7 degrees."""


def case_entry(
    case: str = "1", *, version: int = 1, from_ms: int = 0, until_ms: int = 1 << 50, place: bool = False
) -> log_pb2.LogEntry:
    """Log entry of a case: wearer w<case> with tag t<case>, person p<case> with device d<case>, and the default rings."""
    ring = geometry_pb2.Ring
    snapshot = log_pb2.CaseSnapshot(
        case_id=f"case-{case}",
        version=version,
        order_id=f"order-{case}",
        wearer_id=f"w{case}",
        tag_device_ids=[f"t{case}"],
        persons=[log_pb2.ProtectedTarget(person_id=f"p{case}", device_ids=[f"d{case}"])],
        rings=[
            ring(radius_m=2000, action=geometry_pb2.WARN),
            ring(radius_m=1000, action=geometry_pb2.NOTIFY),
            ring(radius_m=100, action=geometry_pb2.RESPOND),
        ],
        valid_from_ms=from_ms,
        valid_until_ms=until_ms,
    )
    if place:
        circle = geometry_pb2.Circle(lat_deg=LAT_E7 / 1e7, lon_deg=LON_E7 / 1e7, radius_m=50)
        snapshot.places.add(place_id=f"home{case}", circle=circle)
    return log_pb2.LogEntry(case=snapshot)


def position(device_id: str, time_ms: int, north_m: float, *, report_id: str | None = None) -> Position:
    """A position `north_m` metres north of the protected person."""
    return Position(
        device_id, report_id or f"r{time_ms}", time_ms, LAT_E7 + round(north_m * E7_PER_KM / 1000), LON_E7, 5_000
    )


def positions_entry(*positions: Position) -> log_pb2.LogEntry:
    """Log entry of a batch of positions."""
    return translate.positions_entry(Positions.of(positions), received_wall_us=1)


def kind_of(entry: log_pb2.LogEntry) -> str:
    """Last token of the subject for an entry."""
    body = entry.WhichOneof("body")
    return {"case": "case", "rules": "rules", "fold_version": "fold", "tick": "tick"}.get(str(body), "report")


def subject_of(entry: log_pb2.LogEntry, partition: int = 0) -> str:
    """Subject for an entry."""
    return flow.log_subject(partition, kind_of(entry))
