"""Notices of the Ministry that wait for the ledger, however many, hide no warning of the police."""

from __future__ import annotations

from pathlib import Path

from services.common.storage import db
from services.dispatch.warning.service import MIGRATIONS
from services.dispatch.warning.store import WarningStore
from tests.support.dispatch.warning import put_waiting, waiting_message


async def test_a_warning_comes_before_the_notices_that_wait(tmp_path: Path) -> None:
    async with db.open_database(tmp_path / "warning.sqlite3", MIGRATIONS) as database:
        notices = [waiting_message(f"notice-{number}", ground="TAG_15_2") for number in range(500)]
        await put_waiting(database, *notices, waiting_message("warning", due_ms=1_000))
        due = await WarningStore(database).due(1_000)
        assert due.messages[0].message_id == "warning"
        assert len(due.messages) == len(notices), "a page"
