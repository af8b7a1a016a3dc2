"""Statistics over the figures of a period. Each query reads one index in its order and returns few rows, so it costs little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import sqlalchemy as sa

from services.dispatch.domain.enums import Task
from services.dispatch.domain.leg import Leg
from services.dispatch.statistics.domain import FOR_NOTHING, Measure

INTERVALS = 60
"""Maximum number of intervals into which a period is divided."""
DAY_MS = 86_400_000
MAX_BEHIND = 10_000
"""Maximum number of steps, and of other legs' assignments, that are counted as not counted yet."""
_NOTHING = ", ".join(str(int(outcome)) for outcome in FOR_NOTHING)
_IN_PERIOD = "leg = :leg AND opened_ms >= :from_ms AND opened_ms < :until_ms"


def _times(column: str) -> sa.TextClause:
    return sa.text(
        f"SELECT office_id, {column}, count(*) FROM figures"  # noqa: S608  # names of the code's own columns
        f" WHERE {_IN_PERIOD} AND offered_ms IS NOT NULL GROUP BY office_id, {column}"
    )


_TOOK = {Measure.RECEIPT: _times("receipt_took_ms"), Measure.ACCEPTANCE: _times("acceptance_took_ms")}
_ARRIVED = sa.text(
    "SELECT office_id, arrival_took_ms, arrived_in_time, count(*) FROM figures"  # noqa: S608
    f" WHERE {_IN_PERIOD} AND offered_ms IS NOT NULL GROUP BY office_id, arrival_took_ms, arrived_in_time"
)
_INTERVAL = sa.text(
    "SELECT acceptance_took_ms, count(*) FROM figures"  # noqa: S608
    f" WHERE {_IN_PERIOD} AND offered_ms IS NOT NULL GROUP BY acceptance_took_ms"
)
_OUTCOMES = sa.text(
    f"SELECT outcome, kind, count(*) FROM figures WHERE {_IN_PERIOD} AND outcome > 0 GROUP BY outcome, kind"  # noqa: S608
)
_INCIDENTS = sa.text(
    "SELECT count(*) FROM incidents WHERE exercise = 0 AND opened_ms >= :from_ms AND opened_ms < :until_ms"
)
_BEHIND = sa.text("""
    SELECT (SELECT count(*) FROM (SELECT 1 FROM steps WHERE sequence > coalesce((SELECT step_sequence FROM figures_progress), 0)
                LIMIT :most) AS a)
         + (SELECT count(*) FROM (SELECT 1 FROM figures_changed_peers LIMIT :most) AS b)
""")
_OF_LEG = f"""
    SELECT subject_id, sum(CASE WHEN task = {int(Task.RESPOND)} THEN 1 ELSE 0 END) AS incidents,
        sum(CASE WHEN outcome > 0 AND leg <> 'warning' THEN 1 ELSE 0 END) AS visits,
        sum(CASE WHEN outcome IN ({_NOTHING}) AND leg <> 'warning' THEN 1 ELSE 0 END) AS for_nothing,
        sum(CASE WHEN leg = 'warning' OR task = {int(Task.CONTACT)} THEN 1 ELSE 0 END) AS messages
    FROM figures WHERE leg = '{{leg}}' AND opened_ms >= :from_ms AND opened_ms < :until_ms GROUP BY subject_id
"""  # noqa: S608
_AT_WEARER, _AT_PERSON = "= 'probation'", "IN ('police', 'warning')"
_WEARERS = _OF_LEG.format(leg="probation")
# In an incident each leg has one response for a person, and a person to whom the police go is warned, too.
_BY_LEGS = f"""
    SELECT subject_id, max(incidents) AS incidents, sum(visits) AS visits, sum(for_nothing) AS for_nothing,
        sum(messages) AS messages
    FROM ({_OF_LEG.format(leg="police")} UNION ALL {_OF_LEG.format(leg="warning")}) AS legs
    WHERE subject_id {{subjects}} GROUP BY subject_id
"""  # noqa: S608
_PERSONS, _PLACES = _BY_LEGS.format(subjects="NOT LIKE '%/%'"), _BY_LEGS.format(subjects="LIKE '%/%'")
_ORDERS = "SELECT DISTINCT subject_id, order_ids FROM figures WHERE leg {legs} AND subject_id IN :ids"


class TookRow(NamedTuple):
    """How often a response took a time."""

    office_id: str
    ms: int | None
    """Rounded time, milliseconds; None for those that didn't reach the end of the measure."""
    times: int
    in_time: bool | None = None
    """ARRIVAL: whether the unit arrived within its estimated travel time; None if that isn't known."""


class SpreadRow(NamedTuple):
    """How many people have a number of incidents."""

    incidents: int
    people: int
    for_nothing: int


class BurdenRow(NamedTuple):
    """Burden of one person."""

    subject_id: str
    incidents: int
    visits: int
    for_nothing: int
    messages: int


