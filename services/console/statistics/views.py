"""Page of the statistics over all incidents, its file, and lists of people by id. A list is a disclosure, which the leg records."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from aiohttp import web

from services.common.privacy.grounds import RecordKind, codes_for
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.domain.people import VIEWERS, Role
from services.console.guard import Ask, RouteGuard
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.statistics import model, translate
from services.console.statistics.model import BadPeriod, BurdenOfPerson, DayPeriod
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
        found = translate.statistics(await self._read(ask, period))
        return _file(f"statistics-{period.first}-{period.last}", model.CSV_COLUMNS, model.csv_rows(found))

    async def people_file(self, ask: Ask) -> web.StreamResponse:
        """Sends the list of all people with a burden as a file, after the leg has recorded each page of it."""
        period, rows, token = self._period(ask), list[BurdenOfPerson](), ""
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
        today = datetime.fromtimestamp(self._mesh.clock.now_ms() / 1000, UTC).astimezone(assets.KOREA).date()
        try:
            return DayPeriod.of(given.get("from", ""), given.get("until", ""), today)
        except BadPeriod as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None

    async def _read(self, ask: Ask, period: DayPeriod) -> statistics_pb2.GetStatisticsResponse:
        return await self._mesh.leg_of(ask.user.role).statistics.GetStatistics(
            statistics_pb2.GetStatisticsRequest(**translate.bounds(period)),
            metadata=self._mesh.identity(ask.user),
            timeout=UNARY_DEADLINE_S,
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
            **translate.bounds(period),
        )
        answer = await self._mesh.leg_of(ask.user.role).statistics.ListBurdens(
            request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
        )
        return [translate.burden(burden) for burden in answer.burdens], answer.next_page_token

    async def _show(
        self, ask: Ask, period: DayPeriod, people: Sequence[BurdenOfPerson] | None = None, *, next_page: str = ""
    ) -> web.StreamResponse:
        found = translate.statistics(await self._read(ask, period))
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
