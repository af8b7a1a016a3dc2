"""Pages for the entry of single records: the fields of each kind of record, extension and end, the request made of them, and its call.

The registry validates. Only what can't become a message at all is refused here, with the field's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import grpc.aio
from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp

from services.client.calls import call_once
from services.common import times
from services.common.errors import InvalidField
from services.common.observability.telemetry import logger
from services.console.domain.people import RECORD_CLERKS, Role
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.guard import Ask, RouteGuard
from services.console.pages.refusals import PageRefusal, reason_and_path
from tandem.common.v1 import geometry_pb2, presence_pb2
from tandem.registry.v1 import order_extension_pb2, presence_unit_pb2, registry_pb2

SEXES = ("SEX_FEMALE", "SEX_MALE")
BASES = ("TAG_BASIS_JUDGMENT", "TAG_BASIS_STALKING_ORDER", "TAG_BASIS_OTHER")
RELATIONS = ("RELATION_VICTIM", "RELATION_COHABITANT", "RELATION_FAMILY")
ORDER_TYPES = tuple(name for name, number in registry_pb2.OrderType.items() if number)
ORDER_ENDS = tuple(name for name, number in registry_pb2.EndReason.items() if number)
WEARER_ENDS = tuple(name for name, number in registry_pb2.WearerEndReason.items() if number)
UNIT_KINDS = tuple(name for name, number in presence_pb2.PresenceUnitKind.items() if number)
BEACON_KINDS = tuple(name for name in UNIT_KINDS if name != "PRESENCE_UNIT_KIND_HOME_UNIT")
"""Kinds of a protected person's unit: only a wearer has a home unit."""

Values = Mapping[str, str]


def wearer_request(values: Values) -> registry_pb2.PutWearerRequest:
    """Request that stores a wearer. Raises InvalidField, as all of this module do."""
    record = registry_pb2.Wearer(
        wearer_id=form_text(values, "wearer_id"), source_version=form_version(values), **_person(values)
    )
    return registry_pb2.PutWearerRequest(wearer=record)


def tag_request(values: Values) -> registry_pb2.PutTagRequest:
    """Request that stores a tag."""
    basis = form_choice(values, "basis", BASES, without="TAG_BASIS_UNSPECIFIED")
    record = registry_pb2.Tag(
        device_id=form_text(values, "device_id"),
        wearer_id=form_text(values, "wearer_id"),
        source_version=form_version(values),
        vendor_id=form_text(values, "vendor_id"),
        basis=registry_pb2.TagBasis.Value(basis),
    )
    return registry_pb2.PutTagRequest(tag=record)


def protected_person_request(values: Values) -> registry_pb2.PutProtectedPersonRequest:
    """Request that stores a protected person."""
    relation = form_choice(values, "relation", RELATIONS, without="RELATION_UNSPECIFIED")
    record = registry_pb2.ProtectedPerson(
        person_id=form_text(values, "person_id"),
        name=form_text(values, "name"),
        source_version=form_version(values),
        relation=registry_pb2.Relation.Value(relation),
    )
    return registry_pb2.PutProtectedPersonRequest(protected_person=record)


def device_request(values: Values) -> registry_pb2.PutDeviceRequest:
    """Request that stores a protective device."""
    record = registry_pb2.Device(
        device_id=form_text(values, "device_id"),
        person_id=form_text(values, "person_id"),
        source_version=form_version(values),
        vendor_id=form_text(values, "vendor_id"),
    )
    return registry_pb2.PutDeviceRequest(device=record)


def order_request(values: Values) -> registry_pb2.PutOrderRequest:
    """Request that stores an order."""
    kind = form_choice(values, "type", ORDER_TYPES, without="ORDER_TYPE_UNSPECIFIED")
    record = registry_pb2.Order(
        order_id=form_text(values, "order_id"),
        type=registry_pb2.OrderType.Value(kind),
        respondent=registry_pb2.Respondent(**_person(values)),
        protected_person_ids=form_text(values, "protected_person_ids").replace(",", " ").split(),
        places=form_places(values),
        valid_from=form_time(values, "valid_from"),
        valid_until=form_time(values, "valid_until"),
        source_version=form_version(values),
        duration_reason=form_text(values, "duration_reason"),
    )
    return registry_pb2.PutOrderRequest(order=record)


