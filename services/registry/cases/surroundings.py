"""Read the rows that a plan needs: each table with one statement for all requested ids, and no row twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.registry import domain
from services.registry.cases.domain import MatchPair, StoredCase
from services.registry.device_tokens.domain import DeviceToken
from services.registry.domain import Contact, Device, JointCase, Order, ProtectedPerson, Tag, Wearer
from services.registry.keys.store import KeyOwner
from services.registry.matching import similarity
from services.registry.matching.similarity import Side
from services.registry.records.kinds import DEVICES, ORDERS, PERSONS, TAGS, WEARERS, R, Record, RecordType, type_of
from services.registry.records.store import StoredRecord, owner_of
from services.registry.routes.domain import StoredRoute
from services.registry.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Stored rows that a plan needs besides the pairs."""

    tags: Mapping[str, list[Tag]] = field(default_factory=dict)
    """Tags by wearer id."""
    devices: Mapping[str, list[Device]] = field(default_factory=dict)
    """Protective devices by person id."""
    ended: frozenset[KeyOwner] = frozenset()
    """Wearers and protected persons whose record has ended or was destroyed."""
    routes: Mapping[str, StoredRoute] = field(default_factory=dict)
    """The last sent route by device id."""
    tokens: Mapping[str, list[DeviceToken]] = field(default_factory=dict)
    """Tokens by device id, oldest first, including expired tokens."""
    kept_away: Mapping[str, set[str]] = field(default_factory=dict)
    """Ids of the wearers who must keep away from a person, by person id. Joint cases of the plan's own pairs aren't counted."""
    contacts: Mapping[str, Contact] = field(default_factory=dict)
    """Contacts by person id. Empty if the registry can't seal contacts."""

    def devices_of(self, person_ids: Iterable[str]) -> list[Device]:
        """Protective devices of these persons, sorted by id."""
        devices = (device for person_id in person_ids for device in self.devices.get(person_id, ()))
        return sorted(devices, key=lambda device: device.device_id)

    def case_of(self, order: Order, wearer: Wearer) -> JointCase:
        """Joint case of an order and a wearer with the records that belong to their people."""
        tags = self.tags.get(wearer.wearer_id, [])
        return domain.build_case(order, wearer, tags, devices=self.devices_of(order.protected_person_ids))


async def pairs_of_wearer(work: UnitOfWork, wearer: Wearer, *, new: bool = False) -> list[MatchPair]:
    """Pairs of a wearer and each order that may be against this wearer, or was before this version of the record.

    A `new` wearer has no cases and reviews yet.
    """
    wearer_id = wearer.wearer_id
    cases = {} if new else {case.order_id: case for case in await work.cases.of_wearers([wearer_id])}
    reviews = {} if new else {review.order_id: review for review in await work.reviews.of_wearer(wearer_id)}
    alike = await work.match_keys.sharing(Side.ORDER, similarity.match_keys(wearer))
    orders = await work.records.candidates(ORDERS, alike | cases.keys() | reviews.keys(), wearer.national_id)
    return [
        MatchPair(order=order, wearer=wearer, review=reviews.get(order.order_id), case=cases.get(order.order_id))
        for order in orders
    ]


async def pairs_of_order(work: UnitOfWork, order: Order, *, new: bool) -> list[MatchPair]:
    """Pairs of an order and each wearer whom the order may be against, or was before this version of the record.

    A `new` order has no cases and reviews yet.
    """
    order_id, respondent = order.order_id, order.respondent
    cases = {} if new else {case.wearer_id: case for case in await work.cases.of_order(order_id)}
    reviews = {} if new else {review.wearer_id: review for review in await work.reviews.of_order(order_id)}
    alike = await work.match_keys.sharing(Side.WEARER, similarity.match_keys(respondent))
    wearers = await work.records.candidates(WEARERS, alike | cases.keys() | reviews.keys(), respondent.national_id)
    return [
        MatchPair(order=order, wearer=wearer, review=reviews.get(wearer.wearer_id), case=cases.get(wearer.wearer_id))
        for wearer in wearers
    ]


