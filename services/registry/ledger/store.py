"""The ledger in the database: appends rows in the transaction that they record, signs heads and verifies the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.keys.vault import read_or_make_keys
from services.registry.ledger import chain
from services.registry.ledger.chain import BrokenChain, Disclosure, LedgerHead, LedgerRow
from services.registry.ledger.tables import ledger, ledger_heads

PAGE = 1000
_FIELDS = tuple(field.name for field in fields(Disclosure))


class Signer:
    """Signs heads with Ed25519, so that anybody with the public key can verify them."""

    def __init__(self, key: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(key)
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, head: LedgerHead) -> bytes:
        """The signature of a head."""
        return self._key.sign(chain.signed_text(head))


def open_signer(path: Path) -> Signer:
    """Open the signer whose key is in this file. A missing file is created with a new key, readable by its owner only.

    The public key is written next to it as `<name>.pub`, for verification. A read-only folder must hold both files.
    """
    signer = Signer(read_or_make_keys(path)[0])
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
            Ed25519PublicKey.from_public_bytes(public_key).verify(self.signature, chain.signed_text(self.head))
        except InvalidSignature:
            return False
        return True


class Ledger:
    """The ledger as one transaction sees it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def _first(self, statement: sa.Select[Any]) -> Any:
        return (await self._connection.execute(statement.limit(1))).first()

    async def last(self) -> LedgerHead | None:
        """Head at the last row; None if the ledger is empty."""
        row = await self._first(sa.select(ledger).order_by(ledger.c.sequence.desc()))
        return LedgerHead(row.sequence, row.hash, row.at_ms) if row else None

    async def append(self, disclosure: Disclosure) -> bool:
        """Append a row; false if the ledger already has a disclosure with the same id."""
        same_id = sa.select(ledger.c.sequence).where(ledger.c.disclosure_id == disclosure.disclosure_id)
        if await self._first(same_id):
            return False
        row = chain.append(await self.last(), disclosure)
        values = {"sequence": row.sequence, "previous": row.previous, "hash": row.hash, **asdict(disclosure)}
        await self._connection.execute(sa.insert(ledger).values(values))
        return True

    async def last_signed(self) -> SignedHead | None:
        """The last signed head; None if no head was signed."""
        row = await self._first(sa.select(ledger_heads).order_by(ledger_heads.c.sequence.desc()))
        return _signed(row) if row else None

    async def signed_after(self, sequence: int, limit: int) -> list[SignedHead]:
        """Signed heads with a greater sequence, in order."""
        page = (
            sa.select(ledger_heads)
            .where(ledger_heads.c.sequence > sequence)
            .order_by(ledger_heads.c.sequence)
            .limit(limit)
        )
        return [_signed(row) for row in (await self._connection.execute(page)).all()]

    async def sign(self, head: LedgerHead, signer: Signer) -> SignedHead:
        """Sign a head and store it."""
        signed = SignedHead(head, signer.sign(head))
        values = {"sequence": head.sequence, "hash": head.hash, "at_ms": head.at_ms, "signature": signed.signature}
        await self._connection.execute(sa.insert(ledger_heads).values(values))
        return signed

    async def stored_rows(self) -> AsyncIterator[LedgerRow]:
        """All stored rows in order, unverified."""
        after = -(1 << 62)
        while True:
            page = sa.select(ledger).where(ledger.c.sequence > after).order_by(ledger.c.sequence).limit(PAGE)
            rows = (await self._connection.execute(page)).all()
            for row in rows:
                disclosure = Disclosure(**{name: row._mapping[name] for name in _FIELDS})
                yield LedgerRow(sequence=row.sequence, disclosure=disclosure, previous=row.previous, hash=row.hash)
                after = row.sequence
            if len(rows) < PAGE:
                return

    async def heads(self) -> list[SignedHead]:
        """All signed heads, in order."""
        rows = (await self._connection.execute(sa.select(ledger_heads).order_by(ledger_heads.c.sequence))).all()
        return [_signed(row) for row in rows]


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


async def verify(stored: Ledger, public_key: bytes | None, elsewhere: list[SignedHead]) -> Proof:
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
    verifier = chain.ChainVerifier()
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
