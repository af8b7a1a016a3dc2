"""The JSON of Traccar Client 9 and newer, as https://www.traccar.org/osmand documents it and its server reads it -> reports.

It is the form of the background-location SDK in the app: one location a request, -1 where a value isn't known; a `uuid` of its own
for each location where the app's template has it, as some versions' do. What the log doesn't keep (speed, heading, battery, activity,
event and any other) isn't looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from services.common import fields, ids, times
from services.common.rpc.errors import InvalidField
from services.ingest.domain import ACCURACY_MOST_M
from services.ingest.endpoints import phones
from services.ingest.endpoints.phones import PhoneRequest, Said

_MAX_UUID = 40
"""Of this length the names of alarms still fit behind it."""


def parse(body: bytes, received_ms: int) -> PhoneRequest:
    """The reports of a request that came at `received_ms`, mesh time.

    Raises InvalidField where it isn't this form or names no device.
    """
    request = _object("", _read(body))
    device_id = fields.required_id("device_id", _text("device_id", request.get("device_id", "")))
    location = _object("location", request.get("location"))
    report_id = _report_id(device_id, location, received_ms)
    said: list[Said] = []
    if "coords" in location:
        said.append(_position(location, device_id, report_id))
    alarm = location.get("alarm")
    if alarm is None and isinstance(extras := location.get("extras"), dict):
        # The button of the app puts it there.
        alarm = extras.get("alarm")
    if alarm is not None:
        said += _alarms(alarm, location, device_id, report_id, received_ms)
    return PhoneRequest(device_id, said or [InvalidField("location.coords", "is missing")])


def _read(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_no_number, object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise InvalidField("", "isn't text in UTF-8") from None
    except (ValueError, RecursionError):
        raise InvalidField("", "isn't JSON") from None


def _no_number(name: str) -> NoReturn:
    raise InvalidField("", f"isn't JSON, which has no {name}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidField("", "has a name twice in one object")
    return found


def _report_id(device_id: str, location: Mapping[str, Any], received_ms: int) -> str:
    uuid = location.get("uuid")
    if isinstance(uuid, str) and len(uuid) <= _MAX_UUID:
        # An id that the log can't keep is no reason to refuse a position: the content tells it from others as well.
        with suppress(InvalidField):
            return fields.required_id("uuid", uuid)
    content = json.dumps(location, sort_keys=True)
    # Without a time of its own, the same content is news each time that it comes: a second press of the button isn't the first.
    cause = [content] if location.get("timestamp") else [content, str(received_ms)]
    return ids.hash_id("traccar", device_id, *cause)


def _position(location: Mapping[str, Any], device_id: str, report_id: str) -> Said:
    try:
        fix_time_ms = _time_ms(location)
        coords = _object("location.coords", location["coords"])
        lat_deg = _number("location.coords.latitude", coords.get("latitude"), -90, 90)
        lon_deg = _number("location.coords.longitude", coords.get("longitude"), -180, 180)
        accuracy_m = _number("location.coords.accuracy", coords.get("accuracy", 0), 0, ACCURACY_MOST_M)
        return phones.position(device_id, report_id, fix_time_ms, lat_deg, lon_deg, accuracy_m)
    except InvalidField as error:
        return error


def _alarms(alarm: Any, location: Mapping[str, Any], device_id: str, report_id: str, received_ms: int) -> list[Said]:
    if not isinstance(alarm, str):
        return [InvalidField("location.alarm", "must be text")]
    time_ms: int | None = None
    with suppress(InvalidField):  # the position says why it is refused
        time_ms = _time_ms(location)
    return phones.alarms("location.alarm", alarm, device_id, report_id, time_ms, received_ms)


def _time_ms(location: Mapping[str, Any]) -> int:
    field = "location.timestamp"
    text = _text(field, location.get("timestamp", ""))
    if not text:
        raise InvalidField(field, "is missing")
    try:
        ms = times.from_rfc3339(text)
    except (ValueError, OverflowError):
        raise InvalidField(field, "must be ISO 8601 with its offset, such as Z") from None
    return phones.moment_ms(field, ms)


def _object(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidField(field, "is missing" if value is None else "must be an object")
    return value


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidField(field, "must be text")
    return value


def _number(field: str, value: Any, least: float, greatest: float) -> float:
    if value is None:
        raise InvalidField(field, "is missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidField(field, "must be a number")
    try:
        return fields.number(field, float(value), least, greatest)
    except OverflowError:
        raise InvalidField(field, f"must be from {least:g} to {greatest:g}") from None
