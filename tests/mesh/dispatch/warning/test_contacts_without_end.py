"""Contacts of orders without an end stay with the warning leg until the order ends (Stalking Punishment Act 17-7)."""

from __future__ import annotations

from pathlib import Path

from services.common.storage import db
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.warning import translate
from services.dispatch.warning.service import MIGRATIONS
from services.dispatch.warning.store import CONTACT_RETENTION_MS, WarningStore
from tandem.common.v1 import log_pb2

YEAR_MS = 366 * 86_400_000


def entry(version: int, valid_until_ms: int) -> bytes:
    person = log_pb2.ProtectedTarget(person_id="p-1", device_ids=["app-1"], sealed_contact=b"sealed")
    case = log_pb2.CaseSnapshot(case_id="c-1", version=version, persons=[person], valid_until_ms=valid_until_ms)
    return log_pb2.LogEntry(case=case).SerializeToString()


async def test_a_contact_without_an_end_is_kept_and_one_with_an_end_goes(tmp_path: Path) -> None:
    async with db.open_database(tmp_path / "warning.sqlite3", MIGRATIONS) as database:
        store = WarningStore(database)
        for version, valid_until_ms, now_ms, kept in ((1, 0, 10 * YEAR_MS, 1), (2, 5, 6 + CONTACT_RETENTION_MS, 0)):
            found = translate.case(entry(version, valid_until_ms))
            assert found is not None
            await store.put_contacts([found], 1, StreamPosition("LOG_0", "log", version))
            await store.forget(now_ms)
            assert len((await store.contacts_of(["p-1"]))["p-1"]) == kept
