"""Reads of personal data, each in one transaction with its row in the ledger, and the signing of the ledger's heads.

For a desk that works on an incident, the names behind an order are one reading."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import grpc.aio
import sqlalchemy as sa

from services.common import fields
from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound, Unavailable
from services.common.messaging import flow
from services.common.privacy.grounds import Grounds, Purpose, RecordKind
from services.common.rpc import server
from services.common.rpc.identity import Caller, Role
from services.common.rpc.server import caller
from services.common.running import completed
from services.registry.disclosure.translate import parse_grounds
from services.registry.domain.disclosure import Deed, article_of
from services.registry.domain.ledger import Disclosure, LedgerHead
from services.registry.domain.records import DEFAULT_RINGS, Order, Place, ProtectedPerson, Respondent
from services.registry.keys import Vault
from services.registry.ledger import (
    LedgerRepository,
    SignedHead,
    Signer,
    append_disclosures,
    last_head,
    last_signed_head,
)
from services.registry.records import translate
from services.registry.records.kinds import ORDERS, PERSONS, WEARERS, R, RecordType
from services.registry.records.places import place_to_proto
from services.registry.records.store import orders_protecting, read_record
from services.registry.transactions import Transactions
from services.registry.unit_of_work import OutboxMessage
from tandem.common.v1 import ledger_pb2
from tandem.registry.v1 import disclosure_pb2, disclosure_pb2_grpc, parties_pb2, parties_pb2_grpc, registry_pb2

SIGN_INTERVAL_ROWS = 100
SIGN_INTERVAL_MS = 60_000
"""Maximum age of an unsigned row, milliseconds of mesh time."""
SIGN_INTERVAL_S = 60.0
"""Interval of the check for rows that another process has appended, seconds."""
POLL_S = 1.0
"""Minimum interval of two checks for a due head, seconds."""
HEADS_BATCH = 100

T = TypeVar("T")
OnRow: TypeAlias = Callable[[str], None]
"""Callback after the commit of a ledger row, with the row's reference."""


class DisclosedRecord(NamedTuple):
    """A record that a reading discloses."""

    kind: RecordType[Any]
    record_id: str