@dataclass(frozen=True, slots=True)
class StatisticsPeriod:
    """A period in which incidents were opened, mesh time, milliseconds since 1970 UTC."""

    from_ms: int
    until_ms: int

    @property
    def step_ms(self) -> int:
        """Length of its intervals: whole days, so that there are at most INTERVALS."""
        return max(1, -(-(self.until_ms - self.from_ms) // (INTERVALS * DAY_MS))) * DAY_MS

    def parameters(self, leg: Leg) -> Mapping[str, object]:
        """Parameters of a query about a leg's assignments."""
        return {"leg": str(leg), "from_ms": self.from_ms, "until_ms": self.until_ms}


@dataclass(frozen=True, slots=True)
class PeriodCounts:
    """All counts of a period."""

    incidents: int
    behind: int
    took: Mapping[tuple[Leg, Measure], Sequence[TookRow]]
    intervals: Sequence[tuple[int, int | None, int]]
    """Number of the interval, rounded acceptance time in milliseconds, and count."""
    outcomes: Mapping[Leg, Sequence[tuple[int, int, int]]]
    """Number of the outcome, number of the alert's kind, and count."""
    wearers: Sequence[SpreadRow]
    persons: Sequence[SpreadRow] = ()
    places: Sequence[SpreadRow] = ()


def count(connection: sa.Connection, own: Leg, period: StatisticsPeriod) -> PeriodCounts:
    """Counts a period in one snapshot. Only a leg that may know where a protected person is counts burdens of persons and places."""
    took: dict[tuple[Leg, Measure], Sequence[TookRow]] = {}
    for leg in Leg:
        for measure, query in _TOOK.items():
            rows = connection.execute(query, period.parameters(leg))
            took[leg, measure] = [TookRow._make((*row, None)) for row in rows]
    if own.policy.has_units:
        arrived = connection.execute(_ARRIVED, period.parameters(own))
        took[own, Measure.ARRIVAL] = [
            TookRow(office_id=office_id, ms=ms, times=number, in_time=None if in_time is None else bool(in_time))
            for office_id, ms, in_time, number in arrived
        ]
    intervals = [
        (number, ms, counted)
        for number, from_ms in enumerate(range(period.from_ms, period.until_ms, period.step_ms))
        for ms, counted in connection.execute(
            _INTERVAL, StatisticsPeriod(from_ms, min(period.until_ms, from_ms + period.step_ms)).parameters(own)
        )
    ]
    agencies = [leg for leg in Leg if leg.policy.has_units]
    located = own.policy.may_locate_person
    return PeriodCounts(
        incidents=connection.execute(_INCIDENTS, {"from_ms": period.from_ms, "until_ms": period.until_ms}).scalar_one(),
        behind=connection.execute(_BEHIND, {"most": MAX_BEHIND}).scalar_one(),
        took=MappingProxyType(took),
        intervals=intervals,
        outcomes={
            leg: [
                (outcome, kind, counted)
                for outcome, kind, counted in connection.execute(_OUTCOMES, period.parameters(leg))
            ]
            for leg in agencies
        },
        wearers=_spread(connection, _WEARERS, period),
        persons=_spread(connection, _PERSONS, period) if located else (),
        places=_spread(connection, _PLACES, period) if located else (),
    )


def _spread(connection: sa.Connection, burdens: str, period: StatisticsPeriod) -> list[SpreadRow]:
    query = sa.text(f"SELECT incidents, count(*), sum(for_nothing) FROM ({burdens}) AS people GROUP BY incidents")  # noqa: S608
    rows = connection.execute(query, {"from_ms": period.from_ms, "until_ms": period.until_ms})
    return [SpreadRow(int(incidents), int(people), int(for_nothing)) for incidents, people, for_nothing in rows]


def burdens(
    connection: sa.Connection, period: StatisticsPeriod, of_wearers: bool, *, skip: int, limit: int
) -> list[BurdenRow]:
    """Burdens of people, the greatest number of incidents first, after the first `skip` of them."""
    query = sa.text(
        f"{_WEARERS if of_wearers else _PERSONS} ORDER BY incidents DESC, subject_id LIMIT :limit OFFSET :skip"
    )
    parameters = {"from_ms": period.from_ms, "until_ms": period.until_ms, "limit": limit, "skip": skip}
    return [
        BurdenRow._make((row[0], *(int(number) for number in row[1:]))) for row in connection.execute(query, parameters)
    ]


def orders_of(connection: sa.Connection, of_wearers: bool, subject_ids: Sequence[str]) -> dict[str, set[str]]:
    """Ids of the orders in the incidents of people, by the person's id."""
    query = sa.text(_ORDERS.format(legs=_AT_WEARER if of_wearers else _AT_PERSON)).bindparams(
        sa.bindparam("ids", expanding=True)
    )
    found: dict[str, set[str]] = {}
    for subject_id, order_ids in connection.execute(query, {"ids": list(subject_ids)}):
        found.setdefault(subject_id, set()).update(order_ids.split())
    return found
