"""Gather the rows that a plan needs from a working set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.registry.domain.cases import JointCase, MatchPair, StoredCase, StoredRoute, build_case, duty_of
from services.registry.domain.device_tokens import DeviceToken
from services.registry.domain.records import (
    Contact,
    Device,
    Order,
    PersonUnit,
    ProtectedPerson,
    RoutedDevice,
    Tag,
    Wearer,
    WearerUnit,
)
from services.registry.domain.reviews import Side
from services.registry.domain.wearing import TagRecord, TagRecordKind, periods_of
from services.registry.keys import KeyOwner
from services.registry.records.kinds import (
    DEVICES,
    ORDERS,
    PERSON_UNITS,
    PERSONS,
    TAGS,
    WEARER_UNITS,
    WEARERS,
    R,
    Record,
    RecordType,
    type_of,
)
from services.registry.records.store import PreparedRecord, StoredRecord
from services.registry.working_set.working_set import WorkingSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Stored rows that a plan needs besides the pairs."""

    tags: Mapping[str, list[Tag]] = field(default_factory=dict)
    """Tags by wearer id."""
    devices: Mapping[str, list[Device]] = field(default_factory=dict)
    """Protective devices by person id."""
    units: tuple[WearerUnit | PersonUnit, ...] = ()
    """Home units and beacons of all wearers and persons."""
    ended: frozenset[KeyOwner] = frozenset()
    """Wearers and protected persons whose record has ended or was destroyed."""
    routes: Mapping[str, StoredRoute] = field(default_factory=dict)
    """The last sent route by device id."""
    tokens: Mapping[str, list[DeviceToken]] = field(default_factory=dict)
    """Tokens by device id, oldest first, including expired tokens."""
    kept_away: Mapping[str, set[str]] = field(default_factory=dict)
    """Ids of the wearers who must keep away from a person, by person id. Joint cases of the plan's own pairs aren't counted."""
    tag_records: Mapping[str, Sequence[TagRecord]] = field(default_factory=dict)
    """What officers recorded about the wearing of tags, by wearer id."""
    now_ms: int = 0
    """Mesh time of the plan."""
    contacts: Mapping[str, Contact] = field(default_factory=dict)
    """Contacts by person id. Empty if the registry can't seal contacts."""

    def devices_of(self, person_ids: Iterable[str]) -> list[Device]:
        """Protective devices of these persons, sorted by id."""
        devices = (device for person_id in person_ids for device in self.devices.get(person_id, ()))
        return sorted(devices, key=lambda device: device.device_id)

    def case_of(self, order: Order, wearer: Wearer) -> JointCase:
        """Joint case of an order and a wearer with the records that belong to their people."""
        tags, recorded = self.tags.get(wearer.wearer_id, []), self.tag_records.get(wearer.wearer_id, ())
        return build_case(
            order,
            wearer,
            tags,
            devices=self.devices_of(order.protected_person_ids),
            tag_duty=duty_of(order, recorded, self.now_ms),
            removals=periods_of(recorded, TagRecordKind.REMOVAL, self.now_ms),
            units=self.units,
        )


def pairs_of_wearer(working: WorkingSet, prepared: PreparedRecord[Wearer], *, new: bool = False) -> list[MatchPair]:
    """Pairs of a wearer and each order that may be against this wearer, or was before this version of the record.

    A `new` wearer has no cases and reviews yet.
    """
    wearer = prepared.record
    cases = {} if new else {case.order_id: case for case in working.cases.of_wearers([wearer.wearer_id])}
    reviews = {} if new else {review.order_id: review for review in working.reviews.of_wearer(wearer.wearer_id)}
    alike = working.match_keys.sharing(Side.ORDER, prepared.match_keys)
    orders = working.records.opened(ORDERS, alike | cases.keys() | reviews.keys())
    return [
        MatchPair(order=order, wearer=wearer, review=reviews.get(order.order_id), case=cases.get(order.order_id))
        for order in _by_number(ORDERS, orders, wearer.national_id)
    ]


def pairs_of_order(working: WorkingSet, prepared: PreparedRecord[Order], *, new: bool) -> list[MatchPair]:
    """Pairs of an order and each wearer whom the order may be against, or was before this version of the record.

    A `new` order has no cases and reviews yet.
    """
    order = prepared.record
    cases = {} if new else {case.wearer_id: case for case in working.cases.of_orders([order.order_id])}
    reviews = {} if new else {review.wearer_id: review for review in working.reviews.of_order(order.order_id)}
    alike = working.match_keys.sharing(Side.WEARER, prepared.match_keys)
    wearers = working.records.opened(WEARERS, alike | cases.keys() | reviews.keys())
    return [
        MatchPair(order=order, wearer=wearer, review=reviews.get(wearer.wearer_id), case=cases.get(wearer.wearer_id))
        for wearer in _by_number(WEARERS, wearers, order.respondent.national_id)
    ]


def _by_number(kind: RecordType[R], records: Mapping[str, R], national_id: str) -> list[R]:
    """First the records with this national number, then the others, each group sorted by id. An empty number matches no record."""
    return sorted(records.values(), key=lambda record: (kind.national_id(record) != national_id, kind.id_of(record)))


def pairs_of_cases(working: WorkingSet, cases: Sequence[StoredCase]) -> list[MatchPair]:
    """The pairs of joint cases, in their order."""
    orders = working.records.opened(ORDERS, {case.order_id for case in cases})
    wearers = working.records.opened(WEARERS, {case.wearer_id for case in cases})
    reviews = working.reviews.some({case.case_id for case in cases})
    return [
        MatchPair(
            order=orders[case.order_id],
            wearer=wearers[case.wearer_id],
            review=reviews.get(case.case_id),
            case=case,
        )
        for case in cases
    ]