async def pairs_of_cases(
    work: UnitOfWork, cases: Sequence[StoredCase], wearers: Mapping[str, StoredRecord[Wearer]] | None = None
) -> list[MatchPair]:
    """The pairs of joint cases, in their order. `wearers` are the wearers of the cases if they were read before."""
    if not cases:
        return []
    wearer_ids = {case.wearer_id for case in cases}
    orders = await work.records.opened(ORDERS, {case.order_id for case in cases})
    stored = await work.records.some(WEARERS, wearer_ids) if wearers is None else wearers
    opened = {id_: wearer for id_ in wearer_ids if (wearer := stored[id_].open())}
    reviews = await work.reviews.some({case.case_id for case in cases})
    return [
        MatchPair(
            order=orders[case.order_id],
            wearer=opened[case.wearer_id],
            review=reviews.get(case.case_id),
            case=case,
        )
        for case in cases
    ]


async def around(
    work: UnitOfWork,
    pairs: Sequence[MatchPair],
    *,
    put: Record | None = None,
    known: Sequence[StoredRecord[Any]] = (),
    also_persons: Iterable[str] = (),
    also_wearers: Collection[str] = (),
    with_contacts: bool = False,
) -> Surroundings:
    """Read the surroundings of pairs whose joint cases may change.

    `put` is the record that the command puts, which replaces its stored version. `known` are records that were read before. The
    routes of the devices of `also_persons` and of the tags of `also_wearers` may also change.
    """
    person_ids = {*also_persons, *(id_ for pair in pairs for id_ in pair.order.protected_person_ids)}
    devices = await _owned(work, DEVICES, person_ids, put=put)
    tags = await _owned(work, TAGS, {*also_wearers, *(pair.wearer.wearer_id for pair in pairs)}, put=put)
    persons = await _persons(work, person_ids if devices or with_contacts else set(), known=known, put=put)
    routed_tags = [tag for tag in tags if tag is put or tag.wearer_id in also_wearers]
    routed = [*(device.device_id for device in devices), *(tag.device_id for tag in routed_tags)]
    case_ids = [pair.case.case_id for pair in pairs if pair.case]
    return Surroundings(
        tags=_grouped(TAGS, tags),
        devices=_grouped(DEVICES, devices),
        ended=_ended((*known, *persons), put),
        routes=await work.routes.of(routed),
        tokens=await work.device_tokens.of(routed),
        kept_away=await work.cases.kept_away({device.person_id for device in devices}, without=case_ids),
        contacts=_contacts(persons, put) if with_contacts and pairs else {},
    )


async def around_devices(work: UnitOfWork, devices: Sequence[Tag | Device]) -> Surroundings:
    """Read the rows that the routes of these devices depend on."""
    ids = [device.device_id for device in devices]
    person_ids = {device.person_id for device in devices if isinstance(device, Device)}
    return Surroundings(
        ended=await work.keys.ended({owner_of(device) for device in devices}),
        routes=await work.routes.of(ids),
        tokens=await work.device_tokens.of(ids),
        kept_away=await work.cases.kept_away(person_ids, without=()),
    )


async def _owned(work: UnitOfWork, kind: RecordType[R], owner_ids: Collection[str], *, put: Record | None) -> list[R]:
    """The records that belong to these owners, with the one that is put."""
    new = put if isinstance(put, kind.cls) else None
    stored = await work.records.owned(kind, owner_ids, without=kind.id_of(new) if new else None)
    return [*stored, new] if new else stored


async def _persons(
    work: UnitOfWork, person_ids: set[str], *, known: Iterable[StoredRecord[Any]], put: Record | None
) -> list[StoredRecord[ProtectedPerson]]:
    """Rows of these persons: known rows, and the others from the database. A person that the command puts isn't read."""
    before = [stored for stored in known if stored.kind is PERSONS]
    unknown = person_ids - {stored.key_owner.record_id for stored in before}
    if isinstance(put, ProtectedPerson):
        unknown -= {put.person_id}
    return [*before, *(await work.records.some(PERSONS, unknown)).values()]


def _ended(stored: Iterable[StoredRecord[Any]], put: Record | None) -> frozenset[KeyOwner]:
    """Owners whose record has ended. For the record that the command puts, the new version decides."""
    ended = {record.key_owner for record in stored if record.kind.ledger_kind is not None and record.has_ended}
    if put is None:
        return frozenset(ended)
    kind = type_of(put)
    owner = KeyOwner(kind.table.name, kind.id_of(put))
    return frozenset(ended | {owner} if kind.destroy_at_ms(put) is not None else ended - {owner})


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
