"""The figures of a leg over its real store, on both engines: counted once, in pages, and again after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.storage.db import open_database
from services.court.evidence.leg_records import MeshRecords
from services.court.report import compliance
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.answers import Acknowledge, Progress
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from services.dispatch.leg.service import LegService, open_leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import PeerRow, StreamPosition, figures, figures_progress
from services.dispatch.settings import for_leg
from services.dispatch.statistics.domain import DispatchOutcome, Measure
from services.dispatch.statistics.figures import FiguresCollector, PeriodCounts, StatisticsPeriod, count_period
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.dispatch import METRICS, alert

INCIDENTS = 5
FOREVER = StatisticsPeriod(0, 1 << 50)


async def fold(leg: LegService, count: int) -> None:
    for sequence in range(1, count + 1):
        parsed = translate.alert(alert(sequence, incident=f"incident-{sequence}").SerializeToString(), Leg.POLICE)
        assert parsed
        await leg.fold([parsed], StreamPosition(flow.ALERTS.name, "log", sequence))


async def assignment_ids(store: Store) -> list[str]:
    return sorted(row.assignment_id for listed in await store.incidents("", 100, "") for row in listed.own)


async def counted(store: Store) -> PeriodCounts:
    return await store.reading_history(lambda connection: count_period(connection, Leg.POLICE, FOREVER))


async def test_steps_are_counted_once_in_small_pages_and_on_after_a_restart(where: Path | str) -> None:
    async with open_database(where, MIGRATIONS) as database:
        store = Store(database)
        async with open_leg(Leg.POLICE, store, MeshClock(), deadlines=Deadlines(3_600_000), metrics=METRICS) as leg:
            await fold(leg, INCIDENTS)
            first, second, *_ = await assignment_ids(store)
            assert (await counted(store)).behind > 0
            await FiguresCollector(store, leg.record.gate).catch_up()
            before = await counted(store)
            assert (before.incidents, before.behind) == (INCIDENTS, 0)
            offered = sum(row.times for row in before.took[Leg.POLICE, Measure.ACCEPTANCE])
            assert offered == len(await assignment_ids(store))
            for id_ in (first, second):
                await leg.answer(Acknowledge(id_, "spiffe://npa/desk/seoul", 0))
            for state in (AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE):
                await leg.answer(Progress(assignment_id=first, by="spiffe://npa/desk/seoul", state=state))
        async with open_leg(Leg.POLICE, store, MeshClock(), deadlines=Deadlines(3_600_000), metrics=METRICS) as leg:
            collector = FiguresCollector(store, leg.record.gate)
            await collector.catch_up()
            await collector.catch_up()
        after = await counted(store)
        accepted = [row for row in after.took[Leg.POLICE, Measure.ACCEPTANCE] if row.ms is not None]
        assert sum(row.times for row in accepted) == 2
        assert sum(row.times for row in after.took[Leg.POLICE, Measure.ARRIVAL] if row.ms is not None) == 1
        # The second was accepted by the desk alone, which is no dispatch.
        assert after.outcomes[Leg.POLICE] == [(int(DispatchOutcome.UNDER_WAY), alert_pb2.RING_ENTERED, 1)]
        assert sum(row.people for row in after.persons) + sum(row.people for row in after.places) > 0


async def test_another_legs_assignment_is_counted_by_its_newest_step(where: Path | str) -> None:
    async with open_database(where, MIGRATIONS) as database:
        store = Store(database)
        async with open_leg(Leg.POLICE, store, MeshClock(), deadlines=Deadlines(3_600_000), metrics=METRICS) as leg:
            await fold(leg, 1)
            for number, state in enumerate((dispatch_pb2.OFFERED, dispatch_pb2.ACKNOWLEDGED), 1):
                await leg.record.secondary.put_peers([peer(number, state)], StreamPosition("INCIDENTS", "log", number))
                await FiguresCollector(store, leg.record.gate).catch_up()
        found = await counted(store)
        assert [(row.ms, row.times) for row in found.took[Leg.WARNING, Measure.ACCEPTANCE]] == [(2_000, 1)]
        async with database.reading() as connection:
            left = await connection.scalar(sa.text("SELECT count(*) FROM figures_changed_peers"))
        assert left == 0


def probation_step(number: int, state: dispatch_pb2.AssignmentState.ValueType) -> PeerRow:
    """A step of probation's response to incident-1, as the police leg keeps it."""
    step = dispatch_pb2.Step(step_id=f"step-{number}", number=number)
    step.at.FromMilliseconds(1_000 * number)
    step.assignment.assignment_id, step.assignment.incident_id = "probation-1", "incident-1"
    step.assignment.leg = alert_pb2.PROBATION
    step.assignment.subject_id = "wearer-1"
    step.assignment.state = state
    step.assignment.offered_at.FromMilliseconds(1_000)
    step.assignment.acknowledged_at.FromMilliseconds(2_000)
    step.assignment.sent_at.FromMilliseconds(2_000)
    return translate.peer(step, Leg.POLICE)


