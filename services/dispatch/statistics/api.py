"""gRPC service of a leg's statistics. Counts name nobody; a list of people by id is a disclosure. Parsing validates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from services.common import ids, times
from services.common.clock import MeshClock
from services.common.errors import InvalidField, PermissionDenied, Unavailable
from services.common.messaging.bus import Bus
from services.common.privacy.disclosures import PURPOSES
from services.common.privacy.grounds import Grounds, RecordKind, check_grounds
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.publications import LegDisclosures
from services.dispatch.leg.store import Store
from services.dispatch.statistics import domain, figures
from services.dispatch.statistics.domain import Measure
from services.dispatch.statistics.figures import DAY_MS, BurdenRow, PeriodCounts, SpreadRow, StatisticsPeriod, TookRow
from tandem.common.v1 import alert_pb2, ledger_pb2
from tandem.dispatch.v1 import statistics_pb2, statistics_pb2_grpc

REFERENCE = "statistics"
"""Reference of a disclosure, where the caller gives none."""


class StatisticsApi(statistics_pb2_grpc.StatisticsServiceServicer):
    """StatisticsService of one leg."""

    def __init__(self, leg: Leg, store: Store, clock: MeshClock, *, disclosures: LegDisclosures) -> None:
        self._leg = leg
        self._store = store
        self._clock = clock
        self._disclosures = disclosures
        self._bus: Bus | None = None

    def connected(self, bus: Bus) -> None:
        """Sets the bus on which disclosures are published."""
        self._bus = bus

    async def GetStatistics(
        self, request: statistics_pb2.GetStatisticsRequest, context: Context
    ) -> statistics_pb2.GetStatisticsResponse:
        """Returns the statistics of a period, in one snapshot."""
        admit(self._leg, Role.ROLE_REVIEWER)
        asked = _parse_period(request)
        counts = await self._store.reading_history(partial(figures.count_period, own=self._leg, period=asked))
        return statistics_message(counts, self._leg, asked)

    async def ListBurdens(
        self, request: statistics_pb2.ListBurdensRequest, context: Context
    ) -> statistics_pb2.ListBurdensResponse:
        """Lists people with their burdens, after the disclosure is stored."""
        admit(self._leg, Role.ROLE_REVIEWER)
        if not self._leg.policy.has_units:
            raise PermissionDenied(f"the {self._leg} leg lists nobody: ask the police leg")
        asked, (skip, size) = _parse_period(request), _parse_page(request)
        kind = self._kind(request.kind)
        now_ms = self._clock.now_ms()
        grounds = _grounds(request, kind, now_ms)
        of_wearers = kind is RecordKind.WEARER
        rows = await self._store.reading_history(
            partial(figures.burdens, period=asked, of_wearers=of_wearers, skip=skip, limit=size + 1)
        )
        shown = await self._record(rows[:size], kind, grounds, now_ms=now_ms)
        return statistics_pb2.ListBurdensResponse(
            burdens=[_burden_message(row) for row in shown],
            next_page_token=str(skip + size) if len(rows) > size else "",
        )

    def _kind(self, kind: statistics_pb2.BurdenedKind.ValueType) -> RecordKind:
        if kind == statistics_pb2.BURDENED_WEARER:
            return RecordKind.WEARER
        if kind != statistics_pb2.BURDENED_PROTECTED_PERSON:
            raise InvalidField("kind", "must be BURDENED_WEARER or BURDENED_PROTECTED_PERSON")
        if not self._leg.policy.may_locate_person:
            raise InvalidField("kind", f"must be BURDENED_WEARER: the {self._leg} leg lists wearers only")
        return RecordKind.PROTECTED_PERSON

    async def _record(
        self, rows: Sequence[BurdenRow], kind: RecordKind, grounds: Grounds, *, now_ms: int
    ) -> list[BurdenRow]:
        """Stores one disclosure for each pair of a listed person and an order. Returns the people whose disclosure is stored.

        Raises Unavailable.
        """
        if not rows:
            return []
        if self._bus is None:
            raise Unavailable("the disclosure can't be recorded: no connection to NATS")
        subject_ids = [row.subject_id for row in rows]
        orders = await self._store.reading_history(
            partial(figures.orders_of, of_wearers=kind is RecordKind.WEARER, subject_ids=subject_ids)
        )
        who = server.caller().spiffe_id
        await self._disclosures.record(
            self._bus,
            [
                ledger_pb2.Disclosure(
                    disclosure_id=ids.hash_id("statistics", who, order_id, kind.value, subject_id, now_ms),
                    at_ms=now_ms,
                    who=who,
                    legal_basis=grounds.legal_basis,
                    purpose=grounds.purpose.value,
                    reference=grounds.reference or REFERENCE,
                    record_kind=kind.value,
                    record_id=subject_id,
                    order_id=order_id,
                    recipient=who,
                )
                for subject_id in subject_ids
                for order_id in sorted(orders.get(subject_id, ()))
            ],
        )
        return [row for row in rows if orders.get(row.subject_id)]


def _grounds(request: statistics_pb2.ListBurdensRequest, kind: RecordKind, now_ms: int) -> Grounds:
    """The grounds of a request. Raises InvalidField if they don't allow it."""
    given = request.grounds
    try:
        return check_grounds(given.legal_basis, PURPOSES.get(given.purpose), given.reference, kind=kind, now_ms=now_ms)
    except InvalidField as error:
        raise error.under("grounds") from None


