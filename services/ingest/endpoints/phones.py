"""Parses what phones send into reports: the OsmAnd protocol, and the JSON of Traccar Client 9 and newer.

https://www.traccar.org/osmand documents OsmAnd's query and form, and Traccar's JSON as Traccar's server reads it. Access points
(`wifi`), beacons and cells that the phone heard show it at registered units. `batt` is the battery charge. Values that nobody keeps
(speed, bearing, altitude, activity, event and any other) are ignored. None of them causes the refusal of a position.

Traccar's format is that of the app's background-location SDK: one location per request, and -1 for an unknown value. Some versions
send a `uuid` with each location. The app puts what its settings name, such as `wifi`, `beacon` and `cell`, into `extras`; these are
read as in the OsmAnd protocol, and the level of `battery` is the charge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeAlias
from urllib.parse import parse_qsl

from services.common import fields, ids, times
from services.common.errors import InvalidField
from services.ingest.domain import (
    MAX_REPORTED_ACCURACY_M,
    ContactReport,
    EquipmentEvent,
    Position,
    ReportedCharge,
    UnitPresence,
)
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


def phone_surroundings(wifi: Sequence[str], beacons: Sequence[str], cells: Sequence[str]) -> PhoneSurroundings:
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
    def has_panic(self) -> bool:
        """Whether one of the reports is a panic."""
        return any(isinstance(report, EquipmentEvent) and report.event == log_pb2.PANIC_BUTTON for report in self.said)

    @property
    def charges(self) -> list[ReportedCharge]:
        """The battery charge, if the request has one."""
        return [] if self.charge_pct is None else [ReportedCharge(self.device_id, self.charge_pct, self.at_ms)]


def phone_position(
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


def is_silent(value: Any) -> bool:
    """Whether a request asks that its panic be silent. Anything but a clear no counts as yes: silence never harms a panic."""
    return str(value).lower() not in ("false", "0", "", "none")


def phone_alarms(
    field: str,
    names: str,
    device_id: str,
    *,
    report_id: str,
    time_ms: int | InvalidField | None,
    received_ms: int,
    silent: bool = False,
) -> list[Said]:
    """Reads the alarms of a request, which Traccar separates by commas. Each becomes a report besides the position.

    If the time is missing, unreadable or in the future, the time of receipt counts, so that no panic is lost because of its time.
    `silent` says that a panic was called in silence.
    """
    at_ms = min(time_ms, received_ms) if isinstance(time_ms, int) else received_ms
    listed = list(dict.fromkeys(names.split(",")))
    if len(listed) > MAX_ALARMS:
        return [InvalidField(field, f"has more than {MAX_ALARMS} alarms: send the others in another request")]
    return [
        EquipmentEvent(
            device_id=device_id,
            report_id=f"{report_id}-{name}",
            event=ALARMS[name],
            event_time_ms=at_ms,
            silent=silent and ALARMS[name] == log_pb2.PANIC_BUTTON,
        )
        if name in ALARMS
        else InvalidField(field, f"is none of {', '.join(ALARMS)}: other alarms are not accepted")
        for name in listed
    ]


MAX_PARAMETERS = 100
METRES_PER_HDOP = 5.0
"""Accuracy per unit of HDOP, metres: the usual range error, 68 %. HDOP makes the default accuracy worse, never better."""
MAX_HDOP = 1_000.0

_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{0,30})?([eE][+-]?\d{1,3})?", re.ASCII)
_EPOCH = re.compile(r"\d{1,16}", re.ASCII)
_PLAIN_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.ASCII)
_SECONDS_BELOW = 100_000_000_000
"""Smallest timestamp that counts as milliseconds (a time in 1973). A smaller one counts as seconds (until the year 5138).

Traccar's own limit, 2**31, would mistake a time after 2038 for one in 1970.
"""
_REPEATED = {"beacon", "cell", "wifi"}
_SEPARATOR = "\n"
"""Separator of the values of a repeated parameter."""
_DEVICE_NAMES = ("id", "deviceid")
_NOT_CONTENT = {"token", *_DEVICE_NAMES}
"""Parameters on which the report id doesn't depend."""


