"""A publisher publishes disclosures and commands again that their stream has lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.common.clock import MeshClock, wall_us
from services.common.errors import StoreFull, Unavailable
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.publications import LegDisclosures
from services.dispatch.leg.store import Store
from services.geofence.disclosures import DisclosureOutbox
from services.ingest.admission.routes import Routes
from services.ingest.commands.service import Commands
from services.ingest.metrics import IngestMetrics
from tandem.common.v1 import command_pb2, ledger_pb2
from tests.support import torn
from tests.support.common.nats import TestServer

WITHIN_S = 25.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "nats"


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns once a condition holds. Retries while the server doesn't answer."""
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
    """Kills the server, tears the last message, which is on the subject `lost`, and restarts the server."""
    assert await bus.last_of(stream, lost) is not None
    nats.kill()
    torn.overwrite_tail(store, stream, random.Random(1))
    nats.start()


@asynccontextmanager
async def working(work: Awaitable[None]) -> AsyncIterator[None]:
    """Runs a task until the block ends, and checks that it hasn't ended before."""
    task = asyncio.ensure_future(work)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def disclosure(name: str) -> ledger_pb2.Disclosure:
    return ledger_pb2.Disclosure(disclosure_id=name, at_ms=wall_us() // 1000, record_id="w-1", order_id="o-1")


async def test_an_evaluator_restores_its_lost_disclosures(
    nats: TestServer, bus: Bus, store: Path, tmp_path: Path
) -> None:
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
        await asyncio.sleep(1.0)  # until the outbox has recorded the publication
        await tear(nats, bus, store, flow.DISCLOSURES.name, subjects[1])
        await until(lambda: is_there(bus, flow.DISCLOSURES.name, *subjects))
        assert (await bus.bounds_of(flow.DISCLOSURES.name)).last == 2


async def test_a_leg_restores_its_lost_disclosures(nats: TestServer, bus: Bus, store: Path, tmp_path: Path) -> None:
    subjects = [flow.disclosure_subject("dispatch-police", name) for name in ("d-1", "d-2")]
    disclosures = [disclosure("d-1"), disclosure("d-2")]
    for subject, message in zip(subjects, disclosures, strict=True):
        await bus.publish(subject, message.SerializeToString(), msg_id=message.disclosure_id)
    async with open_database(tmp_path / "leg.sqlite3", MIGRATIONS) as database:
        kept = LegDisclosures(Leg.POLICE, Store(database))
        await kept.keep(disclosures)
        await kept.keep([])
        await kept.keep(disclosures[:1])  # a repeated request
        async with working(kept.run(bus)):
            await tear(nats, bus, store, flow.DISCLOSURES.name, subjects[1])
            await until(lambda: is_there(bus, flow.DISCLOSURES.name, *subjects))
        assert (await bus.bounds_of(flow.DISCLOSURES.name)).last == 2


async def test_a_leg_goes_on_while_the_stream_of_its_lost_disclosure_is_full(bus: Bus, tmp_path: Path) -> None:
    lost, info = disclosure("d-lost"), await bus.js.stream_info(flow.DISCLOSURES.name)
    full_size, info.config.max_bytes = info.config.max_bytes, 4096
    await bus.js.update_stream(info.config)
    with pytest.raises(StoreFull):
        for n in range(100):
            await bus.publish(flow.disclosure_subject("dispatch-police", f"d-{n}"), b"")
    async with open_database(tmp_path / "leg.sqlite3", MIGRATIONS) as database:
        kept = LegDisclosures(Leg.POLICE, Store(database))
        await kept.keep([lost])
        with capture_logs() as logs:
            async with working(kept.run(bus)), asyncio.timeout(WITHIN_S):
                while not any(line["event"] == "work_retried" for line in logs):  # noqa: ASYNC110  # it logs in another task
                    await asyncio.sleep(0.05)
                info.config.max_bytes = full_size
                await bus.js.update_stream(info.config)
                subject = flow.disclosure_subject("dispatch-police", lost.disclosure_id)
                await until(lambda: is_there(bus, flow.DISCLOSURES.name, subject))


async def test_ingest_restores_lost_commands_that_have_not_expired(nats: TestServer, bus: Bus, store: Path) -> None:
    commands = Commands(bus, Routes(bus, MeshClock()), MeshClock(), metrics=IngestMetrics(CollectorRegistry()))
    await commands.load()
    now_ms = wall_us() // 1000
    vibrate = command_pb2.Instruction(vibrate=command_pb2.Vibrate(duration_s=1))
    given = [
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
        for command in given:
            await commands.command(command)
        lost = flow.command_subject("ingest", "c-2")
        await tear(nats, bus, store, flow.COMMANDS.name, lost)
        await until(lambda: is_there(bus, flow.COMMANDS.name, flow.command_subject("ingest", "c-1"), lost))
        assert [status.command.command_id for status in commands.of_device("d-1")] == ["c-2", "c-1"]
