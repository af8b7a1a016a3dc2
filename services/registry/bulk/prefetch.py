"""Read the rows that a batch of records needs into the working set: each table with few statements for the whole batch.

Only speed depends on this module, because the commands ask the working set, which reads a row that it lacks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from services.registry.domain import Device, Order, ProtectedPerson, Tag, Wearer
from services.registry.matching.similarity import Side
from services.registry.presence_units.domain import PersonUnit, WearerUnit
from services.registry.records.kinds import (
    DEVICES,
    ORDERS,
    PERSON_UNITS,
    PERSONS,
    TAGS,
    UNIT_TYPES,
    WEARER_UNITS,
    WEARERS,
    R,
    Record,
    RecordType,
)
from services.registry.records.prepared import PreparedRecord
from services.registry.working_set.working_set import WorkingSet


@dataclass
class _Needs:
    """Ids of the records that a batch needs."""

    wearers: set[str] = field(default_factory=set)
    persons: set[str] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    """Ids of tags, protective devices and units."""
    orders: set[str] = field(default_factory=set)
    cases_of_wearers: set[str] = field(default_factory=set)
    """Ids of the wearers whose joint cases may change."""
    cases_of_persons: set[str] = field(default_factory=set)
    """Ids of the protected persons whose joint cases may change."""


def prefetch(working: WorkingSet, batch: Sequence[PreparedRecord[Any]]) -> None:
    """Read the rows that the records of a batch need."""
    if len(batch) < 2:
        return  # the command itself reads fewer rows
    needs = _needs_of(batch)
    stored_orders = working.records.opened(ORDERS, needs.orders)
    needs.persons |= _persons_of(stored_orders.values())
    needs.cases_of_wearers |= {tag.wearer_id for tag in working.records.opened(TAGS, needs.devices).values()}
    needs.cases_of_persons |= {device.person_id for device in working.records.opened(DEVICES, needs.devices).values()}
    for kind in UNIT_TYPES:
        working.records.some(kind, needs.devices)
    stored_wearers = working.records.some(WEARERS, needs.wearers | needs.cases_of_wearers)
    working.records.some(PERSONS, needs.persons | needs.cases_of_persons)
    _gather_candidates(working, batch)
    cases = [
        *working.cases.of_orders(stored_orders),
        *working.cases.of_wearers(needs.cases_of_wearers | stored_wearers.keys()),
        *working.cases.of_orders(_orders_of(working, needs.persons | needs.cases_of_persons)),
    ]
    working.records.persons.by("order_id", stored_orders)
    working.reviews.rows.by("order_id", stored_orders)
    working.reviews.rows.by("wearer_id", stored_wearers)
    working.reviews.some({case.case_id for case in cases})
    needs.wearers |= {case.wearer_id for case in cases}
    needs.orders |= {case.order_id for case in cases}
    _gather_surroundings(working, batch, needs)


def _needs_of(batch: Iterable[PreparedRecord[Any]]) -> _Needs:
    needs = _Needs()
    for prepared in batch:
        record: Record = prepared.record
        match record:
            case Wearer(wearer_id=wearer_id):
                needs.wearers.add(wearer_id)
            case Tag(device_id=device_id, wearer_id=wearer_id):
                needs.devices.add(device_id)
                needs.cases_of_wearers.add(wearer_id)
            case ProtectedPerson(person_id=person_id):
                needs.persons.add(person_id)
            case Device(device_id=device_id, person_id=person_id):
                needs.devices.add(device_id)
                needs.cases_of_persons.add(person_id)
            case WearerUnit(unit_id=unit_id, wearer_id=wearer_id):
                needs.devices.add(unit_id)
                needs.cases_of_wearers.add(wearer_id)
            case PersonUnit(unit_id=unit_id, person_id=person_id):
                needs.devices.add(unit_id)
                needs.cases_of_persons.add(person_id)
            case Order(order_id=order_id, protected_person_ids=person_ids):
                needs.orders.add(order_id)
                needs.persons.update(person_ids)
            case _:
                assert_never(record)
    return needs


def _gather_candidates(working: WorkingSet, batch: Iterable[PreparedRecord[Any]]) -> None:
    """Read the records that share a match key with a record of the batch, and the tags and persons that belong to them."""
    keys: dict[RecordType[Any], set[bytes]] = {WEARERS: set(), ORDERS: set()}
    for prepared in batch:
        if prepared.kind.side is not None:
            keys[prepared.kind].update(prepared.match_keys)
    orders = working.records.opened(ORDERS, working.match_keys.sharing(Side.ORDER, keys[WEARERS]))
    persons = _persons_of(orders.values())
    working.records.some(PERSONS, persons)
    working.records.owned(DEVICES, persons)
    wearers = working.match_keys.sharing(Side.WEARER, keys[ORDERS])
    working.tag_records.of_wearers(working.records.some(WEARERS, wearers).keys())
    working.records.owned(TAGS, wearers)


def _gather_surroundings(working: WorkingSet, batch: Iterable[PreparedRecord[Any]], needs: _Needs) -> None:
    """Read the people, devices and routes around the joint cases that may change."""
    orders = working.records.opened(ORDERS, needs.orders)
    persons = needs.persons | needs.cases_of_persons | _persons_of(orders.values())
    wearers = needs.wearers | needs.cases_of_wearers
    working.records.some(PERSONS, persons)
    stored_wearers = working.records.some(WEARERS, wearers)
    working.tag_records.of_wearers(stored_wearers.keys())
    working.records.owned(WEARER_UNITS, wearers)
    working.records.owned(PERSON_UNITS, persons)
    devices = working.records.owned(DEVICES, persons)
    working.cases.of_orders(_orders_of(working, {device.person_id for device in devices}))
    put_wearers = {prepared.record_id for prepared in batch if prepared.kind is WEARERS}
    tags = [tag for tag in working.records.owned(TAGS, wearers) if tag.wearer_id in put_wearers]
    routed = {*needs.devices, *_ids(DEVICES, devices), *_ids(TAGS, tags)}
    working.routes.of(routed)
    working.tokens.of(routed)


def _persons_of(orders: Iterable[Order]) -> set[str]:
    return {person_id for order in orders for person_id in order.protected_person_ids}


def _orders_of(working: WorkingSet, person_ids: Collection[str]) -> list[str]:
    return [row.order_id for row in working.records.persons.by("person_id", person_ids)]


def _ids(kind: RecordType[R], records: Iterable[R]) -> Iterable[str]:
    return map(kind.id_of, records)
