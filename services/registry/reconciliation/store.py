"""Digests of the records for reconciliation, and the state of each agency's reconciliation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common import ids
from services.common.storage import db
from services.common.storage.statements import Prepared
from services.registry.domain import ListedKind
from services.registry.keys.vault import Vault
from services.registry.reconciliation import tables
from services.registry.reconciliation.domain import Agency, Listed
from services.registry.repository import Repository

LISTED_BATCH = 1000


@dataclass(frozen=True, slots=True)
class ReconciliationStatus:
    """State of the reconciliation between an agency's list and the stored records."""

    agency: Agency
    since_ms: int
    """When the registry began to expect lists from the agency, mesh time."""
    compared_at_ms: int | None
    differences: int
    proven_at_ms: int | None
    """When the list and the stored records were last equal, mesh time."""
    root: bytes
    alarmed_at_ms: int | None


class ReconciliationRepository(Repository):
    """The digests of the records and the reconciliations as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        super().__init__(connection)
        self._vault = vault

    async def listed(self, kinds: Iterable[ListedKind]) -> list[Listed]:
        """Live records of some kinds, as their agency would list them. Reads page by page, so that other tasks get a turn."""
        digests, records = tables.record_digests, list[Listed]()
        for kind in kinds:
            after = ""
            while True:
                # No agency lists the synthetic records of exercises.
                is_live = ~digests.c.record_id.startswith(ids.EXERCISE_IDS, autoescape=True)
                wanted = sa.and_(digests.c.kind == kind.value, digests.c.record_id > after, is_live)
                page = sa.select(digests).where(wanted).order_by(digests.c.record_id).limit(LISTED_BATCH)
                rows = await self._rows(page)
                records += map(self._unmasked, rows)
                if len(rows) < LISTED_BATCH:
                    break
                after = rows[-1].record_id
        return records

    def _unmasked(self, row: sa.Row[Any]) -> Listed:
        row_entry = Listed(
            kind=ListedKind(row.kind), record_id=row.record_id, source_version=row.source_version, digest=row.masked
        )
        return replace(row_entry, digest=masked(self._vault, row_entry))

    async def without_digest(self, kind: ListedKind, key: sa.Column[Any], after: str, *, limit: int) -> list[str]:
        """Ids of records that have no digest yet, in order, after the id `after`."""
        digests = tables.record_digests
        # `not in` would make PostgreSQL scan all digests for each record once they outgrow its memory.
        known = sa.exists().where(digests.c.kind == kind.value, digests.c.record_id == key)
        wanted = sa.and_(key > after, ~known)
        rows = await self._rows(sa.select(key).where(wanted).order_by(key).limit(limit))
        return [row[0] for row in rows]

    async def begin(self, now_ms: int) -> None:
        """Set `since_ms` to `now_ms` for each agency from which the registry didn't expect lists before."""
        for agency in Agency:
            values = {"agency": agency.value, "since_ms": now_ms, "differences": 0}
            await db.insert_once(self._connection, tables.reconciliations, values)

    async def update(self, agency: Agency, **values: object) -> None:
        """Update columns of an agency's row in the table `reconciliations`."""
        table = tables.reconciliations
        await self._connection.execute(sa.update(table).where(table.c.agency == agency.value).values(**values))

    async def mark_alarmed(self, agency: Agency, at_ms: int) -> bool:
        """Store that the alarm about the missing proof was raised; false if it was raised already."""
        table = tables.reconciliations
        due = sa.and_(table.c.agency == agency.value, table.c.alarmed_at_ms.is_(None))
        marked = await self._connection.execute(sa.update(table).where(due).values(alarmed_at_ms=at_ms))
        return marked.rowcount > 0


def statuses(connection: sa.Connection) -> list[ReconciliationStatus]:
    """Reconciliation statuses of the agencies from which the registry expects lists. Read within a visit."""
    return [
        ReconciliationStatus(
            agency=Agency(agency),
            since_ms=since_ms,
            compared_at_ms=compared_at_ms,
            differences=differences,
            proven_at_ms=proven_at_ms,
            root=bytes(root or b""),
            alarmed_at_ms=alarmed_at_ms,
        )
        for agency, since_ms, compared_at_ms, differences, proven_at_ms, root, alarmed_at_ms in _STATUSES.fetch(
            connection
        )
    ]


_STATUSES = Prepared(
    sa.select(*(tables.reconciliations.c[column.name] for column in fields(ReconciliationStatus))).order_by(
        tables.reconciliations.c.agency
    )
)


def masked(vault: Vault, listed: Listed) -> bytes:
    """Mask a digest with a one-time pad, or unmask a masked digest. A version has one content, so no pad is reused."""
    pad = vault.index(f"record digest {listed.kind.value} {listed.record_id} {listed.source_version}")
    return (int.from_bytes(listed.digest) ^ int.from_bytes(pad)).to_bytes(len(pad))
