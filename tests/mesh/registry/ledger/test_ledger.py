"""The ledger of disclosures: each read is a row, and every change of the ledger is detected. On both engines."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.errors import NotFound
from services.common.privacy.grounds import Grounds, Purpose
from services.common.rpc.identity import caller_of
from services.common.storage import db
from services.common.storage.db import Database
from services.registry.disclosure import service
from services.registry.disclosure.service import SIGN_INTERVAL_ROWS, Disclosures
from services.registry.domain.ledger import BrokenChain, Disclosure, LedgerHead, next_row
from services.registry.keys import Vault
from services.registry.ledger import LedgerRepository, Proof, SignedHead, Signer, append_disclosures, verify
from services.registry.records import translate
from services.registry.records.kinds import WEARERS
from services.registry.tables import MIGRATIONS, ledger, ledger_heads
from tests.support.registry import records
from tests.support.registry.core import RegistryCore

DESK = caller_of("spiffe://npa/desk/seoul")
GROUNDS = Grounds("STALKING_9_1_3_2", Purpose.ENFORCEMENT, "incident-7")
SIGNER = Signer(bytes(32))
ROWS = 5
WITHIN_S = 60.0


@pytest.fixture
async def database(where: Path | str) -> AsyncIterator[Database]:
    async with db.open_database(where, MIGRATIONS) as opened:
        yield opened


@pytest.fixture
async def disclosures(database: Database) -> Disclosures:
    registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
    await registry.prepare("log 1")
    await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
    await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
    return Disclosures(registry.transactions, MeshClock(), SIGNER)


@pytest.fixture
async def filled(database: Database, disclosures: Disclosures) -> Database:
    """A ledger of five reads with signed heads at the third and the last row."""
    for n in range(ROWS):
        await disclosures.read(DESK, GROUNDS, WEARERS, record_id="w-1")
        if n in (2, ROWS - 1):
            await disclosures.sign()
    return database


async def proof(database: Database, elsewhere: list[SignedHead] | None = None, key: bytes | None = None) -> Proof:
    async with database.transaction() as connection:
        return await verify(LedgerRepository(connection), key or SIGNER.public_key, elsewhere or [])


async def broken_at(database: Database, elsewhere: list[SignedHead] | None = None) -> int:
    with pytest.raises(BrokenChain) as broken:
        await proof(database, elsewhere)
    return broken.value.sequence


async def test_each_read_is_a_row_without_the_data(database: Database, disclosures: Disclosures) -> None:
    wearer, disclosure_id = await disclosures.read(DESK, GROUNDS, WEARERS, record_id="w-1")
    assert wearer.name == records.NAME
    await disclosures.read_person(DESK, GROUNDS, "p-1")
    async with database.transaction() as connection:
        rows = (await connection.execute(sa.select(ledger).order_by(ledger.c.sequence))).all()
    first = rows[0]
    assert (first.disclosure_id, first.who, first.record_kind, first.record_id) == (
        disclosure_id,
        DESK.spiffe_id,
        "WEARER",
        "w-1",
    )
    assert (first.deed, first.legal_basis, first.purpose) == ("READ", GROUNDS.legal_basis, "ENFORCEMENT")
    assert [row.record_id for row in rows] == ["w-1", "p-1"]
    assert records.NAME not in str(rows) and records.NUMBER not in str(rows)


async def test_a_read_of_an_unknown_record_gives_no_row(database: Database, disclosures: Disclosures) -> None:
    with pytest.raises(NotFound):
        await disclosures.read(DESK, GROUNDS, WEARERS, record_id="nobody")
    assert await proof(database) == Proof(rows=0, heads=0, unsigned=0)


async def test_an_unchanged_ledger_is_proven(filled: Database, disclosures: Disclosures) -> None:
    assert await proof(filled) == Proof(rows=ROWS, heads=2, unsigned=0)
    await disclosures.read(DESK, GROUNDS, WEARERS, record_id="w-1")
    assert await proof(filled) == Proof(rows=ROWS + 1, heads=2, unsigned=1)
    await disclosures.sign()
    assert (await proof(filled)).unsigned == 0


async def test_heads_are_signed_at_intervals_in_the_background(database: Database, disclosures: Disclosures) -> None:
    await disclosures.read(DESK, GROUNDS, WEARERS, record_id="w-1")
    await disclosures.sign()
    signing = asyncio.ensure_future(disclosures.keep_signed())
    try:
        for _ in range(SIGN_INTERVAL_ROWS):
            await disclosures.read(DESK, GROUNDS, WEARERS, record_id="w-1")
        async with asyncio.timeout(20):
            while await heads(database) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        signing.cancel()
    assert (await proof(database)).unsigned < SIGN_INTERVAL_ROWS


async def test_a_signed_ledger_is_not_polled(
    database: Database, disclosures: Disclosures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "POLL_S", 0.01)
    visits, visit = 0, database.visit

    async def counted(work: Any) -> Any:
        nonlocal visits
        visits += 1
        return await visit(work)

    await disclosures.read(DESK, GROUNDS, WEARERS, record_id="w-1")
    await disclosures.sign()
    monkeypatch.setattr(database, "visit", counted)
    signing = asyncio.ensure_future(disclosures.keep_signed())
    try:
        async with asyncio.timeout(20):
            while not visits:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert visits <= 2
    finally:
        signing.cancel()


async def heads(database: Database) -> int:
    async with database.transaction() as connection:
        return len(await LedgerRepository(connection).heads())


@pytest.mark.parametrize("column", [column.name for column in ledger.c if column.name != "sequence"])
async def test_a_changed_column_of_any_row_is_detected_at_its_row(filled: Database, column: str) -> None:
    for sequence in range(1, ROWS + 1):
        async with filled.transaction() as connection:
            where = ledger.c.sequence == sequence
            before = (await connection.execute(sa.select(ledger.c[column]).where(where))).scalar_one()
            await connection.execute(sa.update(ledger).where(where).values({column: changed(before)}))
        assert await broken_at(filled) == sequence
        async with filled.transaction() as connection:
            await connection.execute(sa.update(ledger).where(where).values({column: before}))
    assert (await proof(filled)).rows == ROWS


def changed(value: object) -> object:
    """The value with one bit or character changed; None becomes 0."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value ^ 1
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    text = str(value)
    return text[:-1] + chr(ord(text[-1]) ^ 1) if text else "x"


