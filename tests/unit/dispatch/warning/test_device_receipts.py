"""Receipts in COMMANDS that concern no message to a protected person: most receipts of a mesh."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.storage.db import open_database
from services.dispatch.leg.rows import StreamPosition
from services.dispatch.publications import skipped
from services.dispatch.warning.receipts import DeviceReceipts, ReceiptStore
from services.dispatch.warning.service import MIGRATIONS
from services.dispatch.warning.store import WarningStore
from tandem.common.v1 import command_pb2


async def test_receipts_of_other_services_commands_are_skipped_and_their_position_is_stored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(tmp_path / "warning.sqlite3", MIGRATIONS) as database:
        store = WarningStore(database)
        receipts = DeviceReceipts(store, ReceiptStore(database), MeshClock())
        step = command_pb2.CommandStep(command_id="pursuit-1", state=command_pb2.COMMAND_STATE_RECEIVED)
        await receipts.accept([step], StreamPosition(flow.COMMANDS.name, "log", 7))
        assert (await store.position(flow.COMMANDS.name, "log")).sequence == 0
        monkeypatch.setattr(skipped, "STORE_INTERVAL_S", 0.01)
        keeping = asyncio.create_task(receipts.skipped.keep())
        async with asyncio.timeout(20):
            while (await store.position(flow.COMMANDS.name, "log")).sequence != 7:  # noqa: ASYNC110  # another task
                await asyncio.sleep(0.01)
        keeping.cancel()
        assert receipts.skipped.position is None