class Disclosures:
    """Reads personal data for callers, and signs the ledger. No other code returns personal data to a caller."""

    def __init__(
        self, transactions: Transactions, clock: MeshClock, signer: Signer, *, on_row: OnRow = lambda _: None
    ) -> None:
        self._transactions = transactions
        self._clock = clock
        self._signer = signer
        self._on_row = on_row
        self._appended = asyncio.Event()
        """Set when this process has appended rows since the last check for a due head."""

    async def read(self, who: Caller, grounds: Grounds, kind: RecordType[R], *, record_id: str) -> tuple[R, str]:
        """A complete record and the id of the disclosure in the ledger. Raises NotFound."""
        reading = partial(read_record, vault=self._transactions.vault, kind=kind, record_id=record_id)
        return await self.disclose_record(reading, who, grounds, kind=kind, record_id=record_id)

    async def read_person(
        self, who: Caller, grounds: Grounds, person_id: str
    ) -> tuple[ProtectedPerson, list[Place], str]:
        """A protected person, the places of the person's orders by place id, and the id of the disclosure. Raises NotFound."""
        vault = self._transactions.vault

        def reading(connection: sa.Connection) -> tuple[ProtectedPerson, list[Place]]:
            person = read_record(connection, vault, PERSONS, record_id=person_id)
            orders = orders_protecting(connection, vault, person_id)
            # Place ids are unique within their order alone, so two orders may give one id to two places.
            places = dict.fromkeys(place for order in orders for place in order.places)
            return person, sorted(places, key=lambda place: place.place_id)

        (person, places), disclosure_id = await self.disclose_record(
            reading, who, grounds, kind=PERSONS, record_id=person_id
        )
        return person, places, disclosure_id

    async def disclose_record(
        self,
        reading: Callable[[sa.Connection], T],
        who: Caller,
        grounds: Grounds,
        *,
        kind: RecordType[Any],
        record_id: str,
    ) -> tuple[T, str]:
        """Result of a reading that discloses one record, and the id of its row in the ledger."""
        record = DisclosedRecord(kind, record_id)
        result, (disclosure_id,) = await self.disclose(lambda connection: (reading(connection), [record]), who, grounds)
        return result, disclosure_id

    async def disclose(
        self, reading: Callable[[sa.Connection], tuple[T, Sequence[DisclosedRecord]]], who: Caller, grounds: Grounds
    ) -> tuple[T, list[str]]:
        """Result of a reading, and the ids of its rows in the ledger: one for each record that the reading says it discloses.

        Reading and rows are of one transaction. If the reading raises an error, nothing is disclosed and there is no row.
        """

        def work(connection: sa.Connection) -> tuple[T, list[Disclosure]]:
            result, disclosed = reading(connection)
            rows = [self._read_row(record, who, grounds) for record in disclosed]
            append_disclosures(connection, rows)
            return result, rows

        result, rows = await self._transactions.database.visit(work)
        self.note_appended(rows)
        return result, [row.disclosure_id for row in rows]

    def _read_row(self, record: DisclosedRecord, who: Caller, grounds: Grounds) -> Disclosure:
        return Disclosure(
            disclosure_id=f"read-{uuid.uuid4().hex}",
            at_ms=self._clock.now_ms(),
            deed=Deed.READ.value,
            who=who.spiffe_id,
            legal_basis=grounds.legal_basis,
            purpose=grounds.purpose.value,
            reference=grounds.reference,
            record_kind=record.kind.required_ledger_kind.value,
            record_id=record.record_id,
            order_id="",
            recipient="",
            expires_at_ms=0,
            positions=None,
        )

    def note_appended(self, disclosures: Sequence[Disclosure]) -> None:
        """Note rows that this process has appended, so that they are signed, and known to traces, soon."""
        self._appended.set()
        for disclosure in disclosures:
            self._on_row(disclosure.reference)

    # ── heads ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def sign(self) -> SignedHead | None:
        """Sign the end of the chain and enqueue the signed head for publication. Returns the head; None if the ledger is empty.

        If no row was added since the last head, that head is returned again.
        """
        async with self._transactions.changing() as work:
            stored = LedgerRepository(work.connection)
            last, signed = await stored.last(), await stored.last_signed()
            if last is None or (signed and signed.head.sequence == last.sequence):
                return signed
            now_ms = self._clock.now_ms()
            signed = await stored.sign(LedgerHead(last.sequence, last.hash, now_ms), self._signer)
            message = self.to_proto(signed).SerializeToString(deterministic=True)
            subject = flow.ledger_head_subject(last.sequence)
            msg_id = f"head:{last.sequence}:{last.hash.hex()[:16]}"
            await work.outbox.enqueue([OutboxMessage(subject, msg_id, message)])
        return signed

    async def watch_heads(self, after: int) -> AsyncIterator[SignedHead]:
        """Yield the signed heads after a row of the ledger, then each new one. Raises InvalidField if there is no such row."""
        async with self._transactions.reading() as work:
            await LedgerRepository(work.connection).require_position(after)
        while True:
            change = self._transactions.signal.next_change()
            # A snapshot: any number of watchers read after each commit, and no put may wait for them.
            async with self._transactions.reading() as work:
                heads = await LedgerRepository(work.connection).signed_after(after, HEADS_BATCH)
            for head in heads:
                yield head
                after = head.head.sequence
            if not heads:
                await self._transactions.signal.wait_for(change)

    def to_proto(self, signed: SignedHead) -> ledger_pb2.LedgerHead:
        """A signed head as the message for the agencies."""
        return ledger_pb2.LedgerHead(
            sequence=signed.head.sequence,
            hash=signed.head.hash,
            at_ms=signed.head.at_ms,
            signature=signed.signature,
            public_key=self._signer.public_key,
        )

    async def keep_signed(self) -> None:
        """Sign heads as they become due, until cancelled.

        Rows of this process wake the check, at most once in POLL_S. Rows of another process on the same database are found within
        SIGN_INTERVAL_S of wall time.
        """
        while True:
            wait_s = SIGN_INTERVAL_S
            self._appended.clear()
            try:
                wait_s = await self._until_due_s()
                if not wait_s:
                    await self.sign()
            except Unavailable:  # the database layer has logged the reason
                wait_s = POLL_S
            await asyncio.sleep(POLL_S)
            if wait_s > POLL_S:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s - POLL_S):
                        await self._appended.wait()

    async def _until_due_s(self) -> float:
        """Wall time until a head is due, seconds; 0 if it is due, and at most SIGN_INTERVAL_S.

        A head is due for the first rows, for SIGN_INTERVAL_ROWS unsigned rows, and for any SIGN_INTERVAL_MS after the last head,
        mesh time.
        """
        last, signed = await self._transactions.database.visit(
            lambda connection: (last_head(connection), last_signed_head(connection))
        )
        if last is None:
            return SIGN_INTERVAL_S
        if signed is None:
            return 0.0
        unsigned = last.sequence - signed.sequence
        left_ms = signed.at_ms + SIGN_INTERVAL_MS - self._clock.now_ms()
        if not unsigned:
            return SIGN_INTERVAL_S
        return (
            0.0
            if unsigned >= SIGN_INTERVAL_ROWS or left_ms <= 0
            else min(left_ms / 1000 / self._clock.rate, SIGN_INTERVAL_S)
        )


_Context = grpc.aio.ServicerContext[Any, Any]


