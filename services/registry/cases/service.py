"""Joint cases and device routes that follow from the records: gather, plan and apply them in the transaction of a command.

The log keeps its entries only for days, so all routes and valid joint cases are sent again once a day.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple, assert_never

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.privacy import secret_keys
from services.registry.cases import surroundings, translate
from services.registry.cases.effects import CaseMessage, Effects
from services.registry.domain.cases import MatchPair, PlanTerms, StoredCase, decide_pair, tag_partitions
from services.registry.domain.records import Contact, RoutedDevice
from services.registry.keys import Vault
from services.registry.records.kinds import DEVICE_TYPES, UNIT_TYPES, Record
from services.registry.records.store import PreparedRecord
from services.registry.tables import cases, routes
from services.registry.transactions import Transactions
from services.registry.unit_of_work import OutboxMessage, Repository, check_size
from services.registry.working_set.working_set import WorkingSet
from tandem.common.v1 import log_pb2

DAY_MS = 86_400_000


class CaseService:
    """Plans joint cases and routes inside the transaction that changes a record."""

    def __init__(
        self, clock: MeshClock, vault: Vault, partitions: int, *, warning_key: X25519PublicKey | None = None
    ) -> None:
        self._clock = clock
        self._vault = vault
        self._partitions = partitions
        self._warning_key = warning_key

    @property
    def seals_contacts(self) -> bool:
        """Whether the registry has the warning leg's public key."""
        return self._warning_key is not None

    def terms(self) -> PlanTerms:
        """Inputs of a plan that begins now."""
        return PlanTerms(self._clock.now_ms(), self._partitions, lambda text: self._vault.digest(text.encode()))

    def subject(self, wearer_id: str) -> str:
        """Subject of a wearer's cases in the log."""
        (partition,) = tag_partitions(wearer_id, self._partitions)
        return flow.log_subject(partition, "case")

    # ── gather and plan ──────────────────────────────────────────────────────────────────────────────────────────────

    def match(
        self,
        working: WorkingSet,
        pairs: Sequence[MatchPair],
        *,
        put: Record,
        also_persons: Iterable[str] = (),
        also_wearers: Collection[str] = (),
    ) -> Effects:
        """Effects of comparing pairs. The arguments are those of `surroundings.around`."""
        terms = self.terms()
        decided = [decide_pair(pair, terms) for pair in pairs]
        touched = [result.pair for result in decided if result.touches_case]
        found = surroundings.around(
            working,
            touched,
            now_ms=terms.now_ms,
            put=put,
            also_persons=also_persons,
            also_wearers=also_wearers,
            with_contacts=self.seals_contacts,
        )
        effects = Effects(terms, found, touched)
        for result in decided:
            effects.settle(result)
        return effects

    def begin(
        self,
        working: WorkingSet,
        pairs: Sequence[MatchPair],
        *,
        put: Record | None = None,
        also_persons: Iterable[str] = (),
    ) -> Effects:
        """A plan without effects yet, for pairs with joint cases. The arguments are those of `surroundings.around`."""
        terms = self.terms()
        found = surroundings.around(
            working,
            pairs,
            now_ms=terms.now_ms,
            put=put,
            also_persons=also_persons,
            with_contacts=self.seals_contacts,
        )
        return Effects(terms, found, pairs)

    def begin_routes(
        self, working: WorkingSet, devices: Sequence[RoutedDevice], also_ids: Collection[str] = ()
    ) -> Effects:
        """A plan without effects yet, for the routes of these devices, and of those in `also_ids`, whose records were destroyed."""
        return Effects(self.terms(), surroundings.around_devices(working, devices, also_ids))

    # ── apply ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, working: WorkingSet, effects: Effects, *, put: PreparedRecord[Any] | None = None) -> None:
        """Change the working set as planned, and put the record that the command puts.

        Raises FailedPrecondition if a message is larger than the log accepts. Then nothing is changed.
        """
        day = effects.terms.now_ms // DAY_MS
        messages, entries = self._encoded(effects)
        for message in messages:
            check_size(message)
        if put is not None:
            working.put(put)
        working.reviews.put(effects.reviews.values())
        working.cases.put(effects.cases.values(), entries, day)
        working.events += effects.events
        working.comparisons += effects.comparisons
        working.tokens.put(effects.tokens)
        working.routes.put(effects.routes, day)
        working.messages += messages
        working.after_commit += [line.write for line in effects.logs]

    def _encoded(self, effects: Effects) -> tuple[list[OutboxMessage], dict[str, bytes]]:
        """The messages for the outbox in their order, and the last snapshot of each case by case id."""
        messages: list[OutboxMessage] = []
        entries: dict[str, bytes] = {}
        for message in effects.messages:
            match message:
                case OutboxMessage():
                    messages.append(message)
                case CaseMessage(case, version):
                    entry = entries[case.case_id] = self._entry(message, effects.found.contacts)
                    messages.append(OutboxMessage(self.subject(case.wearer_id), f"{case.case_id}:{version}", entry))
                case _:
                    assert_never(message)
        return messages, entries

    def _entry(self, message: CaseMessage, contacts: Mapping[str, Contact]) -> bytes:
        """Snapshot of a joint case as a log entry, with the contacts sealed for the warning leg."""
        snapshot = translate.case_to_proto(message.case, message.version)
        for person in snapshot.persons:
            if self._warning_key and (contact := contacts.get(person.person_id)):
                clear = translate.contact_to_proto(contact)
                person.sealed_contact = secret_keys.seal(clear, person.person_id, self._warning_key)
        return log_pb2.LogEntry(case=snapshot).SerializeToString(deterministic=True)


