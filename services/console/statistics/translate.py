"""Translation of a leg's statistics to the values of the pages."""

from __future__ import annotations

from datetime import datetime, time, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from services.common import times
from services.console.pages.assets import KOREA
from services.console.statistics.model import (
    BurdenOfPerson,
    DayPeriod,
    IntervalRow,
    OutcomeRow,
    PeriodStatistics,
    SpreadOfBurden,
    TimesRow,
)
from services.console.translate import leg_name
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import statistics_pb2


def bounds(period: DayPeriod) -> dict[str, Timestamp]:
    """Begin and end of a period of days in Korea, as fields of a request."""
    return {
        "from": _midnight(period.first),
        "until": _midnight(period.last + timedelta(days=1)),
    }


def _midnight(day: object) -> Timestamp:
    at = datetime.combine(day, time(), KOREA)  # type: ignore[arg-type]
    return times.to_timestamp(int(at.timestamp() * 1000))


def statistics(message: statistics_pb2.GetStatisticsResponse) -> PeriodStatistics:
    """Translates the statistics of a period."""
    return PeriodStatistics(
        incidents=message.incidents,
        behind=message.behind,
        times=[
            TimesRow(
                leg=leg_name(row.leg),
                office_id=row.office_id,
                measure=statistics_pb2.ResponseMeasure.Name(row.measure),
                offered=row.offered,
                reached=row.reached,
                median_s=row.median_s if row.HasField("median_s") else None,
                p90_s=row.p90_s if row.HasField("p90_s") else None,
                due_s=row.due_s if row.HasField("due_s") else None,
                in_time=row.in_time,
                due=row.due,
            )
            for row in message.response_times
        ],
        intervals=[
            IntervalRow(
                starts_at=datetime.fromtimestamp(times.from_timestamp(getattr(row, "from")) / 1000, KOREA),
                offered=row.offered,
                in_time=row.in_time,
                median_s=row.median_s if row.HasField("median_s") else None,
            )
            for row in message.intervals
        ],
        outcomes=[
            OutcomeRow(
                leg=leg_name(row.leg),
                outcome=statistics_pb2.DispatchOutcome.Name(row.outcome),
                kind=alert_pb2.AlertKind.Name(row.kind) if row.kind else "",
                count=row.count,
            )
            for row in message.outcomes
        ],
        spreads=[
            SpreadOfBurden(
                kind=statistics_pb2.BurdenedKind.Name(row.kind),
                people=row.people,
                median=row.median_incidents,
                p90=row.p90_incidents,
                most=row.max_incidents,
                for_nothing=row.visits_for_nothing,
            )
            for row in message.burdens
        ],
    )


def burden(message: statistics_pb2.Burden) -> BurdenOfPerson:
    """Translates the burden of one person."""
    return BurdenOfPerson(
        subject_id=message.subject_id,
        incidents=message.incidents,
        visits=message.visits,
        for_nothing=message.visits_for_nothing,
        messages=message.messages,
    )
