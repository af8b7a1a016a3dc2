"""Writes and reads the figures of a leg's assignments, and counts the answers of its statistics from them.

The figures follow from the leg's steps and from the other legs' last assignments, so they can be made again at any time. A background
task of the leg counts new steps into them. It is record work: offers and desks come first.

A short period is read along its time, a long one along the groups. SQLite sorts the rows that it groups, unless an index has the groups
in their order. Along such an index nothing is sorted, but the figures of all years are read. So the cost of a page grows with its
period, up to one pass over all figures for each statistic. PostgreSQL chooses by itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.common import times
from services.common.errors import Unavailable
from services.common.priority import PriorityGate
from services.common.retrying import retried
from services.common.storage import statements
from services.common.storage.rows import RowTarget, write
from services.common.storage.statements import Prepared
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import CloseCause, Task
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import figures, figures_changed_peers, figures_progress, peers, steps
from services.dispatch.statistics.domain import FOR_NOTHING, AssignmentSeen, DispatchOutcome, Measure, ResponseFigures
from tandem.common.v1 import alert_pb2, exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

PAGE = 60
"""Steps or assignments of other legs that one transaction counts. An offer or a desk's answer waits for it, so it is small."""
_FIGURES = (RowTarget(figures, tuple(column.name for column in figures.columns if not column.primary_key)),)
_PROGRESS = (RowTarget(figures_progress, ("step_sequence",)),)
_STATES = {int(state) for state in AssignmentState}
_CAUSES = {int(cause) for cause in CloseCause}
_TASKS = {int(task) for task in Task}


class _FoundStep(NamedTuple):
    """A step that isn't counted yet."""

    step: dispatch_pb2.Step
    """For another leg's assignment a step without a time: only its last change is kept."""
    arrived_before: bool = False
    """Whether a change that wasn't kept was an arrival."""


class CountedPage(NamedTuple):
    """Numbers of records that one transaction counted."""

    steps: int
    """Number of this leg's steps."""
    peers: int
    """Number of other legs' assignments."""

    @property
    def is_full(self) -> bool:
        """Whether more may wait."""
        return PAGE in self


class _Counted(NamedTuple):
    """Part of an assignment's row that a step may change."""

    figures: ResponseFigures
    order_ids: str
    """Ids of the orders that the incident concerns, separated by spaces."""


def _count_next(connection: sa.Connection) -> CountedPage:
    """Counts the next steps of this leg and the next changed assignments of other legs, within a transaction of the leg's writes."""
    own, changed = _NEXT_STEPS.fetch(connection), _NEXT_PEERS.fetch(connection)
    found = [_FoundStep(dispatch_pb2.Step.FromString(payload)) for _, payload in own]
    found += [
        _FoundStep(dispatch_pb2.Step(assignment=dispatch_pb2.Assignment.FromString(payload)), bool(has_arrived))
        for _, payload, has_arrived in changed
        if payload
    ]
    _fold(connection, [each for each in found if each.step.assignment.exercise == exercise_pb2.EXERCISE_UNSPECIFIED])
    if own:
        last_sequence, _ = own[-1]
        write(connection, _PROGRESS, ([(1, last_sequence)],))
    if changed:
        sql = _FORGET_PEERS[connection.dialect.name]
        statements.execute(connection, sql, [_ids(connection, (assignment_id for assignment_id, *_ in changed))])
    return CountedPage(len(own), len(changed))


def _fold(connection: sa.Connection, found: Sequence[_FoundStep]) -> None:
    """Folds steps into the rows of their assignments. A step of an incident that this leg doesn't know is dated by the step."""
    known = _known(connection, {step.assignment.assignment_id for step, _ in found})
    after: dict[str, _Counted] = {}
    opened = _opened(connection, {step.assignment.incident_id for step, _ in found})
    latest: dict[str, dispatch_pb2.Assignment] = {}
    for step, arrived_before in found:
        assignment = step.assignment
        id_ = assignment.assignment_id
        task = Task(assignment.task) if assignment.task in _TASKS else Task.RESPOND
        before = after.get(id_) or known.get(id_) or _Counted(ResponseFigures(task=task), "")
        after[id_] = _Counted(before.figures.after(_seen(step, arrived_before)), " ".join(assignment.order_ids))
        latest[id_] = assignment
    # Many steps change no figure, such as a departure. The row has many indices, so it costs more than to read it.
    changed = [id_ for id_ in latest if after[id_] != known.get(id_)]
    rows = [_row(latest[id_], after[id_], opened.get(latest[id_].incident_id)) for id_ in changed]
    write(connection, _FIGURES, (rows,))


def _known(connection: sa.Connection, ids: Iterable[str]) -> dict[str, _Counted]:
    rows = statements.fetch(connection, _KNOWN[connection.dialect.name], [_ids(connection, ids)])
    known = {}
    for id_, task, offered_ms, received_ms, acknowledged_ms, arrived_ms, arrival_due_ms, has_arrived, *others in rows:
        office_id, kind, outcome, order_ids = others
        counted = ResponseFigures(
            task=Task(task),
            offered_ms=offered_ms,
            received_ms=received_ms,
            acknowledged_ms=acknowledged_ms,
            arrived_ms=arrived_ms,
            arrival_due_ms=arrival_due_ms,
            has_arrived=bool(has_arrived),
            office_id=office_id,
            kind=kind,
            outcome=DispatchOutcome(outcome),
        )
        known[id_] = _Counted(counted, order_ids)
    return known