def osmand_parameters(text: str) -> dict[str, str]:
    """Parses the parameters of a query or form. Raises InvalidField on text that isn't UTF-8, or on a repeated parameter."""
    if not text.isascii():
        raise InvalidField("", "must be percent-encoded (example: %20 for a space)")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except UnicodeDecodeError:
        raise InvalidField("", "isn't text in UTF-8") from None
    except ValueError:
        raise InvalidField("", f"has more than {MAX_PARAMETERS} parameters") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values and name not in _REPEATED:
            raise InvalidField(
                name if name.isascii() and name.isidentifier() else "", "is there more than once: send it once"
            )
        values[name] = f"{values[name]}{_SEPARATOR}{value}" if name in values else value
    return values


def parse_osmand(values: Mapping[str, str], received_ms: int) -> PhoneRequest:
    """Parses a request that came at `received_ms`, mesh time, milliseconds since 1970 UTC.

    Raises InvalidField if the request names no device, two devices, or a device with a malformed id.
    """
    device_id = _device_id(values)
    fix_time = _fix_time_ms(values)
    content = [part for name in sorted(values) if name not in _NOT_CONTENT for part in (name, values[name])]
    # Without a timestamp, the same content is a new report each time: a person who stands still isn't silent.
    cause = content if fix_time is not None else [*content, str(received_ms)]
    report_id = ids.hash_id("osmand", device_id, *cause)
    heard = phone_surroundings(*(_osmand_listed(values, name) for name in ("wifi", "beacon", "cell")))
    reports: list[Said] = []
    has_no_fix = not heard.is_empty and _says_invalid(values)
    if values.keys() & {"lat", "lon", "location"} and not has_no_fix:
        reports.append(
            _osmand_position(
                values,
                device_id,
                report_id,
                fix_time=received_ms if fix_time is None else fix_time,
                source=heard.source(values.get("provider", "")),
            )
        )
    if "alarm" in values:
        reports += phone_alarms(
            "alarm",
            values["alarm"],
            device_id,
            report_id=report_id,
            time_ms=fix_time,
            received_ms=received_ms,
            silent=is_silent(values.get("silent", "")),
        )
    at_ms = min(fix_time, received_ms) if isinstance(fix_time, int) else received_ms
    return PhoneRequest(
        device_id,
        reports,
        report_id,
        at_ms=at_ms,
        surroundings=heard,
        charge_pct=_osmand_charge_pct(values.get("batt", "")),
    )


def _osmand_charge_pct(text: str) -> float | None:
    """Parses a battery charge, percent. Whatever isn't one is ignored."""
    if not _NUMBER.fullmatch(text):
        return None
    charge_pct = float(text)
    return charge_pct if 0 <= charge_pct <= 100 else None


def _osmand_listed(values: Mapping[str, str], name: str) -> list[str]:
    return values[name].split(_SEPARATOR) if name in values else []


def _says_invalid(values: Mapping[str, str]) -> bool:
    return values.get("valid", "true").lower() not in ("true", "1")


def _device_id(values: Mapping[str, str]) -> str:
    named = {values[name] for name in _DEVICE_NAMES if name in values}
    if len(named) > 1:
        raise InvalidField("id", "isn't the same as deviceid: send only one of them")
    return fields.required_id("id", named.pop() if named else "")


def _fix_time_ms(values: Mapping[str, str]) -> int | InvalidField | None:
    if "timestamp" not in values:
        return None
    text = values["timestamp"]
    try:
        if _EPOCH.fullmatch(text):
            value = int(text)
            ms = value * 1000 if value < _SECONDS_BELOW else value
        else:
            # Traccar reads a time without an offset in its server's zone; Tandem reads it as UTC.
            ms = times.from_rfc3339(f"{text}Z" if _PLAIN_TIME.fullmatch(text) else text)
        return moment_ms("timestamp", ms)
    except InvalidField as error:
        return error
    except (ValueError, OverflowError):
        return InvalidField(
            "timestamp",
            "must be seconds or milliseconds since 1970, ISO 8601 with an offset (example: 2026-07-06T09:00:00+09:00), or "
            "yyyy-MM-dd HH:mm:ss in UTC",
        )


