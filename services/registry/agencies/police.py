"""Commands of the police, which put, extend or end protected persons, protective devices and orders: gather the stored state, decide,
apply.

A record and everything derived from it are written in one transaction. Messages for the log wait in the outbox.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import grpc.aio

from services.common import fields
from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, InvalidField
from services.common.running import completed
from services.registry.cases import surroundings
from services.registry.cases.service import CaseService
from services.registry.domain import disclosure, lifecycle
from services.registry.domain.lifecycle import OrderExtension, OrderStage, PutOutcome, ReplacedOrder, extended
from services.registry.domain.records import Device, EndReason, Order, OrderEnd, ProtectedPerson
from services.registry.domain.reviews import Event
from services.registry.records import translate
from services.registry.records.kinds import DEVICES, ORDERS, PERSON_UNITS, PERSONS, TAGS, UNIT_TYPES
from services.registry.records.store import (
    PreparedRecord,
    owners_before_and_after,
    prepare,
    require_kept,
    require_opened,
    require_same_exercise,
)
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet
from tandem.registry.v1 import order_extension_pb2, order_extension_pb2_grpc


class PoliceService:
    """The system of record for protected persons, protective devices and orders. Each command is one transaction; `apply_...` is a
    part of a batch."""

    def __init__(self, transactions: Transactions, cases: CaseService, clock: MeshClock) -> None:
        self._transactions = transactions
        self._cases = cases
        self._clock = clock

    # ── protected persons ────────────────────────────────────────────────────────────────────────────────────────────

    async def put_protected_person(self, person: ProtectedPerson) -> PutOutcome:
        """Store a protected person. Raises FailedPrecondition if the contact can't be sealed for the warning leg."""
        prepared = prepare(person, self._transactions.vault)
        return await self._transactions.change(partial(self.apply_person, prepared=prepared))

    def apply_person(self, working: WorkingSet, prepared: PreparedRecord[ProtectedPerson]) -> PutOutcome:
        """Put a protected person in a working set. Raises Conflict or FailedPrecondition; then nothing is changed."""
        person = prepared.record
        if person.contact is not None and not self._cases.seals_contacts:
            raise FailedPrecondition(
                "protected_person.contact: this registry has no public key of the warning leg, so the contact can't be used "
                "for warnings; set TANDEM_WARNING_PUBLIC_KEY, or send the record without a contact"
            )
        stored = working.records.find(PERSONS, person.person_id)
        outcome = working.records.decide(stored, prepared)
        if outcome is not PutOutcome.STORED:
            return outcome
        before = stored.open() if stored else None
        same_contact = person.contact == (before.contact if before else None)
        cases = [] if same_contact else working.cases.of_person(person.person_id)
        pairs = surroundings.pairs_of_cases(working, cases)
        effects = self._cases.begin(working, pairs, put=person, also_persons=[person.person_id])
        effects.send_routes_of([person.person_id])
        for pair in pairs:
            effects.refresh(pair)
        self._cases.apply(working, effects, put=prepared)
        return outcome

    async def end_protected_person(self, person_id: str, ended_at_ms: int, source_version: int) -> PutOutcome:
        """End a person's protection.

        Raises NotFound if the person is unknown, FailedPrecondition if an order still protects the person or the person has a device.
        """

        def apply(working: WorkingSet) -> PutOutcome:
            found = working.records.find(PERSONS, person_id)
            stored, before = require_opened(found, "person_id: no such protected person")
            person = replace(before, ended_at_ms=ended_at_ms, source_version=source_version)
            prepared = prepare(person, working.vault)
            outcome = working.records.decide(stored, prepared)
            if outcome is PutOutcome.STORED:
                self._require_unprotected(working, person_id)
                working.put(prepared)
            return outcome

        return await self._transactions.change(apply)

    def _require_unprotected(self, working: WorkingSet, person_id: str) -> None:
        if any(not order.is_over(self._clock.now_ms()) for order in working.records.orders_protecting(person_id)):
            raise FailedPrecondition("person_id: an order that hasn't ended protects this person; end it first")
        if any(device.removed_at_ms is None for device in working.records.owned(DEVICES, [person_id])):
            raise FailedPrecondition("person_id: this person still has a protective device; end it first")
        if any(unit.installed_until_ms is None for unit in working.records.owned(PERSON_UNITS, [person_id])):
            raise FailedPrecondition("person_id: this person still has a beacon; end it first")

    # ── protective devices ───────────────────────────────────────────────────────────────────────────────────────────

    async def put_device(self, device: Device) -> PutOutcome:
        """Store a protective device and its owner.

        Raises NotFound if the person is unknown or destroyed, FailedPrecondition if the id is already the id of a tag.
        """
        prepared = prepare(device, self._transactions.vault)
        return await self._transactions.change(partial(self.apply_device, prepared=prepared))

    def apply_device(self, working: WorkingSet, prepared: PreparedRecord[Device]) -> PutOutcome:
        """Put a protective device in a working set. Raises Conflict, NotFound or FailedPrecondition; then nothing is changed."""
        device = prepared.record
        stored = working.records.find(DEVICES, device.device_id)
        outcome = working.records.decide(stored, prepared)
        if outcome is PutOutcome.STORED:
            owners = owners_before_and_after(device, stored)
            persons = working.records.some(PERSONS, owners)
            require_kept(persons, device.person_id, "device.person_id: no such protected person")
            if any(working.records.find(kind, device.device_id) for kind in UNIT_TYPES):
                raise FailedPrecondition("device.device_id: is already the id of a home unit or beacon")
            if working.records.find(TAGS, device.device_id):
                raise FailedPrecondition("device.device_id: is already the id of a tag")
            self._put_device(working, prepared, owners)
        return outcome

    async def end_device(self, device_id: str, removed_at_ms: int, source_version: int) -> PutOutcome:
        """Store that a person no longer has a protective device. Raises NotFound if the device is unknown."""

        def apply(working: WorkingSet) -> PutOutcome:
            found = working.records.find(DEVICES, device_id)
            stored, before = require_opened(found, "device_id: no such protective device")
            device = replace(before, removed_at_ms=removed_at_ms, source_version=source_version)
            prepared = prepare(device, working.vault)
            outcome = working.records.decide(stored, prepared)
            if outcome is PutOutcome.STORED:
                self._put_device(working, prepared, [device.person_id])
            return outcome

        return await self._transactions.change(apply)

    def _put_device(self, working: WorkingSet, prepared: PreparedRecord[Device], owners: list[str]) -> None:
        """Put a device, send its route, and renew the joint cases of its owners, one owner after the other."""
        device = prepared.record
        cases = [case for owner in owners for case in working.cases.of_person(owner)]
        pairs = surroundings.pairs_of_cases(working, cases)
        effects = self._cases.begin(working, pairs, put=device, also_persons=[device.person_id])
        effects.send_route(device)
        for pair in pairs:
            effects.refresh(pair)
        self._cases.apply(working, effects, put=prepared)

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def put_order(
        self, order: Order, replaced: ReplacedOrder | None = None
    ) -> tuple[PutOutcome, OrderStage | None]:
        """Store an order and match its respondent against all wearers. An interim protection order that it replaces ends in the same
        transaction.

        Raises NotFound if a protected person or the replaced order is unknown or destroyed, InvalidField if the order can't take over
        from it.
        """
        prepared = prepare(order, self._transactions.vault)

        def apply(working: WorkingSet) -> tuple[PutOutcome, OrderStage | None]:
            result = self.apply_order(working, prepared)
            if replaced is not None:
                # The deciding order comes first in the log, so that the incident goes on under it.
                end = OrderEnd(EndReason.DECIDED, order.valid_from_ms, order.order_id)
                field = "replaces.order_id"
                try:
                    self._end_order(
                        working, replaced.order_id, end, source_version=replaced.source_version, field=field
                    )
                except InvalidField as error:  # it names a field of EndOrder, which this caller hasn't sent
                    raise InvalidField(field, f"can't be ended by this order: {error.field} {error.reason}") from None
            return result

        return await self._transactions.change(apply)

    def apply_order(self, working: WorkingSet, prepared: PreparedRecord[Order]) -> tuple[PutOutcome, OrderStage | None]:
        """Put an order in a working set. Raises Conflict, InvalidField, NotFound or FailedPrecondition; then nothing is changed."""
        stored = working.records.find(ORDERS, prepared.record_id)
        outcome = working.records.decide(stored, prepared)
        if outcome is not PutOutcome.STORED:
            return outcome, None
        before = stored.open() if stored else None
        require_same_exercise("order.exercise", prepared.record, before)
        return outcome, self._put_order(working, prepared, before)

    async def extend_order(self, extension: OrderExtension) -> tuple[PutOutcome, Order]:
        """Extend an order. Returns the outcome and the extended order.

        Raises NotFound if the order is unknown or destroyed, FailedPrecondition, InvalidField and Conflict.
        """

        def apply(working: WorkingSet) -> tuple[PutOutcome, Order]:
            found = working.records.find(ORDERS, extension.order_id)
            _, before = require_opened(found, "order_id: no such order")
            order = extended(before, extension)
            outcome, _ = self.apply_order(working, prepare(order, working.vault))
            return outcome, order

        return await self._transactions.change(apply)

    async def end_order(
        self, order_id: str, end: OrderEnd, source_version: int
    ) -> tuple[PutOutcome, OrderStage | None]:
        """End an order early. Raises NotFound if the order is unknown, InvalidField if the reason doesn't fit the order."""
        return await self._transactions.change(
            lambda working: self._end_order(working, order_id, end, source_version=source_version, field="order_id")
        )

    def _end_order(
        self, working: WorkingSet, order_id: str, end: OrderEnd, *, source_version: int, field: str
    ) -> tuple[PutOutcome, OrderStage | None]:
        found = working.records.some(ORDERS, {order_id, end.covering_order_id})
        stored, before = require_opened(found.get(order_id), f"{field}: no such order")
        covering = found.get(end.covering_order_id)
        order = lifecycle.ended(before, end, source_version, covering=covering.open() if covering else None)
        prepared = prepare(order, working.vault)
        outcome = working.records.decide(stored, prepared)
        if outcome is not PutOutcome.STORED:
            return outcome, None
        return outcome, self._put_order(working, prepared, before)

    def _put_order(self, working: WorkingSet, prepared: PreparedRecord[Order], before: Order | None) -> OrderStage:
        order, new = prepared.record, before is None
        stage = lifecycle.stage_of(before, order)
        removed = sorted(set(before.protected_person_ids if before else ()) - set(order.protected_person_ids))
        persons = working.records.some(PERSONS, {*order.protected_person_ids, *removed})
        for n, person_id in enumerate(order.protected_person_ids):
            error_text = f"order.protected_person_ids[{n}]: no such protected person"
            require_kept(persons, person_id, error_text)
        pairs = surroundings.pairs_of_order(working, prepared, new=new)
        effects = self._cases.match(working, pairs, put=order, also_persons=removed)
        if disclosure.ground_fell(order):
            effects.add_event_for_cases(Event.GROUND_FELL)
        effects.send_routes_of(removed)
        effects.log(logging.INFO, "order_stored", order_id=order.order_id, stage=stage.value)
        self._cases.apply(working, effects, put=prepared)
        working.records.add_stage(order, stage, effects.terms.now_ms)
        return stage


