"""Contacts of a person whom an order no longer names: she still hears that her warning is over, and nothing after a day."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from services.common.storage.db import open_database
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.warning.service import MIGRATIONS
from services.dispatch.warning.store import CONTACT_RETENTION_MS, WarningStore
from services.dispatch.warning.tables import ContactRow
from services.dispatch.warning.translate import CaseContacts

NOW_MS = 1_000_000_000


class Contacts:
    """The contacts that a warning leg has stored of a person, after snapshots of her cases."""

    def __init__(self, store: WarningStore) -> None:
        self._store, self._version = store, 0

    async def read(self, case_id: str, sealed: Mapping[str, bytes], now_ms: int = NOW_MS) -> None:
        """Stores the next snapshot of a case, with the sealed contacts of the persons whom it names."""
        self._version += 1
        rows = tuple(
            ContactRow(case_id, person_id, self._version, sealed=contact, device_ids=[], valid_until_ms=None)
            for person_id, contact in sealed.items()
        )
        position = StreamPosition("LOG_0", "log", self._version)
        await self._store.put_contacts([CaseContacts(case_id, self._version, rows)], now_ms, position)

    async def of_her(self, now_ms: int = NOW_MS) -> Sequence[tuple[bytes, bool]]:
        """Her contacts with whether their order is open, after the outdated ones were deleted."""
        await self._store.forget(now_ms)
        rows = (await self._store.contacts_of(["p1"]))["p1"]
        return [(row.sealed, row.valid_until_ms is None) for row in rows]


@pytest.fixture
async def contacts(tmp_path: Path) -> AsyncIterator[Contacts]:
    async with open_database(tmp_path / "warning.sqlite3", MIGRATIONS) as database:
        yield Contacts(WarningStore(database))


@pytest.mark.parametrize("named", [{"p2": b"other"}, {}])
async def test_the_contact_of_a_person_who_is_no_longer_named_stays_for_a_day(
    contacts: Contacts, named: dict[str, bytes]
) -> None:
    await contacts.read("case-1", {"p1": b"hers", "p2": b"other"})
    await contacts.read("case-1", named)
    await contacts.read("case-1", named, now_ms=NOW_MS + CONTACT_RETENTION_MS // 2)
    assert await contacts.of_her(NOW_MS + CONTACT_RETENTION_MS) == [(b"hers", False)]
    assert await contacts.of_her(NOW_MS + CONTACT_RETENTION_MS + 1) == []


async def test_a_person_who_is_named_once_more_has_her_contact_of_now(contacts: Contacts) -> None:
    await contacts.read("case-1", {"p1": b"old"})
    await contacts.read("case-1", {})
    await contacts.read("case-1", {"p1": b"new"})
    assert await contacts.of_her() == [(b"new", True)]


async def test_a_withdrawn_contact_is_not_kept_by_an_order_that_no_longer_names_her(contacts: Contacts) -> None:
    await contacts.read("case-1", {"p1": b"old"})
    await contacts.read("case-1", {})
    await contacts.read("case-2", {"p1": b""})
    assert await contacts.of_her() == [(b"", True)]
