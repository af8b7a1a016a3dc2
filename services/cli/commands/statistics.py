"""`tandem statistics`: response times, dispatches for nothing and burdens over all incidents of a period."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
import uvloop
from google.protobuf import json_format
from rich.table import Table

from services.cli import usage
from services.cli.terminal import fitted, for_results
from services.client import mesh
from services.client.actors import REVIEWER
from services.client.calls import call
from services.client.mesh import DEFAULT_FOLDER, MeshConnection
from services.common import times
from services.common.failure import MISUSED, CommandFailed
from services.common.messaging import flow
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import statistics_pb2, statistics_pb2_grpc

DEFAULT_DAYS = 30


def statistics(
    from_: Annotated[str, typer.Option("--from", help="Begin of the period, RFC 3339; default: 30 days before.")] = "",
    until: Annotated[str, typer.Option(help="End of the period, RFC 3339; default: now.")] = "",
    leg: Annotated[str, typer.Option(help="The leg that counts: police or probation.")] = "police",
    *,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    as_json: usage.AsJson = False,
) -> None:
    """Show response times, dispatches for nothing and burdens over all incidents of a period."""
    if leg not in flow.AGENCY_LEGS:
        raise CommandFailed(f'--leg: "{leg}" is not police or probation', MISUSED)
    running = mesh.load(folder)
    until_ms = usage.moment_ms("--until", until) if until else running.clock.now_ms() + 1
    begin_ms = usage.moment_ms("--from", from_) if from_ else until_ms - DEFAULT_DAYS * 86_400_000
    if begin_ms >= until_ms:
        raise CommandFailed("--until must be after --from", MISUSED)
    request = statistics_pb2.GetStatisticsRequest(
        **{"from": times.to_timestamp(begin_ms), "until": times.to_timestamp(until_ms)}
    )
    response = uvloop.run(_read(running, leg, request))
    if as_json:
        print(json_format.MessageToJson(response, preserving_proto_field_name=True, indent=None))
        return
    console = for_results()
    shown = [datetime.fromtimestamp(ms / 1000, UTC) for ms in (begin_ms, until_ms)]
    console.print(f"{response.incidents:,} incidents from {shown[0]:%Y-%m-%d %H:%M} to {shown[1]:%Y-%m-%d %H:%M} UTC")
    if response.behind:
        console.print(f"{response.behind:,} steps aren't counted yet")
    if response.incidents:
        for table in (_times(response), _outcomes(response), _burdens(response)):
            console.print(fitted(console, table))


async def _read(
    running: MeshConnection, leg: str, request: statistics_pb2.GetStatisticsRequest
) -> statistics_pb2.GetStatisticsResponse:
    async with mesh.channel(running, f"dispatch-{leg}") as channel:
        stub = statistics_pb2_grpc.StatisticsServiceStub(channel)
        return await call(stub.GetStatistics, request, mesh.identity(running, REVIEWER))


def _times(response: statistics_pb2.GetStatisticsResponse) -> Table:
    table = Table("leg", "office", "measure", title="response times", title_justify="left")
    for column in ("offered", "reached", "median", "p90", "in time"):
        table.add_column(column, justify="right")
    for row in response.response_times:
        table.add_row(
            alert_pb2.Leg.Name(row.leg).lower(),
            row.office_id or "all",
            statistics_pb2.ResponseMeasure.Name(row.measure).lower(),
            f"{row.offered:,}",
            f"{row.reached:,}",
            _took(row.median_s) if row.HasField("median_s") else "-",
            _took(row.p90_s) if row.HasField("p90_s") else "-",
            f"{row.in_time / row.due:.1%}" if row.due else "-",
        )
    return table


def _outcomes(response: statistics_pb2.GetStatisticsResponse) -> Table:
    table = Table("leg", "outcome", "alert", title="dispatches by outcome", title_justify="left")
    table.add_column("count", justify="right")
    for row in sorted(response.outcomes, key=lambda row: (row.leg, -row.count)):
        table.add_row(
            alert_pb2.Leg.Name(row.leg).lower(),
            statistics_pb2.DispatchOutcome.Name(row.outcome).lower(),
            alert_pb2.AlertKind.Name(row.kind).lower() if row.kind else "-",
            f"{row.count:,}",
        )
    return table


def _burdens(response: statistics_pb2.GetStatisticsResponse) -> Table:
    table = Table("people", title="burden: incidents for each person or place", title_justify="left")
    for column in ("number", "median", "p90", "maximum", "visits for nothing"):
        table.add_column(column, justify="right")
    for row in response.burdens:
        table.add_row(
            statistics_pb2.BurdenedKind.Name(row.kind).removeprefix("BURDENED_").lower(),
            *(f"{number:,}" for number in (row.people, row.median_incidents, row.p90_incidents, row.max_incidents)),
            f"{row.visits_for_nothing:,}",
        )
    return table


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else str(timedelta(seconds=round(seconds)))
