"""Parses the JSON of Traccar Client 9 and newer, as https://www.traccar.org/osmand documents it and Traccar's server reads it.

The format is that of the app's background-location SDK: one location per request, and -1 for an unknown value. Some versions send
a `uuid` with each location. The app puts what its settings name, such as `wifi`, `beacon` and `cell`, into `extras`; these are read as
in the OsmAnd protocol, and the level of `battery` is the charge. Values that nobody keeps (speed, heading, activity, event and any
other) are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from services.common import fields, ids, times
from services.common.rpc.errors import InvalidField
from services.ingest.domain import MAX_REPORTED_ACCURACY_M
from services.ingest.endpoints import phones
from services.ingest.endpoints.phones import PhoneRequest, Said

_MAX_UUID = 40
"""Maximum length of a uuid, characters. A longer uuid with the name of an alarm appended could be too long for an id."""


def parse(body: bytes, received_ms: int) -> PhoneRequest:
    """Parses a request that came at `received_ms`, mesh time, milliseconds since 1970 UTC.

    Raises InvalidField if the body isn't this format or names no device.
    """
    request = _object("", _read(body))
    device_id = fields.required_id("device_id", _text("device_id", request.get("device_id", "")))
    location = _object("location", request.get("location"))
    report_id = _report_id(device_id, location, received_ms)
    extras = location.get("extras")
    extras = extras if isinstance(extras, dict) else {}
    heard = phones.surroundings(*(_listed(location, extras, name) for name in ("wifi", "beacon", "cell")))
    provider = extras.get("provider")
    source = heard.source(provider if isinstance(provider, str) else "")
    reports: list[Said] = []
    if "coords" in location:
        reports.append(_position(location, device_id, report_id, source=source))
    alarm = location.get("alarm")
    if alarm is None:
        alarm = extras.get("alarm")  # the app's SOS button puts the alarm there
    if alarm is not None:
        reports += _alarms(alarm, location, device_id, report_id=report_id, received_ms=received_ms)
    at_ms = received_ms
    with suppress(InvalidField):  # the position's refusal names the error
        at_ms = min(_time_ms(location), received_ms)
    return PhoneRequest(
        device_id, reports, report_id, at_ms=at_ms, surroundings=heard, charge_pct=_charge_pct(location.get("battery"))
    )


def _charge_pct(battery: Any) -> float | None:
    """Parses the SDK's battery, whose level is 0 to 1 and -1 if it isn't known. Whatever isn't one is ignored."""
    level = battery.get("level") if isinstance(battery, dict) else None
    if isinstance(level, bool) or not isinstance(level, int | float):
        return None
    return level * 100.0 if 0 <= level <= 1 else None


def _listed(location: Mapping[str, Any], extras: Mapping[str, Any], name: str) -> list[str]:
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


def _position(location: Mapping[str, Any], device_id: str, report_id: str, *, source: int) -> Said:
    try:
        fix_time_ms = _time_ms(location)
        coords = _object("location.coords", location["coords"])
        lat_deg = _number("location.coords.latitude", coords.get("latitude"), -90, greatest=90)
        lon_deg = _number("location.coords.longitude", coords.get("longitude"), -180, greatest=180)
        accuracy_m = _number("location.coords.accuracy", coords.get("accuracy", 0), 0, greatest=MAX_REPORTED_ACCURACY_M)
        return phones.position(
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


def _alarms(alarm: Any, location: Mapping[str, Any], device_id: str, *, report_id: str, received_ms: int) -> list[Said]:
    if not isinstance(alarm, str):
        return [InvalidField("location.alarm", 'must be text (example: "sos")')]
    time_ms: int | None = None
    with suppress(InvalidField):  # the position's refusal names the error
        time_ms = _time_ms(location)
    return phones.alarms(
        "location.alarm", alarm, device_id, report_id=report_id, time_ms=time_ms, received_ms=received_ms
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
    return phones.moment_ms(field, ms)


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


def _number(field: str, value: Any, least: float, *, greatest: float) -> float:
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
