"""Reconciliation of a leg's record with the streams: missing alerts are folded, and chain, log and metrics show it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import consumer
from services.dispatch.leg.service import open_leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1.dispatch_pb2 import OFFERED
from tests.support.common.nats import TestServer
from tests.support.common.ports import free_port
from tests.support.common.postgres import PostgresServer, running_postgres
from tests.support.dispatch.dispatch import METRICS, PATIENCE_S, alert, publish, running, settings


@pytest.fixture
def police(nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DispatchSettings:
    """Settings of a police leg over a running mesh, with a short interval of comparison."""
    monkeypatch.setattr(consumer, "COMPARE_INTERVAL_S", 0.2)
    return settings("police", nats, tmp_path, metrics_port=free_port())


async def until_served(configured: DispatchSettings, path: str, part: str) -> None:
    """Waits until a path of the leg's metrics port contains a text."""
    url = f"http://127.0.0.1:{configured.metrics_port}/{path}"
    async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as session:
        while True:
            # The port opens after the leg's gRPC server, which `running` waits for.
            with suppress(aiohttp.ClientConnectionError):
                async with session.get(url) as answer:
                    if part in f"{answer.status} {await answer.text()}":
                        return
            await asyncio.sleep(0.05)


async def test_an_alert_that_the_record_lacks_is_folded_by_the_comparison(bus: Bus, police: DispatchSettings) -> None:
    await publish(bus, alert(5), alert(6, incident="incident-2"))
    log_id = "another-log"
    async with running(police) as leg, leg.desk.subscription() as steps:  # stores the id of the log
        await steps.next(OFFERED)
        await steps.next(OFFERED)
    async with open_database(police.database, MIGRATIONS) as database, database.transaction() as connection:
        log_id = (await connection.exec_driver_sql("select log_id from positions")).scalar_one()
    for file in police.data_dir.glob("dispatch-police.sqlite3*"):
        file.unlink()
    async with (
        open_database(police.database, MIGRATIONS) as database,
        open_leg(Leg.POLICE, Store(database), MeshClock(), deadlines=Deadlines(30_000), metrics=METRICS) as empty,
    ):
        # Its position is past both alerts, but it has folded neither.
        await empty.fold([], StreamPosition(flow.ALERTS.name, log_id, 2))
    async with running(police) as leg, leg.desk.subscription() as steps:
        offered = {(await steps.next(OFFERED)).step.assignment.incident_id for _ in range(2)}
        assert offered == {"incident-1", "incident-2"}
        await until_served(police, "metrics", 'tandem_dispatch_reconciled_total{leg="police"} 2.0')
        await until_served(police, "metrics", 'tandem_dispatch_unreconciled{leg="police"} 0.0')
    async with open_database(police.database, MIGRATIONS) as database, database.transaction() as connection:
        rows = (await connection.exec_driver_sql("select kind from events order by id")).scalars().all()
    assert list(rows) == 2 * ["AlertWasMissing", "AlertFolded", "Offered"]


async def test_an_unreadable_alert_counts_as_unreconciled(bus: Bus, police: DispatchSettings) -> None:
    await bus.publish_until_stored(flow.alert_subject(0, "broken"), b"\xff", expected_last=0)
    async with running(police):
        await until_served(police, "metrics", 'tandem_dispatch_unreconciled{leg="police"} 1.0')


@pytest.fixture
def mortal() -> Iterator[PostgresServer]:
    """A PostgreSQL server that a test may kill."""
    with running_postgres() as server:
        yield server


async def test_a_leg_is_not_ready_without_its_database_and_recovers_with_it(
    bus: Bus, nats: TestServer, tmp_path: Path, mortal: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.dispatch.leg.deadlines.STORE_AWAY_AFTER_S", 1.0)
    url = mortal.new_schemas("police")["police"]
    police = settings("police", nats, tmp_path, metrics_port=free_port(), police_database_url=url)
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(1))
        await steps.next(OFFERED)
        await until_served(police, "readyz", "200 ready")
        mortal.kill()
        await until_served(police, "readyz", "503 the store hasn't answered")
        await publish(bus, alert(2, incident="incident-2"))
        mortal.start()
        await until_served(police, "readyz", "200 ready")
        # The first subscription may have ended while the database was away.
        async with leg.desk.subscription() as resubscribed:
            while (await resubscribed.next(OFFERED)).step.assignment.incident_id != "incident-2":
                pass  # the first offer is repeated all the time
