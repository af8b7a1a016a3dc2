"""What happens when an agency puts a record: gather, decide, apply.

The record and all that follows from it are written in one transaction; what must go into the log waits in the outbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import sqlalchemy as sa

from services.common import flow
from services.common.clock import MeshClock
from services.common.db import Database
from services.common.errors import FailedPrecondition, NotFound
from services.common.telemetry import logger
from services.registry import domain, tables, translate
from services.registry.domain import Device, Order, Outcome, ProtectedPerson, Tag, Wearer
from services.registry.store import Record, Records, StoredCase
from services.registry.vault import Vault
from tandem.common.v1 import log_pb2

DAY_MS = 86_400_000
RENEWED_AT_ONCE = 50


class Registry:
    """The system of record. Each method is one transaction; what it sends goes through the outbox."""

    def __init__(self, database: Database, vault: Vault, clock: MeshClock, partitions: int) -> None:
        self.database = database
        self._vault = vault
        self._clock = clock
        self._partitions = partitions
        self._change = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """An event that is set after the next commit. Take it first, look into the store, then wait for it."""
        return self._change

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Records]:
        """The store, for the time of one transaction."""
        async with self.database.transaction() as connection:
            yield Records(connection, self._vault)

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[Records]:
        async with self.transaction() as records:
            yield records
        committed, self._change = self._change, asyncio.Event()
        committed.set()

    async def prepare(self, log_identity: str) -> None:
        """To be called once before all else. A new log is sent all that is valid.

        Raises FailedPrecondition where the database was written under another key: nothing would be found in it.
        """
        async with self._changing() as records:
            fingerprint = await records.fact("key")
            if fingerprint is None:
                await records.note("key", self._vault.fingerprint)
            elif fingerprint != self._vault.fingerprint:
                raise FailedPrecondition(
                    "the database was written under another key: restore TANDEM_REGISTRY_KEY or its file"
                )
            if await records.fact("log") != log_identity.encode():
                await records.begin_new_log()
                await records.note("log", log_identity.encode())

    # ── puts ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def put_wearer(self, wearer: Wearer) -> Outcome:
        """Stores a wearer and matches them against all respondents."""
        async with self._changing() as records:
            outcome = await _decide(records, tables.wearers, wearer.wearer_id, wearer)
            if outcome is Outcome.STORED:
                await records.put(tables.wearers, wearer.wearer_id, wearer)
                orders = {order.order_id: order for order in await records.orders_against(wearer.national_id)}
                # Cases of the number that the record had before.
                for case in await records.cases_of_wearer(wearer.wearer_id):
                    if case.order_id not in orders:
                        orders[case.order_id] = await records.order(case.order_id)
                for order in orders.values():
                    await self._refresh(records, order, wearer)
        return outcome

    async def put_tag(self, tag: Tag) -> Outcome:
        """Stores on whom a tag is. Raises NotFound (unknown wearer), FailedPrecondition (a protective device's id)."""
        async with self._changing() as records:
            outcome = await _decide(records, tables.tags, tag.device_id, tag)
            if outcome is Outcome.STORED:
                await _must_be_known(records, tables.wearers, tag.wearer_id, "tag.wearer_id: no such wearer")
                if await records.device(tag.device_id):
                    raise FailedPrecondition("tag.device_id: is the id of a protective device")
                before = await records.tag(tag.device_id)
                await records.put(tables.tags, tag.device_id, tag)
                await self._send_route(records, tag.device_id)
                for wearer_id in _each(tag.wearer_id, before.wearer_id if before else None):
                    await self._refresh_all(records, await records.cases_of_wearer(wearer_id))
        return outcome

    async def put_protected_person(self, person: ProtectedPerson) -> Outcome:
        """Stores a protected person."""
        async with self._changing() as records:
            outcome = await _decide(records, tables.protected_persons, person.person_id, person)
            if outcome is Outcome.STORED:
                await records.put(tables.protected_persons, person.person_id, person)
        return outcome

    async def put_device(self, device: Device) -> Outcome:
        """Stores whose a protective device is. Raises NotFound (unknown person), FailedPrecondition (a tag's id)."""
        async with self._changing() as records:
            outcome = await _decide(records, tables.devices, device.device_id, device)
            if outcome is Outcome.STORED:
                await _must_be_known(
                    records, tables.protected_persons, device.person_id, "device.person_id: no such protected person"
                )
                if await records.tag(device.device_id):
                    raise FailedPrecondition("device.device_id: is the id of a tag")
                before = await records.device(device.device_id)
                await records.put(tables.devices, device.device_id, device)
                await self._send_route(records, device.device_id)
                for person_id in _each(device.person_id, before.person_id if before else None):
                    await self._refresh_all(records, await records.cases_of_person(person_id))
        return outcome

    async def put_order(self, order: Order) -> Outcome:
        """Stores an order and matches its respondent against all wearers. Raises NotFound for an unknown person."""
        async with self._changing() as records:
            outcome = await _decide(records, tables.orders, order.order_id, order)
            if outcome is Outcome.STORED:
                for n, person_id in enumerate(order.protected_person_ids):
                    text = f"order.protected_person_ids[{n}]: no such protected person"
                    await _must_be_known(records, tables.protected_persons, person_id, text)
                dropped = set(await records.persons_of_order(order.order_id)) - set(order.protected_person_ids)
                await records.put(tables.orders, order.order_id, order)
                wearers = {w.wearer_id: w for w in await records.wearers_numbered(order.respondent.national_id)}
                # Cases of the respondent whom the record named before.
                for case in await records.cases_of_order(order.order_id):
                    if case.wearer_id not in wearers:
                        wearers[case.wearer_id] = await records.wearer(case.wearer_id)
                for wearer in wearers.values():
                    await self._refresh(records, order, wearer)
                await self._send_routes_of(records, sorted(dropped))
        return outcome

    # ── consequences ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _refresh_all(self, records: Records, cases: Iterable[StoredCase]) -> None:
        for case in cases:
            await self._refresh(records, await records.order(case.order_id), await records.wearer(case.wearer_id))

    async def _refresh(self, records: Records, order: Order, wearer: Wearer) -> None:
        """Finds, renews or withdraws the joint case of an order and a wearer, and tells the log."""
        now_ms = self._clock.now_ms()
        holds = domain.is_match(order.respondent, wearer)
        case_id = domain.case_id_of(order.order_id, wearer.wearer_id)
        before = await records.case(case_id)
        if not holds and (before is None or before.withdrawn_at_ms is not None):
            return
        # Versions follow the clock, so that a database that was lost and is filled again outruns what the log holds.
        version = max(before.version + 1 if before else 1, now_ms)
        devices = await records.devices_of(order.protected_person_ids)
        case = domain.build_case(order, wearer, await records.tags_on(wearer.wearer_id), devices)
        if not holds:
            case = domain.withdraw(case, now_ms)
        snapshot = translate.case_to_proto(case, version)
        entry = log_pb2.LogEntry(case=snapshot).SerializeToString(deterministic=True)
        await records.put_case(
            case_id,
            {
                "order_id": order.order_id,
                "wearer_id": wearer.wearer_id,
                "version": version,
                "matched_at_ms": before.matched_at_ms if before else now_ms,
                "withdrawn_at_ms": None if holds else now_ms,
                "valid_until_ms": case.valid_until_ms,
                "entry": entry,
                "sent_day": now_ms // DAY_MS,
            },
        )
        # Routes before the case: devices are heard in its partition from the moment that the fold knows it.
        await self._send_routes_of(records, order.protected_person_ids)
        await records.enqueue(self._case_subject(case.wearer_id), f"{case_id}:{version}", entry)
        if before is None:
            logger().info("order_matched", case_id=case_id)
        elif not holds:
            logger().warning("match_withdrawn", case_id=case_id)

    def _case_subject(self, wearer_id: str) -> str:
        (partition,) = domain.tag_partitions(wearer_id, self._partitions)
        return flow.log_subject(partition, "case")

    async def _send_routes_of(self, records: Records, person_ids: Iterable[str]) -> None:
        for device in await records.devices_of(list(person_ids)):
            await self._send_route(records, device.device_id)

    async def _send_route(self, records: Records, device_id: str, renew: bool = False) -> None:
        """Sends the route of a device where it changed, or in any case (`renew`)."""
        tag = await records.tag(device_id)
        if tag:
            subject_id, partitions = tag.wearer_id, domain.tag_partitions(tag.wearer_id, self._partitions)
        else:
            device = await records.device(device_id)
            if device is None:
                raise LookupError("a route of a device that isn't stored")
            kept_away = [
                case.wearer_id
                for case in await records.cases_of_person(device.person_id)
                if case.withdrawn_at_ms is None
            ]
            subject_id = device.person_id
            partitions = domain.device_partitions(device.person_id, kept_away, self._partitions)
        route = log_pb2.DeviceRoute(subject_id=subject_id, partitions=partitions).SerializeToString(deterministic=True)
        last_version, last_route = await records.route(device_id) or (0, b"")
        if route == last_route and not renew:
            return
        version = last_version + 1
        await records.put_route(device_id, version, route, self._clock.now_ms() // DAY_MS)
        await records.enqueue(f"$KV.{flow.DEVICES_BUCKET}.{device_id}", f"route:{device_id}:{version}", route)

    # ── what goes on by itself ───────────────────────────────────────────────────────────────────────────────────────

    async def renew_some(self) -> bool:
        """Sends again some of what wasn't sent on this day of the mesh; false where nothing was left.

        The log keeps its entries for days only: by this it never lacks its premises.
        """
        now_ms = self._clock.now_ms()
        day = now_ms // DAY_MS
        async with self._changing() as records:
            device_ids = await records.routes_not_sent_on(day, RENEWED_AT_ONCE)
            for device_id in device_ids:
                await self._send_route(records, device_id, renew=True)
            if device_ids:
                return True
            cases = await records.cases_not_sent_on(day, now_ms - DAY_MS, RENEWED_AT_ONCE)
            for case in cases:
                await records.mark_case_sent(case.case_id, day)
                msg_id = f"{case.case_id}:{case.version}:{day}"
                await records.enqueue(self._case_subject(case.wearer_id), msg_id, case.entry)
            await records.drop_sent_before(now_ms - DAY_MS)
        return bool(cases)


async def _decide(records: Records, table: sa.Table, record_id: str, record: Record) -> Outcome:
    stored_version, stored_digest = await records.stored(table, record_id) or (None, None)
    return domain.decide_put(stored_version, stored_digest, record.source_version, records.digest_of(record))


async def _must_be_known(records: Records, table: sa.Table, record_id: str, otherwise: str) -> None:
    if await records.stored(table, record_id) is None:
        raise NotFound(otherwise)


def _each(now: str, before: str | None) -> tuple[str, ...]:
    return (now,) if before in (None, now) else (str(before), now)
