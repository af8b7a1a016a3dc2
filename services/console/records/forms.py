"""Forms of single records: the fields of each kind, and the registry's message from a form.

The registry validates. Only what can't become a message at all is refused here, with the field's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from services.common import times
from services.common.rpc.errors import InvalidField
from services.console.domain.people import Role
from services.console.pages.assets import KOREA
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import registry_pb2


@dataclass(frozen=True, slots=True)
class FormField:
    """A field of a form."""

    name: str
    """Name of the field; its text has the key `input_` and the name."""
    example: str = ""
    """Example of a valid value."""
    is_required: bool = True
    sort: str = "text"
    """Type of the input: text, date, datetime-local, number, textarea or select."""
    options: tuple[str, ...] = ()
    """Values of a select; their texts have the key `option_` and the value."""


@dataclass(frozen=True, slots=True)
class RecordForm:
    """The form of one kind of record."""

    kind: str
    """Kind in the address; its text has the key `record_` and the kind."""
    role: Role
    """Role that may enter such records."""
    fields: tuple[FormField, ...]
    make: Callable[[Mapping[str, str]], Any]
    """Makes the message of the record. Raises InvalidField."""


_SEXES = ("SEX_FEMALE", "SEX_MALE")
_BASES = ("TAG_BASIS_JUDGMENT", "TAG_BASIS_STALKING_ORDER", "TAG_BASIS_OTHER")
_RELATIONS = ("RELATION_VICTIM", "RELATION_COHABITANT", "RELATION_FAMILY")
_TYPES = tuple(name for name, number in registry_pb2.OrderType.items() if number)
_VERSION = FormField("source_version", "1", sort="number")
_PERSON = (
    FormField("name", "홍길동"),
    FormField("birth_date", "1980-02-29", sort="date"),
    FormField("sex", is_required=False, sort="select", options=_SEXES),
    FormField("phone", "010-1234-5678", is_required=False),
    FormField("address", "서울특별시 중구 세종대로 110", is_required=False),
)


def _wearer(values: Mapping[str, str]) -> registry_pb2.Wearer:
    return registry_pb2.Wearer(wearer_id=_text(values, "wearer_id"), source_version=_version(values), **_person(values))


def _tag(values: Mapping[str, str]) -> registry_pb2.Tag:
    return registry_pb2.Tag(
        device_id=_text(values, "device_id"),
        wearer_id=_text(values, "wearer_id"),
        source_version=_version(values),
        vendor_id=_text(values, "vendor_id"),
        basis=registry_pb2.TagBasis.Value(_choice(values, "basis", _BASES, without="TAG_BASIS_UNSPECIFIED")),
    )


def _protected_person(values: Mapping[str, str]) -> registry_pb2.ProtectedPerson:
    return registry_pb2.ProtectedPerson(
        person_id=_text(values, "person_id"),
        name=_text(values, "name"),
        source_version=_version(values),
        relation=registry_pb2.Relation.Value(_choice(values, "relation", _RELATIONS, without="RELATION_UNSPECIFIED")),
    )


def _device(values: Mapping[str, str]) -> registry_pb2.Device:
    return registry_pb2.Device(
        device_id=_text(values, "device_id"),
        person_id=_text(values, "person_id"),
        source_version=_version(values),
        vendor_id=_text(values, "vendor_id"),
    )


def _order(values: Mapping[str, str]) -> registry_pb2.Order:
    return registry_pb2.Order(
        order_id=_text(values, "order_id"),
        type=registry_pb2.OrderType.Value(_choice(values, "type", _TYPES, without="ORDER_TYPE_UNSPECIFIED")),
        respondent=registry_pb2.Respondent(**_person(values)),
        protected_person_ids=_text(values, "protected_person_ids").replace(",", " ").split(),
        places=_places(values),
        valid_from=_moment(values, "valid_from"),
        valid_until=_moment(values, "valid_until"),
        source_version=_version(values),
        duration_reason=_text(values, "duration_reason"),
    )


FORMS = {
    form.kind: form
    for form in (
        RecordForm(
            kind="wearer",
            role=Role.PROBATION_RECORDS,
            fields=(FormField("wearer_id", "W-1024"), FormField("national_id", "800229-1234567"), *_PERSON, _VERSION),
            make=_wearer,
        ),
        RecordForm(
            kind="tag",
            role=Role.PROBATION_RECORDS,
            fields=(
                FormField("device_id", "TAG-0417"),
                FormField("wearer_id", "W-1024"),
                FormField("basis", sort="select", options=_BASES),
                FormField("vendor_id", "vendor-1", is_required=False),
                _VERSION,
            ),
            make=_tag,
        ),
        RecordForm(
            kind="protected-person",
            role=Role.POLICE_RECORDS,
            fields=(
                FormField("person_id", "P-77"),
                FormField("name", "성춘향"),
                FormField("relation", sort="select", options=_RELATIONS),
                _VERSION,
            ),
            make=_protected_person,
        ),
        RecordForm(
            kind="device",
            role=Role.POLICE_RECORDS,
            fields=(
                FormField("device_id", "APP-5310"),
                FormField("person_id", "P-77"),
                FormField("vendor_id", "vendor-1", is_required=False),
                _VERSION,
            ),
            make=_device,
        ),
        RecordForm(
            kind="order",
            role=Role.POLICE_RECORDS,
            fields=(
                FormField("order_id", "2026-JUNG-31"),
                FormField("type", sort="select", options=_TYPES),
                FormField("national_id", "800229-1234567", is_required=False),
                *_PERSON,
                FormField("protected_person_ids", "P-77 P-78", is_required=False),
                FormField("places", "home-1 37.5665 126.9780 50", is_required=False, sort="textarea"),
                FormField("valid_from", "2026-03-02T18:00", sort="datetime-local"),
                FormField("valid_until", "2026-06-01T18:00", is_required=False, sort="datetime-local"),
                FormField("duration_reason", is_required=False),
                _VERSION,
            ),
            make=_order,
        ),
    )
}
"""All forms by kind."""
_SEGMENT = re.compile(r"([a-z_]+)(\[[0-9]+\])?")


def field_of_path(form: RecordForm, path: str) -> str:
    """Field of a form for a path of the registry's message, such as `order.places[0].circle.radius_m`; empty if it has none."""
    names = {field.name for field in form.fields}
    segments = [found[1] for part in path.split(".") if (found := _SEGMENT.fullmatch(part))]
    return next((segment for segment in segments if segment in names), "")


