"""Values of a form of a single record: texts, choices, versions, times and circles. Each fault names its field."""

from __future__ import annotations

import re
from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from services.common import times
from services.common.rpc.errors import InvalidField
from services.console.pages import assets
from tandem.common.v1 import geometry_pb2


def text(values: Mapping[str, str], field: str) -> str:
    """A text without spaces at its ends; empty if the form doesn't have it."""
    return values.get(field, "").strip()


def choice(values: Mapping[str, str], field: str, known: tuple[str, ...], *, without: str) -> str:
    """A value of a list; `without` if none was chosen. Raises InvalidField."""
    given = text(values, field)
    if given and given not in known:
        raise InvalidField(field, "is none of the list")
    return given or without


def version(values: Mapping[str, str]) -> int:
    """The agency's version of the record. Raises InvalidField."""
    return whole(values, "source_version")


def whole(values: Mapping[str, str], field: str) -> int:
    """A whole number. Raises InvalidField."""
    given = text(values, field)
    if not re.fullmatch(r"[0-9]{1,18}", given):
        raise InvalidField(field, "is no number")
    return int(given)


def moment(values: Mapping[str, str], field: str) -> Timestamp | None:
    """A time of a form, as `assets.ms_of_local` reads it; None for an empty field. Raises InvalidField."""
    given = text(values, field)
    if not given:
        return None
    try:
        return times.to_timestamp(assets.ms_of_local(given))
    except (ValueError, OverflowError):
        raise InvalidField(field, "is no time") from None


def places(values: Mapping[str, str]) -> list[geometry_pb2.Place]:
    """Circular places, one a line: id, latitude, longitude and radius in metres. Raises InvalidField."""
    found = []
    for line in filter(None, map(str.strip, values.get("places", "").splitlines())):
        place_id, *numbers = line.replace(",", " ").split() or [""]
        found.append(geometry_pb2.Place(place_id=place_id, circle=_circle("places", numbers)))
    return found


def circle(values: Mapping[str, str], field: str) -> geometry_pb2.Circle:
    """A circle: latitude, longitude and radius in metres. Raises InvalidField."""
    return _circle(field, text(values, field).replace(",", " ").split())


def _circle(field: str, numbers: list[str]) -> geometry_pb2.Circle:
    try:
        lat_deg, lon_deg, radius_m = map(float, numbers)
    except ValueError:
        raise InvalidField(field, "isn't a latitude, a longitude and a radius") from None
    return geometry_pb2.Circle(lat_deg=lat_deg, lon_deg=lon_deg, radius_m=radius_m)
