"""Compare an agency's list with the stored records: root hash and differences. Pure.

protos/tandem/registry/v1/reconciliation.proto defines the text and the hashes, so that an agency computes the same values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from services.registry.domain import ListedKind

ALARM_AFTER_MS = 15 * 60_000
"""How long an agency may go without proof that both lists are equal, milliseconds of mesh time."""


class Agency(Enum):
    """Agency that sends a list: the Ministry of Justice (MOJ) or the National Police Agency (NPA)."""

    MOJ = "moj"
    NPA = "npa"


@dataclass(frozen=True, slots=True)
class Listed:
    """A record of a list, as its version and digest."""

    kind: ListedKind
    record_id: str
    source_version: int
    digest: bytes
    """SHA-256 of the record's canonical text."""


class Finding(Enum):
    """Kind of difference in one record: MISSING is only in the agency's list, EXTRA only in the store, DIFFERENT in both."""

    MISSING = "MISSING"
    EXTRA = "EXTRA"
    DIFFERENT = "DIFFERENT"


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference in one record. A version is 0 if that side lacks the record."""

    finding: Finding
    kind: ListedKind
    record_id: str
    listed_version: int
    stored_version: int


def compare(listed: Iterable[Listed], stored: Iterable[Listed]) -> list[Difference]:
    """Differences between two lists, by kind and id. Each record may be in a list only once."""
    theirs, ours = ({_sort_key(record): record for record in side} for side in (listed, stored))
    differences = []
    for key in sorted(theirs.keys() | ours.keys()):
        their, our = theirs.get(key), ours.get(key)
        if their == our:
            continue
        finding = Finding.EXTRA if their is None else Finding.MISSING if our is None else Finding.DIFFERENT
        differences.append(
            Difference(
                finding=finding,
                kind=ListedKind(key[0]),
                record_id=key[1],
                listed_version=their.source_version if their else 0,
                stored_version=our.source_version if our else 0,
            )
        )
    return differences


def root(records: Iterable[Listed]) -> bytes:
    """Root hash of a list."""
    hashed = hashlib.sha256()
    for record in sorted(records, key=_sort_key):
        hashed.update(
            f"{record.kind.value} {record.record_id} {record.source_version} {record.digest.hex()}\n".encode()
        )
    return hashed.digest()


def _sort_key(record: Listed) -> tuple[int, str]:
    # Ids are ASCII, so that sorting the text equals sorting the bytes, which the definition of the root hash requires.
    return record.kind.value, record.record_id


def overdue(since_ms: int, proven_at_ms: int | None, now_ms: int) -> bool:
    """Whether the proof of an agency is older than ALARM_AFTER_MS. Without any proof, the time counts from `since_ms`."""
    return now_ms - (since_ms if proven_at_ms is None else proven_at_ms) > ALARM_AFTER_MS


def summary_counts(differences: Sequence[Difference]) -> dict[str, int]:
    """Number of differences per finding, for the log."""
    return {
        finding.value.lower(): sum(difference.finding is finding for difference in differences) for finding in Finding
    }
