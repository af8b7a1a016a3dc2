"""Disclosures and commands that their stream lost after they were published are put back by their publisher."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.clock import MeshClock, wall_us
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.rpc.errors import Unavailable
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.evidence.disclosures import EvidenceDisclosures
from services.dispatch.leg.store import Store
from services.geofence.sharing.outbox import DisclosureOutbox
from services.ingest.admission.routes import Routes
from services.ingest.commands.service import Commands
from tandem.common.v1 import command_pb2, ledger_pb2
from tests.support import torn
from tests.support.common.nats import TestServer

WITHIN_S = 25.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "nats"


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns once it does; a server that isn't there yet is waited for."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                if await holds():
                    return
            except Unavailable:
                pass
            await asyncio.sleep(0.05)


async def is_there(bus: Bus, stream: str, *subjects: str) -> bool:
    """Whether a stream has a message on each of these subjects."""
    return all([await bus.last_of(stream, subject) is not None for subject in subjects])


async def tear(nats: TestServer, bus: Bus, store: Path, stream: str, lost: str) -> None:
    """kill -9, the last message torn, started again: that on the subject `lost` is gone for a moment."""
    assert await bus.last_of(stream, lost) is not None
    nats.kill()
    torn.overwrite_tail(store, stream, random.Random(1))
    nats.start()


@asynccontextmanager
async def working(work: Awaitable[None]) -> AsyncIterator[None]:
    """Work that goes on beside the block."""
    task = asyncio.ensure_future(work)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def disclosure(name: str) -> ledger_pb2.Disclosure:
    return ledger_pb2.Disclosure(disclosure_id=name, at_ms=wall_us() // 1000, record_id="w-1", order_id="o-1")


async def test_an_evaluators_disclosures_are_put_back(nats: TestServer, bus: Bus, store: Path, tmp_path: Path) -> None:
    outbox = DisclosureOutbox(tmp_path, MeshClock())
    subjects = [flow.disclosure_subject("geofence", name) for name in ("d-1", "d-2")]

    async def begun(name: str) -> bool:
        await outbox.begin([disclosure(name)])
        return True

    async with working(outbox.run(bus)):
        await until(lambda: begun("d-1"))
        await until(lambda: is_there(bus, flow.DISCLOSURES.name, subjects[0]))
        await until(lambda: begun("d-2"))
        await until(lambda: is_there(bus, flow.DISCLOSURES.name, *subjects))
        await asyncio.sleep(1.0)  # until it is noted
        await tear(nats, bus, store, flow.DISCLOSURES.name, subjects[1])
        await until(lambda: is_there(bus, flow.DISCLOSURES.name, *subjects))
        assert (await bus.bounds_of(flow.DISCLOSURES.name)).last == 2


async def test_a_legs_disclosures_are_put_back(nats: TestServer, bus: Bus, store: Path, tmp_path: Path) -> None:
    subjects = [flow.disclosure_subject("dispatch-police", name) for name in ("d-1", "d-2")]
    made = [disclosure("d-1"), disclosure("d-2")]
    for subject, one in zip(subjects, made, strict=True):
        await bus.publish(subject, one.SerializeToString(), msg_id=one.disclosure_id)
    async with open_database(tmp_path / "leg.sqlite3", MIGRATIONS) as database:
        kept = EvidenceDisclosures("police", Store(database))
        await kept.keep(made)
        await kept.keep([])
        await kept.keep(made[:1])  # asked for again
        async with working(kept.run(bus)):
            await tear(nats, bus, store, flow.DISCLOSURES.name, subjects[1])
            await until(lambda: is_there(bus, flow.DISCLOSURES.name, *subjects))
        assert (await bus.bounds_of(flow.DISCLOSURES.name)).last == 2


async def test_commands_that_are_not_over_are_put_back(nats: TestServer, bus: Bus, store: Path) -> None:
    commands = Commands(bus, Routes(bus, MeshClock()), MeshClock())
    await commands.load()
    now_ms = wall_us() // 1000
    vibrate = command_pb2.Instruction(vibrate=command_pb2.Vibrate(duration_s=1))
    made = [
        command_pb2.Command(
            command_id=f"c-{n}",
            device_id="d-1",
            instruction=vibrate,
            issued_at_ms=now_ms,
            expires_at_ms=now_ms + 600_000,
        )
        for n in (1, 2)
    ]
    async with working(commands.follow()), working(commands.publish_steps()):
        for one in made:
            await commands.command(one)
        lost = flow.command_subject("ingest", "c-2")
        await tear(nats, bus, store, flow.COMMANDS.name, lost)
        await until(lambda: is_there(bus, flow.COMMANDS.name, flow.command_subject("ingest", "c-1"), lost))
        assert [one.command.command_id for one in commands.of_device("d-1")] == ["c-2", "c-1"]
