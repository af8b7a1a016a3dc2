"""The registry's requests from forms of single records: new records, extensions and ends.

The registry validates. Only what can't become a message at all is refused here, with the field's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.console.records import values as read
from tandem.common.v1 import presence_pb2
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


def wearer(values: Values) -> registry_pb2.PutWearerRequest:
    """Request that stores a wearer. Raises InvalidField, as all of this module do."""
    record = registry_pb2.Wearer(
        wearer_id=read.text(values, "wearer_id"), source_version=read.version(values), **_person(values)
    )
    return registry_pb2.PutWearerRequest(wearer=record)


def tag(values: Values) -> registry_pb2.PutTagRequest:
    """Request that stores a tag."""
    basis = read.choice(values, "basis", BASES, without="TAG_BASIS_UNSPECIFIED")
    record = registry_pb2.Tag(
        device_id=read.text(values, "device_id"),
        wearer_id=read.text(values, "wearer_id"),
        source_version=read.version(values),
        vendor_id=read.text(values, "vendor_id"),
        basis=registry_pb2.TagBasis.Value(basis),
    )
    return registry_pb2.PutTagRequest(tag=record)


def protected_person(values: Values) -> registry_pb2.PutProtectedPersonRequest:
    """Request that stores a protected person."""
    relation = read.choice(values, "relation", RELATIONS, without="RELATION_UNSPECIFIED")
    record = registry_pb2.ProtectedPerson(
        person_id=read.text(values, "person_id"),
        name=read.text(values, "name"),
        source_version=read.version(values),
        relation=registry_pb2.Relation.Value(relation),
    )
    return registry_pb2.PutProtectedPersonRequest(protected_person=record)


def device(values: Values) -> registry_pb2.PutDeviceRequest:
    """Request that stores a protective device."""
    record = registry_pb2.Device(
        device_id=read.text(values, "device_id"),
        person_id=read.text(values, "person_id"),
        source_version=read.version(values),
        vendor_id=read.text(values, "vendor_id"),
    )
    return registry_pb2.PutDeviceRequest(device=record)


def order(values: Values) -> registry_pb2.PutOrderRequest:
    """Request that stores an order."""
    kind = read.choice(values, "type", ORDER_TYPES, without="ORDER_TYPE_UNSPECIFIED")
    record = registry_pb2.Order(
        order_id=read.text(values, "order_id"),
        type=registry_pb2.OrderType.Value(kind),
        respondent=registry_pb2.Respondent(**_person(values)),
        protected_person_ids=read.text(values, "protected_person_ids").replace(",", " ").split(),
        places=read.places(values),
        valid_from=read.moment(values, "valid_from"),
        valid_until=read.moment(values, "valid_until"),
        source_version=read.version(values),
        duration_reason=read.text(values, "duration_reason"),
    )
    return registry_pb2.PutOrderRequest(order=record)


def order_extension(values: Values) -> order_extension_pb2.ExtendOrderRequest:
    """Request that extends an order, with all else as it is stored."""
    return order_extension_pb2.ExtendOrderRequest(
        order_id=read.text(values, "order_id"),
        valid_until=read.moment(values, "valid_until"),
        duration_reason=read.text(values, "duration_reason"),
        source_version=read.version(values),
    )


def order_end(values: Values) -> registry_pb2.EndOrderRequest:
    """Request that ends an order early."""
    reason = read.choice(values, "reason", ORDER_ENDS, without="END_REASON_UNSPECIFIED")
    return registry_pb2.EndOrderRequest(
        order_id=read.text(values, "order_id"),
        reason=registry_pb2.EndReason.Value(reason),
        ended_at=read.moment(values, "ended_at"),
        covering_order_id=read.text(values, "covering_order_id"),
        source_version=read.version(values),
    )


def protected_person_end(values: Values) -> registry_pb2.EndProtectedPersonRequest:
    """Request that ends a person's protection."""
    return registry_pb2.EndProtectedPersonRequest(
        person_id=read.text(values, "person_id"),
        ended_at=read.moment(values, "ended_at"),
        source_version=read.version(values),
    )


def device_end(values: Values) -> registry_pb2.EndDeviceRequest:
    """Request that says that a protective device was returned."""
    return registry_pb2.EndDeviceRequest(device_id=read.text(values, "device_id"), **_removal(values))


def wearer_end(values: Values) -> registry_pb2.EndWearerRequest:
    """Request that ends a wearer's record."""
    reason = read.choice(values, "reason", WEARER_ENDS, without="WEARER_END_REASON_UNSPECIFIED")
    return registry_pb2.EndWearerRequest(
        wearer_id=read.text(values, "wearer_id"),
        reason=registry_pb2.WearerEndReason.Value(reason),
        ended_at=read.moment(values, "ended_at"),
        source_version=read.version(values),
    )


def tag_end(values: Values) -> registry_pb2.EndTagRequest:
    """Request that says that a tag was removed."""
    return registry_pb2.EndTagRequest(device_id=read.text(values, "device_id"), **_removal(values))


def presence_unit(values: Values) -> presence_unit_pb2.PutPresenceUnitRequest:
    """Request that stores a home unit or beacon, of a wearer or of a protected person."""
    kind = read.choice(values, "kind", UNIT_KINDS, without="PRESENCE_UNIT_KIND_UNSPECIFIED")
    record = registry_pb2.PresenceUnit(
        unit_id=read.text(values, "unit_id"),
        wearer_id=read.text(values, "wearer_id"),
        person_id=read.text(values, "person_id"),
        kind=presence_pb2.PresenceUnitKind.Value(kind),
        place=read.circle(values, "place"),
        installed_from=read.moment(values, "installed_from"),
        vendor_id=read.text(values, "vendor_id"),
        identifier=read.text(values, "identifier"),
        source_version=read.version(values),
    )
    return presence_unit_pb2.PutPresenceUnitRequest(presence_unit=record)


def presence_unit_end(values: Values) -> presence_unit_pb2.EndPresenceUnitRequest:
    """Request that says that a home unit or beacon was removed."""
    return presence_unit_pb2.EndPresenceUnitRequest(unit_id=read.text(values, "unit_id"), **_removal(values))


def _removal(values: Values) -> dict[str, Any]:
    """When a tag, device or unit was taken out of service, with the agency's version of its record."""
    return {"removed_at": read.moment(values, "removed_at"), "source_version": read.version(values)}


def _person(values: Values) -> dict[str, Any]:
    return {
        "national_id": read.text(values, "national_id"),
        "name": read.text(values, "name"),
        "birth_date": read.text(values, "birth_date"),
        "sex": registry_pb2.Sex.Value(read.choice(values, "sex", SEXES, without="SEX_UNSPECIFIED")),
        "phone": read.text(values, "phone"),
        "address": read.text(values, "address"),
    }