_Context = grpc.aio.ServicerContext[Any, Any]


class OrderExtensionServicer(order_extension_pb2_grpc.OrderExtensionServiceServicer):
    """Extends orders for the police's records."""

    def __init__(self, police: PoliceService) -> None:
        self._police = police

    async def ExtendOrder(
        self, request: order_extension_pb2.ExtendOrderRequest, context: _Context
    ) -> order_extension_pb2.ExtendOrderResponse:
        extension = parse_extension(request)
        outcome, order = await completed(self._police.extend_order(extension))
        return order_extension_pb2.ExtendOrderResponse(
            outcome=translate.outcome_to_proto(outcome),
            warnings=translate.warnings_to_proto("order", lifecycle.duration_warnings(order)),
        )


def parse_extension(msg: order_extension_pb2.ExtendOrderRequest) -> OrderExtension:
    """Parse an extension. Raises InvalidField."""
    if msg.source_version < 0:
        raise InvalidField("source_version", "must be 0 or more")
    return OrderExtension(
        order_id=fields.required_id("order_id", msg.order_id),
        source_version=msg.source_version,
        valid_until_ms=fields.moment("valid_until", msg.valid_until, msg.HasField("valid_until")),
        duration_reason=translate.parse_reason("duration_reason", msg.duration_reason),
    )
