"""The page of statistics: its period, its plots, and its file."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from services.console.domain import statistics
from services.console.domain.statistics import (
    BadPeriod,
    DayPeriod,
    IntervalRow,
    OutcomeRow,
    PeriodStatistics,
    SpreadOfBurden,
    TimesRow,
)

TODAY = date(2026, 7, 6)
ROW = TimesRow("police", "=office", "ACCEPTANCE", 10, 9, median_s=12.0, p90_s=24.0, due_s=30.0, in_time=8, due=10)
FOUND = PeriodStatistics(
    incidents=12,
    behind=0,
    times=[ROW],
    intervals=[
        IntervalRow(datetime(2026, 7, 1, tzinfo=UTC), 4, 4, 10.0),
        IntervalRow(datetime(2026, 7, 2, tzinfo=UTC), 0, 0, None),
        IntervalRow(datetime(2026, 7, 3, tzinfo=UTC), 6, 4, 20.0),
    ],
    outcomes=[
        OutcomeRow("police", "ENDED_EQUIPMENT", "TAMPERED", 2),
        OutcomeRow("police", "ENDED_BREACH_CONFIRMED", "RING_ENTERED", 5),
        OutcomeRow("police", "UNDER_WAY", "RING_ENTERED", 100),
        OutcomeRow("probation", "ENDED_BEFORE_ARRIVAL", "", 3),
    ],
    spreads=[SpreadOfBurden("BURDENED_WEARER", 3, 1, 4, 7, 2)],
)


def test_without_days_the_period_is_the_last_thirty() -> None:
    period = DayPeriod.of("", "", TODAY)
    assert (period.first, period.last) == (TODAY - timedelta(days=29), TODAY)
    assert DayPeriod.of("2026-01-01", "2026-01-01", TODAY).first == date(2026, 1, 1)


@pytest.mark.parametrize(
    ("first", "last", "says"),
    [
        ("2026-13-01", "", "from: .*is not a day .example: 2026-07-06"),
        ("", "yesterday", "until: .*is not a day"),
        ("2026-07-07", "2026-07-06", "until: .*is before from"),
        ("1900-01-01", "2026-07-06", "from: the period is longer than"),
    ],
)
def test_a_wrong_period_is_refused_by_field(first: str, last: str, says: str) -> None:
    with pytest.raises(BadPeriod, match=says):
        DayPeriod.of(first, last, TODAY)


def test_dispatches_for_nothing_are_counted_among_those_that_are_over() -> None:
    assert [row.count for row in FOUND.for_nothing] == [3, 2]
    assert FOUND.share_for_nothing == 0.5


def test_the_highest_column_fills_the_plot_and_an_empty_interval_has_none() -> None:
    low, high = statistics.columns(FOUND.intervals)
    assert high.height == statistics.PLOT_HEIGHT - 10 and low.height == high.height / 2
    assert [column.row.offered for column in (low, high)] == [4, 6]
    assert statistics.columns([]) == [] and statistics.bar_length(None, []) == 0.0
    assert (statistics.bar_length(24.0, [ROW]), statistics.bar_length(12.0, [ROW])) == (100.0, 50.0)


def test_the_file_has_each_figure_once_and_no_formula() -> None:
    rows = list(statistics.csv_rows(FOUND))
    assert {len(row) for row in rows} == {len(statistics.CSV_COLUMNS)} and len(set(rows)) == len(rows)
    assert ("median", "police", "'=office", "ACCEPTANCE", "", "", "12", "s") in rows
    assert ("share in time", "police", "'=office", "ACCEPTANCE", "", "", "0.8", "") in rows
    assert ("ENDED_EQUIPMENT", "police", "", "", "", "TAMPERED", "2", "") in rows
    assert not any(value.startswith(("=", "+", "-", "@")) for row in rows for value in row)
