"""Forms of single records: the fields of each kind of record, extension and end, and the call that stores it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.console.domain.people import Role
from services.console.mesh import MeshClient
from services.console.records import requests

Method = Callable[..., Any]
"""Method of a stub."""


class FormGroup(StrEnum):
    """What a form does. Its text has the key `record_group_` and the value."""

    ENTER = "enter"
    CHANGE = "change"
    END = "end"


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
    is_now: bool = False
    """Whether the empty form states the present time."""


@dataclass(frozen=True, slots=True)
class RecordForm:
    """The form of one kind of record, or of its extension or end."""

    kind: str
    """Kind in the address; its text has the key `record_` and the kind, and that of a state which forbids it `record_blocked_`."""
    role: Role
    """Role that may send it."""
    group: FormGroup
    fields: tuple[FormField, ...]
    make: Callable[[Mapping[str, str]], Any]
    """Makes the request. Raises InvalidField."""
    method: Callable[[MeshClient], Method]
    """Method of the registry that takes the request."""


_VERSION = FormField("source_version", "1", sort="number")
_LATER_VERSION = FormField("source_version", "2", sort="number")
_PERSON = (
    FormField("name", "홍길동"),
    FormField("birth_date", "1980-02-29", sort="date"),
    FormField("sex", is_required=False, sort="select", options=requests.SEXES),
    FormField("phone", "010-1234-5678", is_required=False),
    FormField("address", "서울특별시 중구 세종대로 110", is_required=False),
)
_WEARER_ID = FormField("wearer_id", "W-1024")
_TAG_ID = FormField("device_id", "TAG-0417")
_APP_ID = FormField("device_id", "APP-5310")
_PERSON_ID = FormField("person_id", "P-77")
_ORDER_ID = FormField("order_id", "2026-JUNG-31")
_UNIT_ID = FormField("unit_id", "HOME-0031")
_VENDOR = FormField("vendor_id", "vendor-1", is_required=False)
_VALID_UNTIL = FormField("valid_until", "2026-09-01T18:00:00", sort="datetime-local")
_REASON = FormField("duration_reason", is_required=False)
_ENDED_AT = FormField("ended_at", "2026-06-01T18:00:00", sort="datetime-local", is_now=True)
_REMOVED_AT = FormField("removed_at", "2026-06-01T18:00:00", sort="datetime-local", is_now=True)
_INSTALLED = (
    FormField("place", "37.5665 126.9780 30"),
    FormField("installed_from", "2026-03-02T18:00:00", sort="datetime-local", is_now=True),
    _VENDOR,
)
_POLICE, _PROBATION = Role.POLICE_RECORDS, Role.PROBATION_RECORDS

_ENTERED = (
    RecordForm(
        kind="wearer",
        role=_PROBATION,
        group=FormGroup.ENTER,
        fields=(_WEARER_ID, FormField("national_id", "800229-1234567"), *_PERSON, _VERSION),
        make=requests.wearer,
        method=lambda mesh: mesh.registry.PutWearer,
    ),
    RecordForm(
        kind="tag",
        role=_PROBATION,
        group=FormGroup.ENTER,
        fields=(_TAG_ID, _WEARER_ID, FormField("basis", sort="select", options=requests.BASES), _VENDOR, _VERSION),
        make=requests.tag,
        method=lambda mesh: mesh.registry.PutTag,
    ),
    RecordForm(
        kind="wearer-unit",
        role=_PROBATION,
        group=FormGroup.ENTER,
        fields=(
            _UNIT_ID,
            _WEARER_ID,
            FormField("kind", sort="select", options=requests.UNIT_KINDS),
            FormField("identifier", "02:00:5E:10:00:01", is_required=False),
            *_INSTALLED,
            _VERSION,
        ),
        make=requests.presence_unit,
        method=lambda mesh: mesh.clerk.presence_units.PutPresenceUnit,
    ),
    RecordForm(
        kind="protected-person",
        role=_POLICE,
        group=FormGroup.ENTER,
        fields=(
            _PERSON_ID,
            FormField("name", "성춘향"),
            FormField("relation", sort="select", options=requests.RELATIONS),
            _VERSION,
        ),
        make=requests.protected_person,
        method=lambda mesh: mesh.registry.PutProtectedPerson,
    ),
    RecordForm(
        kind="device",
        role=_POLICE,
        group=FormGroup.ENTER,
        fields=(_APP_ID, _PERSON_ID, _VENDOR, _VERSION),
        make=requests.device,
        method=lambda mesh: mesh.registry.PutDevice,
    ),
    RecordForm(
        kind="person-unit",
        role=_POLICE,
        group=FormGroup.ENTER,
        fields=(
            _UNIT_ID,
            _PERSON_ID,
            FormField("kind", sort="select", options=requests.BEACON_KINDS),
            FormField("identifier", "02:00:5E:10:00:01"),
            *_INSTALLED,
            _VERSION,
        ),
        make=requests.presence_unit,
        method=lambda mesh: mesh.clerk.presence_units.PutPresenceUnit,
    ),
    RecordForm(
        kind="order",
        role=_POLICE,
        group=FormGroup.ENTER,
        fields=(
            _ORDER_ID,
            FormField("type", sort="select", options=requests.ORDER_TYPES),
            FormField("national_id", "800229-1234567", is_required=False),
            *_PERSON,
            FormField("protected_person_ids", "P-77 P-78", is_required=False),
            FormField("places", "home-1 37.5665 126.9780 50", is_required=False, sort="textarea"),
            FormField("valid_from", "2026-03-02T18:00:00", sort="datetime-local"),
            FormField("valid_until", "2026-06-01T18:00:00", is_required=False, sort="datetime-local"),
            _REASON,
            _VERSION,
        ),
        make=requests.order,
        method=lambda mesh: mesh.registry.PutOrder,
    ),
)
_CHANGED = (
    RecordForm(
        kind="order-extension",
        role=_POLICE,
        group=FormGroup.CHANGE,
        fields=(_ORDER_ID, _VALID_UNTIL, _REASON, _LATER_VERSION),
        make=requests.order_extension,
        method=lambda mesh: mesh.clerk.order_extensions.ExtendOrder,
    ),
)
_ENDED = (
    RecordForm(
        kind="wearer-end",
        role=_PROBATION,
        group=FormGroup.END,
        fields=(
            _WEARER_ID,
            FormField("reason", sort="select", options=requests.WEARER_ENDS),
            _ENDED_AT,
            _LATER_VERSION,
        ),
        make=requests.wearer_end,
        method=lambda mesh: mesh.registry.EndWearer,
    ),
    RecordForm(
        kind="tag-end",
        role=_PROBATION,
        group=FormGroup.END,
        fields=(_TAG_ID, _REMOVED_AT, _LATER_VERSION),
        make=requests.tag_end,
        method=lambda mesh: mesh.registry.EndTag,
    ),
    *(
        RecordForm(
            kind=f"{whose}-unit-end",
            role=role,
            group=FormGroup.END,
            fields=(_UNIT_ID, _REMOVED_AT, _LATER_VERSION),
            make=requests.presence_unit_end,
            method=lambda mesh: mesh.clerk.presence_units.EndPresenceUnit,
        )
        for whose, role in (("wearer", _PROBATION), ("person", _POLICE))
    ),
    RecordForm(
        kind="order-end",
        role=_POLICE,
        group=FormGroup.END,
        fields=(
            _ORDER_ID,
            FormField("reason", sort="select", options=requests.ORDER_ENDS),
            FormField("covering_order_id", "2026-JUNG-32", is_required=False),
            _ENDED_AT,
            _LATER_VERSION,
        ),
        make=requests.order_end,
        method=lambda mesh: mesh.registry.EndOrder,
    ),
    RecordForm(
        kind="device-end",
        role=_POLICE,
        group=FormGroup.END,
        fields=(_APP_ID, _REMOVED_AT, _LATER_VERSION),
        make=requests.device_end,
        method=lambda mesh: mesh.registry.EndDevice,
    ),
    RecordForm(
        kind="protected-person-end",
        role=_POLICE,
        group=FormGroup.END,
        fields=(_PERSON_ID, _ENDED_AT, _LATER_VERSION),
        make=requests.protected_person_end,
        method=lambda mesh: mesh.registry.EndProtectedPerson,
    ),
)
FORMS = {form.kind: form for form in (*_ENTERED, *_CHANGED, *_ENDED)}
"""All forms by kind."""
_SEGMENT = re.compile(r"([a-z_]+)(\[[0-9]+\])?")


def field_of_path(form: RecordForm, path: str) -> str:
    """Field of a form for a path of the registry's message, such as `order.places[0].circle.radius_m`; empty if it has none."""
    names = {field.name for field in form.fields}
    segments = [found[1] for part in path.split(".") if (found := _SEGMENT.fullmatch(part))]
    return next((segment for segment in segments if segment in names), "")