def order_extension_request(values: Values) -> order_extension_pb2.ExtendOrderRequest:
    """Request that extends an order, with all else as it is stored."""
    return order_extension_pb2.ExtendOrderRequest(
        order_id=form_text(values, "order_id"),
        valid_until=form_time(values, "valid_until"),
        duration_reason=form_text(values, "duration_reason"),
        source_version=form_version(values),
    )


def order_end_request(values: Values) -> registry_pb2.EndOrderRequest:
    """Request that ends an order early."""
    reason = form_choice(values, "reason", ORDER_ENDS, without="END_REASON_UNSPECIFIED")
    return registry_pb2.EndOrderRequest(
        order_id=form_text(values, "order_id"),
        reason=registry_pb2.EndReason.Value(reason),
        ended_at=form_time(values, "ended_at"),
        covering_order_id=form_text(values, "covering_order_id"),
        source_version=form_version(values),
    )


def protected_person_end_request(values: Values) -> registry_pb2.EndProtectedPersonRequest:
    """Request that ends a person's protection."""
    return registry_pb2.EndProtectedPersonRequest(
        person_id=form_text(values, "person_id"),
        ended_at=form_time(values, "ended_at"),
        source_version=form_version(values),
    )


def device_end_request(values: Values) -> registry_pb2.EndDeviceRequest:
    """Request that says that a protective device was returned."""
    return registry_pb2.EndDeviceRequest(device_id=form_text(values, "device_id"), **_removal(values))


def wearer_end_request(values: Values) -> registry_pb2.EndWearerRequest:
    """Request that ends a wearer's record."""
    reason = form_choice(values, "reason", WEARER_ENDS, without="WEARER_END_REASON_UNSPECIFIED")
    return registry_pb2.EndWearerRequest(
        wearer_id=form_text(values, "wearer_id"),
        reason=registry_pb2.WearerEndReason.Value(reason),
        ended_at=form_time(values, "ended_at"),
        source_version=form_version(values),
    )


def tag_end_request(values: Values) -> registry_pb2.EndTagRequest:
    """Request that says that a tag was removed."""
    return registry_pb2.EndTagRequest(device_id=form_text(values, "device_id"), **_removal(values))


def presence_unit_request(values: Values) -> presence_unit_pb2.PutPresenceUnitRequest:
    """Request that stores a home unit or beacon, of a wearer or of a protected person."""
    kind = form_choice(values, "kind", UNIT_KINDS, without="PRESENCE_UNIT_KIND_UNSPECIFIED")
    record = registry_pb2.PresenceUnit(
        unit_id=form_text(values, "unit_id"),
        wearer_id=form_text(values, "wearer_id"),
        person_id=form_text(values, "person_id"),
        kind=presence_pb2.PresenceUnitKind.Value(kind),
        place=form_circle(values, "place"),
        installed_from=form_time(values, "installed_from"),
        vendor_id=form_text(values, "vendor_id"),
        identifier=form_text(values, "identifier"),
        source_version=form_version(values),
    )
    return presence_unit_pb2.PutPresenceUnitRequest(presence_unit=record)


def presence_unit_end_request(values: Values) -> presence_unit_pb2.EndPresenceUnitRequest:
    """Request that says that a home unit or beacon was removed."""
    return presence_unit_pb2.EndPresenceUnitRequest(unit_id=form_text(values, "unit_id"), **_removal(values))


def _removal(values: Values) -> dict[str, Any]:
    """When a tag, device or unit was taken out of service, with the agency's version of its record."""
    return {"removed_at": form_time(values, "removed_at"), "source_version": form_version(values)}


def _person(values: Values) -> dict[str, Any]:
    return {
        "national_id": form_text(values, "national_id"),
        "name": form_text(values, "name"),
        "birth_date": form_text(values, "birth_date"),
        "sex": registry_pb2.Sex.Value(form_choice(values, "sex", SEXES, without="SEX_UNSPECIFIED")),
        "phone": form_text(values, "phone"),
        "address": form_text(values, "address"),
    }


