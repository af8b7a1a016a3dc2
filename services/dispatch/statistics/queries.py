"""Statistics over the figures of a period, in few rows. A short period is read along its time, a long one along the groups.

SQLite sorts the rows that it groups, unless an index has the groups in their order. Along such an index nothing is sorted, but the
figures of all years are read. So the cost of a page grows with its period, up to one pass over all figures for each statistic.
PostgreSQL chooses by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.common.storage import statements
from services.dispatch.domain.enums import Task
from services.dispatch.domain.leg import Leg
from services.dispatch.statistics.domain import FOR_NOTHING, Measure

INTERVALS = 60
"""Maximum number of intervals into which a period is divided."""
DAY_MS = 86_400_000
MAX_BEHIND = 10_000
"""Maximum number of steps, and of other legs' assignments, that are counted as not counted yet."""
SHORT_PART = 4
"""A period is short if it has less than 1 / SHORT_PART of the time that the incidents span. To sort a row costs some four times as much
as to read it in its order."""
_NOTHING = ", ".join(str(int(outcome)) for outcome in FOR_NOTHING)
_IN_PERIOD = "leg = :leg AND opened_ms >= :from_ms AND opened_ms < :until_ms"
_GROUPED = f"SELECT {{groups}}, count(*) FROM {{figures}} WHERE {_IN_PERIOD} AND {{counted}} GROUP BY {{groups}}"  # noqa: S608  # names of the code's own columns
_SPAN = sa.text("""
    SELECT (SELECT min(opened_ms) FROM incidents WHERE exercise = 0), (SELECT max(opened_ms) FROM incidents WHERE exercise = 0)
""")
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
    FROM {{figures}} WHERE leg = '{{leg}}' AND opened_ms >= :from_ms AND opened_ms < :until_ms GROUP BY subject_id
"""  # noqa: S608  # names of the code's own columns
# In an incident each leg has one response for a person, and a person to whom the police go is warned, too.
_BY_LEGS = """
    SELECT subject_id, max(incidents) AS incidents, sum(visits) AS visits, sum(for_nothing) AS for_nothing,
        sum(messages) AS messages
    FROM ({police} UNION ALL {warning}) AS legs GROUP BY subject_id
"""
_IS_PLACE = "subject_id LIKE '%/%'"
_AT_WEARER, _AT_PERSON = "= 'probation'", "IN ('police', 'warning')"
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

    def intervals(self) -> Iterator[StatisticsPeriod]:
        """Its intervals, in their order. The last may be shorter."""
        for from_ms in range(self.from_ms, self.until_ms, self.step_ms):
            yield StatisticsPeriod(from_ms, min(self.until_ms, from_ms + self.step_ms))

    @property
    def bounds(self) -> Mapping[str, object]:
        """Its parameters of a query."""
        return {"from_ms": self.from_ms, "until_ms": self.until_ms}


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
    figures = _PeriodFigures(connection, period)
    took: dict[tuple[Leg, Measure], Sequence[TookRow]] = {}
    for leg in Leg:
        took[leg, Measure.RECEIPT] = figures.took(leg, "receipt")
        took[leg, Measure.ACCEPTANCE] = figures.took(leg, "acceptance")
    if own.policy.has_units:
        took[own, Measure.ARRIVAL] = figures.arrivals(own)
    located: Mapping[bool, Sequence[SpreadRow]] = (
        figures.people(figures.of_persons()) if own.policy.may_locate_person else {}
    )
    return PeriodCounts(
        incidents=connection.execute(_INCIDENTS, period.bounds).scalar_one(),
        behind=connection.execute(_BEHIND, {"most": MAX_BEHIND}).scalar_one(),
        took=MappingProxyType(took),
        intervals=figures.intervals(own),
        outcomes={leg: figures.outcomes(leg) for leg in Leg if leg.policy.has_units},
        wearers=figures.people(figures.of_wearers())[False],
        persons=located.get(False, ()),
        places=located.get(True, ()),
    )


def burdens(
    connection: sa.Connection, period: StatisticsPeriod, of_wearers: bool, *, skip: int, limit: int
) -> list[BurdenRow]:
    """Burdens of people, the greatest number of incidents first, after the first `skip` of them."""
    figures = _PeriodFigures(connection, period)
    people = figures.of_wearers() if of_wearers else figures.of_persons()
    query = sa.text(
        f"SELECT * FROM ({people}) AS people WHERE NOT {_IS_PLACE}"  # noqa: S608
        " ORDER BY incidents DESC, subject_id LIMIT :limit OFFSET :skip"
    )
    rows = connection.execute(query, {**period.bounds, "limit": limit, "skip": skip})
    return [BurdenRow._make((row[0], *(int(number) for number in row[1:]))) for row in rows]


def orders_of(connection: sa.Connection, of_wearers: bool, subject_ids: Sequence[str]) -> dict[str, set[str]]:
    """Ids of the orders in the incidents of people, by the person's id."""
    query = sa.text(_ORDERS.format(legs=_AT_WEARER if of_wearers else _AT_PERSON)).bindparams(
        sa.bindparam("ids", expanding=True)
    )
    found: dict[str, set[str]] = {}
    for subject_id, order_ids in connection.execute(query, {"ids": list(subject_ids)}):
        found.setdefault(subject_id, set()).update(order_ids.split())
    return found


