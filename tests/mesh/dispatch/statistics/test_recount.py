"""The statistics of random incidents, with repeated and corrected steps, equal a plain recount: over any period, on both engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.priority import PriorityGate
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.store import Store
from services.dispatch.statistics import api, figures
from services.dispatch.statistics.figures import DAY_MS, FiguresCollector, StatisticsPeriod
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import statistics_pb2
from tests.support.dispatch.recount import (
    BEGAN_MS,
    DAYS,
    AssignmentHistory,
    ExpectedTimes,
    RandomIncidents,
    burdens,
    recounted,
    spread,
    times_of,
)

PERIODS = ((-5, DAYS + 5), (20.5, 180.25), (31, 61), (100.2, 100.9), (-60, 3), (-90, -30))
"""Days from and until which the statistics are asked for."""


@pytest.mark.parametrize("seed", range(3))
async def test_statistics_are_a_plain_recount_of_the_steps(where: Path | str, seed: int) -> None:
    story = RandomIncidents(seed)
    async with open_database(where, MIGRATIONS) as database:
        store = Store(database)
        await store.transaction(story.open)
        for _ in range(6):
            await FiguresCollector(store, PriorityGate()).catch_up()
            await store.transaction(story.go_on)
        await FiguresCollector(store, PriorityGate()).catch_up()
        for from_day, until_day in PERIODS:
            period = StatisticsPeriod(BEGAN_MS + int(from_day * DAY_MS), BEGAN_MS + int(until_day * DAY_MS))
            await check(store, story, period)


async def check(store: Store, story: RandomIncidents, period: StatisticsPeriod) -> None:
    """Compares the answer for a period, and its lists of people, with a recount."""
    counts = await store.reading_history(partial(figures.count_period, own=Leg.POLICE, period=period))
    answer = api.statistics_message(counts, Leg.POLICE, period)
    within = [history for history in story.histories if period.from_ms <= history.opened_ms < period.until_ms]
    assert answer.behind == 0
    assert answer.incidents == sum(period.from_ms <= ms < period.until_ms for ms in story.live_ms)
    assert {
        (row.leg, row.measure, row.office_id): ExpectedTimes(
            row.offered,
            row.reached,
            row.median_s if row.HasField("median_s") else None,
            row.p90_s if row.HasField("p90_s") else None,
            row.in_time,
            row.due,
        )
        for row in answer.response_times
    } == recounted(within)
    outcomes = Counter(
        (history.leg, history.outcome, history.kind if history.leg == alert_pb2.POLICE else 0)
        for history in within
        if history.outcome and history.leg != alert_pb2.WARNING
    )
    counted: Counter[tuple[int, int, int]] = Counter()
    for row in answer.outcomes:  # another leg's have no kind, so that several rows may have the same outcome
        counted[row.leg, row.outcome, row.kind] += row.count
    assert counted == outcomes
    check_intervals(answer, within, period)
    wearers, found = burdens(within, alert_pb2.PROBATION), burdens(within, alert_pb2.POLICE, alert_pb2.WARNING)
    persons = [row for row in found if "/" not in row.subject_id]
    places = [row for row in found if "/" in row.subject_id]
    kinds = (
        (statistics_pb2.BURDENED_WEARER, wearers),
        (statistics_pb2.BURDENED_PROTECTED_PERSON, persons),
        (statistics_pb2.BURDENED_PLACE, places),
    )
    assert [
        (row.kind, row.people, row.median_incidents, row.p90_incidents, row.max_incidents, row.visits_for_nothing)
        for row in answer.burdens
    ] == [spread(kind, rows) for kind, rows in kinds if rows]
    for of_wearers, rows in ((True, wearers), (False, persons)):
        read = partial(figures.burdens, period=period, of_wearers=of_wearers, skip=2, limit=4)
        assert await store.reading_history(read) == rows[2:6]


def check_intervals(
    answer: statistics_pb2.GetStatisticsResponse, within: Sequence[AssignmentHistory], period: StatisticsPeriod
) -> None:
    """Compares the acceptance times of the police by interval with a recount."""
    offered = [
        history for history in within if history.leg == alert_pb2.POLICE and history.first_ms("offered_at") is not None
    ]
    assert 0 < len(answer.intervals) <= figures.INTERVALS
    begins = [getattr(interval, "from").ToMilliseconds() for interval in answer.intervals]
    assert begins[0] == period.from_ms and sum(interval.offered for interval in answer.intervals) == len(offered)
    for begin_ms, end_ms, interval in zip(begins, [*begins[1:], period.until_ms], answer.intervals, strict=True):
        expected = times_of(
            [history for history in offered if begin_ms <= history.opened_ms < end_ms], statistics_pb2.ACCEPTANCE
        )
        median_s = interval.median_s if interval.HasField("median_s") else None
        assert (interval.offered, interval.in_time, median_s) == (expected.offered, expected.in_time, expected.median_s)


async def test_a_short_period_reads_no_rows_of_other_times_and_a_long_one_sorts_none(tmp_path: Path) -> None:
    story, plans = RandomIncidents(0), list[tuple[str, str]]()
    async with open_database(tmp_path / "leg.sqlite3", MIGRATIONS) as database:
        store = Store(database)
        await store.transaction(story.open)

        def planned(connection: sa.Connection, period: StatisticsPeriod) -> None:
            statements: list[tuple[str, object]] = []
            sa.event.listen(connection, "before_cursor_execute", lambda *args: statements.append((args[2], args[3])))
            figures.count_period(connection, Leg.POLICE, period)
            for sql, parameters in statements[:]:
                if "FROM figures INDEXED BY" in sql:
                    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)  # type: ignore[arg-type]
                    plans.extend((sql, row[3]) for row in rows)

        for days in (10, DAYS):
            plans.clear()
            period = StatisticsPeriod(BEGAN_MS, BEGAN_MS + days * DAY_MS)
            await store.reading_history(partial(planned, period=period))
            reads = [plan for _, plan in plans if plan.startswith(("SEARCH figures USING", "SCAN figures USING"))]
            assert reads and all("USING COVERING INDEX" in plan for plan in reads), reads
            if days < DAYS / figures.SHORT_PART:
                assert all("figures_period (leg=? AND opened_ms>? AND opened_ms<?)" in plan for plan in reads), reads
            else:
                sorted_ = {sql for sql, plan in plans if "TEMP B-TREE FOR GROUP BY" in plan}
                assert all("INDEXED BY figures_period" in sql or "AS people" in sql for sql in sorted_), sorted_
