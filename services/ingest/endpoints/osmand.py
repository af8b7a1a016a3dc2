"""The OsmAnd protocol, as https://www.traccar.org/osmand documents its query and form: parameters -> reports.

What the log doesn't keep (speed, bearing, altitude, batt, charge, cell, wifi, event and any other) isn't looked at, so that it is
never a reason to refuse a position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from services.common import fields, ids, times
from services.common.rpc.errors import InvalidField
from services.ingest.domain import ACCURACY_MOST_M
from services.ingest.endpoints import phones
from services.ingest.endpoints.phones import PhoneRequest, Said

MAX_PARAMETERS = 100
METRES_PER_HDOP = 5.0
"""What one unit of HDOP is worth: the usual error of a range, 68 %. It makes an unsaid accuracy worse, never better."""
MAX_HDOP = 1_000.0

_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{0,30})?([eE][+-]?\d{1,3})?", re.ASCII)
_EPOCH = re.compile(r"\d{1,16}", re.ASCII)
_PLAIN_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.ASCII)
_SECONDS_BELOW = 100_000_000_000
"""A smaller timestamp is in seconds (until the year 5138), one from here on in milliseconds (from 1973).

Traccar's own border, 2**31, would take a time after 2038 for one of 1970.
"""
_REPEATED = {"cell", "wifi"}
_NAMES_ONE_DEVICE = ("id", "deviceid")
_APART = {"token", *_NAMES_ONE_DEVICE}
"""Not a part of what makes a report another one."""


def parameters(text: str) -> dict[str, str]:
    """The parameters of a query or form. Raises InvalidField where it isn't UTF-8, or one that counts is there twice."""
    if not text.isascii():
        raise InvalidField("", "must be percent-encoded")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except UnicodeDecodeError:
        raise InvalidField("", "isn't text in UTF-8") from None
    except ValueError:
        raise InvalidField("", f"has more than {MAX_PARAMETERS} parameters") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found and name not in _REPEATED:
            raise InvalidField(name if name.isascii() and name.isidentifier() else "", "is there more than once")
        found[name] = value
    return found


def parse(given: Mapping[str, str], received_ms: int) -> PhoneRequest:
    """The reports of a request that came at `received_ms`, mesh time. Raises InvalidField where it names no device."""
    device_id = _device_id(given)
    fix_time = _fix_time_ms(given)
    content = [part for name in sorted(given) if name not in _APART for part in (name, given[name])]
    # Without a time of its own, the same content is news each time that it comes: somebody who stands still isn't silent.
    cause = content if fix_time is not None else [*content, str(received_ms)]
    report_id = ids.hash_id("osmand", device_id, *cause)
    said: list[Said] = []
    if given.keys() & {"lat", "lon", "location"}:
        said.append(_position(given, device_id, report_id, received_ms if fix_time is None else fix_time))
    if "alarm" in given:
        said += phones.alarms("alarm", given["alarm"], device_id, report_id, fix_time, received_ms)
    return PhoneRequest(device_id, said or [InvalidField("lat", "is missing")])


def _device_id(given: Mapping[str, str]) -> str:
    named = {given[name] for name in _NAMES_ONE_DEVICE if name in given}
    if len(named) > 1:
        raise InvalidField("id", "isn't the same as deviceid")
    return fields.required_id("id", named.pop() if named else "")


def _fix_time_ms(given: Mapping[str, str]) -> int | InvalidField | None:
    if "timestamp" not in given:
        return None
    text = given["timestamp"]
    try:
        if _EPOCH.fullmatch(text):
            value = int(text)
            ms = value * 1000 if value < _SECONDS_BELOW else value
        else:
            # Traccar reads a time without an offset in its server's zone; here it is UTC.
            ms = times.from_rfc3339(f"{text}Z" if _PLAIN_TIME.fullmatch(text) else text)
        return phones.moment_ms("timestamp", ms)
    except InvalidField as error:
        return error
    except (ValueError, OverflowError):
        return InvalidField(
            "timestamp", "must be seconds or milliseconds since 1970, ISO 8601, or yyyy-MM-dd HH:mm:ss in UTC"
        )


def _position(given: Mapping[str, str], device_id: str, report_id: str, fix_time: int | InvalidField) -> Said:
    try:
        if isinstance(fix_time, InvalidField):
            return fix_time
        if given.get("valid", "true").lower() not in ("true", "1"):
            raise InvalidField("valid", "is not true: the phone has no fix")
        lat, lon = _coordinates(given)
        lat_deg, lon_deg = _number("lat", lat, -90, 90), _number("lon", lon, -180, 180)
        return phones.position(device_id, report_id, fix_time, lat_deg, lon_deg, _accuracy_m(given))
    except InvalidField as error:
        return error


def _coordinates(given: Mapping[str, str]) -> tuple[str, str]:
    if "location" not in given:
        return given.get("lat", ""), given.get("lon", "")
    if "lat" in given or "lon" in given:
        raise InvalidField("location", "is there beside lat or lon")
    lat, comma, lon = given["location"].partition(",")
    if not comma:
        raise InvalidField("location", "must be latitude,longitude")
    return lat, lon


def _accuracy_m(given: Mapping[str, str]) -> float:
    if "accuracy" in given:
        return _number("accuracy", given["accuracy"], 0, ACCURACY_MOST_M)
    if "hdop" in given:
        hdop = _number("hdop", given["hdop"], 0, MAX_HDOP)
        return max(phones.ACCURACY_UNSAID_M, hdop * METRES_PER_HDOP)
    return phones.ACCURACY_UNSAID_M


def _number(field: str, text: str, least: float, greatest: float) -> float:
    if not text:
        raise InvalidField(field, "is missing")
    if not _NUMBER.fullmatch(text):
        raise InvalidField(field, "must be a decimal number")
    return fields.number(field, float(text), least, greatest)
