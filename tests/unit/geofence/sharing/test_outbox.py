"""The outbox of disclosures: one transaction for many shares, a full disk, and shares whose stream broke."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, cast

import pytest

from services.common.clock import MeshClock
from services.common.errors import StoreFull, Unavailable
from services.common.messaging import lost_publications
from services.common.messaging.bus import Bus
from services.common.storage.db import SqliteDatabase
from services.geofence import disclosures
from services.geofence.disclosures import ALLOWED_BATCH, END_SUFFIX, DisclosureOutbox
from tandem.common.v1 import ledger_pb2
from tests.support.common.disk import own_disk

PATIENCE_S = 60.0


class FakeBus:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.published: dict[str, ledger_pb2.Disclosure] = {}

    async def publish_until_stored(self, subject: str, data: bytes, **_: Any) -> None:
        disclosure = ledger_pb2.Disclosure.FromString(data)
        assert subject.endswith(disclosure.disclosure_id)
        self.published[disclosure.disclosure_id] = disclosure


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[DisclosureOutbox, FakeBus]]:
    """An open outbox, and the bus to which it publishes."""
    outbox, bus = DisclosureOutbox(folder, MeshClock()), FakeBus()
    working = asyncio.create_task(outbox.run(cast(Bus, bus)))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while outbox._opened is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield outbox, bus
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def disclosure(name: str) -> ledger_pb2.Disclosure:
    return ledger_pb2.Disclosure(disclosure_id=name, who="spiffe://npa/desk/a", record_id="w")


def open_shares(folder: Path) -> dict[str, int]:
    """Allowed positions of the shares that are open on disk."""
    with closing(sqlite3.connect(folder / "disclosures.sqlite3")) as file:
        return dict(file.execute("select disclosure_id, positions from open_shares"))


def waiting_rows(folder: Path) -> int:
    """Number of disclosures that aren't marked as published yet."""
    with closing(sqlite3.connect(folder / "disclosures.sqlite3")) as file:
        return int(file.execute("select count(*) from waiting").fetchone()[0])