MAX_DAYS = 3_660
PAGE_SIZE, MAX_PAGE_SIZE = 50, 100
MAX_SKIP = 1_000_000
_EXAMPLE = "(example: 2026-07-06T00:00:00+09:00)"


def _parse_period(request: statistics_pb2.GetStatisticsRequest | statistics_pb2.ListBurdensRequest) -> StatisticsPeriod:
    """Parses the period of a request. Raises InvalidField."""
    for field in ("from", "until"):
        if not request.HasField(field):
            raise InvalidField(field, f"is missing {_EXAMPLE}")
    asked = StatisticsPeriod(
        times.from_timestamp(getattr(request, "from")), times.from_timestamp(request.until)
    )  # `from` is a word of Python
    if asked.until_ms <= asked.from_ms:
        raise InvalidField("until", "must be after `from`")
    if asked.until_ms - asked.from_ms > MAX_DAYS * DAY_MS:
        raise InvalidField("until", f"must be at most {MAX_DAYS} days after `from`")
    return asked


def _parse_page(request: statistics_pb2.ListBurdensRequest) -> tuple[int, int]:
    """Parses the number of people to skip and the size of a page. Raises InvalidField."""
    token = request.page_token
    if token and not (token.isascii() and token.isdigit() and int(token[:9]) <= MAX_SKIP and len(token) <= 7):
        raise InvalidField("page_token", "isn't a token of this leg: use next_page_token of the last response")
    if request.page_size > MAX_PAGE_SIZE:
        raise InvalidField("page_size", f"must be at most {MAX_PAGE_SIZE}")
    return int(token or 0), request.page_size or PAGE_SIZE


def statistics_message(counts: PeriodCounts, own: Leg, asked: StatisticsPeriod) -> statistics_pb2.GetStatisticsResponse:
    """The answer of GetStatistics."""
    return statistics_pb2.GetStatisticsResponse(
        incidents=counts.incidents,
        behind=counts.behind,
        response_times=[
            times_of for (leg, measure), rows in counts.took.items() for times_of in _response_times(leg, measure, rows)
        ],
        intervals=_intervals(counts, asked),
        outcomes=[
            statistics_pb2.OutcomeCount(
                leg=translate.LEG_NUMBERS[leg],
                outcome=statistics_pb2.DispatchOutcome.ValueType(outcome),
                kind=alert_pb2.AlertKind.ValueType(kind if leg is own else 0),
                count=number,
            )
            for leg, found in counts.outcomes.items()
            for outcome, kind, number in found
        ],
        burdens=[
            spread
            for kind, rows in (
                (statistics_pb2.BURDENED_WEARER, counts.wearers),
                (statistics_pb2.BURDENED_PROTECTED_PERSON, counts.persons),
                (statistics_pb2.BURDENED_PLACE, counts.places),
            )
            if (spread := _spread(kind, rows))
        ],
    )