class DisclosureServicer(disclosure_pb2_grpc.DisclosureServiceServicer):
    """Parses requests of the DisclosureService and limits the responses to the fields that the caller's role may see."""

    def __init__(self, disclosures: Disclosures, clock: MeshClock) -> None:
        self._disclosures = disclosures
        self._clock = clock

    async def ReadWearer(
        self, request: disclosure_pb2.ReadWearerRequest, context: _Context
    ) -> disclosure_pb2.ReadWearerResponse:
        wearer_id = fields.required_id("wearer_id", request.wearer_id)
        grounds = parse_grounds(request.grounds, RecordKind.WEARER, now_ms=self._clock.now_ms())
        who = server.caller()
        wearer, disclosure_id = await completed(self._disclosures.read(who, grounds, WEARERS, record_id=wearer_id))
        shown = translate.wearer_to_proto(wearer, WEARERS.shows[who.role])
        return disclosure_pb2.ReadWearerResponse(wearer=shown, disclosure_id=disclosure_id)

    async def ReadProtectedPerson(
        self, request: disclosure_pb2.ReadProtectedPersonRequest, context: _Context
    ) -> disclosure_pb2.ReadProtectedPersonResponse:
        person_id = fields.required_id("person_id", request.person_id)
        grounds = parse_grounds(request.grounds, RecordKind.PROTECTED_PERSON, now_ms=self._clock.now_ms())
        who = server.caller()
        person, places, disclosure_id = await completed(self._disclosures.read_person(who, grounds, person_id))
        visible = PERSONS.shows[who.role]
        shown = translate.protected_person_to_proto(person, visible)
        return disclosure_pb2.ReadProtectedPersonResponse(
            protected_person=shown,
            places=[place_to_proto(place) for place in places] if "places" in visible else [],
            disclosure_id=disclosure_id,
        )

    async def SignLedger(
        self, request: disclosure_pb2.SignLedgerRequest, context: _Context
    ) -> disclosure_pb2.SignLedgerResponse:
        signed = await completed(self._disclosures.sign())
        return disclosure_pb2.SignLedgerResponse(head=self._disclosures.to_proto(signed) if signed else None)

    async def WatchLedgerHeads(
        self, request: disclosure_pb2.WatchLedgerHeadsRequest, context: _Context
    ) -> AsyncIterator[disclosure_pb2.WatchLedgerHeadsResponse]:
        fields.number("after_sequence", request.after_sequence, 0, greatest=1 << 62)
        async for signed in self._disclosures.watch_heads(request.after_sequence):
            yield disclosure_pb2.WatchLedgerHeadsResponse(head=self._disclosures.to_proto(signed))


class PartyServicer(parties_pb2_grpc.PartyServiceServicer):
    """Parses requests of the PartyService and limits the responses to the fields that the caller's role may see."""

    def __init__(self, disclosures: Disclosures, vault: Vault, clock: MeshClock) -> None:
        self._disclosures = disclosures
        self._vault = vault
        self._clock = clock

    async def ReadParties(
        self, request: parties_pb2.ReadPartiesRequest, context: _Context
    ) -> parties_pb2.ReadPartiesResponse:
        order_id = fields.required_id("order_id", request.order_id)
        grounds = parse_grounds(request.grounds, RecordKind.ORDER, now_ms=self._clock.now_ms())
        if grounds.purpose is not Purpose.ENFORCEMENT:
            raise InvalidField("grounds.purpose", "must be PURPOSE_ENFORCEMENT: a desk reads names during an incident")
        if not grounds.reference:
            raise InvalidField("grounds.reference", "is missing: name the incident (example: incident-1)")
        who = caller()

        def read(connection: sa.Connection) -> tuple[Order, list[ProtectedPerson]]:
            order = read_record(connection, self._vault, ORDERS, record_id=order_id)
            persons = []
            for person_id in order.protected_person_ids:
                with suppress(NotFound):  # an order may name a person whose record came later, or was destroyed
                    persons.append(read_record(connection, self._vault, PERSONS, record_id=person_id))
            return order, persons

        # One row in the ledger, of the order's record.
        reading = self._disclosures.disclose_record(read, who, grounds, kind=ORDERS, record_id=order_id)
        (order, persons), disclosure_id = await completed(reading)
        shows = ORDERS.shows[who.role]
        is_police = who.role == Role.ROLE_NPA_DESK
        return parties_pb2.ReadPartiesResponse(
            article=article_of(order),
            respondent=_respondent(order.respondent, shows),
            protected_persons=[_person(person, PERSONS.shows[who.role]) for person in persons],
            rings_m=sorted({ring.radius_m for ring in order.rings or DEFAULT_RINGS}) if is_police else [],
            disclosure_id=disclosure_id,
        )


def _respondent(respondent: Respondent, shows: Collection[str]) -> parties_pb2.Party:
    sex = respondent.sex.value if respondent.sex else "UNSPECIFIED"
    return parties_pb2.Party(
        name=respondent.name if "name" in shows else "",
        birth_date=respondent.birth_date.isoformat() if "birth_date" in shows else "",
        sex=registry_pb2.Sex.Value(f"SEX_{sex if 'sex' in shows else 'UNSPECIFIED'}"),
        phone=respondent.phone if "phone" in shows else "",
    )


def _person(person: ProtectedPerson, shows: Collection[str]) -> parties_pb2.Party:
    return parties_pb2.Party(person_id=person.person_id, name=person.name if "name" in shows else "")
