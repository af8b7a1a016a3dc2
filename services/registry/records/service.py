"""Commands that put or end a record of an agency: read the stored state, decide, apply.

A record and everything derived from it are written in one transaction. Messages for the log wait in the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, InvalidField, NotFound
from services.common.storage.db import Database
from services.registry.cases.service import DAY_MS, Cases
from services.registry.disclosure import domain
from services.registry.domain import Contact, Device, Order, OrderEnd, ProtectedPerson, Tag, Wearer, WearerEnd
from services.registry.keys.vault import Vault
from services.registry.matching import similarity
from services.registry.reconciliation.domain import ListedKind
from services.registry.records import lifecycle, tables
from services.registry.records.indexing import decide_record, index_record, read_and_decide, store_record
from services.registry.records.lifecycle import OrderStage
from services.registry.records.store import Records
from services.registry.records.versions import PutOutcome
from services.registry.reviews.domain import Event

RENEWED_BATCH = 50
COMPLETED_BATCH = 200

_InExercise = TypeVar("_InExercise", Wearer, Order)


class Registry:
    """The system of record. Each command is one transaction, and its messages go through the outbox."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        clock: MeshClock,
        *,
        partitions: int,
        warning_key: X25519PublicKey | None = None,
    ) -> None:
        self.database = database
        self._vault = vault
        self.rings = vault.rings
        """Ids of the keys in the key ring, oldest first."""
        self._clock = clock
        self._warning_key = warning_key
        self.cases = Cases(clock, partitions, warning_key)
        self._change = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """An event that is set after the next commit. Get it first, then read the store, then wait for the event."""
        return self._change

    async def wait_for(self, change: asyncio.Event, at_most_s: float = 1.0) -> None:
        """Wait for a change, at most `at_most_s` seconds. Changes by other processes aren't signalled, so poll the store too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await change.wait()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Records]:
        """Open one transaction on the store. After the commit, run the callbacks in `after_commit`."""
        async with self.database.transaction() as connection:
            records = Records(connection, self._vault)
            yield records
        for callback in records.after_commit:
            callback()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Records]:
        """Open a read-only snapshot of the store, for long reads that mustn't block a put."""
        async with self.database.reading() as connection:
            yield Records(connection, self._vault)

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[Records]:
        """Open a transaction whose commit wakes all callers of `wait_for`."""
        async with self.transaction() as records:
            yield records
        committed, self._change = self._change, asyncio.Event()
        committed.set()

    async def prepare(self, log_identity: str) -> None:
        """Unlock the database; call once before anything else. If the log is new, schedule all valid cases and routes for it.

        Raises FailedPrecondition if the key ring lacks a key that the database was written with: records couldn't be found.
        """
        async with self.changing() as records:
            await _unlock(records, self._vault)
            if await records.meta_value("log") != log_identity.encode():
                await records.begin_new_log()
                await records.set_meta_value("log", log_identity.encode())
        for kind, table in _TABLES.items():
            await self._complete(kind, table)

    async def _complete(self, kind: ListedKind, table: sa.Table) -> None:
        """Add digests and match keys to records that were stored without them, and match these records."""
        (key,) = table.primary_key
        after = ""
        while True:
            async with self.transaction() as records:
                ids = await records.reviews.without_digest(kind, key, after, limit=COMPLETED_BATCH)
                if not ids:
                    return
                # `all_of` omits destroyed records: they have an id but no content.
                for record in await records.all_of(table, ids):
                    await index_record(records, record)
                    if isinstance(record, Wearer):
                        await self._match_wearer(records, record)
            after = ids[-1]

    # ── puts ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def put_wearer(self, wearer: Wearer) -> PutOutcome:
        """Store a wearer and match the wearer against all respondents."""
        async with self.changing() as records:
            stored = await records.stored(tables.wearers, wearer.wearer_id)
            outcome = decide_record(records, stored, wearer)
            if outcome is PutOutcome.STORED:
                before = await records.all_of(tables.wearers, [wearer.wearer_id])
                _require_same_exercise("wearer.exercise", wearer, before)
                await store_record(records, tables.wearers, wearer.wearer_id, record=wearer, new=stored is None)
                await self._match_wearer(records, wearer, new=stored is None)
                if stored is not None:
                    await self.cases.send_tag_routes_of(records, wearer.wearer_id)
        return outcome

    async def end_wearer(self, wearer_id: str, end: WearerEnd, source_version: int) -> PutOutcome:
        """End a wearer's case. Raises NotFound (unknown wearer), FailedPrecondition (the wearer still has a tag)."""
        async with self.changing() as records:
            await _require_stored(records, tables.wearers, wearer_id, error_text="wearer_id: no such wearer")
            before = await records.find(tables.wearers, Wearer, wearer_id)
            wearer = replace(before, end=end, source_version=source_version)
            outcome = await read_and_decide(records, tables.wearers, wearer_id, record=wearer)
            if outcome is PutOutcome.STORED:
                if any(tag.removed_at_ms is None for tag in await records.tags_on(wearer_id)):
                    raise FailedPrecondition("wearer_id: the wearer still has a tag; end the tag first")
                await store_record(records, tables.wearers, wearer_id, record=wearer)
        return outcome

    async def put_tag(self, tag: Tag) -> PutOutcome:
        """Store a tag and its wearer. Raises NotFound (unknown wearer), FailedPrecondition (id of a protective device)."""
        async with self.changing() as records:
            outcome = await read_and_decide(records, tables.tags, tag.device_id, record=tag)
            if outcome is PutOutcome.STORED:
                await _require_stored(
                    records, tables.wearers, tag.wearer_id, error_text="tag.wearer_id: no such wearer"
                )
                if await records.device(tag.device_id):
                    raise FailedPrecondition("tag.device_id: is already the id of a protective device")
                await self._store_tag(records, tag)
        return outcome

    async def end_tag(self, device_id: str, removed_at_ms: int, source_version: int) -> PutOutcome:
        """Store that a tag was taken off. Raises NotFound (unknown tag)."""
        async with self.changing() as records:
            before = await records.tag(device_id)
            if before is None:
                raise NotFound("device_id: no such tag")
            tag = replace(before, removed_at_ms=removed_at_ms, source_version=source_version)
            outcome = await read_and_decide(records, tables.tags, device_id, record=tag)
            if outcome is PutOutcome.STORED:
                await self._store_tag(records, tag)
        return outcome

    async def _store_tag(self, records: Records, tag: Tag) -> None:
        before = await records.tag(tag.device_id)
        await store_record(records, tables.tags, tag.device_id, record=tag)
        await self.cases.send_route(records, tag.device_id)
        for wearer_id in _owners(tag.wearer_id, before.wearer_id if before else None):
            await self.cases.refresh_all(records, await records.cases_of_wearer(wearer_id))

    async def put_protected_person(self, person: ProtectedPerson) -> PutOutcome:
        """Store a protected person. Raises FailedPrecondition if the contact can't be sealed for the warning leg."""
        if person.contact is not None and self._warning_key is None:
            raise FailedPrecondition(
                "protected_person.contact: this registry has no public key of the warning leg, so the contact can't be used "
                "for warnings; set TANDEM_WARNING_PUBLIC_KEY, or send the record without a contact"
            )
        async with self.changing() as records:
            outcome = await read_and_decide(records, tables.protected_persons, person.person_id, record=person)
            if outcome is PutOutcome.STORED:
                contact_before = await _contact_of(records, person.person_id)
                await store_record(records, tables.protected_persons, person.person_id, record=person)
                await self.cases.send_routes_of(records, [person.person_id])
                if person.contact != contact_before:
                    await self.cases.refresh_all(records, await records.cases_of_person(person.person_id))
        return outcome

    async def end_protected_person(self, person_id: str, ended_at_ms: int, source_version: int) -> PutOutcome:
        """End a person's protection. Raises NotFound (unknown person), FailedPrecondition (an active order or device)."""
        async with self.changing() as records:
            await _require_stored(
                records, tables.protected_persons, person_id, error_text="person_id: no such protected person"
            )
            before = await records.find(tables.protected_persons, ProtectedPerson, person_id)
            person = replace(before, ended_at_ms=ended_at_ms, source_version=source_version)
            outcome = await read_and_decide(records, tables.protected_persons, person_id, record=person)
            if outcome is PutOutcome.STORED:
                if any(order.ends_ms > self._clock.now_ms() for order in await records.orders_protecting(person_id)):
                    raise FailedPrecondition("person_id: an order that hasn't ended protects this person; end it first")
                if any(device.removed_at_ms is None for device in await records.devices_of([person_id])):
                    raise FailedPrecondition("person_id: this person still has a protective device; end it first")
                await store_record(records, tables.protected_persons, person_id, record=person)
        return outcome

    async def put_device(self, device: Device) -> PutOutcome:
        """Store a protective device and its owner. Raises NotFound (unknown person), FailedPrecondition (id of a tag)."""
        async with self.changing() as records:
            outcome = await read_and_decide(records, tables.devices, device.device_id, record=device)
            if outcome is PutOutcome.STORED:
                await _require_stored(
                    records,
                    tables.protected_persons,
                    device.person_id,
                    error_text="device.person_id: no such protected person",
                )
                if await records.tag(device.device_id):
                    raise FailedPrecondition("device.device_id: is already the id of a tag")
                await self._store_device(records, device)
        return outcome

    async def end_device(self, device_id: str, removed_at_ms: int, source_version: int) -> PutOutcome:
        """Store that a person no longer has a protective device. Raises NotFound (unknown device)."""
        async with self.changing() as records:
            before = await records.device(device_id)
            if before is None:
                raise NotFound("device_id: no such protective device")
            device = replace(before, removed_at_ms=removed_at_ms, source_version=source_version)
            outcome = await read_and_decide(records, tables.devices, device_id, record=device)
            if outcome is PutOutcome.STORED:
                await self._store_device(records, device)
        return outcome

    async def _store_device(self, records: Records, device: Device) -> None:
        before = await records.device(device.device_id)
        await store_record(records, tables.devices, device.device_id, record=device)
        await self.cases.send_route(records, device.device_id)
        for person_id in _owners(device.person_id, before.person_id if before else None):
            await self.cases.refresh_all(records, await records.cases_of_person(person_id))

    async def put_order(self, order: Order) -> tuple[PutOutcome, OrderStage | None]:
        """Store an order and match its respondent against all wearers. Raises NotFound for an unknown protected person."""
        async with self.changing() as records:
            outcome = await read_and_decide(records, tables.orders, order.order_id, record=order)
            if outcome is not PutOutcome.STORED:
                return outcome, None
            _require_same_exercise("order.exercise", order, await records.all_of(tables.orders, [order.order_id]))
            for n, person_id in enumerate(order.protected_person_ids):
                text = f"order.protected_person_ids[{n}]: no such protected person"
                await _require_stored(records, tables.protected_persons, person_id, error_text=text)
            stage = await self._store_order(records, order)
        return outcome, stage

    async def end_order(
        self, order_id: str, end: OrderEnd, source_version: int
    ) -> tuple[PutOutcome, OrderStage | None]:
        """End an order early. Raises NotFound (unknown order), InvalidField (a reason that doesn't fit the order)."""
        async with self.changing() as records:
            await _require_stored(records, tables.orders, order_id, error_text="order_id: no such order")
            covering = await records.all_of(tables.orders, [end.covering_order_id])
            before = await records.find(tables.orders, Order, order_id)
            order = lifecycle.ended(before, end, source_version, covering=next(iter(covering), None))
            outcome = await read_and_decide(records, tables.orders, order_id, record=order)
            if outcome is not PutOutcome.STORED:
                return outcome, None
            stage = await self._store_order(records, order)
        return outcome, stage

    async def _store_order(self, records: Records, order: Order) -> OrderStage:
        before = next(iter(await records.all_of(tables.orders, [order.order_id])), None)
        stage = lifecycle.stage_of(before, order)
        new = before is None
        named = [] if new else await records.persons_of_order(order.order_id)
        await store_record(records, tables.orders, order.order_id, record=order, new=new)
        reason = order.end.reason.value if order.end else ""
        now_ms = self._clock.now_ms()
        await records.reviews.add_stage(order.order_id, order.source_version, stage, end_reason=reason, at_ms=now_ms)
        await self._match_order(records, order, new=new)
        if domain.ground_fell(order):
            await self.cases.add_event_for_order(records, order.order_id, Event.GROUND_FELL)
        await self.cases.send_routes_of(records, sorted(set(named) - set(order.protected_person_ids)))
        records.after_commit.append(partial(logger().info, "order_stored", order_id=order.order_id, stage=stage.value))
        return stage

    # ── matching ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _match_wearer(self, records: Records, wearer: Wearer, new: bool = False) -> None:
        wearer_id = wearer.wearer_id  # a new wearer has neither cases nor reviews
        cases = {} if new else {case.order_id: case for case in await records.cases_of_wearer(wearer_id)}
        reviews = (
            {} if new else {review.order_id: review for review in await records.reviews.reviews_of_wearer(wearer_id)}
        )
        alike = await records.reviews.sharing_a_key(similarity.ORDER_SIDE, similarity.match_keys(wearer))
        orders = {order.order_id: order for order in await records.orders_against(wearer.national_id)}
        # Includes orders that matched the previous version of the record, since these matches may no longer hold.
        others = sorted((alike | cases.keys() | reviews.keys()) - orders.keys())
        for order in [*orders.values(), *await records.all_of(tables.orders, others)]:
            order_id = order.order_id
            await self.cases.refresh(records, order, wearer, before=reviews.get(order_id), case=cases.get(order_id))

    async def _match_order(self, records: Records, order: Order, new: bool) -> None:
        order_id = order.order_id
        cases = {} if new else {case.wearer_id: case for case in await records.cases_of_order(order_id)}
        reviews = (
            {} if new else {review.wearer_id: review for review in await records.reviews.reviews_of_order(order_id)}
        )
        alike = await records.reviews.sharing_a_key(similarity.WEARER_SIDE, similarity.match_keys(order.respondent))
        number = order.respondent.national_id
        same_number = await records.wearers_with_number(number) if number else []
        wearers = {wearer.wearer_id: wearer for wearer in same_number}
        others = sorted((alike | cases.keys() | reviews.keys()) - wearers.keys())
        for wearer in [*wearers.values(), *await records.all_of(tables.wearers, others)]:
            wearer_id = wearer.wearer_id
            await self.cases.refresh(records, order, wearer, before=reviews.get(wearer_id), case=cases.get(wearer_id))

    # ── background work ──────────────────────────────────────────────────────────────────────────────────────────────

    async def renew_some(self) -> bool:
        """Enqueue a batch of routes and cases that weren't sent on this day of mesh time; false if none was left.

        The log keeps its entries for days only. The daily renewal ensures that it always holds all routes and valid cases.
        """
        now_ms = self._clock.now_ms()
        day = now_ms // DAY_MS
        # Needs no `changing`: the relay, the only caller, reads the outbox next.
        async with self.transaction() as records:
            device_ids = await records.routes_not_sent_on(day, RENEWED_BATCH)
            for device_id in device_ids:
                await self.cases.send_route(records, device_id, renew=True)
            if device_ids:
                return True
            cases = await records.cases_not_sent_on(day, now_ms - DAY_MS, RENEWED_BATCH)
            for case in cases:
                await records.mark_case_sent(case.case_id, day)
                msg_id = f"{case.case_id}:{case.version}:{day}"
                await records.enqueue(self.cases.subject(case.wearer_id), msg_id, case.entry)
            await records.drop_sent_before(now_ms - DAY_MS)
        return bool(cases)


