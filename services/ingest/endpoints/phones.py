"""Parts that both phone protocols share: Traccar's alarm names, and the default accuracy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from services.common import times
from services.common.rpc.errors import InvalidField
from services.ingest.domain import ContactReport, EquipmentEvent, Position, ReportedCharge, UnitPresence
from tandem.common.v1 import log_pb2, presence_pb2

DEFAULT_ACCURACY_M = 50.0
"""Accuracy assumed for a position without one, metres: about that of a phone between high buildings, and worse than in the open.

A smaller value would claim more than the phone said. A much larger one would enlarge every ring and send officers out for nothing.
"""
MAX_ALARMS = 16
"""Maximum number of alarms in a request."""

ALARMS: Mapping[str, log_pb2.EquipmentKind.ValueType] = {
    "sos": log_pb2.PANIC_BUTTON,
    "lowBattery": log_pb2.BATTERY_LOW,
    "tampering": log_pb2.CASE_OPEN,
    "removing": log_pb2.STRAP_OPEN,
    "powerOff": log_pb2.SHUTDOWN,
    "powerOn": log_pb2.STARTED,
    "powerCut": log_pb2.CHARGER_REMOVED,
    "powerRestored": log_pb2.CHARGER_CONNECTED,
    "jamming": log_pb2.JAMMING_SUSPECTED,
}
"""Traccar's alarms (Position.java, ALARM_...) that match an equipment event. The others, such as overspeed, are refused."""

Said: TypeAlias = Position | EquipmentEvent | UnitPresence | ContactReport | InvalidField
"""Report of a phone, or the error in it."""


_MAC = re.compile(r"[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}")
_IBEACON = re.compile(r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})[:,]([0-9]{1,5})[:,]([0-9]{1,5})")
MAX_HEARD = 64
"""Maximum number of access points and beacons of a request that are looked at, strongest first as phones list them."""


class PhoneSurroundings(NamedTuple):
    """Access points, beacons and cells that a phone heard."""

    identifiers: tuple[str, ...]
    """Identifiers of access points and beacons, as in the records of units."""
    has_wifi: bool
    has_cell: bool

    @property
    def is_empty(self) -> bool:
        """Whether the phone named nothing."""
        return not (self.identifiers or self.has_wifi or self.has_cell)

    def source(self, provider: str) -> int:
        """Source of a position by Android's name of its provider; 0 if that isn't known.

        The provider `network` locates the phone by access points, or by cells alone if it hears no access point.
        """
        match provider:
            case "gps":
                return presence_pb2.POSITION_SOURCE_GNSS
            case "network":
                return presence_pb2.POSITION_SOURCE_WIFI if self.has_wifi else presence_pb2.POSITION_SOURCE_CELL
            case _:
                return presence_pb2.POSITION_SOURCE_UNSPECIFIED


def surroundings(wifi: Sequence[str], beacons: Sequence[str], cells: Sequence[str]) -> PhoneSurroundings:
    """Reads what a phone heard. Whatever can't be read is ignored, as it must never cause the refusal of a position.

    An access point is `AA:BB:CC:DD:EE:FF,rssi`, a beacon the same or `uuid:major:minor,rssi`, a cell `mcc,mnc,lac,cell,...`.
    """
    found = dict.fromkeys(identifier for text in (*wifi, *beacons)[:MAX_HEARD] if (identifier := _identifier(text)))
    return PhoneSurroundings(tuple(found), has_wifi=any(map(_identifier, wifi[:MAX_HEARD])), has_cell=any(cells))


def _identifier(text: str) -> str:
    lower = text.strip().lower()
    if beacon := _IBEACON.match(lower):
        return ":".join(beacon.groups())
    address = _MAC.match(lower)
    return address.group().replace("-", ":") if address else ""


def said_by(request: PhoneRequest, units: Sequence[str], missing: str) -> list[Said]:
    """The reports of a request, with a presence at each unit that was heard.

    A request without a position is a contact if the phone heard anything, and is refused for the field `missing` if it says nothing.
    """
    presences = [
        UnitPresence(
            device_id=request.device_id,
            report_id=f"{request.report_id}-{i}",
            unit_id=unit_id,
            since_ms=request.at_ms,
            seen_ms=request.at_ms,
            left=False,
        )
        for i, unit_id in enumerate(units)
    ]
    said: list[Said] = [*request.said, *presences]
    if not said and not request.surroundings.is_empty:
        return [ContactReport(request.device_id, request.report_id)]
    return said or [InvalidField(missing, "is missing")]


@dataclass(frozen=True, slots=True)
class PhoneRequest:
    """Reports of one request of a phone."""

    device_id: str
    """Device that the request names."""
    said: list[Said]
    """The position, if the request has one, and then the alarms. At least one report or error, or `surroundings`."""
    report_id: str
    """Id of the request."""
    at_ms: int
    """Time of the request by the phone, or of its receipt if that is missing or wrong; milliseconds since 1970 UTC."""
    surroundings: PhoneSurroundings
    """What the phone heard around it."""
    charge_pct: float | None = None
    """Battery charge, percent, 0 to 100. None if the request has none, or one out of range."""

    @property
    def charges(self) -> list[ReportedCharge]:
        """The battery charge, if the request has one."""
        return [] if self.charge_pct is None else [ReportedCharge(self.device_id, self.charge_pct, self.at_ms)]


def position(
    device_id: str,
    report_id: str,
    fix_time_ms: int,
    *,
    lat_deg: float,
    lon_deg: float,
    accuracy_m: float,
    source: int = 0,
) -> Position:
    """Makes a position of checked values, quantised as the log keeps it.

    Phones send an accuracy of 0 if they don't know the accuracy, so 0 counts as missing.
    """
    accuracy_mm = max(1, round((accuracy_m or DEFAULT_ACCURACY_M) * 1000))
    return Position(
        device_id=device_id,
        report_id=report_id,
        fix_time_ms=fix_time_ms,
        lat_e7=round(lat_deg * 1e7),
        lon_e7=round(lon_deg * 1e7),
        accuracy_mm=accuracy_mm,
        source=source,
    )


def moment_ms(field: str, ms: int) -> int:
    """Checks that the log can hold a time, milliseconds since 1970 UTC. Raises InvalidField."""
    if not times.MIN_MS <= ms <= times.MAX_MS:
        raise InvalidField(field, "must be between the years 1 and 9999")
    return ms


def alarms(
    field: str, names: str, device_id: str, *, report_id: str, time_ms: int | InvalidField | None, received_ms: int
) -> list[Said]:
    """Reads the alarms of a request, which Traccar separates by commas. Each becomes a report besides the position.

    If the time is missing, unreadable or in the future, the time of receipt counts, so that no panic is lost because of its time.
    """
    at_ms = min(time_ms, received_ms) if isinstance(time_ms, int) else received_ms
    listed = list(dict.fromkeys(names.split(",")))
    if len(listed) > MAX_ALARMS:
        return [InvalidField(field, f"has more than {MAX_ALARMS} alarms: send the others in another request")]
    return [
        EquipmentEvent(device_id=device_id, report_id=f"{report_id}-{name}", event=ALARMS[name], event_time_ms=at_ms)
        if name in ALARMS
        else InvalidField(field, f"is none of {', '.join(ALARMS)}: other alarms are not accepted")
        for name in listed
    ]
