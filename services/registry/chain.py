"""The chain of the ledger: each row carries the hash of the one before, so that no row changes unseen. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass

GENESIS = bytes(32)
"""What stands before the first row."""


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One use of personal data. Holds ids and codes, never the data."""

    disclosure_id: str
    """Given by whoever disclosed; the second with the same id is the same disclosure."""
    at_ms: int
    """When, by the mesh's clock."""
    deed: str
    """READ, SHARED, SHARE_ENDED or DESTROYED."""
    who: str
    """SPIFFE id of the one who did it."""
    legal_basis: str
    purpose: str
    reference: str
    """Incident, case or order that it is about; empty where there is none."""
    record_kind: str
    record_id: str
    order_id: str
    """Order under which a location is shared; empty for a read."""
    recipient: str
    """To whom it was shared; empty for a read."""
    expires_at_ms: int
    """End of what was allowed, 0 for a single read."""
    positions: int | None
    """Where a share ended: how many positions left under it, at most. None in every other row."""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A disclosure in its place in the chain."""

    sequence: int
    """From 1, without gaps."""
    disclosure: Disclosure
    previous: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """The end of the chain at some moment."""

    sequence: int
    hash: bytes
    at_ms: int


def hash_of(sequence: int, disclosure: Disclosure, previous: bytes) -> bytes:
    """Hash of a row: SHA-256 over the hash before it, its place and its fields, each with its length in front.

    `positions` came later: where there are none it isn't a part, so that older rows keep their hashes.
    """
    digest = hashlib.sha256(previous)
    *parts, positions = astuple(disclosure)
    for part in (sequence, *parts, *(() if positions is None else (positions,))):
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest.digest()


def append(last: LedgerHead | None, disclosure: Disclosure) -> LedgerRow:
    """The next row after the last one."""
    sequence, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS)
    return LedgerRow(sequence, disclosure, previous, hash_of(sequence, disclosure, previous))


def signed_text(head: LedgerHead) -> bytes:
    """What is signed of a head."""
    return f"tandem ledger head {head.sequence} {head.hash.hex()} {head.at_ms}".encode()


class BrokenChain(Exception):
    """The chain isn't what it was; `sequence` is the first row of which that is sure."""

    def __init__(self, sequence: int, reason: str) -> None:
        super().__init__(f"row {sequence}: {reason}")
        self.sequence = sequence


class ChainVerifier:
    """Takes row after row, and proves that each follows from the ones before."""

    def __init__(self) -> None:
        self.sequence = 0
        """The last row that was proven."""
        self._previous = GENESIS

    def take(self, link: LedgerRow) -> None:
        """Raises Broken where this isn't the next row."""
        sequence = self.sequence + 1
        if link.sequence != sequence:
            raise BrokenChain(sequence, f"is missing: the next one is {link.sequence}")
        if link.previous != self._previous:
            raise BrokenChain(sequence, "doesn't follow the row before it")
        if link.hash != hash_of(sequence, link.disclosure, self._previous):
            raise BrokenChain(sequence, "was changed")
        self.sequence, self._previous = sequence, link.hash
