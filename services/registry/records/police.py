"""Commands of the police, which put or end protected persons, protective devices and orders: gather the stored state, decide,
write.

A record and everything derived from it are written in one transaction. Messages for the log wait in the outbox.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from services.common.clock import MeshClock
from services.common.rpc.errors import FailedPrecondition, NotFound
from services.registry.cases import surroundings
from services.registry.cases.service import CaseService
from services.registry.disclosure import domain as disclosure
from services.registry.domain import Device, Order, OrderEnd, ProtectedPerson
from services.registry.records import indexing, lifecycle, stored_versions
from services.registry.records.kinds import DEVICES, ORDERS, PERSONS, TAGS
from services.registry.records.lifecycle import OrderStage
from services.registry.records.store import StoredRecord
from services.registry.records.versions import PutOutcome
from services.registry.reviews.domain import Event
from services.registry.transactions import Transactions
from services.registry.unit_of_work import UnitOfWork


class PoliceService:
    """The system of record for protected persons, protective devices and orders. Each command is one transaction."""

    def __init__(self, transactions: Transactions, cases: CaseService, clock: MeshClock) -> None:
        self._transactions = transactions
        self._cases = cases
        self._clock = clock

    # ── protected persons ────────────────────────────────────────────────────────────────────────────────────────────

    async def put_protected_person(self, person: ProtectedPerson) -> PutOutcome:
        """Store a protected person. Raises FailedPrecondition if the contact can't be sealed for the warning leg."""
        if person.contact is not None and not self._cases.seals_contacts:
            raise FailedPrecondition(
                "protected_person.contact: this registry has no public key of the warning leg, so the contact can't be used "
                "for warnings; set TANDEM_WARNING_PUBLIC_KEY, or send the record without a contact"
            )
        async with self._transactions.changing() as work:
            stored = await work.records.find(PERSONS, person.person_id)
            outcome = work.records.decide(stored, person)
            if outcome is PutOutcome.STORED:
                before = stored.open() if stored else None
                contact_before = before.contact if before else None
                await self._store_person(work, person, new_contact=person.contact != contact_before)
        return outcome

    async def _store_person(self, work: UnitOfWork, person: ProtectedPerson, *, new_contact: bool) -> None:
        person_id = person.person_id
        cases = (await work.cases.of_persons([person_id]))[person_id] if new_contact else []
        pairs = await surroundings.pairs_of_cases(work, cases)
        effects = await self._cases.begin(work, pairs, put=person, also_persons=[person_id])
        effects.send_routes_of([person_id])
        for pair in pairs:
            effects.refresh(pair)
        await indexing.store(work, person)
        await self._cases.write(work, effects)

    async def end_protected_person(self, person_id: str, ended_at_ms: int, source_version: int) -> PutOutcome:
        """End a person's protection.

        Raises NotFound if the person is unknown, FailedPrecondition if an order still protects the person or the person has a device.
        """
        async with self._transactions.changing() as work:
            stored, before = stored_versions.opened(
                await work.records.find(PERSONS, person_id), "person_id: no such protected person"
            )
            person = replace(before, ended_at_ms=ended_at_ms, source_version=source_version)
            outcome = work.records.decide(stored, person)
            if outcome is PutOutcome.STORED:
                await self._require_unprotected(work, person_id)
                await indexing.store(work, person)
        return outcome

    async def _require_unprotected(self, work: UnitOfWork, person_id: str) -> None:
        if any(order.ends_ms > self._clock.now_ms() for order in await work.records.orders_protecting(person_id)):
            raise FailedPrecondition("person_id: an order that hasn't ended protects this person; end it first")
        if any(device.removed_at_ms is None for device in await work.records.owned(DEVICES, [person_id])):
            raise FailedPrecondition("person_id: this person still has a protective device; end it first")

    # ── protective devices ───────────────────────────────────────────────────────────────────────────────────────────

    async def put_device(self, device: Device) -> PutOutcome:
        """Store a protective device and its owner.

        Raises NotFound if the person is unknown, FailedPrecondition if the id is already the id of a tag.
        """
        async with self._transactions.changing() as work:
            stored = await work.records.find(DEVICES, device.device_id)
            outcome = work.records.decide(stored, device)
            if outcome is PutOutcome.STORED:
                owners = stored_versions.owners(device, stored)
                persons = await work.records.some(PERSONS, owners)
                if device.person_id not in persons:
                    raise NotFound("device.person_id: no such protected person")
                if await work.records.find(TAGS, device.device_id):
                    raise FailedPrecondition("device.device_id: is already the id of a tag")
                await self._store_device(work, device, owners=owners, persons=persons)
        return outcome

    async def end_device(self, device_id: str, removed_at_ms: int, source_version: int) -> PutOutcome:
        """Store that a person no longer has a protective device. Raises NotFound if the device is unknown."""
        async with self._transactions.changing() as work:
            stored, before = stored_versions.opened(
                await work.records.find(DEVICES, device_id), "device_id: no such protective device"
            )
            device = replace(before, removed_at_ms=removed_at_ms, source_version=source_version)
            outcome = work.records.decide(stored, device)
            if outcome is PutOutcome.STORED:
                persons = await work.records.some(PERSONS, [device.person_id])
                await self._store_device(work, device, owners=[device.person_id], persons=persons)
        return outcome

    async def _store_device(
        self,
        work: UnitOfWork,
        device: Device,
        *,
        owners: Sequence[str],
        persons: Mapping[str, StoredRecord[ProtectedPerson]],
    ) -> None:
        """Store a device, send its route, and renew the joint cases of its owners, one owner after the other."""
        cases = await work.cases.of_persons(owners)
        pairs = await surroundings.pairs_of_cases(work, [case for owner in owners for case in cases[owner]])
        effects = await self._cases.begin(
            work, pairs, put=device, known=list(persons.values()), also_persons=[device.person_id]
        )
        effects.send_route(device)
        for pair in pairs:
            effects.refresh(pair)
        await indexing.store(work, device)
        await self._cases.write(work, effects)

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def put_order(self, order: Order) -> tuple[PutOutcome, OrderStage | None]:
        """Store an order and match its respondent against all wearers. Raises NotFound if a protected person is unknown."""
        async with self._transactions.changing() as work:
            stored = await work.records.find(ORDERS, order.order_id)
            outcome = work.records.decide(stored, order)
            if outcome is not PutOutcome.STORED:
                return outcome, None
            before = stored.open() if stored else None
            stored_versions.require_same_exercise("order.exercise", order, before)
            return outcome, await self._store_order(work, order, before)

    async def end_order(
        self, order_id: str, end: OrderEnd, source_version: int
    ) -> tuple[PutOutcome, OrderStage | None]:
        """End an order early. Raises NotFound if the order is unknown, InvalidField if the reason doesn't fit the order."""
        async with self._transactions.changing() as work:
            found = await work.records.some(ORDERS, {order_id, end.covering_order_id})
            stored, before = stored_versions.opened(found.get(order_id), "order_id: no such order")
            covering = found.get(end.covering_order_id)
            order = lifecycle.ended(before, end, source_version, covering=covering.open() if covering else None)
            outcome = work.records.decide(stored, order)
            if outcome is not PutOutcome.STORED:
                return outcome, None
            return outcome, await self._store_order(work, order, before)

    async def _store_order(self, work: UnitOfWork, order: Order, before: Order | None) -> OrderStage:
        stage, new = lifecycle.stage_of(before, order), before is None
        removed = sorted(set(before.protected_person_ids if before else ()) - set(order.protected_person_ids))
        persons = await work.records.some(PERSONS, {*order.protected_person_ids, *removed})
        for n, person_id in enumerate(order.protected_person_ids):
            if person_id not in persons:
                raise NotFound(f"order.protected_person_ids[{n}]: no such protected person")
        pairs = await surroundings.pairs_of_order(work, order, new=new)
        effects = await self._cases.match(work, pairs, put=order, known=list(persons.values()), also_persons=removed)
        if disclosure.ground_fell(order):
            effects.add_event_for_cases(Event.GROUND_FELL)
        effects.send_routes_of(removed)
        effects.log(logging.INFO, "order_stored", order_id=order.order_id, stage=stage.value)
        await indexing.store(work, order, new=new)
        await work.records.add_stage(order, stage, effects.terms.now_ms)
        await self._cases.write(work, effects)
        return stage
