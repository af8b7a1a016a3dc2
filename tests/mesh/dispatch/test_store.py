"""A leg over its real store without NATS, on both engines: chain, migrations and slow desks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound, Unavailable
from services.common.geometry import LatLon
from services.common.messaging import flow
from services.common.storage.db import Database, open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.answers import Acknowledge, Close
from services.dispatch.domain.enums import CloseCause
from services.dispatch.domain.escalation import Deadlines, Situation
from services.dispatch.domain.following import Approach, TargetUpdate
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import Status, Unit, UnitReport
from services.dispatch.leg import change, feed, roster, tables, translate
from services.dispatch.leg.change import IncidentCommand
from services.dispatch.leg.feed import ChangedPage
from services.dispatch.leg.publications import Published
from services.dispatch.leg.service import LegService, open_leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import PeerRow, StepRow, StreamPosition
from services.dispatch.leg.translate import NumberedStep
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.dispatch import METRICS, alert
from tests.support.dispatch.incidents import EARLIER_EVENTS
from tests.support.dispatch.leg_chain import first_broken_event
from tests.support.dispatch.roster import TWO_OFFICES, unit

T = TypeVar("T")
FAR_MS = 3_600_000
HERE = StreamPosition(flow.INCIDENTS.name, "log", 1)


@pytest.fixture
async def database(where: Path | str) -> AsyncIterator[Database]:
    """Opens the database of a police leg."""
    async with open_database(where, MIGRATIONS) as opened:
        yield opened


@asynccontextmanager
async def opened(database: Database, within_ms: int = FAR_MS) -> AsyncIterator[LegService]:
    async with open_leg(
        Leg.POLICE, Store(database), MeshClock(), deadlines=Deadlines(within_ms), metrics=METRICS
    ) as leg:
        yield leg


async def fold(leg_service: LegService, *sequences: int) -> None:
    for sequence in sequences:
        parsed = translate.alert(alert(sequence, incident=f"incident-{sequence}").SerializeToString(), Leg.POLICE)
        assert parsed
        await leg_service.fold([parsed], StreamPosition(flow.ALERTS.name, "log", sequence))


async def numbered_steps(
    steps: AsyncIterator[NumberedStep | dispatch_pb2.Assignment], count: int
) -> list[NumberedStep]:
    async with asyncio.timeout(20):
        received = [await anext(steps) for _ in range(count)]
    return [step for step in received if isinstance(step, NumberedStep)]


async def test_the_migrations_make_the_tables_of_the_store(database: Database) -> None:
    async with database.transaction() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), tables.metadata)
        )
    assert differences == []


async def test_a_changed_row_breaks_the_chain(database: Database) -> None:
    async with opened(database) as leg:
        await fold(leg, 1, 2, 3)
        assert await first_broken_event(leg.store) is None
        async with database.transaction() as connection:
            await connection.execute(sa.text("update events set body = replace(body, 'p1', 'p2') where id = 4"))
        assert await first_broken_event(leg.store) == 4


async def test_a_database_of_an_earlier_version_continues_with_an_unbroken_chain(database: Database) -> None:
    written = [link._asdict() for link in EARLIER_EVENTS]
    async with database.transaction() as connection:
        await connection.execute(sa.insert(tables.metadata.tables["events"]), written)
    async with opened(database) as leg:
        parsed = translate.alert(alert(8).SerializeToString(), Leg.POLICE)
        assert parsed
        await leg.fold([parsed], StreamPosition(flow.ALERTS.name, "log", 8))
        (step,) = await numbered_steps(leg.follow(0, desk="desk"), 1)
        assert (step.step.assignment.state, step.step.number) == (dispatch_pb2.OFFERED, 5)
        acknowledged = await leg.acknowledge(step.step.assignment.assignment_id, "spiffe://npa/desk/b")
        assert acknowledged.acknowledged_by == "spiffe://npa/desk/b"
        assert await first_broken_event(leg.store) is None


async def test_a_slow_desk_misses_nothing_and_sees_nothing_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "WAITING_MAX", 3)
    monkeypatch.setattr(feed, "OFFERS_AFTER_S", 300.0)
    monkeypatch.setattr(feed, "REPEAT_S", 300.0)
    async with opened(database) as leg:
        steps = leg.follow(0, desk="desk")
        await fold(leg, 1)
        seen = await numbered_steps(steps, 1)
        await fold(leg, 2, 3)  # these wait in memory
        seen += await numbered_steps(steps, 1)
        await fold(leg, *range(4, 12))  # more than the queue of the desk holds
        seen += await numbered_steps(steps, 9)
        await fold(leg, 12)
        seen += await numbered_steps(steps, 1)
    assert [step.step.assignment.incident_id for step in seen] == [f"incident-{n}" for n in range(1, 13)]
    assert [step.sequence for step in seen] == sorted({step.sequence for step in seen})


async def test_a_stopping_leg_ends_the_streams_of_its_desks(database: Database) -> None:
    async with opened(database) as leg:
        steps = leg.follow(0, desk="desk")
        waiting = asyncio.ensure_future(numbered_steps(steps, 1))
        await asyncio.sleep(0)
        leg.record.subscriptions.close()
        with pytest.raises(Unavailable):
            await waiting


async def test_an_incident_that_is_no_longer_in_memory_is_folded_from_the_store(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change, "KNOWN_MAX", 0)
    async with opened(database) as leg:
        await fold(leg, 1, 2)
        (step,) = await numbered_steps(leg.follow(0, desk="desk"), 1)
        first = step.step.assignment
        await leg.record.secondary.mark_published(Published([step], {first.assignment_id: 2.5}), "log")
        assert set(leg.record.memory.known) == {"incident-1", "incident-2"}, "open incidents stay in memory"
        close = Close(first.assignment_id, "spiffe://npa/desk/a", CloseCause.FALSE_POSITION, note="")
        await leg.acknowledge(first.assignment_id, "spiffe://npa/desk/a")
        await leg.answer(close)
        assert set(leg.record.memory.known) == {"incident-2"}
        closed = await leg.answer(close)
        assert closed.state == dispatch_pb2.CLOSED
        assert closed.report_to_published_ms == 2.5 and closed.order_ids == first.order_ids
        with pytest.raises(NotFound):
            await leg.acknowledge("assign-none", "spiffe://npa/desk/a")


async def test_a_reader_of_the_list_gets_the_changes_since_its_last_answer(database: Database) -> None:
    async with opened(database) as leg:
        listing = leg.record.listing
        await fold(leg, 1, 2, 3)
        start = listing.point
        assert listing.since(start, 100) == ChangedPage([], start, has_more=False)
        (step,) = await numbered_steps(leg.follow(0, desk="desk"), 1)
        await leg.acknowledge(step.step.assignment.assignment_id, "spiffe://npa/desk/a")
        await leg.record.secondary.mark_published(Published([step], {step.step.assignment.assignment_id: 2.5}), "log")
        await fold(leg, 4)
        page = listing.since(start, 1)
        assert page and page.has_more and page.incident_ids == ["incident-1"]
        rest = listing.since(page.point, 100)
        assert rest == ChangedPage(["incident-4"], listing.point, has_more=False)
        (listed,) = await leg.store.incidents_by_id(page.incident_ids)
        assert [row.state for row in listed.own] == [dispatch_pb2.ACKNOWLEDGED]
    async with opened(database) as leg:
        assert leg.record.listing.since(start, 100) is None, "the leg restarted"


async def test_a_target_update_without_news_costs_no_transaction(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database) as leg:
        await fold(leg, 1)
        (step,) = await numbered_steps(leg.follow(0, desk="desk"), 1)
        offer = step.step.assignment

        def update(wearer_s: int | None) -> TargetUpdate:
            return TargetUpdate("incident-1", offer.assignment_id, offer.subject_id, Approach(wearer_s), moved_m=0)

        transactions: list[object] = []
        transaction = leg.store.transaction

        async def counted(work: Callable[[sa.Connection], T]) -> T:
            transactions.append(work)
            return await transaction(work)

        await leg.follow_targets([update(30)])
        lost = leg.record.head
        monkeypatch.setattr(leg.store, "transaction", counted)
        await leg.follow_targets([update(20), update(10)])
        assert not transactions and leg.record.head == lost
        await leg.follow_targets([update(None)])
        assert transactions and leg.record.head.id > lost.id, "the race is won back"


async def test_a_refused_command_leaves_no_trace(database: Database) -> None:
    async with opened(database) as leg:
        await fold(leg, 1)
        head = await leg.store.head()
        with pytest.raises(NotFound):
            await leg.record.handle(
                [IncidentCommand("incident-1", Acknowledge("assign-none", "x"))], Situation(0, Deadlines(FAR_MS))
            )
        await fold(leg, 2)
        assert (await leg.store.head()).id == head.id + 2
        assert await first_broken_event(leg.store) is None


async def test_a_refused_change_of_the_roster_changes_nothing(database: Database) -> None:
    async with opened(database) as leg:
        await leg.change_roster(partial(roster.put_offices, given=TWO_OFFICES))
        await leg.change_roster(partial(roster.put_units, given=[unit("a1", "a")]))

        def refused(connection: sa.Connection) -> None:
            roster.put_units(connection, [unit("a-new", "a")])
            leg.availability.load(connection)
            raise InvalidField("unit_id", "is no unit of this leg")

        with pytest.raises(InvalidField):
            await leg.change_roster(refused)
        assert leg.unit_report("a-new") is None and leg.unit_report("a1") is not None
        await leg.change_roster(partial(roster.put_units, given=[unit("a-later", "a")]))
        assert leg.unit_report("a-later") is not None


async def test_a_desk_is_shown_the_targets_of_open_incidents_alone(database: Database) -> None:
    async with opened(database) as leg:
        await fold(leg, 1, 2, 3)
        ended = translate.alert(alert(4, ends=True, incident="incident-1").SerializeToString(), Leg.POLICE)
        assert ended
        await leg.fold([ended], StreamPosition(flow.ALERTS.name, "log", 4))
        asked = ["incident-1", "incident-2", "incident-3", "incident-none"]
        assert await leg.show_targets(asked, "spiffe://npa/desk/a") == {"incident-2", "incident-3"}


async def test_a_cancelled_call_keeps_memory_and_store_consistent(database: Database) -> None:
    async with opened(database) as leg:
        for sequence in range(1, 8):
            task = asyncio.create_task(fold(leg, sequence))
            for _ in range(sequence):
                await asyncio.sleep(0.0002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await fold(leg, *range(1, 9))
        assert await first_broken_event(leg.store) is None
    async with opened(database) as restarted:
        assert len(await restarted.store.unanswered()) == 8


async def test_a_restarted_leg_passes_overdue_deadlines(database: Database) -> None:
    async with opened(database, within_ms=1) as leg:
        await fold(leg, 1)
        offer = (await numbered_steps(leg.follow(0, desk="desk"), 1))[0]
    await asyncio.sleep(0.01)
    async with opened(database) as restarted:
        await restarted.pass_deadlines()
        await restarted.pass_deadlines()
        (escalated,) = await numbered_steps(restarted.follow(offer.sequence, desk="desk"), 1)
        assert escalated.step.number == 2
        assert (await restarted.watch.pulse()).due_ms > restarted._clock.now_ms()


async def test_a_peers_older_step_does_not_replace_its_newer_one(database: Database) -> None:
    async with opened(database) as leg:
        await fold(leg, 1)
        await leg.record.secondary.put_peers([PeerRow("assign-1", "incident-1", 3, b"second")], HERE)
        await leg.record.secondary.put_peers([PeerRow("assign-1", "incident-1", 2, b"first")], HERE)
        (listed,) = await leg.store.incidents("", 10, "")
        assert listed.peers == [b"second"]
        await leg.record.secondary.put_peers([PeerRow("assign-1", "incident-1", 4, b"third")], HERE)
        (listed,) = await leg.store.incidents("", 10, "")
        assert listed.peers == [b"third"]


async def test_a_starting_leg_waits_for_a_store_that_goes_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit, refusals = database.visit, iter((True, False, True, False, False, True))

    async def sometimes(work: Any) -> Any:
        if next(refusals, False):
            raise Unavailable("the database is starting up")
        return await visit(work)

    monkeypatch.setattr(database, "visit", sometimes)
    async with opened(database) as leg:
        await fold(leg, 1)
    assert next(refusals, None) is None


async def test_an_offer_doesnt_wait_for_the_earlier_steps_that_a_desk_reads(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "OFFERS_AFTER_S", 0.01)
    monkeypatch.setattr(feed, "REPEAT_S", 300.0)
    async with opened(database) as leg:
        await fold(leg, 1)
        asked, may_read = asyncio.Event(), asyncio.Event()

        async def page_after(sequence: int) -> list[StepRow]:
            asked.set()
            await may_read.wait()
            return await leg.store.steps_after(sequence)

        steps = leg.record.subscriptions.follow(page_after, 0, who="desk")
        offered = asyncio.ensure_future(numbered_steps(steps, 2))
        await asked.wait()
        await fold(leg, 2)
        offers = await offered
        assert [(offer.step.assignment.incident_id, offer.sequence) for offer in offers] == [
            ("incident-1", 0),
            ("incident-2", 0),
        ]
        may_read.set()
        later = await numbered_steps(steps, 2)
        assert [step.step.assignment.incident_id for step in later] == ["incident-1", "incident-2"]
        assert all(step.sequence for step in later)


async def test_a_leg_that_stops_ends_a_stream_that_waits_for_earlier_steps(database: Database) -> None:
    async with opened(database) as leg:
        asked = asyncio.Event()

        async def page_after(sequence: int) -> list[StepRow]:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        waiting = asyncio.ensure_future(numbered_steps(leg.record.subscriptions.follow(page_after, 0, who="desk"), 1))
        await asked.wait()
        leg.record.subscriptions.close()
        with pytest.raises(Unavailable):
            await waiting


async def test_readers_of_the_history_dont_wait_for_a_transaction_of_the_leg(database: Database) -> None:
    async with opened(database) as leg:
        await fold(leg, 1)
        async with asyncio.timeout(60), database.transaction():  # a transaction that is slow to commit
            assert [listed.row.incident_id for listed in await leg.store.incidents("", 10, "")] == ["incident-1"]
            assert len(await leg.store.steps_after(0)) >= 1


async def test_positions_are_noted_of_the_very_unit_that_is_engaged_and_kept_for_3_years(database: Database) -> None:
    engaged = {"assignment_id": "a", "incident_id": "i", "state": 1, "payload": b"", "unit_ids": "Car-1 car-12"}
    place, later_ms = LatLon(37.5, 127.0), roster.UNIT_POSITIONS_KEPT_MS
    async with database.transaction() as connection:
        await connection.execute(sa.insert(tables.assignments), [engaged])
        for unit_id in ("Car-1", "car-1"):
            known = Unit(unit_id, 1, "office", "PATROL", frozenset(), 0, 1)
            await connection.run_sync(roster.put_units, given=[known])
            report = UnitReport(Status.AVAILABLE, 1_000, place, 1_000)
            await connection.run_sync(roster.report_unit, unit_id=unit_id, given=report)
        tracks = await connection.run_sync(roster.read_tracks, incident_id="i")
        assert {unit_id: [at.at_ms for at in noted] for unit_id, noted in tracks.items()} == {"Car-1": [1_000]}
        for at_ms in (1_000 + later_ms, 1_001 + later_ms):
            await connection.run_sync(
                roster.report_unit, unit_id="Car-1", given=UnitReport(Status.AVAILABLE, at_ms, place, at_ms)
            )
            noted = (await connection.run_sync(roster.read_tracks, incident_id="i"))["Car-1"]
            assert (noted[0].at_ms == 1_000) is (at_ms == 1_000 + later_ms)
