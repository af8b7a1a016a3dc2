"""Published disclosures that name something unknown are held: in the ledger once it is known, and lost in no case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.common.clock import MeshClock, wall_us
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor
from services.common.priority import PriorityGate
from services.common.storage import db
from services.common.storage.db import Database
from services.registry.disclosure import published
from services.registry.disclosure.published import PublishedDisclosure, PublishedDisclosures
from services.registry.disclosure.translate import published_disclosure
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.tables import MIGRATIONS, alerted_incidents, ledger
from tandem.common.v1 import alert_pb2, ledger_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore
from tests.support.registry.registry import WITHIN_S, RegistryMesh, running_registry
from tests.support.stream_readers.alerts import alert_messages

DESK = "spiffe://npa/desk/seoul"
CURSOR = StreamCursor.parse("1:1:00")


def message(name: str, **changes: object) -> tuple[str, bytes]:
    """Subject and data of a disclosure by the police's leg."""
    content: dict[str, object] = {
        "at_ms": wall_us() // 1000,
        "who": DESK,
        "legal_basis": "STALKING_9_1_2",
        "purpose": "ENFORCEMENT",
        "reference": "incident-1",
        "record_kind": "WEARER",
        "record_id": "w-1",
        "order_id": "o-1",
        "recipient": DESK,
    }
    disclosure = ledger_pb2.Disclosure(disclosure_id=name, **content | changes)  # type: ignore[arg-type]
    return flow.disclosure_subject("dispatch-police", name), disclosure.SerializeToString()


# ── a whole registry ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def registry(tmp_path: Path, where: Path | str) -> Iterator[RegistryMesh]:
    """A registry on each database engine."""
    with running_registry(tmp_path, 1, where if isinstance(where, str) else "") as running:
        yield running


async def test_a_disclosure_is_in_the_ledger_once_what_it_names_is_known(registry: RegistryMesh) -> None:
    def ids(table: str) -> list[str]:
        return sorted(row[0] for row in registry.query(f"select disclosure_id from {table}"))  # noqa: S608

    async with registry.connected() as client:
        for name in ("held-1", "held-2"):
            await client.bus.publish(*message(name))
        await client.until("select 1 from (select count(*) as n from held_disclosures) as counted where n = 2")
        await client.put(*records.unlinked())
        registry.service.kill()
        registry.service.start()
        for name in ("of-the-order", "held-3"):
            await client.bus.publish(*message(name, **{"reference": "o-1"} if name == "of-the-order" else {}))
        await client.until("select 1 from ledger where disclosure_id = 'of-the-order'")
        await client.until("select 1 from (select count(*) as n from held_disclosures) as counted where n = 3")
        assert ids("ledger") == ["of-the-order"], "the incident isn't known yet"
        for alert in alert_messages("incident-1"):
            await client.bus.publish(*alert)
        await client.until("select 1 from (select count(*) as n from ledger) as counted where n = 4")
        assert ids("ledger") == ["held-1", "held-2", "held-3", "of-the-order"] and ids("held_disclosures") == []


# ── its parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def database(where: Path | str) -> AsyncIterator[Database]:
    async with db.open_database(where, MIGRATIONS) as opened:
        yield opened


@pytest.fixture
async def core(database: Database) -> RegistryCore:
    core = RegistryCore(database, Vault([bytes(32)]), MeshClock())
    await core.prepare("log 1")
    return core


@pytest.fixture
def accepting(core: RegistryCore) -> PublishedDisclosures:
    return PublishedDisclosures(core.transactions, core.disclosures, held=core.metrics.disclosures_held)


def read(*names: str) -> list[PublishedDisclosure]:
    return [
        PublishedDisclosure(published_disclosure(*message(name)), *message(name), number)
        for number, name in enumerate(names, 1)
    ]


async def make_known(core: RegistryCore) -> None:
    """Stores what the disclosures name."""
    await core.police.put_protected_person(translate.parse_protected_person(records.person()))
    await core.police.put_order(translate.parse_order(records.order()))
    await core.ministry.put_wearer(translate.parse_wearer(records.wearer()))
    incident = alerted_incidents.insert().values(incident_id="incident-1")
    await core.database.visit(lambda connection: connection.execute(incident))


async def ledger_ids(core: RegistryCore) -> list[str]:
    chosen = ledger.select().order_by(ledger.c.sequence)
    return [row.disclosure_id for row in await core.database.visit(lambda connection: connection.execute(chosen).all())]


async def check_all(accepting: PublishedDisclosures) -> None:
    """Checks until nothing is held any more."""
    async with asyncio.timeout(WITHIN_S):
        while (await accepting.check()).held:  # noqa: ASYNC110 - a check is due after a time
            await asyncio.sleep(0.05)


async def dead_letters(bus: Bus) -> list[alert_pb2.DeadLetter]:
    """The first dead letters, once there is one."""
    async for messages in pull.read(bus, flow.DEAD_LETTERS.name, 1):
        return [alert_pb2.DeadLetter.FromString(letter.data) for letter in messages]
    raise AssertionError("the stream ended")


async def test_an_unknown_one_becomes_a_dead_letter_after_a_time_and_is_held_all_the_same(
    bus: Bus, core: RegistryCore, accepting: PublishedDisclosures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "REPORT_AFTER_MS", 0)
    monkeypatch.setattr(published, "MIN_CHECK_DELAY_MS", 10)
    assert await accepting.accept(read("unknown"), "log", CURSOR) == []
    running = asyncio.create_task(accepting.run(bus, PriorityGate()))
    try:
        async with asyncio.timeout(WITHIN_S):
            (letter,) = await dead_letters(bus)
            assert (letter.stream, letter.sequence, letter.by) == ("DISCLOSURES", 1, flow.DISCLOSURES_DURABLE)
            assert letter.reason == "record_id: names no WEARER that is or was stored"
            assert await ledger_ids(core) == []
            await make_known(core)
            while await ledger_ids(core) != ["unknown"]:  # noqa: ASYNC110 - another task appends it
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(await dead_letters(bus)) == 1, "one alarm, however often it was checked"


async def test_more_than_may_be_held_become_dead_letters_at_once(
    core: RegistryCore, accepting: PublishedDisclosures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "MAX_HELD", 2)
    assert await accepting.accept(read("d-1"), "log", CURSOR) == []
    refused = await accepting.accept(read("d-1", "d-2", "d-3", "d-4"), "log", CURSOR)
    assert [unusable.sequence for unusable in refused] == [3, 4]
    await make_known(core)
    await check_all(accepting)
    assert await ledger_ids(core) == ["d-1", "d-2"]


async def test_a_held_one_that_comes_once_more_is_in_the_ledger_once(
    core: RegistryCore, accepting: PublishedDisclosures
) -> None:
    await accepting.accept(read("d-1"), "log", CURSOR)
    await make_known(core)
    await accepting.accept(read("d-1"), "log", CURSOR)
    await check_all(accepting)
    assert await ledger_ids(core) == ["d-1"]
    assert await accepting.newest("log") == CURSOR and await accepting.newest("another log") is None
