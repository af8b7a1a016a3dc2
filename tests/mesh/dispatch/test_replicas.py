"""A leg's store under several processes, and under a desk that never reads: each deadline escalates, and only once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.errors import Conflict, FailedPrecondition
from services.common.failure import CommandFailed
from services.common.geometry import Circle, LatLon
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.storage.db import open_database
from services.court.evidence import leg_records
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.incident import Alert
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import Office, Status, UnitReport
from services.dispatch.leg import chain, consumer, feed, roster, translate
from services.dispatch.leg.consumer import adopt_steps
from services.dispatch.leg.service import LegService, open_leg, watch_deadlines
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.leg.translate import NumberedStep
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.common.postgres import PostgresServer
from tests.support.dispatch.dispatch import METRICS, PATIENCE_S, alert, publish, running, settings
from tests.support.dispatch.leg_chain import first_broken_event
from tests.support.dispatch.roster import SEOUL, TWO_OFFICES, unit

FAR_MS = 3_600_000
BRIEF = Deadlines(1, 1, 1)
LONG = Deadlines(FAR_MS, FAR_MS, FAR_MS)


@asynccontextmanager
async def opened(where: Path | str, deadlines: Deadlines = LONG) -> AsyncIterator[LegService]:
    """Opens a leg over the store, as one process does."""
    async with (
        open_database(where, MIGRATIONS) as database,
        open_leg(Leg.POLICE, Store(database), MeshClock(), deadlines=deadlines, metrics=METRICS) as leg,
    ):
        yield leg


async def fold(leg: LegService, *sequences: int) -> None:
    for sequence in sequences:
        await leg.fold([of_log(sequence)], StreamPosition(flow.ALERTS.name, "log", sequence))


def of_log(sequence: int) -> Alert:
    parsed = translate.alert(alert(sequence, incident=f"incident-{sequence}").SerializeToString(), Leg.POLICE)
    assert parsed
    return parsed


async def kinds(leg: LegService) -> Counter[str]:
    """Returns the number of stored events by kind."""
    rows = await leg.store.transaction(lambda connection: connection.execute(sa.text("select kind from events")).all())
    return Counter(row.kind for row in rows)


async def assignments(leg: LegService) -> list[dispatch_pb2.Assignment]:
    return [
        translate.stored_assignment(row) for incident in await leg.store.incidents("", 100, "") for row in incident.own
    ]


async def put(leg: LegService, *unit_ids: str, offices: tuple[Office, ...] = TWO_OFFICES) -> None:
    await leg.change_roster(lambda connection: roster.put_offices(connection, offices))
    units = [unit(unit_id, unit_id[0]) for unit_id in unit_ids]
    await leg.change_roster(lambda connection: roster.put_units(connection, units))


async def test_a_deadline_fires_once_with_several_processes_on_one_store(where: Path | str) -> None:
    incidents = 20
    async with AsyncExitStack() as stack:
        legs = [await stack.enter_async_context(opened(where, BRIEF)) for _ in range(3)]
        await fold(legs[0], *range(1, incidents + 1))
        await asyncio.sleep(0.01)
        # All processes have found the same overdue assignments before the first one writes.
        frozen_ms = legs[0]._clock.now_ms()
        due = [await leg.store.due(frozen_ms) for leg in legs]
        assert [len(overdue) for overdue in due] == 3 * [incidents]
        later = Deadlines(FAR_MS, FAR_MS, FAR_MS)
        for leg in legs:
            leg._deadlines = later
        await asyncio.gather(*(leg.pass_deadlines() for leg in legs))
        assert (await kinds(legs[1]))["Escalated"] == incidents
        assert await first_broken_event(legs[2].store) is None


async def test_a_reader_gets_the_open_incidents_then_each_change_of_any_process(where: Path | str) -> None:
    async with opened(where) as first_leg, opened(where) as second_leg:
        await put(first_leg, "a1", "b1")
        await fold(first_leg, 1, 2)
        await second_leg.catch_up()
        async with second_leg.record.changes() as changes:
            assert set((await changes.next()).incidents) == {"incident-1", "incident-2"}
            await fold(first_leg, 3)
            (offer,) = (a for a in await assignments(first_leg) if a.incident_id == "incident-2")
            await first_leg.acknowledge(offer.assignment_id, "b")
            await second_leg.catch_up()
            incidents, _ = await changes.next()
            assert set(incidents) == {"incident-2", "incident-3"}, "what didn't change isn't read"
            assert incidents["incident-2"].assignments[offer.assignment_id].acknowledged_ms
            # A unit's report changes no incident, and is news all the same.
            report = UnitReport(Status.AVAILABLE, second_leg._clock.now_ms(), LatLon(37.5, 127.0), 1)
            await second_leg.change_roster(partial(roster.report_unit, unit_id="a1", given=report))
            assert (await changes.next()).units >= {"a1"}
            for _ in range(3):
                await second_leg.record.handle([], second_leg.now())
            next_changes = asyncio.create_task(changes.next())
            await asyncio.sleep(0)
            assert not next_changes.done(), "a transaction without a change is no news"
            next_changes.cancel()


async def test_each_process_continues_from_the_others_writes_and_notifies_its_desk(where: Path | str) -> None:
    async with opened(where) as first_leg, opened(where) as second_leg:
        steps = second_leg.follow(0, desk="desk")
        await put(first_leg, "a1", "b1")
        await fold(first_leg, 1)
        (offer,) = await assignments(first_leg)
        await second_leg.acknowledge(offer.assignment_id, "spiffe://npa/desk/b")
        seen = [await asyncio.wait_for(anext(steps), PATIENCE_S) for _ in range(2)]
        states = [step.step.assignment.state for step in seen if isinstance(step, NumberedStep)]
        assert states == [dispatch_pb2.OFFERED, dispatch_pb2.ACKNOWLEDGED]
        await first_leg.acknowledge(offer.assignment_id, "spiffe://npa/desk/a")
        (assignment,) = await assignments(first_leg)
        assert assignment.acknowledged_by == "spiffe://npa/desk/b", "the first acknowledgement counts"
        await fold(second_leg, 2)
        second = next(
            assignment for assignment in await assignments(first_leg) if assignment.incident_id == "incident-2"
        )
        assert (second.choice.unit_id, second.choice.level) == ("b1", dispatch_pb2.NEXT_OFFICE), (
            "the first car is engaged"
        )
        assert await first_broken_event(first_leg.store) is None


async def test_an_alert_that_another_process_folded_without_a_step_is_not_folded_twice(where: Path | str) -> None:
    async with opened(where) as first_leg, opened(where) as second_leg:
        await fold(first_leg, 1)
        await second_leg.catch_up()
        await fold(second_leg, 1)  # so that it has the incident in memory
        cleared = replace(of_log(2), demand=Demand.RECORD, incident_id="incident-1")
        await first_leg.fold([cleared], StreamPosition(flow.ALERTS.name, "log", 2))  # an event without a step
        await fold(second_leg, 3)
        await second_leg.fold([cleared], StreamPosition(flow.ALERTS.name, "log", 2))
        assert (await kinds(first_leg))["AlertFolded"] == 3


async def test_a_desk_that_moves_to_another_process_gets_the_steps_of_the_first(where: Path | str) -> None:
    async with opened(where) as first_leg, opened(where) as second_leg:
        watching = asyncio.create_task(watch_deadlines(second_leg))
        try:
            await fold(first_leg, 1)
            steps = second_leg.follow((await first_leg.store.head()).id, desk="desk")
            (offer,) = await assignments(first_leg)
            await first_leg.acknowledge(offer.assignment_id, "spiffe://npa/desk/a")
            step = await asyncio.wait_for(anext(steps), PATIENCE_S)
            assert isinstance(step, NumberedStep) and step.step.assignment.state == dispatch_pb2.ACKNOWLEDGED
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_steps_of_a_process_that_died_are_published_by_another(
    where: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "ADOPT_AFTER_S", 0.05)
    async with opened(where) as second_leg:
        async with opened(where) as dying:
            await fold(dying, 1)  # committed, but never published
        adopting = asyncio.create_task(adopt_steps(second_leg.store, second_leg.record.outbox))
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not second_leg.record.outbox.holds(2):  # noqa: ASYNC110  # another task adopts them
                    await asyncio.sleep(0.01)
        finally:
            adopting.cancel()
            await asyncio.gather(adopting, return_exceptions=True)


async def test_legs_of_one_server_neither_share_a_chain_nor_wait_for_each_other(postgres: PostgresServer) -> None:
    urls = postgres.new_schemas("police", "probation")
    async with opened(urls["police"]) as police, open_database(urls["probation"], MIGRATIONS) as theirs:
        async with theirs.transaction() as held:
            await held.execute(sa.text("select 1"))
            await asyncio.wait_for(fold(police, 1), PATIENCE_S)  # while the other leg writes
        assert await Store(theirs).head() == chain.ChainHead()
        with pytest.raises(FailedPrecondition, match="the database is the police leg's, not the probation leg's"):
            async with (
                open_database(urls["police"], MIGRATIONS) as database,
                open_leg(Leg.PROBATION, Store(database), MeshClock(), deadlines=LONG, metrics=METRICS),
            ):
                raise AssertionError("it opened")


async def test_a_database_that_is_rolled_back_under_a_running_leg_stops_it(where: Path | str) -> None:
    async with opened(where) as leg:
        await fold(leg, 1, 2)
        for statement in ("delete from steps where sequence > 2", "delete from events where id > 2"):
            await leg.store.transaction(partial(sa.Connection.execute, statement=sa.text(statement)))
        with pytest.raises(FailedPrecondition, match="went back"):
            await asyncio.wait_for(watch_deadlines(leg), PATIENCE_S)


async def test_a_restarted_leg_knows_which_units_are_free(where: Path | str) -> None:
    async with opened(where) as leg:
        await put(leg, "a1", "b1")
        await fold(leg, 1)
    async with opened(where) as leg:
        await fold(leg, 2)
        chosen = {assignment.incident_id: assignment.choice.unit_id for assignment in await assignments(leg)}
        assert chosen == {"incident-1": "a1", "incident-2": "b1"}


async def test_a_refused_change_of_the_roster_changes_nothing_in_memory_either(where: Path | str) -> None:
    async with opened(where) as leg:
        await put(leg, "a1")
        second_leg = [unit("a2", "a"), unit("a1", "b")]
        with pytest.raises(Conflict):
            await leg.change_roster(lambda connection: roster.put_units(connection, second_leg))
        await fold(leg, 1, 2)
        assert [assignment.choice.unit_id for assignment in await assignments(leg)] == ["a1", "a1"]


async def test_the_nearest_unit_goes_if_positions_are_known_and_the_next_nearest_replaces_one_that_is_off(
    where: Path | str,
) -> None:
    area = Circle(SEOUL.lat_deg, SEOUL.lon_deg, 20_000)
    offices = (Office("a", 1, area, frozenset(), "", "supervisor", "national"),)
    async with opened(where) as leg:
        await put(leg, "a1", "a2", "a3", offices=offices)
        now_ms = MeshClock().now_ms()
        for unit_id, lon_deg in (("a1", 127.10), ("a2", 126.99)):
            report = UnitReport(Status.AVAILABLE, now_ms, LatLon(37.5665, lon_deg), now_ms)
            await leg.change_roster(partial(roster.report_unit, unit_id=unit_id, given=report))
        await fold(leg, 1)
        leg.last_known_positions.put("p1", SEOUL, now_ms)
        await fold(leg, 2)
        leg.last_known_positions.put("p1", SEOUL, now_ms - FAR_MS)
        await fold(leg, 3)
        by_incident = {assignment.incident_id: assignment.choice for assignment in await assignments(leg)}
        leg.last_known_positions.put("p1", SEOUL, now_ms)
        off = UnitReport(Status.OFF, now_ms + 1)
        await leg.change_roster(partial(roster.report_unit, unit_id="a2", given=off), ["a2"])
        (moved,) = (
            assignment
            for assignment in await assignments(leg)
            if assignment.escalation_reason == dispatch_pb2.UNIT_GONE
        )
        assert (moved.choice.unit_id, moved.choice.estimate) == ("a1", dispatch_pb2.GREAT_CIRCLE)
    nowhere, near, stale = (by_incident[f"incident-{n}"] for n in (1, 2, 3))
    assert nowhere.desk == "national" == stale.desk, (
        "without a position there is no jurisdiction, and the offer doesn't wait for one"
    )
    assert (near.unit_id, near.estimate, near.candidates) == ("a2", dispatch_pb2.GREAT_CIRCLE, 3)
    assert 100 < near.travel_s < 200


async def test_a_desk_that_never_reads_costs_bounded_memory_and_deadlines_still_escalate(
    bus: Bus, nats: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "WAITING_MAX", 5)
    police = settings("police", nats, tmp_path, acknowledge_within_s=0.3)
    async with running(police) as leg, leg.desk.subscription() as never_read:
        await publish(bus, alert(1))
        async with leg.desk.subscription() as steps:
            await steps.next(dispatch_pb2.OFFERED)
            await publish(bus, *(alert(n, incident=f"incident-{n}") for n in range(2, 60)))
            up: set[str] = set()
            while len(up) < 59:
                up.add((await steps.next(dispatch_pb2.ESCALATED)).step.assignment.incident_id)
        # The desk has missed nothing: steps that didn't fit in memory are read from the store.
        first = await never_read.next(dispatch_pb2.OFFERED)
        assert first.sequence == 2


def test_a_desks_queue_never_holds_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "WAITING_MAX", 5)
    shared, offer = feed.Subscriptions(()), dispatch_pb2.Assignment(state=dispatch_pb2.OFFERED)
    with shared._desk(0, True, feed.is_no_canary, who="desk") as desk:
        desk.reads_store = False
        longest = 0
        for n in range(1, 100):
            shared.notify([NumberedStep(n, dispatch_pb2.Step(assignment=offer))])
            longest = max(longest, len(desk.waiting))
        assert longest <= 5 and desk.reads_store


def test_a_desk_is_woken_only_for_assignments_that_it_wants() -> None:
    shared, offer = feed.Subscriptions(()), dispatch_pb2.Assignment(state=dispatch_pb2.OFFERED)
    with (
        shared._desk(0, True, feed.is_no_canary, who="desk") as desk,
        shared._desk(0, True, feed.is_canary, who="watch") as watch,
    ):
        desk.reads_store = watch.reads_store = False
        shared.notify([NumberedStep(1, dispatch_pb2.Step(assignment=offer))])
        assert (desk.wake.is_set(), watch.wake.is_set()) == (True, False)


async def test_the_chain_of_a_leg_on_postgresql_is_read_for_evidence(postgres: PostgresServer) -> None:
    url = postgres.new_schemas("police")["police"]
    async with opened(url) as leg:
        await fold(leg, 1, 2, 3)
        head = await leg.store.head()
    read = await leg_records.read_chain_postgres(url, "police", "incident-2")
    assert read and (read.before.id, len(read.links), read.head) == (2, 2, head)
    leg_records.verified_events("chain", read.to_member("incident-2", False))
    assert await leg_records.read_chain_postgres(url, "police", "incident-9") is None
    with pytest.raises(CommandFailed, match="the police leg's PostgreSQL"):
        await leg_records.read_chain_postgres(url.replace("police_", "nobody_"), "police", "incident-2")