# Orders come before wearers, because a wearer is matched as soon as it has its keys and must then find all orders.
_TABLES: Mapping[ListedKind, sa.Table] = {
    ListedKind.ORDER: tables.orders,
    ListedKind.WEARER: tables.wearers,
    ListedKind.TAG: tables.tags,
    ListedKind.PROTECTED_PERSON: tables.protected_persons,
    ListedKind.DEVICE: tables.devices,
}


async def _unlock(records: Records, vault: Vault) -> None:
    """Load the root key of the hashes from the database, or store one, and wrap it with the ring's current key."""
    root, fingerprint = await records.meta_value("root"), await records.meta_value("key")
    with contextlib.suppress(FailedPrecondition):  # wrapped by another ring: then the fingerprint differs too
        if root is not None:
            vault.open_root(root)
    if fingerprint not in (None, vault.fingerprint):
        raise FailedPrecondition("the database was written with another key: restore TANDEM_REGISTRY_KEY or its file")
    if lacking := await records.keys.lacking():
        raise FailedPrecondition(f"the key ring lacks keys that are still needed: {', '.join(sorted(lacking))}")
    await records.set_meta_value("key", vault.fingerprint)
    await records.set_meta_value("root", vault.wrapped_root())


async def _contact_of(records: Records, person_id: str) -> Contact | None:
    try:
        return (await records.find(tables.protected_persons, ProtectedPerson, person_id)).contact
    except NotFound:
        return None


def _require_same_exercise(field: str, record: _InExercise, before: Iterable[_InExercise]) -> None:
    if any(stored.exercise is not record.exercise for stored in before):
        raise InvalidField(field, "can't change: a record can't be switched between live and exercise")


async def _require_stored(records: Records, table: sa.Table, record_id: str, *, error_text: str) -> None:
    if await records.stored(table, record_id) is None:
        raise NotFound(error_text)


def _owners(now: str, before: str | None) -> tuple[str, ...]:
    """Previous and current owner of a device, in this order, so that a log never has two cases naming it at once."""
    return (now,) if before in (None, now) else (str(before), now)
