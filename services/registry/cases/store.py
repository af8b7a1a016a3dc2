"""Joint cases in the database. Commands read and change them through a working set."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import NamedTuple

import sqlalchemy as sa

from services.registry.cases.domain import StoredCase
from services.registry.cases.tables import cases
from services.registry.repository import Repository


class CaseSnapshotRow(NamedTuple):
    """The last snapshot of a joint case, as it was sent to the log."""

    case_id: str
    wearer_id: str
    version: int
    entry: bytes
    """Snapshot, serialised as a log entry."""


@dataclass(frozen=True, slots=True)
class CaseUpdate:
    """New content of a joint case."""

    case: StoredCase
    is_new: bool
    valid_until_ms: int | None


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