@pytest.fixture(autouse=True)
def _restores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def keep_restored(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(lost_publications, "keep_restored", keep_restored)


async def test_shares_that_begin_together_are_on_disk_after_few_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (outbox, bus):
        visits, visit = 0, SqliteDatabase.visit

        async def counted(self: SqliteDatabase, work: Any) -> Any:
            nonlocal visits
            visits += 1
            return await visit(self, work)

        monkeypatch.setattr(SqliteDatabase, "visit", counted)
        monkeypatch.setattr(disclosures, "PUBLISH_DELAY_S", 3_600)
        names = [f"share-{n}" for n in range(500)]
        opened = await asyncio.gather(*(outbox.begin([disclosure(name)]) for name in names))
        assert visits <= 2, "those that come while a transaction runs share the next one"
        assert open_shares(tmp_path) == dict.fromkeys(names, ALLOWED_BATCH)
        shares = [share for (share,) in opened]
        for share in shares:
            for _ in range(ALLOWED_BATCH):
                share.count()
            with pytest.raises(ValueError, match="uncounted"):
                share.count()
        await outbox.allow(shares)
        assert visits <= 3
        assert open_shares(tmp_path) == dict.fromkeys(names, 2 * ALLOWED_BATCH)
        for share in shares:
            share.count()
            outbox.end(share)
        await until(lambda: not open_shares(tmp_path))
        assert visits <= 5
    async with running(tmp_path) as (_, bus):
        await until(lambda: len(bus.published) == 1_000)
    assert {bus.published[f"{name}{END_SUFFIX}"].positions for name in names} == {ALLOWED_BATCH + 1}


async def test_a_full_disk_refuses_each_share_and_keeps_the_ends(tmp_path: Path) -> None:
    with own_disk(tmp_path / "disk", "64m") as disk:
        async with running(tmp_path / "disk") as (outbox, bus):
            (kept,) = await outbox.begin([disclosure("kept")])
            await until(
                lambda: not waiting_rows(tmp_path / "disk")
            )  # so that nothing is written while the disk shrinks
            disk.fill()
            refused = [f"refused-{n}" for n in range(200)]
            results = await asyncio.gather(
                *(outbox.begin([disclosure(name)]) for name in refused),
                outbox.allow([kept]),  # one transaction with the others, which doesn't fit
                return_exceptions=True,
            )
            assert {type(result) for result in results} == {Unavailable}
            assert kept.allowed == ALLOWED_BATCH
            kept.count()
            outbox.end(kept)
            disk.free()
            await until(lambda: f"kept{END_SUFFIX}" in bus.published)
            await outbox.begin([disclosure("later")])
            await until(lambda: "later" in bus.published)
            assert not set(refused) & set(bus.published)
            assert bus.published[f"kept{END_SUFFIX}"].positions == 1


async def test_a_suspended_share_goes_on_or_ends_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as (outbox, bus):
        first, second, third = await outbox.begin([disclosure("first"), disclosure("second"), disclosure("third")])
        outbox.suspend("a", first)
        assert outbox.resume("a") is first and outbox.resume("a") is None
        monkeypatch.setattr(disclosures, "RESUME_S", 0)
        outbox.suspend("b", second)
        await until(lambda: f"second{END_SUFFIX}" in bus.published)
        assert outbox.resume("b") is None
        monkeypatch.setattr(disclosures, "RESUME_S", 3_600)
        third.count()
        outbox.suspend("c", third)
    # The process stops: what is suspended ends with its count. What is open is left to the next start.
    assert open_shares(tmp_path) == {"first": ALLOWED_BATCH}
    async with running(tmp_path) as (_, bus):
        await until(lambda: {f"first{END_SUFFIX}", f"third{END_SUFFIX}"} <= bus.published.keys())
        assert bus.published[f"third{END_SUFFIX}"].positions == 1
        assert bus.published[f"first{END_SUFFIX}"].positions == ALLOWED_BATCH


async def test_a_recipient_that_leaves_while_its_share_is_written_leaves_no_open_share(tmp_path: Path) -> None:
    async with running(tmp_path) as (outbox, bus):
        with closing(sqlite3.connect(tmp_path / "disclosures.sqlite3", isolation_level=None)) as other:
            other.execute("begin immediate")
            writing = asyncio.create_task(outbox.begin([disclosure("written")]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting = asyncio.create_task(outbox.begin([disclosure("waiting")]))
            await asyncio.sleep(0.05)
            for task in (writing, waiting):
                task.cancel()
            await asyncio.gather(writing, waiting, return_exceptions=True)
            other.execute("rollback")
        (later,) = await outbox.begin([disclosure("later")])
        await until(lambda: open_shares(tmp_path) == {"later": ALLOWED_BATCH})
        await until(lambda: "later" in bus.published)
        for name in ("written", "waiting"):
            assert (name in bus.published) == (f"{name}{END_SUFFIX}" in bus.published), name
        outbox.end(later)


async def test_a_single_disclosure_is_on_disk_and_has_no_end(tmp_path: Path) -> None:
    outbox = DisclosureOutbox(tmp_path, MeshClock())
    with pytest.raises(Unavailable):
        await outbox.record([disclosure("map-0")])
    async with running(tmp_path) as (opened, bus):
        await opened.record([disclosure("map-1"), disclosure("map-2")])
        assert open_shares(tmp_path) == {}
        await until(lambda: set(bus.published) == {"map-1", "map-2"})
    async with running(tmp_path) as (_, bus):
        assert open_shares(tmp_path) == {} and waiting_rows(tmp_path) == 0 and not bus.published


async def test_a_full_stream_ends_no_outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored = asyncio.Event()
    errors = iter([StoreFull("DISCLOSURES is full")])

    async def keep_restored(*_: Any) -> None:
        for error in errors:
            raise error
        restored.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(lost_publications, "keep_restored", keep_restored)
    monkeypatch.setattr(disclosures, "RETRY_DELAY_S", 0.01)
    async with running(tmp_path) as (outbox, bus):
        await asyncio.wait_for(restored.wait(), PATIENCE_S)
        await outbox.record([disclosure("afterwards")])
        await until(lambda: "afterwards" in bus.published)
