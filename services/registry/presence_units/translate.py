"""Translation of home units and beacons between messages and domain. Errors as in records/translate.py."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from services.common import fields, ids
from services.common.geometry import Circle
from services.common.rpc.errors import InvalidField
from services.registry.presence_units.domain import (
    DEFAULT_INTERVAL_S,
    PersonUnit,
    PresenceUnit,
    UnitKind,
    WearerUnit,
)
from services.registry.records.area import ServiceArea
from tandem.common.v1 import geometry_pb2, presence_pb2
from tandem.registry.v1 import presence_unit_pb2, registry_pb2

MIN_RANGE_M, MAX_RANGE_M = 1.0, 200.0
MIN_INTERVAL_S, MAX_INTERVAL_S = 15, 600

_KINDS: Mapping[int, UnitKind] = {kind.value: kind for kind in UnitKind}
_ADDRESS = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_IBEACON = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9]{1,5}:[0-9]{1,5}")


def parse_unit(msg: registry_pb2.PresenceUnit) -> WearerUnit | PersonUnit:
    """Parse a home unit or beacon. Raises InvalidField."""
    unit_id = fields.required_id("unit_id", msg.unit_id)
    if unit_id.startswith(ids.EXERCISE_IDS):
        raise InvalidField("unit_id", f"must not begin with {ids.EXERCISE_IDS}: this prefix is reserved for exercises")
    if bool(msg.wearer_id) == bool(msg.person_id):
        raise InvalidField(
            "wearer_id", "must be set for a wearer's unit, and person_id for a protected person's; not both"
        )
    if msg.source_version < 0:
        raise InvalidField("source_version", "must be 0 or more")
    kind = _KINDS.get(msg.kind)
    if kind is None:
        raise InvalidField("kind", "must be HOME_UNIT, BLUETOOTH_BEACON or WIFI_ACCESS_POINT")
    if kind is UnitKind.HOME_UNIT and msg.person_id:
        raise InvalidField("kind", "must be BLUETOOTH_BEACON or WIFI_ACCESS_POINT: only a wearer has a home unit")
    installed_from_ms = fields.moment("installed_from", msg.installed_from, msg.HasField("installed_from"))
    installed_until_ms = None
    if msg.HasField("installed_until"):
        installed_until_ms = fields.moment("installed_until", msg.installed_until, True)
        if installed_until_ms <= installed_from_ms:
            raise InvalidField("installed_until", "must be later than installed_from")
    interval_s = msg.report_interval_s or DEFAULT_INTERVAL_S
    fields.number("report_interval_s", interval_s, MIN_INTERVAL_S, greatest=MAX_INTERVAL_S)
    common: dict[str, Any] = {
        "unit_id": unit_id,
        "source_version": msg.source_version,
        "kind": kind,
        "place": _place(msg),
        "installed_from_ms": installed_from_ms,
        "installed_until_ms": installed_until_ms,
        "interval_s": interval_s,
        "vendor_id": fields.vendor_id("vendor_id", msg.vendor_id),
        "identifier": _identifier(kind, msg.identifier),
    }
    if msg.wearer_id:
        return WearerUnit(wearer_id=fields.required_id("wearer_id", msg.wearer_id), **common)
    return PersonUnit(person_id=fields.required_id("person_id", msg.person_id), **common)


def _place(msg: registry_pb2.PresenceUnit) -> Circle:
    if not msg.HasField("place"):
        raise InvalidField("place", "is missing")
    return Circle(
        fields.number("place.lat_deg", msg.place.lat_deg, -90, greatest=90),
        fields.number("place.lon_deg", msg.place.lon_deg, -180, greatest=180),
        fields.number("place.radius_m", msg.place.radius_m, MIN_RANGE_M, greatest=MAX_RANGE_M),
    )


def _identifier(kind: UnitKind, text: str) -> str:
    lower = text.lower()
    if kind is UnitKind.HOME_UNIT:
        if text:
            raise InvalidField("identifier", "must be empty for a home unit, which reports by itself")
        return ""
    if _ADDRESS.fullmatch(lower) or (kind is UnitKind.BLUETOOTH_BEACON and _IBEACON.fullmatch(lower)):
        return lower
    raise InvalidField(
        "identifier",
        "must be an address (example: 02:00:5E:10:00:01), or uuid:major:minor of a Bluetooth beacon",
    )


def check_area(unit: PresenceUnit, area: ServiceArea) -> None:
    """Check that a unit lies in the service area. Raises InvalidField."""
    if not area.holds(unit.place.lat_deg, unit.place.lon_deg):
        raise InvalidField("place", f"lies outside {area.name}, the service area (TANDEM_SERVICE_AREA)")


def parse_unit_end(msg: presence_unit_pb2.EndPresenceUnitRequest) -> tuple[str, int, int]:
    """Parse the removal of a unit: id, removal in milliseconds since 1970 UTC, and version. Raises InvalidField."""
    if msg.source_version < 0:
        raise InvalidField("source_version", "must be 0 or more")
    return (
        fields.required_id("unit_id", msg.unit_id),
        fields.moment("removed_at", msg.removed_at, msg.HasField("removed_at")),
        msg.source_version,
    )


def unit_to_proto(unit: PresenceUnit) -> presence_pb2.PresenceUnitPlace:
    """A unit as a part of a joint case's snapshot, without its identifier."""
    place = unit.place
    return presence_pb2.PresenceUnitPlace(
        unit_id=unit.unit_id,
        kind=presence_pb2.PresenceUnitKind.ValueType(unit.kind.value),
        place=geometry_pb2.Circle(lat_deg=place.lat_deg, lon_deg=place.lon_deg, radius_m=place.radius_m),
        installed_from_ms=unit.installed_from_ms,
        installed_until_ms=unit.installed_until_ms or 0,
        report_interval_s=unit.interval_s,
    )


def identifier_sha256(unit: PresenceUnit) -> bytes:
    """SHA-256 of what is heard of a beacon; empty for a home unit."""
    return hashlib.sha256(unit.identifier.encode()).digest() if unit.identifier else b""
