"""Absent legs: each is found when it comes back, however many there are, and none is awaited long after its incident."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from services.dispatch.domain.leg import Leg
from services.dispatch.leg import tables
from services.dispatch.leg.deadlines import ABSENCE_BATCH, ABSENT_KEPT_MS, AbsenceChange, AbsenceCheck
from services.dispatch.leg.tables import awaited_legs
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2

NOW_MS = 10 * ABSENT_KEPT_MS


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    tables.metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def await_leg(connection: sa.Connection, incident_id: str, due_ms: int, *, ended_ms: int | None = None) -> None:
    """Stores an incident in which the police leg is absent."""
    connection.execute(
        sa.insert(awaited_legs), {"incident_id": incident_id, "leg": "police", "due_ms": due_ms, "absent": True}
    )
    incident = {"incident_id": incident_id, "opened_sequence": 1, "opened_ms": 1, "order_ids": [], "exercise": 0}
    connection.execute(sa.insert(tables.incidents), {**incident, "ended_ms": ended_ms})


def show(connection: sa.Connection, incident_id: str, leg: alert_pb2.Leg.ValueType = alert_pb2.POLICE) -> None:
    """Stores a step of another leg."""
    payload = dispatch_pb2.Assignment(leg=leg).SerializeToString()
    row = {"assignment_id": f"{leg} of {incident_id}", "incident_id": incident_id, "number": 1, "payload": payload}
    connection.execute(sa.insert(tables.peers), row)


def left(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(awaited_legs)).scalar_one()


def test_a_leg_that_returns_to_the_oldest_of_many_incidents_is_found(connection: sa.Connection) -> None:
    count = 2 * ABSENCE_BATCH + 1
    for number in range(count):
        await_leg(connection, f"incident-{number}", 1_000 + number // 2)  # some are due at the same moment
        show(connection, f"incident-{number}", alert_pb2.PROBATION)
    checks = AbsenceCheck()
    assert checks.check(connection, NOW_MS) == []
    show(connection, "incident-0")
    changes = [change for _ in range(3) for change in checks.check(connection, NOW_MS)]
    assert changes == [AbsenceChange("incident-0", Leg.POLICE, True)]
    for number in range(1, count):
        show(connection, f"incident-{number}")
    returned = {change.incident_id for _ in range(4) for change in checks.check(connection, NOW_MS)}
    assert len(returned) == count - 1 and left(connection) == 0


def test_nobody_awaits_a_leg_long_after_the_end_of_the_incident(connection: sa.Connection) -> None:
    await_leg(connection, "open", 1_000)
    await_leg(connection, "ended just now", 1_000, ended_ms=NOW_MS - ABSENT_KEPT_MS + 1)
    await_leg(connection, "ended long ago", 1_000, ended_ms=NOW_MS - ABSENT_KEPT_MS)
    await_leg(connection, "ended, and came back", 1_000, ended_ms=1)
    show(connection, "ended, and came back")
    checks = AbsenceCheck()
    assert checks.check(connection, NOW_MS) == [AbsenceChange("ended, and came back", Leg.POLICE, True)]
    assert set(connection.scalars(sa.select(awaited_legs.c.incident_id))) == {"open", "ended just now"}