class _PeriodFigures:
    """The figures of a period. Each method reads a statistic of them."""

    def __init__(self, connection: sa.Connection, period: StatisticsPeriod) -> None:
        self._connection, self._period = connection, period
        self._is_sqlite = not statements.is_postgresql(connection)
        self._is_short = self._is_sqlite and _is_short(connection, period)

    def took(self, leg: Leg, measure: str) -> list[TookRow]:
        """How often a leg's responses took which time, by office."""
        return [TookRow._make((*row, None)) for row in self._grouped(leg, measure, f"office_id, {measure}_took_ms")]

    def arrivals(self, leg: Leg) -> list[TookRow]:
        """How often a leg's units took which time, by office."""
        return [
            TookRow(office_id=office_id, ms=ms, times=number, in_time=None if in_time is None else bool(in_time))
            for office_id, ms, in_time, number in self._grouped(
                leg, "arrival", "office_id, arrival_took_ms, arrived_in_time"
            )
        ]

    def intervals(self, leg: Leg) -> list[tuple[int, int | None, int]]:
        """How often a leg's responses were accepted after which time, by interval."""
        return [
            (number, ms, counted)
            for number, interval in enumerate(self._period.intervals())
            for ms, counted in self._grouped(leg, "period", "acceptance_took_ms", within=interval)
        ]

    def outcomes(self, leg: Leg) -> list[tuple[int, int, int]]:
        """How often a leg's dispatches ended how, by kind of alert."""
        rows = self._grouped(leg, "outcome", "outcome, kind", counted="outcome > 0")
        return [(outcome, kind, number) for outcome, kind, number in rows]

    def of_wearers(self) -> str:
        """Query of the burden of each wearer."""
        return self._of_leg("probation")

    def of_persons(self) -> str:
        """Query of the burden of each protected person and each protected place."""
        return _BY_LEGS.format(police=self._of_leg("police"), warning=self._of_leg("warning"))

    def people(self, burdens_sql: str) -> Mapping[bool, list[SpreadRow]]:
        """How many of the people of a query have how many incidents: persons by False, places by True."""
        query = sa.text(
            f"SELECT {_IS_PLACE}, incidents, count(*), sum(for_nothing) FROM ({burdens_sql}) AS people GROUP BY 1, 2"  # noqa: S608
        )
        found: dict[bool, list[SpreadRow]] = {False: [], True: []}
        for is_place, *row in self._connection.execute(query, self._period.bounds):
            found[bool(is_place)].append(SpreadRow._make(int(number) for number in row))
        return found

    def _grouped(
        self,
        leg: Leg,
        index: str,
        groups: str,
        *,
        counted: str = "offered_ms IS NOT NULL",
        within: StatisticsPeriod | None = None,
    ) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        """Counts a leg's figures by groups, along an index that has these groups in their order."""
        query = sa.text(_GROUPED.format(groups=groups, figures=self._along(index), counted=counted))
        parameters = {"leg": str(leg), **(within or self._period).bounds}
        return self._connection.execute(query, parameters).all()

    def _of_leg(self, leg: str) -> str:
        return _OF_LEG.format(figures=self._along("subject"), leg=leg)

    def _along(self, index: str) -> str:
        """The table as a source of a query, in SQLite with the index along which it is read."""
        if not self._is_sqlite:
            return "figures"
        return f"figures INDEXED BY figures_{'period' if self._is_short else index}"


def _is_short(connection: sa.Connection, period: StatisticsPeriod) -> bool:
    ((first_ms, last_ms),) = connection.execute(_SPAN)
    if first_ms is None:
        return True
    within_ms = min(period.until_ms - 1, last_ms) - max(period.from_ms, first_ms)
    return bool(within_ms * SHORT_PART < last_ms - first_ms)