def form_text(values: Mapping[str, str], field: str) -> str:
    """A text without spaces at its ends; empty if the form doesn't have it."""
    return values.get(field, "").strip()


def form_choice(values: Mapping[str, str], field: str, known: tuple[str, ...], *, without: str) -> str:
    """A value of a list; `without` if none was chosen. Raises InvalidField."""
    given = form_text(values, field)
    if given and given not in known:
        raise InvalidField(field, "is none of the list")
    return given or without


def form_version(values: Mapping[str, str]) -> int:
    """The agency's version of the record. Raises InvalidField."""
    return form_whole_number(values, "source_version")


def form_whole_number(values: Mapping[str, str], field: str) -> int:
    """A whole number. Raises InvalidField."""
    given = form_text(values, field)
    if not re.fullmatch(r"[0-9]{1,18}", given):
        raise InvalidField(field, "is no number")
    return int(given)


def form_time(values: Mapping[str, str], field: str) -> Timestamp | None:
    """A time of a form, as `assets.ms_of_local` reads it; None for an empty field. Raises InvalidField."""
    given = form_text(values, field)
    if not given:
        return None
    try:
        return times.to_timestamp(assets.ms_of_local(given))
    except (ValueError, OverflowError):
        raise InvalidField(field, "is no time") from None


def form_places(values: Mapping[str, str]) -> list[geometry_pb2.Place]:
    """Circular places, one a line: id, latitude, longitude and radius in metres. Raises InvalidField."""
    found = []
    for line in filter(None, map(str.strip, values.get("places", "").splitlines())):
        place_id, *numbers = line.replace(",", " ").split() or [""]
        found.append(geometry_pb2.Place(place_id=place_id, circle=_circle_of("places", numbers)))
    return found


def form_circle(values: Mapping[str, str], field: str) -> geometry_pb2.Circle:
    """A circle: latitude, longitude and radius in metres. Raises InvalidField."""
    return _circle_of(field, form_text(values, field).replace(",", " ").split())


def _circle_of(field: str, numbers: list[str]) -> geometry_pb2.Circle:
    try:
        lat_deg, lon_deg, radius_m = map(float, numbers)
    except ValueError:
        raise InvalidField(field, "isn't a latitude, a longitude and a radius") from None
    return geometry_pb2.Circle(lat_deg=lat_deg, lon_deg=lon_deg, radius_m=radius_m)