@pytest.mark.parametrize("together", [True, False], ids=["read at once", "read one by one"])
async def test_another_legs_arrival_counts_although_its_end_came_before_the_count(
    where: Path | str, together: bool
) -> None:
    steps = [
        probation_step(number, state)
        for number, state in enumerate((dispatch_pb2.EN_ROUTE, dispatch_pb2.ON_SCENE, dispatch_pb2.STOOD_DOWN), 1)
    ]
    async with open_database(where, MIGRATIONS) as database:
        store = Store(database)
        async with open_leg(Leg.POLICE, store, MeshClock(), deadlines=Deadlines(3_600_000), metrics=METRICS) as leg:
            await fold(leg, 1)
            for rows in [steps] if together else [[step] for step in steps]:
                await leg.record.secondary.put_peers(rows, StreamPosition("INCIDENTS", "log", rows[-1].number))
            await FiguresCollector(store, leg.record.gate).catch_up()
        assert (await counted(store)).outcomes[Leg.PROBATION] == [(int(DispatchOutcome.UNCLASSIFIED), 0, 1)]


async def test_a_database_from_before_the_figures_counts_all_that_it_has(where: Path | str) -> None:
    async with open_database(where, MIGRATIONS) as database:
        store = Store(database)
        async with open_leg(Leg.POLICE, store, MeshClock(), deadlines=Deadlines(3_600_000), metrics=METRICS) as leg:
            await fold(leg, INCIDENTS)
            await FiguresCollector(store, leg.record.gate).catch_up()
            for table in (figures, figures_progress):  # as the migration leaves them
                await store.transaction(lambda connection, table=table: connection.execute(sa.delete(table)))  # type: ignore[misc]
            assert (await counted(store)).took[Leg.POLICE, Measure.ACCEPTANCE] == []
            await FiguresCollector(store, leg.record.gate).catch_up()
        found = await counted(store)
        assert found.behind == 0 and sum(row.times for row in found.took[Leg.POLICE, Measure.ACCEPTANCE]) == INCIDENTS


def peer(number: int, state: dispatch_pb2.AssignmentState.ValueType) -> PeerRow:
    assignment = dispatch_pb2.Assignment(
        assignment_id="warning-1",
        incident_id="incident-1",
        leg=alert_pb2.WARNING,
        subject_id="person-1",
        order_ids=["order-1"],
        state=state,
    )
    assignment.offered_at.FromMilliseconds(1_000)
    if state == dispatch_pb2.ACKNOWLEDGED:
        assignment.acknowledged_at.FromMilliseconds(3_000)
    return PeerRow("warning-1", "incident-1", number, assignment.SerializeToString())


async def test_the_report_on_an_order_reads_its_alerts_from_the_legs_record(
    where: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(where, Path):
        kept = tmp_path / "mesh" / "data" / "dispatch-police" / "dispatch-police.sqlite3"
        kept.parent.mkdir(parents=True)
        kept.symlink_to(where)
    else:
        monkeypatch.setenv("TANDEM_POLICE_DATABASE_URL", where)
    records = MeshRecords(tmp_path / "mesh", for_leg("police").leg_databases)
    async with open_database(where, MIGRATIONS) as database:
        store = Store(database)
        async with open_leg(Leg.POLICE, store, MeshClock(), deadlines=Deadlines(3_600_000), metrics=METRICS) as leg:
            await fold(leg, INCIDENTS)
        (order_id,) = {order_id for listed in await store.incidents("", 100, "") for order_id in listed.row.order_ids}
        found = await compliance.read_older_alerts(records, order_id, from_ms=0, before_ms=1 << 50)
        other = await compliance.read_older_alerts(records, order_id[:-1], from_ms=0, before_ms=1 << 50)
    assert [fact.alert.incident_id for fact in found] == [f"incident-{number}" for number in range(1, INCIDENTS + 1)]
    assert {fact.alert.order_id for fact in found} == {order_id} and other == []