def _burden_message(row: BurdenRow) -> statistics_pb2.Burden:
    """The burden of one person."""
    return statistics_pb2.Burden(
        subject_id=row.subject_id,
        incidents=row.incidents,
        visits=row.visits,
        visits_for_nothing=row.for_nothing,
        messages=row.messages,
    )


def _response_times(leg: Leg, measure: Measure, rows: Sequence[TookRow]) -> list[statistics_pb2.ResponseTimes]:
    """The times of a leg as a whole and of its offices; none if nothing was offered."""
    if not rows:
        return []
    by_office: dict[str, list[TookRow]] = {}
    for row in rows:
        by_office.setdefault(row.office_id, []).append(row)
    made = [_times_of(leg, measure, "", rows=rows)]
    made += [
        _times_of(leg, measure, office_id, rows=by_office[office_id]) for office_id in sorted(by_office) if office_id
    ]
    return made


def _times_of(leg: Leg, measure: Measure, office_id: str, *, rows: Sequence[TookRow]) -> statistics_pb2.ResponseTimes:
    reached = [(row.ms, row.times) for row in rows if row.ms is not None]
    offered = sum(row.times for row in rows)
    due_ms = domain.due_ms(leg, measure)
    message = statistics_pb2.ResponseTimes(
        leg=translate.LEG_NUMBERS[leg],
        office_id=office_id,
        measure=statistics_pb2.ResponseMeasure.ValueType(measure),
        offered=offered,
        reached=sum(number for _, number in reached),
    )
    for name, percent in (("median_s", 50), ("p90_s", 90)):
        if (ms := domain.percentile_of_counts(reached, percent)) is not None:
            setattr(message, name, ms / 1000)
    if due_ms is not None:
        message.due_s = due_ms / 1000
        message.due = offered
        message.in_time = domain.in_time(reached, due_ms)
    else:
        message.due = sum(row.times for row in rows if row.in_time is not None)
        message.in_time = sum(row.times for row in rows if row.in_time)
    return message


def _intervals(counts: PeriodCounts, asked: StatisticsPeriod) -> list[statistics_pb2.IntervalFigures]:
    """All intervals of the period, also those without an offer."""
    by_number: dict[int, list[tuple[int | None, int]]] = {}
    for number, ms, counted in counts.intervals:
        by_number.setdefault(number, []).append((ms, counted))
    made = []
    for number, within in enumerate(asked.intervals()):
        rows = by_number.get(number, [])
        accepted = [(ms, counted) for ms, counted in rows if ms is not None]
        interval = statistics_pb2.IntervalFigures(
            offered=sum(counted for _, counted in rows),
            in_time=domain.in_time(accepted, domain.ACCEPT_WITHIN_MS),
        )
        getattr(interval, "from").CopyFrom(times.to_timestamp(within.from_ms))
        if (median_ms := domain.percentile_of_counts(accepted, 50)) is not None:
            interval.median_s = median_ms / 1000
        made.append(interval)
    return made


def _spread(
    kind: statistics_pb2.BurdenedKind.ValueType, rows: Iterable[SpreadRow]
) -> statistics_pb2.BurdenSpread | None:
    people = [(row.incidents, row.people) for row in rows]
    if not people:
        return None
    return statistics_pb2.BurdenSpread(
        kind=kind,
        people=sum(number for _, number in people),
        median_incidents=domain.percentile_of_counts(people, 50) or 0,
        p90_incidents=domain.percentile_of_counts(people, 90) or 0,
        max_incidents=max(incidents for incidents, _ in people),
        visits_for_nothing=sum(row.for_nothing for row in rows),
    )
