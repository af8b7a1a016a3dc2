"""Availability of units from a real roster in SQLite: a failed transaction leaves no trace in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from services.common.geometry import LatLon
from services.dispatch.domain.roster import Office, Status, Trip, Unit, UnitReport
from services.dispatch.leg import roster
from services.dispatch.leg.availability import AvailabilityView
from services.dispatch.leg.store import CommittedState
from services.dispatch.leg.tables import metadata

NOW_MS = 1_790_000_000_000
HOME = LatLon(37.5, 127.0)


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as opened:
        metadata.create_all(opened)
        roster.put_offices(opened, [Office("a", 1, None, frozenset(), "", "supervisor", "national")])
        for unit_id, north_deg in (("far", 0.2), ("near", 0.01)):
            unit = Unit(unit_id, 1, "a", "patrol-car", frozenset(), NOW_MS - 1000, NOW_MS + 1000)
            roster.put_units(opened, [unit])
            at = LatLon(HOME.lat_deg + north_deg, HOME.lon_deg)
            roster.report_unit(opened, unit_id, UnitReport(Status.AVAILABLE, NOW_MS, at, NOW_MS))
        yield opened
    engine.dispose()


async def test_travel_times_are_known_after_a_failed_transaction(connection: sa.Connection) -> None:
    availability = AvailabilityView()
    availability.last_known_positions.put("person", HOME, NOW_MS)
    availability.load(connection)
    before = await availability.ahead(["person"], NOW_MS)
    assert before.travel[Trip("near", "person")].travel_s < before.travel[Trip("far", "person")].travel_s
    loaded = availability.loaded
    roster.report_unit(connection, "near", UnitReport(Status.OFF, NOW_MS, HOME, NOW_MS))
    availability.load(connection)
    availability.loaded = loaded
    assert await availability.ahead(["person"], NOW_MS) == before


async def test_nothing_of_a_failed_transaction_stays_in_the_roster(connection: sa.Connection) -> None:
    availability = AvailabilityView()
    availability.load(connection)
    loaded = availability.loaded
    failed = connection.begin_nested()
    stranger = Unit("never-kept", 1, "a", "patrol-car", frozenset(), NOW_MS - 1000, NOW_MS + 1000)
    roster.put_units(connection, [stranger])
    availability.load(connection)
    assert "never-kept" in (await availability.ahead([], NOW_MS)).units
    failed.rollback()
    availability.loaded = loaded
    state = CommittedState(roster_version=roster.roster_version(connection), engaged={})
    board, _ = availability.within(connection, state)
    assert set(board.units) == {"far", "near"}
