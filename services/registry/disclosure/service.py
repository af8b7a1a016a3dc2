"""Reads of personal data, each in one transaction with its row in the ledger, and the signing of the ledger's heads."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.cursors import StreamCursor
from services.common.privacy.grounds import Grounds
from services.common.rpc.errors import Unavailable
from services.common.rpc.identity import Caller
from services.registry.disclosure.domain import Deed
from services.registry.domain import Place, ProtectedPerson
from services.registry.ledger import store as ledger
from services.registry.ledger.chain import Disclosure, LedgerHead
from services.registry.ledger.signing import SignedHead, Signer
from services.registry.outbox.store import OutboxMessage
from services.registry.records import store as records
from services.registry.records.kinds import PERSONS, R, RecordType
from services.registry.repository import read_meta, write_meta
from services.registry.transactions import Transactions
from tandem.common.v1 import ledger_pb2

SIGN_INTERVAL_ROWS = 100
SIGN_INTERVAL_MS = 60_000
"""Maximum age of an unsigned row, milliseconds of mesh time."""
SIGN_INTERVAL_S = 60.0
"""Interval of the check for rows that another process has appended, seconds."""
POLL_S = 1.0
"""Minimum interval of two checks for a due head, seconds."""
HEADS_BATCH = 100
_NEWEST = "disclosures"
"""Name of the value in the table `meta` that holds the cursor of the last accepted entry of DISCLOSURES."""

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
        reading = partial(records.read, vault=self._transactions.vault, kind=kind, record_id=record_id)
        return await self.disclose_record(reading, who, grounds, kind=kind, record_id=record_id)

    async def read_person(
        self, who: Caller, grounds: Grounds, person_id: str
    ) -> tuple[ProtectedPerson, list[Place], str]:
        """A protected person, the places of the person's orders by place id, and the id of the disclosure. Raises NotFound."""
        vault = self._transactions.vault

        def reading(connection: sa.Connection) -> tuple[ProtectedPerson, list[Place]]:
            person = records.read(connection, vault, PERSONS, record_id=person_id)
            orders = records.orders_protecting(connection, vault, person_id)
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
            ledger.append(connection, rows)
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

    async def newest(self, log_id: str) -> StreamCursor | None:
        """Cursor of the last accepted entry of DISCLOSURES for this log; None if there is none."""
        stored = await self._transactions.database.visit(partial(read_meta, name=_NEWEST))
        known_log, _, cursor = (stored or b"").decode().partition(" ")
        return StreamCursor.parse(cursor) if cursor and known_log == log_id else None

    async def accept(
        self, made_elsewhere: Sequence[Disclosure], log_id: str = "", newest: StreamCursor | None = None
    ) -> None:
        """Append disclosures of other services, and store the cursor of their newest entry. Known ids are ignored."""

        def work(connection: sa.Connection) -> None:
            ledger.append(connection, made_elsewhere)
            if newest:
                write_meta(connection, _NEWEST, f"{log_id} {newest}".encode())

        await self._transactions.database.visit(work)
        self.note_appended(made_elsewhere)

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
            last, signed = await work.ledger.last(), await work.ledger.last_signed()
            if last is None or (signed and signed.head.sequence == last.sequence):
                return signed
            now_ms = self._clock.now_ms()
            signed = await work.ledger.sign(LedgerHead(last.sequence, last.hash, now_ms), self._signer)
            message = self.to_proto(signed).SerializeToString(deterministic=True)
            subject = flow.ledger_head_subject(last.sequence)
            msg_id = f"head:{last.sequence}:{last.hash.hex()[:16]}"
            await work.outbox.enqueue([OutboxMessage(subject, msg_id, message)])
        return signed

    async def watch_heads(self, after: int) -> AsyncIterator[SignedHead]:
        """Yield the signed heads after a row of the ledger, then each new one. Raises InvalidField if there is no such row."""
        async with self._transactions.reading() as work:
            await work.ledger.require_position(after)
        while True:
            change = self._transactions.signal.next_change()
            # A snapshot: any number of watchers read after each commit, and no put may wait for them.
            async with self._transactions.reading() as work:
                heads = await work.ledger.signed_after(after, HEADS_BATCH)
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
            lambda connection: (ledger.last(connection), ledger.last_signed(connection))
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
