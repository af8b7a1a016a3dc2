"""Hash chain of the ledger: each row holds the hash of the previous row, so that a changed row is detected. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from operator import attrgetter

GENESIS = bytes(32)
"""Hash that the first row has as its previous hash."""


@dataclass(frozen=True, slots=True)
class Disclosure:
    """A use of personal data, described by ids and codes and never by the data."""

    disclosure_id: str
    """Id from the service that disclosed. Two disclosures with the same id are one disclosure."""
    at_ms: int
    """Time of the use, milliseconds of mesh time."""
    deed: str
    """READ, SHARED, SHARE_ENDED, DESTROYED or NOTIFIED."""
    who: str
    """SPIFFE id of the user of the data; of a notice, of its giver."""
    legal_basis: str
    purpose: str
    reference: str
    """Incident, case or order that the use refers to; empty if there is none."""
    record_kind: str
    record_id: str
    order_id: str
    """Order under which a location is shared; empty for a read."""
    recipient: str
    """SPIFFE id of the recipient of a share or notice; empty for a read."""
    expires_at_ms: int
    """End of the permission, milliseconds of mesh time; 0 for a single read."""
    positions: int | None
    """For the end of a share: upper bound of the number of positions that were sent. None in every other row."""


_values = attrgetter(*(field.name for field in fields(Disclosure)))


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A row of the ledger: a disclosure with its sequence and hashes."""

    sequence: int
    """Number of the row, from 1, without gaps."""
    disclosure: Disclosure
    previous: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """End of the chain at one moment."""

    sequence: int
    hash: bytes
    at_ms: int


def hash_of(sequence: int, disclosure: Disclosure, previous: bytes) -> bytes:
    """Hash of a row: SHA-256 over the previous hash, the sequence and the fields, each with its length in front.

    The field `positions` was added later, so the hash omits it if it is None. Older rows keep their hashes that way.
    """
    digest = hashlib.sha256(previous)
    *parts, positions = _values(disclosure)
    for part in (sequence, *parts, *(() if positions is None else (positions,))):
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest.digest()


def next_row(last: LedgerHead | None, disclosure: Disclosure) -> LedgerRow:
    """Build the row that follows the last row."""
    sequence, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS)
    return LedgerRow(
        sequence=sequence, disclosure=disclosure, previous=previous, hash=hash_of(sequence, disclosure, previous)
    )


def signed_text(head: LedgerHead) -> bytes:
    """Text that the signature of a head covers."""
    return f"tandem ledger head {head.sequence} {head.hash.hex()} {head.at_ms}".encode()


class BrokenChain(Exception):
    """The chain was changed; `sequence` is the first row that is proven to be wrong."""

    def __init__(self, sequence: int, reason: str) -> None:
        super().__init__(f"row {sequence}: {reason}")
        self.sequence = sequence


class ChainVerifier:
    """Verifies the rows of the chain one after the other, from the first."""

    def __init__(self) -> None:
        self.sequence = 0
        """Sequence of the last verified row."""
        self._previous = GENESIS

    def verify_next(self, row: LedgerRow) -> None:
        """Verify the next row. Raises BrokenChain if the row is missing, out of order or changed."""
        sequence = self.sequence + 1
        if row.sequence != sequence:
            raise BrokenChain(sequence, f"is missing: the next one is {row.sequence}")
        if row.previous != self._previous:
            raise BrokenChain(sequence, "doesn't follow the row before it")
        if row.hash != hash_of(sequence, row.disclosure, self._previous):
            raise BrokenChain(sequence, "was changed")
        self.sequence, self._previous = sequence, row.hash
