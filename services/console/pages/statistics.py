"""Page of the statistics over all incidents, its file, and lists of people by id. A list is a disclosure, which the leg records."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, time, timedelta

from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp

from services.client.calls import call_once
from services.common import times
from services.common.privacy.grounds import RecordKind, codes_for
from services.console.domain import statistics as model
from services.console.domain.people import VIEWERS, Role
from services.console.domain.statistics import (
    BadPeriod,
    BurdenOfPerson,
    DayPeriod,
    IntervalRow,
    OutcomeRow,
    PeriodStatistics,
    SpreadOfBurden,
    TimesRow,
)
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.pages.guard import Ask, RouteGuard
from services.console.translate import leg_name
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import statistics_pb2
from tandem.registry.v1 import disclosure_pb2

MEASURES = ("RECEIPT", "ACCEPTANCE", "ARRIVAL")
PURPOSES = ("AUDIT", "ENFORCEMENT", "COURT")
LISTED = 100
"""People on a page of the list."""
BURDEN_COLUMNS = ("id", "incidents", "visits", "visits for nothing", "messages")
_KINDS = {"WEARER": RecordKind.WEARER, "PROTECTED_PERSON": RecordKind.PROTECTED_PERSON}


class StatisticsPages:
    """Pages of the statistics."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        guard = self._guard
        return [
            guard.get("/statistics", VIEWERS, self.statistics),
            guard.get("/statistics.csv", VIEWERS, self.file),
            guard.post("/statistics", VIEWERS, self.people),
            guard.post("/statistics/people.csv", VIEWERS, self.people_file),
        ]

    async def statistics(self, ask: Ask) -> web.StreamResponse:
        """Shows the statistics of a period."""
        return await self._show(ask, self._period(ask))

    async def people(self, ask: Ask) -> web.StreamResponse:
        """Shows the statistics with a list of people by id."""
        period = self._period(ask)
        people, token = await self._people(ask, period, ask.form.get("page", ""))
        return await self._show(ask, period, people, next_page=token)

    async def file(self, ask: Ask) -> web.StreamResponse:
        """Sends the statistics of a period as a file, without ids of people."""
        period = self._period(ask)
        found = _statistics(await self._read(ask, period))
        return _file(f"statistics-{period.first}-{period.last}", model.CSV_COLUMNS, model.csv_rows(found))

    async def people_file(self, ask: Ask) -> web.StreamResponse:
        """Sends the list of all people with a burden as a file, after the leg has recorded each page of it."""
        period = self._period(ask)
        rows = list[BurdenOfPerson]()
        token = ""
        while True:
            people, token = await self._people(ask, period, token)
            rows += people
            if not token:
                break
        return _file(
            f"burdens-{period.first}-{period.last}",
            BURDEN_COLUMNS,
            (
                (model.cell(row.subject_id), *map(str, (row.incidents, row.visits, row.for_nothing, row.messages)))
                for row in rows
            ),
        )

    def _period(self, ask: Ask) -> DayPeriod:
        """The period of the form, with the mesh's day as today. Raises HTTPBadRequest."""
        given = ask.form if ask.request.method == "POST" else ask.request.query
        today = datetime.fromtimestamp(self._mesh.clock.now_ms() / 1000, UTC).astimezone(times.KOREA).date()
        try:
            return DayPeriod.of(given.get("from", ""), given.get("until", ""), today)
        except BadPeriod as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None

    async def _read(self, ask: Ask, period: DayPeriod) -> statistics_pb2.GetStatisticsResponse:
        return await call_once(
            self._mesh.leg_of(ask.user.role).statistics.GetStatistics,
            statistics_pb2.GetStatisticsRequest(**period_bounds(period)),
            self._mesh.identity(ask.user),
        )

    async def _people(self, ask: Ask, period: DayPeriod, token: str) -> tuple[list[BurdenOfPerson], str]:
        """A page of people and the token of the next page."""
        kinds, purposes = statistics_pb2.BurdenedKind, disclosure_pb2.Purpose
        kind, purpose = f"BURDENED_{ask.form.get('kind', '')}", f"PURPOSE_{ask.form.get('purpose', '')}"
        request = statistics_pb2.ListBurdensRequest(
            grounds=disclosure_pb2.Grounds(
                legal_basis=ask.form.get("legal_basis", ""),
                purpose=purposes.Value(purpose) if purpose in purposes.keys() else purposes.PURPOSE_UNSPECIFIED,  # noqa: SIM118
            ),
            kind=kinds.Value(kind) if kind in kinds.keys() else kinds.BURDENED_KIND_UNSPECIFIED,  # noqa: SIM118
            page_size=LISTED,
            page_token=token,
            **period_bounds(period),
        )
        answer = await call_once(
            self._mesh.leg_of(ask.user.role).statistics.ListBurdens, request, self._mesh.identity(ask.user)
        )
        return [_burden(burden) for burden in answer.burdens], answer.next_page_token

    async def _show(
        self, ask: Ask, period: DayPeriod, people: Sequence[BurdenOfPerson] | None = None, *, next_page: str = ""
    ) -> web.StreamResponse:
        found = _statistics(await self._read(ask, period))
        by_measure = {measure: [row for row in found.times if row.measure == measure] for measure in MEASURES}
        return assets.page(
            ask,
            "statistics.html",
            path="/statistics",
            period=period,
            found=found,
            by_measure={measure: rows for measure, rows in by_measure.items() if rows},
            share=found.share_for_nothing,
            bar=model.bar_length,
            columns=model.columns(found.intervals),
            plot=(model.PLOT_WIDTH, model.PLOT_HEIGHT),
            kinds=("WEARER",) if ask.user.role is Role.PROBATION else tuple(_KINDS),
            bases=_bases(ask.user.role),
            purposes=PURPOSES,
            chosen=ask.form,
            people=people,
            next_page=next_page,
        )


def _bases(role: Role) -> list[str]:
    """Codes of the legal bases that allow to list all kinds of people that the role may list."""
    return codes_for(RecordKind.WEARER) if role is Role.PROBATION else codes_for(*_KINDS.values())


def _file(name: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> web.Response:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return web.Response(
        # Spreadsheets take a file for UTF-8 only with this mark.
        body=b"\xef\xbb\xbf" + text.getvalue().encode(),
        headers={
            "Content-Type": "text/csv; charset=utf-8",
            "Content-Disposition": f'attachment; filename="{name}.csv"',
        },
    )


def period_bounds(period: DayPeriod) -> dict[str, Timestamp]:
    """Begin and end of a period of days in Korea, as fields of a request."""
    return {
        "from": _midnight(period.first),
        "until": _midnight(period.last + timedelta(days=1)),
    }


def _midnight(day: object) -> Timestamp:
    at = datetime.combine(day, time(), times.KOREA)  # type: ignore[arg-type]
    return times.to_timestamp(int(at.timestamp() * 1000))


def _statistics(message: statistics_pb2.GetStatisticsResponse) -> PeriodStatistics:
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
                starts_at=datetime.fromtimestamp(times.from_timestamp(getattr(row, "from")) / 1000, times.KOREA),
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


def _burden(message: statistics_pb2.Burden) -> BurdenOfPerson:
    """Translates the burden of one person."""
    return BurdenOfPerson(
        subject_id=message.subject_id,
        incidents=message.incidents,
        visits=message.visits,
        for_nothing=message.visits_for_nothing,
        messages=message.messages,
    )