def _osmand_position(
    values: Mapping[str, str], device_id: str, report_id: str, *, fix_time: int | InvalidField, source: int
) -> Said:
    try:
        if isinstance(fix_time, InvalidField):
            return fix_time
        if _says_invalid(values):
            raise InvalidField("valid", "is not true: the phone has no fix, so its position is refused")
        lat, lon = _coordinates(values)
        lat_deg, lon_deg = _parsed_number("lat", lat, -90, greatest=90), _parsed_number("lon", lon, -180, greatest=180)
        return phone_position(
            device_id,
            report_id,
            fix_time,
            lat_deg=lat_deg,
            lon_deg=lon_deg,
            accuracy_m=_accuracy_m(values),
            source=source,
        )
    except InvalidField as error:
        return error


def _coordinates(values: Mapping[str, str]) -> tuple[str, str]:
    if "location" not in values:
        return values.get("lat", ""), values.get("lon", "")
    if "lat" in values or "lon" in values:
        raise InvalidField("location", "is there besides lat or lon: send only one form")
    lat, comma, lon = values["location"].partition(",")
    if not comma:
        raise InvalidField("location", "must be latitude,longitude (example: 37.5665,126.9780)")
    return lat, lon


def _accuracy_m(values: Mapping[str, str]) -> float:
    if "accuracy" in values:
        return _parsed_number("accuracy", values["accuracy"], 0, greatest=MAX_REPORTED_ACCURACY_M)
    if "hdop" in values:
        hdop = _parsed_number("hdop", values["hdop"], 0, greatest=MAX_HDOP)
        return max(DEFAULT_ACCURACY_M, hdop * METRES_PER_HDOP)
    return DEFAULT_ACCURACY_M


def _parsed_number(field: str, text: str, least: float, *, greatest: float) -> float:
    if not text:
        raise InvalidField(field, "is missing")
    if not _NUMBER.fullmatch(text):
        raise InvalidField(field, "must be a decimal number (example: 37.5665)")
    return fields.number(field, float(text), least, greatest=greatest)


_MAX_UUID = 40
"""Maximum length of a uuid, characters. A longer uuid with the name of an alarm appended could be too long for an id."""


def parse_traccar(body: bytes, received_ms: int) -> PhoneRequest:
    """Parses a request that came at `received_ms`, mesh time, milliseconds since 1970 UTC.

    Raises InvalidField if the body isn't this format or names no device.
    """
    request = _object("", _read(body))
    device_id = fields.required_id("device_id", _text("device_id", request.get("device_id", "")))
    location = _object("location", request.get("location"))
    report_id = _report_id(device_id, location, received_ms)
    extras = location.get("extras")
    extras = extras if isinstance(extras, dict) else {}
    heard = phone_surroundings(*(_traccar_listed(location, extras, name) for name in ("wifi", "beacon", "cell")))
    provider = extras.get("provider")
    source = heard.source(provider if isinstance(provider, str) else "")
    reports: list[Said] = []
    if "coords" in location:
        reports.append(_traccar_position(location, device_id, report_id, source=source))
    alarm = location.get("alarm")
    if alarm is None:
        alarm = extras.get("alarm")  # the app's SOS button puts the alarm there
    if alarm is not None:
        silent = is_silent(location.get("silent", extras.get("silent")))
        reports += _alarms(alarm, location, device_id, report_id=report_id, received_ms=received_ms, silent=silent)
    at_ms = received_ms
    with suppress(InvalidField):  # the position's refusal names the error
        at_ms = min(_time_ms(location), received_ms)
    return PhoneRequest(
        device_id,
        reports,
        report_id,
        at_ms=at_ms,
        surroundings=heard,
        charge_pct=_traccar_charge_pct(location.get("battery")),
    )


