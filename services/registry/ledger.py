"""The ledger in the database: append rows in the transaction that they record, sign heads, and verify the chain.

Every share and every read appends a row, so the statements of `append` go to the driver, which keeps them prepared.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.common.errors import InvalidField
from services.common.privacy.secret_keys import open_keys
from services.common.storage import rows as storage
from services.common.storage.rows import RowTarget
from services.registry.domain.ledger import (
    BrokenChain,
    ChainVerifier,
    Disclosure,
    LedgerHead,
    LedgerRow,
    next_row,
    signed_text,
)
from services.registry.tables import ledger, ledger_heads
from services.registry.unit_of_work import Repository


class Signer:
    """Signs heads with Ed25519, so that anybody with the public key can verify them."""

    def __init__(self, key: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(key)
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, head: LedgerHead) -> bytes:
        """The signature of a head."""
        return self._key.sign(signed_text(head))


def open_signer(path: Path) -> Signer:
    """Open the signer with the key in this file. A missing file is created with a new key, readable by its owner only.

    The public key is written to `<name>.pub` in the same folder, for verification. A read-only folder must hold both files.
    """
    signer = Signer(open_keys(path)[0])
    public, text = path.with_suffix(".pub"), signer.public_key.hex()
    if not public.exists() or public.read_text() != text:
        public.write_text(text)
    return signer


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head with its signature."""

    head: LedgerHead
    signature: bytes

    def is_signed_by(self, public_key: bytes) -> bool:
        """Whether the signature is valid for this public key."""
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(self.signature, signed_text(self.head))
        except InvalidSignature:
            return False
        return True


PAGE = 1000
_FIELDS = tuple(field.name for field in fields(Disclosure))
_LEDGER = RowTarget(ledger)
_LAST = "SELECT sequence, hash, at_ms FROM ledger ORDER BY sequence DESC LIMIT 1"
_LAST_SIGNED = "SELECT sequence, hash, at_ms FROM ledger_heads ORDER BY sequence DESC LIMIT 1"
_KNOWN = {
    "sqlite": "SELECT disclosure_id FROM ledger WHERE disclosure_id IN (SELECT value FROM json_each(?))",
    "postgresql": "SELECT disclosure_id FROM ledger WHERE disclosure_id = ANY($1::varchar[])",
}
_values = attrgetter(*_FIELDS)


def append_disclosures(connection: sa.Connection, disclosures: Iterable[Disclosure]) -> None:
    """Append rows in their order, with three statements however many they are. A disclosure whose id is known is ignored."""
    new: dict[str, Disclosure] = {}
    for disclosure in disclosures:
        new.setdefault(disclosure.disclosure_id, disclosure)
    if not new:
        return
    dialect = connection.dialect.name
    ids = json.dumps(list(new)) if dialect == "sqlite" else list(new)
    for (disclosure_id,) in connection.exec_driver_sql(_KNOWN[dialect], (ids,)):
        del new[disclosure_id]
    head = last_head(connection)
    rows = []
    for disclosure in new.values():
        row = next_row(head, disclosure)
        head = LedgerHead(row.sequence, row.hash, disclosure.at_ms)
        rows.append((row.sequence, *_values(disclosure), row.previous, row.hash))
    if rows:
        storage.write(connection, [_LEDGER], [rows])


def last_head(connection: sa.Connection) -> LedgerHead | None:
    """Head at the last row; None if the ledger is empty."""
    row = connection.exec_driver_sql(_LAST).first()
    return LedgerHead(row.sequence, row.hash, row.at_ms) if row else None


def last_signed_head(connection: sa.Connection) -> LedgerHead | None:
    """The last head that was signed; None if no head was signed."""
    row = connection.exec_driver_sql(_LAST_SIGNED).first()
    return LedgerHead(row.sequence, row.hash, row.at_ms) if row else None


