"""The record of a leg: requests that share a transaction, secondary writes, and rows that stay the same byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, NotFound, Unavailable
from services.common.messaging import flow
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.answers import Acknowledge, Close, Progress
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.decisions import Command, FoldAlert
from services.dispatch.domain.enums import CloseCause
from services.dispatch.domain.escalation import Deadlines, PassDeadline, Situation
from services.dispatch.domain.following import Approach, TargetUpdate
from services.dispatch.domain.incident import Alert
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import tables, translate
from services.dispatch.leg.change import IncidentCommand
from services.dispatch.leg.publications import Published, StoredAs
from services.dispatch.leg.service import LegService, open_leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import PeerRow, StreamPosition
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.dispatch import METRICS, alert
from tests.support.dispatch.leg_chain import first_broken_event

DEADLINES = Deadlines(3_600_000, 3_600_000, 3_600_000, 3_600_000)
POSITION = StreamPosition(flow.INCIDENTS.name, "log", 1)
DESK = "spiffe://npa/desk/seoul"
ROWS = "669b4178821371a85a1fce6cbee34454b04e1133df832ae21a8b72cd3ea2398b"
"""SHA-256 of the rows of the story below."""


class Transactions(Store):
    """A store that counts its transactions and can refuse them."""

    count = 0
    refuses = False

    async def transaction(self, work):  # type: ignore[no-untyped-def]  # as Store
        self.count += 1
        if self.refuses:
            raise Unavailable("the test refuses")
        return await super().transaction(work)


@asynccontextmanager
async def opened(where: Path | str) -> AsyncIterator[tuple[LegService, Transactions]]:
    async with open_database(where, MIGRATIONS) as database:
        store = Transactions(database)
        async with open_leg(Leg.POLICE, store, MeshClock(), deadlines=DEADLINES, metrics=METRICS) as leg:
            yield leg, store


def parsed(sequence: int, incident: str, ends: bool = False) -> Alert:
    message = alert(sequence, incident=incident, ends=ends)
    message.cause.received_wall_us = 1_700_000_000_000_000
    found = translate.alert(message.SerializeToString(), Leg.POLICE)
    assert found
    return found


def at(now_ms: int) -> Situation:
    return Situation(now_ms, DEADLINES)


async def handle(leg: LegService, incident_id: str, command: Command, now_ms: int = 1) -> None:
    await leg.record.handle([IncidentCommand(incident_id, command)], at(now_ms))


async def offered(leg: LegService, *incident_ids: str) -> list[str]:
    """Opens incidents in one transaction each, and returns the ids of their assignments."""
    for number, incident_id in enumerate(incident_ids, 1):
        await handle(leg, incident_id, FoldAlert(parsed(number, incident_id)))
    incidents = {incident.incident_id: incident for incident in await leg.record.open_incidents()}
    return [next(iter(incidents[incident_id].assignments)) for incident_id in incident_ids]


async def test_requests_that_wait_share_one_transaction_and_an_impossible_one_harms_no_other(where: Path | str) -> None:
    async with opened(where) as (leg, store):
        first, second, third = await offered(leg, "incident-1", "incident-2", "incident-3")
        before = store.count
        answers = await asyncio.gather(
            leg.acknowledge(first, DESK),  # its transaction runs while the others arrive
            leg.acknowledge(second, DESK),
            leg.answer(Close(first, DESK, CloseCause.FALSE_POSITION, "")),
            leg.answer(Close(third, DESK, CloseCause.FALSE_POSITION, "")),
            leg.answer(Progress(second, DESK, AssignmentState.DISPATCHED)),
            leg.acknowledge("assign-nobody", DESK),
            return_exceptions=True,
        )
        states = [answer if isinstance(answer, BaseException) else AssignmentState(answer.state) for answer in answers]
        assert states[:3] == [AssignmentState.ACKNOWLEDGED, AssignmentState.ACKNOWLEDGED, AssignmentState.CLOSED]
        assert isinstance(states[3], FailedPrecondition)
        assert states[4] == AssignmentState.DISPATCHED
        assert isinstance(states[5], NotFound)
        # One for the first answer, one to look up the unknown assignment, and one for all others.
        assert store.count - before == 3
        assert await first_broken_event(leg.store) is None


async def test_a_refused_transaction_changes_nothing_for_all_its_requests(where: Path | str) -> None:
    async with opened(where) as (leg, store):
        ids = await offered(leg, "incident-1", "incident-2")
        head, store.refuses = leg.record.head, True
        answers = await asyncio.gather(*(leg.acknowledge(id_, DESK) for id_ in ids), return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
        store.refuses = False
        assert leg.record.head == head == await leg.store.head()
        for id_ in ids:
            assert (await leg.acknowledge(id_, DESK)).state == dispatch_pb2.ACKNOWLEDGED


async def test_records_of_publications_and_steps_of_other_legs_share_a_transaction(where: Path | str) -> None:
    async with opened(where) as (leg, store):
        await offered(leg, "incident-1")
        steps = list(leg.record.outbox._waiting)
        before = store.count
        published = Published(steps, {}, {step.sequence: StoredAs("INCIDENTS", 7) for step in steps})
        await asyncio.gather(
            leg.record.secondary.mark_published(published, "log"),
            leg.record.secondary.put_peers([PeerRow("assign-1", "incident-1", 2, b"")], POSITION),
        )
        assert store.count - before == 1
        assert await leg.store.unpublished() == []
        assert await leg.store.reading(POSITION.stream, POSITION.log_id) == POSITION


async def test_a_leg_that_shows_its_first_step_is_no_longer_awaited(where: Path | str) -> None:
    async with opened(where) as (leg, _):
        await offered(leg, "incident-1")
        assert (await leg.watch.pulse()).leg_due_ms < math.inf
        others = [dispatch_pb2.Assignment(leg=number) for number in (alert_pb2.PROBATION, alert_pb2.WARNING)]
        rows = [PeerRow(f"assign-{other.leg}", "incident-1", 1, other.SerializeToString()) for other in others]
        await leg.record.secondary.put_peers(rows, POSITION)
        assert (await leg.watch.pulse()).leg_due_ms == math.inf


async def test_an_update_of_a_target_takes_a_transaction_only_if_it_may_change_something(where: Path | str) -> None:
    async with opened(where) as (leg, store):
        (id_,) = await offered(leg, "incident-1")
        update = TargetUpdate("incident-1", id_, "p1", Approach(None), moved_m=0)
        before = store.count
        await leg.follow_targets([update])
        assert store.count == before
        await leg.follow_targets([update, replace(update, moved_m=500)])
        await leg.follow_targets([replace(update, approach=Approach(1))])
        assert store.count == before + 2
        (incident,) = await leg.record.open_incidents()
        assert incident.assignments[id_].losing


async def test_open_incidents_are_known_without_a_transaction(where: Path | str) -> None:
    async with opened(where) as (leg, store):
        await offered(leg, "incident-1", "incident-2")
        before = store.count
        assert {incident.incident_id for incident in await leg.record.open_incidents()} == {"incident-1", "incident-2"}
        await handle(leg, "incident-1", FoldAlert(parsed(9, "incident-1", ends=True)))
        assert [incident.incident_id for incident in await leg.record.open_incidents()] == ["incident-2"]
        assert store.count - before == 1


async def test_another_process_shows_its_incidents_after_catching_up(where: Path | str) -> None:
    async with opened(where) as (leg, _), opened(where) as (other, _):
        assert await leg.record.open_incidents() == []
        await offered(other, "incident-1")
        await leg.catch_up()
        assert [incident.incident_id for incident in await leg.record.open_incidents()] == ["incident-1"]


async def test_the_pulse_reads_no_table_from_end_to_end(where: Path | str) -> None:
    """An idle second costs the same, however many incidents are open."""
    statements: list[str] = []
    async with opened(where) as (leg, _):
        await offered(leg, *(f"incident-{n}" for n in range(50)))
        if not isinstance(where, Path):
            return  # the server's plan depends on its statistics

        def watch(connection: sa.Connection) -> None:
            driver = connection.connection.driver_connection
            assert driver
            driver.set_trace_callback(statements.append)

        await leg.store.transaction(watch)
        await leg.watch.pulse()
        pulse = statements.index(next(statement for statement in statements if "awaited_legs" in statement))

        def plan(connection: sa.Connection) -> list[str]:
            return [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statements[pulse]}")]

        steps = await leg.store.transaction(plan)
        assert steps and not [
            step for step in steps if step.startswith("SCAN") and "CONSTANT" not in step and "last" not in step
        ]


async def test_the_rows_of_a_story_stay_the_same_byte_for_byte(where: Path | str) -> None:
    async with opened(where) as (leg, _):
        (id_,) = await offered(leg, "incident-1")
        await handle(leg, "incident-1", FoldAlert(parsed(2, "incident-1")), 1_000)
        await handle(leg, "incident-1", PassDeadline(id_), 4_000_000)
        step = next(iter(leg.record.outbox._waiting))
        await leg.record.secondary.mark_published(
            Published([step], {id_: 2.5}, {step.sequence: StoredAs("INCIDENTS", 7)}), "log"
        )
        await handle(leg, "incident-1", Acknowledge(id_, DESK), 4_001_000)
        for state in (AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE):
            await handle(leg, "incident-1", Progress(id_, DESK, state), 4_002_000 + int(state))
        await handle(leg, "incident-1", Close(id_, DESK, CloseCause.FALSE_POSITION, ""), 4_003_000)
        await handle(leg, "incident-1", FoldAlert(parsed(3, "incident-1", ends=True)), 4_004_000)

        def read(connection: sa.Connection) -> str:
            digest = hashlib.sha256()
            for table in ("events", "steps", "assignments", "incidents", "awaited_legs", "published_steps"):
                rows = connection.execute(sa.select(tables.metadata.tables[table]).order_by(sa.text("1"))).all()
                digest.update(repr([tuple(map(_plain, row)) for row in rows]).encode())
            return digest.hexdigest()

        assert await leg.store.transaction(read) == ROWS


def _plain(value: object) -> object:
    """A value as both engines have it."""
    if isinstance(value, memoryview | bytes):
        return bytes(value)
    return int(value) if isinstance(value, bool) else str(value)