def _traccar_charge_pct(battery: Any) -> float | None:
    """Parses the SDK's battery, whose level is 0 to 1 and -1 if it isn't known. Whatever isn't one is ignored."""
    level = battery.get("level") if isinstance(battery, dict) else None
    if isinstance(level, bool) or not isinstance(level, int | float):
        return None
    return level * 100.0 if 0 <= level <= 1 else None


def _traccar_listed(location: Mapping[str, Any], extras: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a value of the location or of its extras: one text, or a list of texts. Whatever else it holds is ignored."""
    value = location.get(name, extras.get(name))
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _read(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_no_number, object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise InvalidField("", "isn't text in UTF-8") from None
    except (ValueError, RecursionError):
        raise InvalidField("", "isn't JSON") from None


def _no_number(name: str) -> NoReturn:
    raise InvalidField("", f"isn't JSON, which has no {name}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise InvalidField("", "has a name twice in one object: send each name once")
    return values


def _report_id(device_id: str, location: Mapping[str, Any], received_ms: int) -> str:
    uuid = location.get("uuid")
    if isinstance(uuid, str) and len(uuid) <= _MAX_UUID:
        # A uuid that the log can't keep is no reason to refuse a position: a hash of the content is an id, too.
        with suppress(InvalidField):
            return fields.required_id("uuid", uuid)
    content = json.dumps(location, sort_keys=True)
    # Without a timestamp, the same content is a new report each time: a second press of the button isn't the first.
    cause = [content] if location.get("timestamp") else [content, str(received_ms)]
    return ids.hash_id("traccar", device_id, *cause)


def _traccar_position(location: Mapping[str, Any], device_id: str, report_id: str, *, source: int) -> Said:
    try:
        fix_time_ms = _time_ms(location)
        coords = _object("location.coords", location["coords"])
        lat_deg = _checked_number("location.coords.latitude", coords.get("latitude"), -90, greatest=90)
        lon_deg = _checked_number("location.coords.longitude", coords.get("longitude"), -180, greatest=180)
        accuracy_m = _checked_number(
            "location.coords.accuracy", coords.get("accuracy", 0), 0, greatest=MAX_REPORTED_ACCURACY_M
        )
        return phone_position(
            device_id,
            report_id,
            fix_time_ms,
            lat_deg=lat_deg,
            lon_deg=lon_deg,
            accuracy_m=accuracy_m,
            source=source,
        )
    except InvalidField as error:
        return error


def _alarms(
    alarm: Any, location: Mapping[str, Any], device_id: str, *, report_id: str, received_ms: int, silent: bool
) -> list[Said]:
    if not isinstance(alarm, str):
        return [InvalidField("location.alarm", 'must be text (example: "sos")')]
    time_ms: int | None = None
    with suppress(InvalidField):  # the position's refusal names the error
        time_ms = _time_ms(location)
    return phone_alarms(
        "location.alarm",
        alarm,
        device_id,
        report_id=report_id,
        time_ms=time_ms,
        received_ms=received_ms,
        silent=silent,
    )


def _time_ms(location: Mapping[str, Any]) -> int:
    field = "location.timestamp"
    text = _text(field, location.get("timestamp", ""))
    if not text:
        raise InvalidField(field, "is missing")
    try:
        ms = times.from_rfc3339(text)
    except (ValueError, OverflowError):
        raise InvalidField(
            field, "must be ISO 8601 with its offset, such as Z (example: 2026-07-06T00:00:00Z)"
        ) from None
    return moment_ms(field, ms)


def _object(field: str, value: Any) -> dict[str, Any]:
    match value:
        case dict():
            return value
        case None:
            raise InvalidField(field, "is missing")
        case _:
            raise InvalidField(field, "must be an object")


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidField(field, "must be text")
    return value


def _checked_number(field: str, value: Any, least: float, *, greatest: float) -> float:
    match value:
        case None:
            raise InvalidField(field, "is missing")
        case int() | float() if not isinstance(value, bool):
            try:
                return fields.number(field, float(value), least, greatest=greatest)
            except OverflowError:
                raise InvalidField(field, f"must be from {least:g} to {greatest:g}") from None
        case _:
            raise InvalidField(field, "must be a number")
