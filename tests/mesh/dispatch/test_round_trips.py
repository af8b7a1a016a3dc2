"""Number of database round trips per alert: each round trip to PostgreSQL delays the offer."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.rpc.errors import FailedPrecondition, InvalidField
from services.common.storage.db import Database, SqliteDatabase, open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.answers import Close
from services.dispatch.domain.enums import CloseCause
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import roster, translate
from services.dispatch.leg.service import LegService, open_leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import PeerRow, StreamPosition
from tests.support.common.postgres import PostgresServer
from tests.support.common.wire import wired
from tests.support.dispatch.dispatch import METRICS, alert
from tests.support.dispatch.roster import TWO_OFFICES, unit

TRANSACTION = 2
"""Round trips of a transaction: begin with the lock of writers, commit."""
READ, WRITTEN = 1, 1
KNOWN = 5
"""Incidents that exist before the measurement, so that the server has prepared every statement."""


@asynccontextmanager
async def leg_over(database: Database, units: bool = False) -> AsyncIterator[LegService]:
    deadlines = Deadlines(3_600_000, 3_600_000, 3_600_000, 3_600_000)
    async with open_leg(Leg.POLICE, Store(database), MeshClock(), deadlines=deadlines, metrics=METRICS) as leg:
        if units:
            await leg.change_roster(partial(roster.put_offices, given=TWO_OFFICES))
            given = [unit(f"a{n}", "a") for n in range(2 * KNOWN)]
            await leg.change_roster(partial(roster.put_units, given=given))
        for sequence in range(1, KNOWN + 1):
            await fold(leg, sequence)
        yield leg


async def fold(leg: LegService, sequence: int, incident: str = "") -> None:
    parsed = translate.alert(
        alert(sequence, incident=incident or f"incident-{sequence}").SerializeToString(), Leg.POLICE
    )
    assert parsed
    await leg.fold([parsed], StreamPosition(flow.ALERTS.name, "log", sequence))


@pytest.mark.parametrize("units", [False, True], ids=["desk", "units"])
async def test_an_alert_is_folded_in_four_round_trips(postgres: PostgresServer, units: bool) -> None:
    async with (
        wired(postgres.new_database()) as (wire, url),
        open_database(url, MIGRATIONS) as database,
        leg_over(database, units) as leg,
    ):
        for incident in ("incident-new", "incident-1"):
            before = wire.round_trips
            await fold(leg, KNOWN + 1, incident)
            assert wire.round_trips - before == TRANSACTION + READ + WRITTEN
        (row,) = (await leg.store.incidents("incident-new", 1, ""))[0].own
        assert bool(translate.stored_assignment(row).choice.unit_id) is units


async def test_an_alert_after_a_refused_answer_reads_no_roster(postgres: PostgresServer) -> None:
    async with (
        wired(postgres.new_database()) as (wire, url),
        open_database(url, MIGRATIONS) as database,
        leg_over(database, units=True) as leg,
    ):
        (row,) = (await leg.store.incidents("incident-1", 1, ""))[0].own
        with pytest.raises(FailedPrecondition):
            await leg.answer(Close(row.assignment_id, "spiffe://npa/desk/seoul", CloseCause.FALSE_POSITION, ""))
        before = wire.round_trips
        await fold(leg, KNOWN + 1)
        assert wire.round_trips - before == TRANSACTION + READ + WRITTEN


async def test_a_refused_change_of_the_roster_costs_no_alert_a_reading_and_changes_nothing(
    postgres: PostgresServer,
) -> None:
    def refused(connection: sa.Connection) -> None:
        roster.put_units(connection, [unit("a-new", "a")])
        leg.availability.load(connection)
        raise InvalidField("unit_id", "is no unit of this leg")

    async with (
        wired(postgres.new_database()) as (wire, url),
        open_database(url, MIGRATIONS) as database,
        leg_over(database, units=True) as leg,
    ):
        with pytest.raises(InvalidField):
            await leg.change_roster(refused)
        assert leg.unit_report("a-new") is None and leg.unit_report("a1") is not None
        before = wire.round_trips
        await fold(leg, KNOWN + 1)
        assert wire.round_trips - before == TRANSACTION + READ + WRITTEN
        await leg.change_roster(partial(roster.put_units, given=[unit("a-later", "a")]))
        assert leg.unit_report("a-later") is not None


async def test_a_closed_incident_among_those_of_a_desk_costs_no_transaction_of_its_own(
    postgres: PostgresServer,
) -> None:
    async with (
        wired(postgres.new_database()) as (wire, url),
        open_database(url, MIGRATIONS) as database,
        leg_over(database) as leg,
    ):
        ended = translate.alert(alert(KNOWN + 1, ends=True, incident="incident-1").SerializeToString(), Leg.POLICE)
        assert ended
        await leg.fold([ended], StreamPosition(flow.ALERTS.name, "log", KNOWN + 1))
        before = wire.round_trips
        ids = [f"incident-{n}" for n in range(1, KNOWN + 1)]
        assert await leg.show_targets([*ids, "incident-none"], "spiffe://npa/desk/a") == set(ids[1:])
        assert wire.round_trips - before == TRANSACTION + 1 + READ + WRITTEN, "one reading says which are open"


async def test_the_steps_of_other_legs_are_stored_in_three_round_trips(postgres: PostgresServer) -> None:
    async with (
        wired(postgres.new_database()) as (wire, url),
        open_database(url, MIGRATIONS) as database,
        leg_over(database) as leg,
    ):
        rows = [PeerRow(f"assignment-{n}", "incident-1", 2, b"") for n in range(20)]
        await leg.record.secondary.put_peers(rows, StreamPosition(flow.INCIDENTS.name, "log", 1))
        before = wire.round_trips
        await leg.record.secondary.put_peers(rows, StreamPosition(flow.INCIDENTS.name, "log", 2))
        assert wire.round_trips - before == TRANSACTION + WRITTEN


async def test_sqlite_writes_each_table_once(tmp_path: Path) -> None:
    async with open_database(tmp_path / "police.sqlite3", MIGRATIONS) as database, leg_over(database) as leg:
        assert isinstance(database, SqliteDatabase)
        statements: list[str] = []
        database._visits.driver().set_trace_callback(statements.append)
        await fold(leg, KNOWN + 1)
        tables = ("events", "steps", "assignments", "incidents", "awaited_legs", "positions")
        begun, read, *written, committed = [statement.split() for statement in statements]
        assert (begun[0], read[0], committed[0]) == ("BEGIN", "SELECT", "COMMIT")
        # A table with several new rows shows once for each of them, in one run.
        assert [table for table, _ in itertools.groupby(words[2] for words in written)] == list(tables)