class RecordPages:
    """Forms of single records, for the clerks of each agency's records."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/records", RECORD_CLERKS, self.kinds),
            self._guard.get("/records/{id}", RECORD_CLERKS, self.form),
            self._guard.post("/records/{id}", RECORD_CLERKS, self.put),
        ]

    async def kinds(self, ask: Ask) -> web.StreamResponse:
        """Shows the forms of the agency: what it enters, changes and ends."""
        own = [form for form in FORMS.values() if form.role is ask.user.role]
        groups = {group: [form for form in own if form.group is group] for group in FormGroup}
        return assets.page(ask, "records.html", groups={group: made for group, made in groups.items() if made})

    async def form(self, ask: Ask) -> web.StreamResponse:
        """Shows the empty form of a kind."""
        form = _form_of(ask)
        return self._page(ask, form, self._initial(form))

    async def put(self, ask: Ask) -> web.StreamResponse:
        """Stores a record. A form that is sent twice changes nothing, since it has the same version and content."""
        form = _form_of(ask)
        examples = {field.name: field.example for field in form.fields}
        try:
            answer = await call_once(form.method(self._mesh), form.make(ask.form), self._mesh.identity(ask.user))
        except InvalidField as error:
            refusal = PageRefusal(
                400, f"record_wrong_{error.field}", error.field, example=examples[error.field], form=ask.form
            )
            return self._page(ask, form, ask.form, refusal=refusal)
        except grpc.aio.AioRpcError as error:
            logger().info("record_not_stored", kind=form.kind, code=error.code().name)
            return self._page(ask, form, ask.form, refusal=_refusal_of(error, form, ask.form))
        outcome = registry_pb2.PutOutcome.Name(answer.outcome)
        paths = [warning.field for warning in getattr(answer, "warnings", ())]
        # A form of fewer fields than the record has no field for some warnings, such as the number of extensions.
        warned = [field_of_path(form, path) or path.rpartition(".")[2] for path in paths]
        return self._page(ask, form, self._initial(form), outcome=outcome, warned=warned)

    def _initial(self, form: RecordForm) -> dict[str, str]:
        """Values of an empty form: the present time where a form mostly states that."""
        now = assets.local_second(self._mesh.clock.now_ms())
        return {field.name: now for field in form.fields if field.is_now}

    def _page(
        self,
        ask: Ask,
        form: RecordForm,
        values: Mapping[str, str],
        *,
        refusal: PageRefusal | None = None,
        outcome: str = "",
        warned: list[str] | None = None,
    ) -> web.StreamResponse:
        return assets.page(
            ask,
            "record.html",
            status=refusal.status if refusal else 200,
            form=form,
            values=values,
            refusal=refusal,
            outcome=outcome,
            warned=warned or [],
        )


def _refusal_of(error: grpc.aio.AioRpcError, form: RecordForm, sent: Mapping[str, str]) -> PageRefusal:
    """Refusal of a form by the registry: the wrong field with an example, or the state that forbids it."""
    refusal = refusals.of_service(error, "record", sent)
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        return replace(refusal, key=f"record_blocked_{form.kind}", detail="")
    if error.code() is grpc.StatusCode.NOT_FOUND and form.group is not FormGroup.ENTER:
        return replace(refusal, key="record_none", detail="")
    examples = {field.name: field.example for field in form.fields}
    field = field_of_path(form, reason_and_path(error)[1])
    if not field:
        return refusal
    return replace(refusal, key=f"record_wrong_{field}", field=field, example=examples[field], detail="")


def _form_of(ask: Ask) -> RecordForm:
    """Returns the form of the address. Raises HTTPNotFound for no kind, and HTTPForbidden for one of the other agency."""
    form = FORMS.get(ask.request.match_info["id"])
    if form is None:
        raise web.HTTPNotFound(text=f"404: there are no such records: {', '.join(FORMS)}")
    if form.role is not ask.user.role:
        raise web.HTTPForbidden(text="403: these records are the other agency's")
    return form


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
    method: Callable[[MeshClient], grpc.aio.UnaryUnaryMultiCallable[Any, Any]]
    """Method of the registry that takes the request."""


_VERSION = FormField("source_version", "1", sort="number")
_LATER_VERSION = FormField("source_version", "2", sort="number")
_PERSON = (
    FormField("name", "홍길동"),
    FormField("birth_date", "1980-02-29", sort="date"),
    FormField("sex", is_required=False, sort="select", options=SEXES),
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
        make=wearer_request,
        method=lambda mesh: mesh.registry.PutWearer,
    ),
    RecordForm(
        kind="tag",
        role=_PROBATION,
        group=FormGroup.ENTER,
        fields=(
            _TAG_ID,
            _WEARER_ID,
            FormField("basis", sort="select", options=BASES),
            _VENDOR,
            _VERSION,
        ),
        make=tag_request,
        method=lambda mesh: mesh.registry.PutTag,
    ),
    RecordForm(
        kind="wearer-unit",
        role=_PROBATION,
        group=FormGroup.ENTER,
        fields=(
            _UNIT_ID,
            _WEARER_ID,
            FormField("kind", sort="select", options=UNIT_KINDS),
            FormField("identifier", "02:00:5E:10:00:01", is_required=False),
            *_INSTALLED,
            _VERSION,
        ),
        make=presence_unit_request,
        method=lambda mesh: mesh.presence_units.PutPresenceUnit,
    ),
    RecordForm(
        kind="protected-person",
        role=_POLICE,
        group=FormGroup.ENTER,
        fields=(
            _PERSON_ID,
            FormField("name", "성춘향"),
            FormField("relation", sort="select", options=RELATIONS),
            _VERSION,
        ),
        make=protected_person_request,
        method=lambda mesh: mesh.registry.PutProtectedPerson,
    ),
    RecordForm(
        kind="device",
        role=_POLICE,
        group=FormGroup.ENTER,
        fields=(_APP_ID, _PERSON_ID, _VENDOR, _VERSION),
        make=device_request,
        method=lambda mesh: mesh.registry.PutDevice,
    ),
    RecordForm(
        kind="person-unit",
        role=_POLICE,
        group=FormGroup.ENTER,
        fields=(
            _UNIT_ID,
            _PERSON_ID,
            FormField("kind", sort="select", options=BEACON_KINDS),
            FormField("identifier", "02:00:5E:10:00:01"),
            *_INSTALLED,
            _VERSION,
        ),
        make=presence_unit_request,
        method=lambda mesh: mesh.presence_units.PutPresenceUnit,
    ),
    RecordForm(
        kind="order",
        role=_POLICE,
        group=FormGroup.ENTER,
        fields=(
            _ORDER_ID,
            FormField("type", sort="select", options=ORDER_TYPES),
            FormField("national_id", "800229-1234567", is_required=False),
            *_PERSON,
            FormField("protected_person_ids", "P-77 P-78", is_required=False),
            FormField("places", "home-1 37.5665 126.9780 50", is_required=False, sort="textarea"),
            FormField("valid_from", "2026-03-02T18:00:00", sort="datetime-local"),
            FormField("valid_until", "2026-06-01T18:00:00", is_required=False, sort="datetime-local"),
            _REASON,
            _VERSION,
        ),
        make=order_request,
        method=lambda mesh: mesh.registry.PutOrder,
    ),
)
_CHANGED = (
    RecordForm(
        kind="order-extension",
        role=_POLICE,
        group=FormGroup.CHANGE,
        fields=(_ORDER_ID, _VALID_UNTIL, _REASON, _LATER_VERSION),
        make=order_extension_request,
        method=lambda mesh: mesh.order_extensions.ExtendOrder,
    ),
)
_ENDED = (
    RecordForm(
        kind="wearer-end",
        role=_PROBATION,
        group=FormGroup.END,
        fields=(
            _WEARER_ID,
            FormField("reason", sort="select", options=WEARER_ENDS),
            _ENDED_AT,
            _LATER_VERSION,
        ),
        make=wearer_end_request,
        method=lambda mesh: mesh.registry.EndWearer,
    ),
    RecordForm(
        kind="tag-end",
        role=_PROBATION,
        group=FormGroup.END,
        fields=(_TAG_ID, _REMOVED_AT, _LATER_VERSION),
        make=tag_end_request,
        method=lambda mesh: mesh.registry.EndTag,
    ),
    *(
        RecordForm(
            kind=f"{whose}-unit-end",
            role=role,
            group=FormGroup.END,
            fields=(_UNIT_ID, _REMOVED_AT, _LATER_VERSION),
            make=presence_unit_end_request,
            method=lambda mesh: mesh.presence_units.EndPresenceUnit,
        )
        for whose, role in (("wearer", _PROBATION), ("person", _POLICE))
    ),
    RecordForm(
        kind="order-end",
        role=_POLICE,
        group=FormGroup.END,
        fields=(
            _ORDER_ID,
            FormField("reason", sort="select", options=ORDER_ENDS),
            FormField("covering_order_id", "2026-JUNG-32", is_required=False),
            _ENDED_AT,
            _LATER_VERSION,
        ),
        make=order_end_request,
        method=lambda mesh: mesh.registry.EndOrder,
    ),
    RecordForm(
        kind="device-end",
        role=_POLICE,
        group=FormGroup.END,
        fields=(_APP_ID, _REMOVED_AT, _LATER_VERSION),
        make=device_end_request,
        method=lambda mesh: mesh.registry.EndDevice,
    ),
    RecordForm(
        kind="protected-person-end",
        role=_POLICE,
        group=FormGroup.END,
        fields=(_PERSON_ID, _ENDED_AT, _LATER_VERSION),
        make=protected_person_end_request,
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
