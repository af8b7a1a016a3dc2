"""Reads of personal data, each in one transaction with its row in the ledger, and the signing of the ledger's heads."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.cursors import StreamCursor
from services.common.privacy.grounds import Grounds
from services.common.rpc.errors import Unavailable
from services.common.rpc.identity import Caller
from services.registry.disclosure.domain import Deed
from services.registry.domain import Place, ProtectedPerson
from services.registry.ledger.chain import Disclosure, LedgerHead
from services.registry.ledger.signing import SignedHead, Signer
from services.registry.outbox.store import OutboxMessage
from services.registry.records.kinds import PERSONS, R, RecordType
from services.registry.transactions import Transactions
from services.registry.unit_of_work import UnitOfWork
from tandem.common.v1 import ledger_pb2

SIGN_INTERVAL_ROWS = 100
SIGN_INTERVAL_MS = 60_000
POLL_S = 1.0
HEADS_BATCH = 100
_NEWEST = "disclosures"
"""Name of the value in the table `meta` that holds the cursor of the last accepted entry of DISCLOSURES."""

OnRow: TypeAlias = Callable[[str], None]
"""Callback after the commit of a ledger row, with the row's reference."""


class Disclosures:
    """Reads personal data for callers, and signs the ledger. No other code returns personal data to a caller."""

    def __init__(
        self, transactions: Transactions, clock: MeshClock, signer: Signer, *, on_row: OnRow = lambda _: None
    ) -> None:
        self._transactions = transactions
        self._clock = clock
        self._signer = signer
        self._on_row = on_row

    async def read(self, who: Caller, grounds: Grounds, kind: RecordType[R], *, record_id: str) -> tuple[R, str]:
        """A complete record and the id of the disclosure in the ledger. Raises NotFound."""
        async with self._disclosing(who, grounds, kind, record_id=record_id) as (work, disclosure_id):
            return await work.records.read(kind, record_id), disclosure_id

    async def read_person(
        self, who: Caller, grounds: Grounds, person_id: str
    ) -> tuple[ProtectedPerson, list[Place], str]:
        """A protected person, the places of the person's orders, and the id of the disclosure. Raises NotFound."""
        async with self._disclosing(who, grounds, PERSONS, record_id=person_id) as (work, disclosure_id):
            person = await work.records.read(PERSONS, person_id)
            places = {
                place.place_id: place
                for order in await work.records.orders_protecting(person_id)
                for place in order.places
            }
            return person, [places[place_id] for place_id in sorted(places)], disclosure_id

    @asynccontextmanager
    async def _disclosing(
        self, who: Caller, grounds: Grounds, kind: RecordType[Any], *, record_id: str
    ) -> AsyncIterator[tuple[UnitOfWork, str]]:
        disclosure_id = f"read-{uuid.uuid4().hex}"
        async with self._transactions.open() as work:
            yield work, disclosure_id
            await work.ledger.append(
                [
                    Disclosure(
                        disclosure_id=disclosure_id,
                        at_ms=self._clock.now_ms(),
                        deed=Deed.READ.value,
                        who=who.spiffe_id,
                        legal_basis=grounds.legal_basis,
                        purpose=grounds.purpose.value,
                        reference=grounds.reference,
                        record_kind=kind.required_ledger_kind.value,
                        record_id=record_id,
                        order_id="",
                        recipient="",
                        expires_at_ms=0,
                        positions=None,
                    )
                ]
            )
        self._on_row(grounds.reference)

    async def newest(self, log_id: str) -> StreamCursor | None:
        """Cursor of the last accepted entry of DISCLOSURES for this log; None if there is none."""
        async with self._transactions.open() as work:
            stored = await work.meta.get(_NEWEST)
        known_log, _, cursor = (stored or b"").decode().partition(" ")
        return StreamCursor.parse(cursor) if cursor and known_log == log_id else None

    async def accept(
        self, made_elsewhere: Sequence[Disclosure], log_id: str = "", newest: StreamCursor | None = None
    ) -> None:
        """Append disclosures of other services, and store the cursor of their newest entry. Known ids are ignored."""
        async with self._transactions.open() as work:
            await work.ledger.append(made_elsewhere)
            if newest:
                await work.meta.set(_NEWEST, f"{log_id} {newest}".encode())
        for disclosure in made_elsewhere:
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
        """Yield the signed heads after the row `after` of the ledger, then each new head until cancelled."""
        while True:
            change = self._transactions.signal.next_change()
            async with self._transactions.open() as work:
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
        """Sign heads as they become due, until cancelled."""
        while True:
            with contextlib.suppress(Unavailable):  # the database layer has logged the reason
                if await self._is_due():
                    await self.sign()
            await asyncio.sleep(POLL_S)

    async def _is_due(self) -> bool:
        """Whether a head is due: for the first rows, for SIGN_INTERVAL_ROWS unsigned rows, or for any after SIGN_INTERVAL_MS.

        The time is mesh time since the last head.
        """
        async with self._transactions.open() as work:
            last, signed = await work.ledger.last(), await work.ledger.last_signed()
        if last is None or signed is None:
            return last is not None
        unsigned = last.sequence - signed.head.sequence
        waited_ms = self._clock.now_ms() - signed.head.at_ms
        return unsigned >= SIGN_INTERVAL_ROWS or (unsigned > 0 and waited_ms >= SIGN_INTERVAL_MS)