RENEWED_BATCH = 50


class Renewal:
    """Enqueues all routes and valid joint cases once on each day of mesh time, so that the log always holds them."""

    def __init__(self, transactions: Transactions, cases: CaseService, clock: MeshClock) -> None:
        self._transactions = transactions
        self._cases = cases
        self._clock = clock

    async def renew_some(self) -> bool:
        """Enqueue a batch of routes and cases that weren't sent on this day of mesh time; false if none was left."""
        now_ms = self._clock.now_ms()
        day = now_ms // DAY_MS
        # `open` is enough, since nobody needs the wake-up: the relay, the only caller, reads the outbox next.
        async with self._transactions.open() as work:
            cases = CaseRepository(work.connection)
            device_ids = await RouteRepository(work.connection).not_sent_on(day, RENEWED_BATCH)
            if device_ids:
                await self._transactions.change_within(work, partial(self._renew_routes, device_ids=device_ids))
                return True
            snapshots = await cases.not_sent_on(day, now_ms - DAY_MS, RENEWED_BATCH)
            await cases.mark_sent([snapshot.case_id for snapshot in snapshots], day)
            await work.outbox.enqueue(
                OutboxMessage(
                    self._cases.subject(snapshot.wearer_id),
                    f"{snapshot.case_id}:{snapshot.version}:{day}",
                    snapshot.entry,
                )
                for snapshot in snapshots
            )
            await work.outbox.drop_sent_before(now_ms - DAY_MS)
        return bool(snapshots)

    def _renew_routes(self, working: WorkingSet, device_ids: list[str]) -> None:
        found: dict[str, RoutedDevice] = {}
        for kind in (*DEVICE_TYPES, *UNIT_TYPES):
            found |= working.records.opened(kind, [id_ for id_ in device_ids if id_ not in found])
        destroyed = [id_ for id_ in device_ids if id_ not in found]
        effects = self._cases.begin_routes(working, list(found.values()), destroyed)
        for device_id in device_ids:
            if device_id in found:
                effects.send_route(found[device_id], renew=True)
            else:
                effects.resend_route(device_id)
        self._cases.apply(working, effects)


class CaseSnapshotRow(NamedTuple):
    """The last snapshot of a joint case, as it was sent to the log."""

    case_id: str
    wearer_id: str
    version: int
    entry: bytes
    """Snapshot, serialised as a log entry."""


_COLUMNS = tuple(cases.c[field.name] for field in fields(StoredCase))


class CaseRepository(Repository):
    """The joint cases as one transaction sees them."""

    async def _cases(self, condition: sa.ColumnElement[bool]) -> list[StoredCase]:
        return [StoredCase(**row._mapping) for row in await self._rows(sa.select(*_COLUMNS).where(condition))]

    async def some(self, case_ids: Collection[str]) -> dict[str, StoredCase]:
        """The joint cases with these ids, by id. Ids without a case are omitted."""
        found = await self._cases(cases.c.case_id.in_(case_ids)) if case_ids else []
        return {case.case_id: case for case in found}

    async def not_sent_on(self, day: int, valid_after_ms: int, limit: int) -> list[CaseSnapshotRow]:
        """Snapshots of the first joint cases that don't end before `valid_after_ms` and weren't sent on this day of mesh time."""
        is_valid = sa.or_(cases.c.valid_until_ms.is_(None), cases.c.valid_until_ms > valid_after_ms)
        due = sa.and_(cases.c.sent_day < day, is_valid)
        columns = (cases.c[name] for name in CaseSnapshotRow._fields)
        rows = await self._rows(sa.select(*columns).where(due).order_by(cases.c.sequence).limit(limit))
        return [CaseSnapshotRow(**row._mapping) for row in rows]

    async def mark_sent(self, case_ids: Collection[str], day: int) -> None:
        """Store the day of mesh time on which the snapshots of these cases were sent last."""
        await self._connection.execute(sa.update(cases).where(cases.c.case_id.in_(case_ids)).values(sent_day=day))

    async def mark_unsent(self) -> None:
        """Mark all joint cases as not sent, so that the renewal sends them."""
        await self._connection.execute(sa.update(cases).values(sent_day=0))


class RouteRepository(Repository):
    """The routes of the devices as one transaction sees them."""

    async def not_sent_on(self, day: int, limit: int) -> list[str]:
        """Ids of devices whose route wasn't sent on this day of mesh time."""
        statement = sa.select(routes.c.device_id).where(routes.c.sent_day < day).limit(limit)
        return [row.device_id for row in await self._rows(statement)]

    async def mark_unsent(self) -> None:
        """Mark all routes as not sent, so that the renewal sends them."""
        await self._connection.execute(sa.update(routes).values(sent_day=0))
