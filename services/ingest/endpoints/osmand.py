"""Parses the OsmAnd protocol, as https://www.traccar.org/osmand documents its query and form, into reports.

Access points (`wifi`), beacons and cells that the phone heard show it at registered units (`phones.surroundings`). `batt` is the
battery charge. Parameters that nobody keeps (speed, bearing, altitude, charge, event and any other) are ignored. None of them
causes the refusal of a position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from services.common import fields, ids, times
from services.common.rpc.errors import InvalidField
from services.ingest.domain import MAX_REPORTED_ACCURACY_M
from services.ingest.endpoints import phones
from services.ingest.endpoints.phones import PhoneRequest, Said

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


def parameters(text: str) -> dict[str, str]:
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


def parse(values: Mapping[str, str], received_ms: int) -> PhoneRequest:
    """Parses a request that came at `received_ms`, mesh time, milliseconds since 1970 UTC.

    Raises InvalidField if the request names no device, two devices, or a device with a malformed id.
    """
    device_id = _device_id(values)
    fix_time = _fix_time_ms(values)
    content = [part for name in sorted(values) if name not in _NOT_CONTENT for part in (name, values[name])]
    # Without a timestamp, the same content is a new report each time: a person who stands still isn't silent.
    cause = content if fix_time is not None else [*content, str(received_ms)]
    report_id = ids.hash_id("osmand", device_id, *cause)
    heard = phones.surroundings(*(_listed(values, name) for name in ("wifi", "beacon", "cell")))
    reports: list[Said] = []
    has_no_fix = not heard.is_empty and _is_invalid(values)
    if values.keys() & {"lat", "lon", "location"} and not has_no_fix:
        reports.append(
            _position(
                values,
                device_id,
                report_id,
                fix_time=received_ms if fix_time is None else fix_time,
                source=heard.source(values.get("provider", "")),
            )
        )
    if "alarm" in values:
        reports += phones.alarms(
            "alarm", values["alarm"], device_id, report_id=report_id, time_ms=fix_time, received_ms=received_ms
        )
    at_ms = min(fix_time, received_ms) if isinstance(fix_time, int) else received_ms
    return PhoneRequest(
        device_id, reports, report_id, at_ms=at_ms, surroundings=heard, charge_pct=_charge_pct(values.get("batt", ""))
    )


def _charge_pct(text: str) -> float | None:
    """Parses a battery charge, percent. Whatever isn't one is ignored."""
    if not _NUMBER.fullmatch(text):
        return None
    charge_pct = float(text)
    return charge_pct if 0 <= charge_pct <= 100 else None


def _listed(values: Mapping[str, str], name: str) -> list[str]:
    return values[name].split(_SEPARATOR) if name in values else []


def _is_invalid(values: Mapping[str, str]) -> bool:
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
        return phones.moment_ms("timestamp", ms)
    except InvalidField as error:
        return error
    except (ValueError, OverflowError):
        return InvalidField(
            "timestamp",
            "must be seconds or milliseconds since 1970, ISO 8601 with an offset (example: 2026-07-06T09:00:00+09:00), or "
            "yyyy-MM-dd HH:mm:ss in UTC",
        )


def _position(
    values: Mapping[str, str], device_id: str, report_id: str, *, fix_time: int | InvalidField, source: int
) -> Said:
    try:
        if isinstance(fix_time, InvalidField):
            return fix_time
        if _is_invalid(values):
            raise InvalidField("valid", "is not true: the phone has no fix, so its position is refused")
        lat, lon = _coordinates(values)
        lat_deg, lon_deg = _number("lat", lat, -90, greatest=90), _number("lon", lon, -180, greatest=180)
        return phones.position(
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
        return _number("accuracy", values["accuracy"], 0, greatest=MAX_REPORTED_ACCURACY_M)
    if "hdop" in values:
        hdop = _number("hdop", values["hdop"], 0, greatest=MAX_HDOP)
        return max(phones.DEFAULT_ACCURACY_M, hdop * METRES_PER_HDOP)
    return phones.DEFAULT_ACCURACY_M


def _number(field: str, text: str, least: float, *, greatest: float) -> float:
    if not text:
        raise InvalidField(field, "is missing")
    if not _NUMBER.fullmatch(text):
        raise InvalidField(field, "must be a decimal number (example: 37.5665)")
    return fields.number(field, float(text), least, greatest=greatest)