def _person(values: Mapping[str, str]) -> dict[str, Any]:
    return {
        "national_id": _text(values, "national_id"),
        "name": _text(values, "name"),
        "birth_date": _text(values, "birth_date"),
        "sex": registry_pb2.Sex.Value(_choice(values, "sex", _SEXES, without="SEX_UNSPECIFIED")),
        "phone": _text(values, "phone"),
        "address": _text(values, "address"),
    }


def _text(values: Mapping[str, str], field: str) -> str:
    return values.get(field, "").strip()


def _choice(values: Mapping[str, str], field: str, known: tuple[str, ...], *, without: str) -> str:
    given = _text(values, field)
    if given and given not in known:
        raise InvalidField(field, "is none of the list")
    return given or without


def _version(values: Mapping[str, str]) -> int:
    text = _text(values, "source_version")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidField("source_version", "is no number")
    return int(text)


def _moment(values: Mapping[str, str], field: str) -> Timestamp | None:
    """A time of a form in Korea's time zone; None for an empty field. Raises InvalidField."""
    text = _text(values, field)
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text).replace(tzinfo=KOREA)
        return times.to_timestamp(int(at.timestamp() * 1000))
    except (ValueError, OverflowError):
        raise InvalidField(field, "is no time") from None


def _places(values: Mapping[str, str]) -> list[geometry_pb2.Place]:
    """Circular places, one a line: id, latitude, longitude and radius in metres. Raises InvalidField."""
    places = []
    for line in filter(None, map(str.strip, values.get("places", "").splitlines())):
        try:
            place_id, lat_deg, lon_deg, radius_m = line.replace(",", " ").split()
            circle = geometry_pb2.Circle(lat_deg=float(lat_deg), lon_deg=float(lon_deg), radius_m=float(radius_m))
        except ValueError:
            raise InvalidField("places", "isn't an id, a latitude, a longitude and a radius a line") from None
        places.append(geometry_pb2.Place(place_id=place_id, circle=circle))
    return places
