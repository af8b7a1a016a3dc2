"""Joint cases in the database, and the wearers whom joint cases keep away from a person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.registry.cases.domain import StoredCase
from services.registry.cases.tables import cases
from services.registry.records.tables import order_persons
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
    valid_until_ms: int


_COLUMNS = tuple(cases.c[field.name] for field in fields(StoredCase))


class CaseRepository(Repository):
    """The joint cases as one transaction sees them."""

    async def _cases(self, condition: sa.ColumnElement[bool]) -> list[StoredCase]:
        return [StoredCase(**row._mapping) for row in await self._rows(sa.select(*_COLUMNS).where(condition))]

    async def find(self, case_id: str) -> StoredCase | None:
        """A joint case by its id; None if it isn't stored."""
        return next(iter(await self._cases(cases.c.case_id == case_id)), None)

    async def some(self, case_ids: Collection[str]) -> dict[str, StoredCase]:
        """The joint cases with these ids, by id. Ids without a case are omitted."""
        found = await self._cases(cases.c.case_id.in_(case_ids)) if case_ids else []
        return {case.case_id: case for case in found}

    async def of_wearers(self, wearer_ids: Collection[str]) -> list[StoredCase]:
        """Joint cases of these wearers, in the order of matching."""
        found = await self._cases(cases.c.wearer_id.in_(wearer_ids))
        return sorted(found, key=lambda case: case.sequence)

    async def of_order(self, order_id: str) -> list[StoredCase]:
        """Joint cases of an order, in the order of matching."""
        return sorted(await self._cases(cases.c.order_id == order_id), key=lambda case: case.sequence)

    async def of_persons(self, person_ids: Collection[str]) -> dict[str, list[StoredCase]]:
        """Joint cases whose order protects these persons, by person id."""
        joined = cases.join(order_persons, order_persons.c.order_id == cases.c.order_id)
        statement = sa.select(order_persons.c.person_id, *_COLUMNS).select_from(joined)
        found: dict[str, list[StoredCase]] = {person_id: [] for person_id in person_ids}
        for row in await self._rows(statement.where(order_persons.c.person_id.in_(person_ids))):
            values = dict(row._mapping)
            found[values.pop("person_id")].append(StoredCase(**values))
        return found

    async def kept_away(self, person_ids: Collection[str], *, without: Collection[str]) -> dict[str, set[str]]:
        """Ids of the wearers whom joint cases keep away from these persons, by person id.

        Withdrawn cases don't count, nor do the cases with the ids `without`.
        """
        if not person_ids:
            return {}
        joined = cases.join(order_persons, order_persons.c.order_id == cases.c.order_id)
        mine = sa.and_(order_persons.c.person_id.in_(person_ids), cases.c.withdrawn_at_ms.is_(None))
        condition = sa.and_(mine, cases.c.case_id.not_in(without)) if without else mine
        statement = sa.select(order_persons.c.person_id, cases.c.wearer_id, cases.c.case_id).select_from(joined)
        found: dict[str, set[str]] = defaultdict(set)
        for row in await self._rows(statement.where(condition)):
            found[row.person_id].add(row.wearer_id)
        return found

    async def put(self, updates: Iterable[CaseUpdate], entries: Mapping[str, bytes], day: int) -> None:
        """Store joint cases. `entries` are their snapshots by case id, and `day` is the day of mesh time on which they are sent."""
        new: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        for update in updates:
            case = update.case
            row = {
                "order_id": case.order_id,
                "wearer_id": case.wearer_id,
                "version": case.version,
                "matched_at_ms": case.matched_at_ms,
                "withdrawn_at_ms": case.withdrawn_at_ms,
                "valid_until_ms": update.valid_until_ms,
                "entry": entries[case.case_id],
                "sent_day": day,
            }
            if update.is_new:
                new.append({"case_id": case.case_id, **row})
            else:
                changed.append({"of": case.case_id, **row})
        await self._write(sa.insert(cases), new)
        await self._write(_UPDATE, changed)

    async def not_sent_on(self, day: int, valid_after_ms: int, limit: int) -> list[CaseSnapshotRow]:
        """Snapshots of the first joint cases that end after `valid_after_ms` and weren't sent on this day of mesh time."""
        due = sa.and_(cases.c.sent_day < day, cases.c.valid_until_ms > valid_after_ms)
        columns = (cases.c[name] for name in CaseSnapshotRow._fields)
        rows = await self._rows(sa.select(*columns).where(due).order_by(cases.c.sequence).limit(limit))
        return [CaseSnapshotRow(**row._mapping) for row in rows]

    async def mark_sent(self, case_ids: Collection[str], day: int) -> None:
        """Store the day of mesh time on which the snapshots of these cases were sent last."""
        await self._connection.execute(sa.update(cases).where(cases.c.case_id.in_(case_ids)).values(sent_day=day))

    async def mark_unsent(self) -> None:
        """Mark all joint cases as not sent, so that the renewal sends them."""
        await self._connection.execute(sa.update(cases).values(sent_day=0))


_UPDATE = sa.update(cases).where(cases.c.case_id == sa.bindparam("of"))