def _opened(connection: sa.Connection, ids: Iterable[str]) -> Mapping[str, int]:
    rows = statements.fetch(connection, _OPENED[connection.dialect.name], [_ids(connection, ids)])
    return {incident_id: opened_ms for incident_id, opened_ms in rows}


def _ids(connection: sa.Connection, ids: Iterable[str]) -> object:
    """Ids as a parameter of the statements below."""
    return list(ids) if statements.is_postgresql(connection) else json.dumps(list(ids))


def _seen(step: dispatch_pb2.Step, arrived_before: bool) -> AssignmentSeen:
    assignment = step.assignment
    has_travel = assignment.HasField("choice") and assignment.choice.HasField("travel_s")
    # A newer version of another leg may have states and causes that this version doesn't know.
    known = assignment.state in _STATES
    return AssignmentSeen(
        state=AssignmentState(assignment.state) if known else AssignmentState.NOTIFIED,
        at_ms=times.from_timestamp(step.at) if step.HasField("at") else None,
        offered_ms=times.from_timestamp(assignment.offered_at) if assignment.HasField("offered_at") else None,
        received_ms=times.from_timestamp(assignment.received_at) if assignment.HasField("received_at") else None,
        acknowledged_ms=times.from_timestamp(assignment.acknowledged_at)
        if assignment.HasField("acknowledged_at")
        else None,
        sent_ms=times.from_timestamp(assignment.sent_at) if assignment.HasField("sent_at") else None,
        travel_ms=assignment.choice.travel_s * 1000 if has_travel else None,
        office_id=assignment.choice.office_id,
        kind=assignment.kind,
        close_cause=CloseCause(assignment.close_cause) if assignment.close_cause in _CAUSES else None,
        arrived_before=arrived_before,
    )


def _row(assignment: dispatch_pb2.Assignment, counted: _Counted, opened_ms: int | None) -> tuple[object, ...]:
    """The row of an assignment, with the columns of `tables.figures` in their order."""
    known, order_ids = counted
    if opened_ms is None:
        opened_ms = known.offered_ms or 0
    return (
        assignment.assignment_id,
        assignment.incident_id,
        alert_pb2.Leg.Name(assignment.leg).lower(),
        assignment.subject_id,
        order_ids,
        opened_ms,
        int(known.task),
        known.offered_ms,
        known.received_ms,
        known.acknowledged_ms,
        known.arrived_ms,
        known.arrival_due_ms,
        known.has_arrived,
        known.office_id,
        known.kind,
        int(known.outcome),
        known.took_ms(Measure.RECEIPT),
        known.took_ms(Measure.ACCEPTANCE),
        known.took_ms(Measure.ARRIVAL),
        known.arrived_in_time,
    )


def _by_ids(sql: str) -> Mapping[str, str]:
    """A statement for each dialect, whose only parameter are ids."""
    among = {"postgresql": "= ANY($1::VARCHAR[])", "sqlite": "IN (SELECT value FROM json_each(?1))"}
    return {dialect: sql.format(among=condition) for dialect, condition in among.items()}


_NEXT_STEPS = Prepared(
    sa.select(steps.c.sequence, steps.c.payload)
    .where(
        steps.c.sequence
        > sa.select(sa.func.coalesce(sa.func.max(figures_progress.c.step_sequence), 0)).scalar_subquery()
    )
    .order_by(steps.c.sequence)
    .limit(PAGE)
)
_NEXT_PEERS = Prepared(
    sa.select(figures_changed_peers.c.assignment_id, peers.c.payload, figures_changed_peers.c.has_arrived)
    .select_from(figures_changed_peers.outerjoin(peers, peers.c.assignment_id == figures_changed_peers.c.assignment_id))
    .limit(PAGE)
)
_FORGET_PEERS = _by_ids("DELETE FROM figures_changed_peers WHERE assignment_id {among}")
_KNOWN = _by_ids(
    "SELECT assignment_id, task, offered_ms, received_ms, acknowledged_ms, arrived_ms, arrival_due_ms, has_arrived, office_id, kind,"
    " outcome, order_ids FROM figures WHERE assignment_id {among}"
)
_OPENED = _by_ids("SELECT incident_id, opened_ms FROM incidents WHERE incident_id {among}")


COLLECT_INTERVAL_S = 2.0
"""Interval at which new steps are looked for, seconds."""


class FiguresCollector:
    """Counts the steps of a leg and the other legs' assignments. Several processes of a leg may do so: each page counts once."""

    def __init__(self, store: Store, gate: PriorityGate) -> None:
        self._store, self._gate = store, gate

    async def run(self) -> None:
        """Counts until cancelled. While the database refuses, it retries."""
        while True:
            await retried(self.catch_up, on=Unavailable)
            await asyncio.sleep(COLLECT_INTERVAL_S)

    async def catch_up(self) -> None:
        """Counts all that isn't counted yet. Raises Unavailable."""
        while True:
            async with self._gate.record():
                page = await self._store.transaction(_count_next)
            if not page.is_full:
                return


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


def count_period(connection: sa.Connection, own: Leg, period: StatisticsPeriod) -> PeriodCounts:
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