@pytest.mark.parametrize("sequence", range(1, ROWS + 1))
async def test_a_deleted_row_is_detected(filled: Database, sequence: int) -> None:
    async with filled.transaction() as connection:
        await connection.execute(sa.delete(ledger).where(ledger.c.sequence == sequence))
    assert await broken_at(filled) == sequence


async def rewrite(database: Database, without: int) -> None:
    """Rewrite the whole chain without one row, with correct hashes."""
    async with database.transaction() as connection:
        rows = [row async for row in LedgerRepository(connection).stored_rows()]
        await connection.execute(sa.delete(ledger))
        last: LedgerHead | None = None
        for row in rows:
            if row.sequence == without:
                continue
            appended = next_row(last, row.disclosure)
            await connection.execute(
                sa.insert(ledger).values(
                    sequence=appended.sequence,
                    previous=appended.previous,
                    hash=appended.hash,
                    **dataclasses.asdict(row.disclosure),
                )
            )
            last = LedgerHead(appended.sequence, appended.hash, row.disclosure.at_ms)


async def test_a_rewritten_chain_is_detected_by_its_signed_heads(filled: Database) -> None:
    await rewrite(filled, without=2)
    assert await broken_at(filled) == 3
    async with filled.transaction() as connection:
        # Without the key, the rewritten chain verifies.
        assert (await verify(LedgerRepository(connection), None, [])).rows == ROWS - 1


@pytest.mark.parametrize("signature", ["none", "by another key"])
async def test_a_rewritten_chain_with_forged_or_deleted_heads_is_detected(filled: Database, signature: str) -> None:
    async with filled.transaction() as connection:
        kept = await LedgerRepository(connection).heads()
    await rewrite(filled, without=2)
    async with filled.transaction() as connection:
        await connection.execute(sa.delete(ledger_heads))
        if signature != "none":
            last = await LedgerRepository(connection).last()
            assert last
            await LedgerRepository(connection).sign(last, Signer(hashlib.sha256(b"another").digest()))
    assert await broken_at(filled) == (1 if signature == "none" else ROWS - 1)
    assert await broken_at(filled, kept) in (3, ROWS - 1)


async def test_deleted_rows_and_heads_are_detected_by_the_heads_that_an_agency_kept(filled: Database) -> None:
    async with filled.transaction() as connection:
        kept = await LedgerRepository(connection).heads()
        await connection.execute(sa.delete(ledger).where(ledger.c.sequence > 3))
        await connection.execute(sa.delete(ledger_heads).where(ledger_heads.c.sequence > 3))
    assert (await proof(filled)).rows == 3
    assert await broken_at(filled, kept) == 4


async def test_watchers_of_heads_read_without_the_lock_of_the_writers(
    filled: Database, disclosures: Disclosures
) -> None:
    heads = disclosures.watch_heads(0)
    async with filled.transaction(), asyncio.timeout(WITHIN_S):  # as while an agency puts its records
        assert [(await anext(heads)).head.sequence for _ in range(2)] == [3, ROWS]


async def test_a_disclosure_of_another_service_is_appended_once(database: Database, disclosures: Disclosures) -> None:
    share = Disclosure(
        disclosure_id="share-1",
        at_ms=1_700_000_000_000,
        deed="SHARED",
        who="spiffe://moj/desk/seoul",
        legal_basis="TAG_16_2",
        purpose="ENFORCEMENT",
        reference="incident-1",
        record_kind="WEARER",
        record_id="w-1",
        order_id="o-1",
        recipient="spiffe://npa/desk/seoul",
        expires_at_ms=1_700_000_600_000,
        positions=None,
    )
    for shares in ([share, share], [share]):
        await database.visit(partial(append_disclosures, disclosures=shares))
    await disclosures.sign()
    assert await proof(database) == Proof(rows=1, heads=1, unsigned=0)