def around(
    working: WorkingSet,
    pairs: Sequence[MatchPair],
    *,
    now_ms: int,
    put: Record | None = None,
    also_persons: Iterable[str] = (),
    also_wearers: Collection[str] = (),
    with_contacts: bool = False,
) -> Surroundings:
    """Gather the surroundings of pairs whose joint cases may change.

    `put` is the record that the command puts, which replaces its stored version. The routes of the devices of `also_persons` and
    of the tags of `also_wearers` may also change.
    """
    person_ids = {*also_persons, *(id_ for pair in pairs for id_ in pair.order.protected_person_ids)}
    devices = _owned(working, DEVICES, person_ids, put=put)
    tags = _owned(working, TAGS, {*also_wearers, *(pair.wearer.wearer_id for pair in pairs)}, put=put)
    persons = _persons(working, person_ids if devices or with_contacts else set(), put=put)
    wearer_ids = {pair.wearer.wearer_id for pair in pairs}
    units: list[WearerUnit | PersonUnit] = [
        *_owned(working, WEARER_UNITS, wearer_ids, put=put),
        *_owned(working, PERSON_UNITS, person_ids, put=put),
    ]
    put_units = [unit for unit in units if unit is put]
    routed_tags = [tag for tag in tags if tag is put or tag.wearer_id in also_wearers]
    wearers = working.records.some(WEARERS, {*(tag.wearer_id for tag in routed_tags), *_owners(WEARER_UNITS, put)})
    routed = [device.device_id for device in (*devices, *routed_tags, *put_units)]
    case_ids = [pair.case.case_id for pair in pairs if pair.case]
    return Surroundings(
        tags=_grouped(TAGS, tags),
        devices=_grouped(DEVICES, devices),
        units=tuple(units),
        ended=_ended([*wearers.values(), *persons], put),
        routes=working.routes.last_sent(routed),
        tokens=working.tokens.of_devices(routed),
        tag_records=working.tag_records.of_wearers({pair.wearer.wearer_id for pair in pairs}),
        now_ms=now_ms,
        kept_away=working.cases.kept_away(
            {*(device.person_id for device in devices), *_owners(PERSON_UNITS, put)}, without=case_ids
        ),
        contacts=_contacts(persons, put) if with_contacts and pairs else {},
    )


def around_devices(
    working: WorkingSet, devices: Sequence[RoutedDevice], also_ids: Collection[str] = ()
) -> Surroundings:
    """Gather the rows that the routes of these devices depend on, and the last routes of those in `also_ids`."""
    ids = [*(device.device_id for device in devices), *also_ids]
    person_ids = {device.person_id for device in devices if isinstance(device, Device | PersonUnit)}
    wearer_ids = {device.wearer_id for device in devices if isinstance(device, Tag | WearerUnit)}
    persons, wearers = working.records.some(PERSONS, person_ids), working.records.some(WEARERS, wearer_ids)
    return Surroundings(
        ended=_ended([*persons.values(), *wearers.values()], None),
        routes=working.routes.last_sent(ids),
        tokens=working.tokens.of_devices(ids),
        kept_away=working.cases.kept_away(person_ids, without=()),
    )


def _owners(kind: RecordType[R], put: Record | None) -> set[str]:
    """The owner of the record that is put, if it is of this kind."""
    return {getattr(put, kind.owner.name)} if isinstance(put, kind.cls) else set()


def _owned(working: WorkingSet, kind: RecordType[R], owner_ids: Collection[str], *, put: Record | None) -> list[R]:
    """The records that belong to these owners, with the one that is put."""
    stored = working.records.owned(kind, owner_ids)
    if not isinstance(put, kind.cls):
        return stored
    return [*(record for record in stored if kind.id_of(record) != kind.id_of(put)), put]


def _persons(working: WorkingSet, person_ids: set[str], *, put: Record | None) -> list[StoredRecord[ProtectedPerson]]:
    """Rows of these persons, except for a person that the command puts."""
    others = person_ids - {put.person_id} if isinstance(put, ProtectedPerson) else person_ids
    return list(working.records.some(PERSONS, others).values())


def _ended(stored: Iterable[StoredRecord[Any]], put: Record | None) -> frozenset[KeyOwner]:
    """Owners whose record has ended. For the record that the command puts, the new version decides."""
    ended = {record.key_owner for record in stored if record.kind.ledger_kind is not None and record.has_ended}
    if put is None:
        return frozenset(ended)
    kind = type_of(put)
    owner = KeyOwner(kind.table.name, kind.id_of(put))
    return frozenset(ended | {owner} if kind.has_ended(put) else ended - {owner})


def _contacts(persons: Iterable[StoredRecord[ProtectedPerson]], put: Record | None) -> dict[str, Contact]:
    opened = [stored.open() for stored in persons]  # None for a destroyed person: a long ended case may be sent again
    known = [*opened, put] if isinstance(put, ProtectedPerson) else opened
    return {person.person_id: person.contact for person in known if person and person.contact}


def _grouped(kind: RecordType[R], records: Iterable[R]) -> dict[str, list[R]]:
    """Records by the id of their owner."""
    groups: dict[str, list[R]] = defaultdict(list)
    for record in records:
        groups[getattr(record, kind.owner.name)].append(record)
    return groups
