"""Watchers that resume from a position beyond the newest are told so. On both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.common.rpc import server
from services.common.storage import db
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.reviews.service import delete_events
from services.registry.tables import MIGRATIONS, match_events
from tandem.registry.v1 import disclosure_pb2, registry_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore
from tests.support.registry.registry import MOJ, SECRET, WITHIN_S, Client, RegistryMesh


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


async def refusal_of(call: grpc.aio.UnaryStreamCall) -> tuple[grpc.StatusCode, str]:  # type: ignore[type-arg]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    return refused.value.code(), str(refused.value.details())


async def test_a_watcher_beyond_the_newest_match_is_refused_with_the_newest(client: Client) -> None:
    number = "800101-1988001"
    await client.put(records.wearer("w-beyond", number), records.order("o-beyond", (), number))
    [[newest]] = client.mesh.query("select max(sequence) from match_events")
    for after in (newest + 1, (1 << 64) - 1):
        request = registry_pb2.WatchMatchesRequest(after_sequence=after)
        call = client.stub.WatchMatches(request, metadata=server.bearer(MOJ, SECRET), timeout=WITHIN_S)
        code, text = await refusal_of(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert text == f"after_sequence: is beyond the newest event, {newest}; start again with 0"


async def test_a_watcher_beyond_the_newest_row_of_the_ledger_is_refused_with_the_newest(client: Client) -> None:
    await client.put(records.wearer("w-head", "800101-1988002"))
    [[newest]] = client.mesh.query("select coalesce(max(sequence), 0) from ledger")
    request = disclosure_pb2.WatchLedgerHeadsRequest(after_sequence=newest + 1)
    call = client.disclosures.WatchLedgerHeads(request, metadata=server.bearer(MOJ, SECRET), timeout=WITHIN_S)
    code, text = await refusal_of(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == f"after_sequence: is beyond the newest row of the ledger, {newest}; start again with 0"


async def test_a_match_that_was_deleted_with_its_records_stays_a_valid_position(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
        await registry.prepare("log 1")
        await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        await registry.police.put_order(translate.parse_order(records.order("o-1")))
        await registry.police.put_order(translate.parse_order(records.order("o-2")))
        [first, second] = await registry.reviews.resume(0, 10, only_matches=True)
        for order_id in ("o-2", "o-1"):
            async with registry.database.transaction() as connection:
                await connection.run_sync(delete_events, match_events.c.order_id == order_id)
        async with registry.database.transaction() as connection:
            assert (await connection.execute(sa.select(match_events))).all() == []
        for position in (first, second):
            assert await registry.reviews.resume(position.sequence, 10, only_matches=True) == []
        with pytest.raises(InvalidField, match=f"beyond the newest event, {second.sequence};"):
            await registry.reviews.resume(second.sequence + 1, 10, only_matches=True)