class LedgerRepository(Repository):
    """The ledger as one transaction sees it."""

    async def _first(self, statement: sa.Select[Any]) -> Any:
        return (await self._connection.execute(statement.limit(1))).first()

    async def last(self) -> LedgerHead | None:
        """Head at the last row; None if the ledger is empty."""
        return await self._connection.run_sync(last_head)

    async def require_position(self, after: int) -> None:
        """Raises InvalidField if a position to resume from is beyond the newest row, as after a restore from a backup."""
        end = await self.last()
        newest = end.sequence if end else 0
        if after > newest:
            raise InvalidField(
                "after_sequence", f"is beyond the newest row of the ledger, {newest}; start again with 0"
            )

    async def append(self, disclosures: Iterable[Disclosure]) -> None:
        """Append rows in their order. A disclosure whose id the ledger already has is ignored."""
        await self._connection.run_sync(append_disclosures, disclosures)

    async def last_signed(self) -> SignedHead | None:
        """The last signed head; None if no head was signed."""
        row = await self._first(sa.select(ledger_heads).order_by(ledger_heads.c.sequence.desc()))
        return _signed(row) if row else None

    async def signed_after(self, sequence: int, limit: int) -> list[SignedHead]:
        """Signed heads with a greater sequence, in order."""
        after = sa.select(ledger_heads).where(ledger_heads.c.sequence > sequence)
        return [_signed(row) for row in await self._rows(after.order_by(ledger_heads.c.sequence).limit(limit))]

    async def sign(self, head: LedgerHead, signer: Signer) -> SignedHead:
        """Sign a head and store it."""
        signed = SignedHead(head, signer.sign(head))
        await self._write(sa.insert(ledger_heads), [{**asdict(head), "signature": signed.signature}])
        return signed

    async def stored_rows(self) -> AsyncIterator[LedgerRow]:
        """All stored rows in order, unverified."""
        after = -(1 << 62)
        while True:
            page = sa.select(ledger).where(ledger.c.sequence > after).order_by(ledger.c.sequence).limit(PAGE)
            rows = await self._rows(page)
            for row in rows:
                disclosure = Disclosure(**{name: row._mapping[name] for name in _FIELDS})
                yield LedgerRow(sequence=row.sequence, disclosure=disclosure, previous=row.previous, hash=row.hash)
                after = row.sequence
            if len(rows) < PAGE:
                return

    async def heads(self) -> list[SignedHead]:
        """All signed heads, in order."""
        return [_signed(row) for row in await self._rows(sa.select(ledger_heads).order_by(ledger_heads.c.sequence))]


def _signed(row: Any) -> SignedHead:
    return SignedHead(LedgerHead(row.sequence, row.hash, row.at_ms), row.signature)


@dataclass(frozen=True, slots=True)
class Proof:
    """Result of a verification without errors."""

    rows: int
    heads: int
    """Number of heads with a valid signature."""
    unsigned: int
    """Number of rows after the last head, which only the chain proves."""


async def verify(stored: LedgerRepository, public_key: bytes | None, elsewhere: list[SignedHead]) -> Proof:
    """Verify the chain from its first row to its last, and the signed heads if there is a key.

    `elsewhere` are heads that an agency kept: they reveal that both rows and heads were removed from the database. Raises
    BrokenChain with the first wrong row.
    """
    heads = await stored.heads() + elsewhere if public_key is not None else []
    for signed in heads:
        if public_key is not None and not signed.is_signed_by(public_key):
            raise BrokenChain(signed.head.sequence, "its head isn't signed with the ledger's key")
    wanted: dict[int, set[bytes]] = {}
    for signed in heads:
        wanted.setdefault(signed.head.sequence, set()).add(signed.head.hash)
    verifier = ChainVerifier()
    async for row in stored.stored_rows():
        verifier.verify_next(row)
        if wanted.pop(row.sequence, {row.hash}) != {row.hash}:
            raise BrokenChain(row.sequence, "isn't the row whose head was signed")
    rows = verifier.sequence
    if wanted:
        raise BrokenChain(rows + 1, f"is missing: a head was signed at row {max(wanted)}")
    signed_to = max((signed.head.sequence for signed in heads), default=0)
    if public_key is not None and rows and not signed_to:
        raise BrokenChain(1, "no head was ever signed")
    return Proof(rows, len(heads), rows - signed_to)
