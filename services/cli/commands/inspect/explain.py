"""`tandem explain`: list the alerts of an incident, or explain one alert by refolding the raw log."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.status import Status
from rich.table import Table

from services.cli import arguments
from services.cli.calls import PATIENCE_S
from services.cli.explain import disclosures, explanation, refold, tables
from services.cli.explain.disclosures import Reader
from services.cli.explain.explanation import Explanation
from services.cli.failure import FAILED, CommandFailed
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import SafeConsole, fitted, for_results
from services.common import times
from services.common.alert_phases import phase_of
from services.common.messaging import flow
from services.common.observability import telemetry
from services.common.privacy.grounds import Purpose
from services.common.rpc.errors import RetryableError
from tandem.common.v1 import alert_pb2, geometry_pb2

INCIDENT = "incident-"
"""Beginning of the ids of incidents."""


def explain(
    id_: Annotated[str, typer.Argument(metavar="ALERT", help="Id of the alert; of an incident, to list its alerts.")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    positions: Annotated[
        bool,
        typer.Option("--positions", help="Show coordinates, distances and times inside. The ledger records it."),
    ] = False,
    *,
    legal_basis: Annotated[
        str,
        typer.Option(metavar="CODE", help="With --positions: code of the legal basis, such as TAG_DECREE_23_10."),
    ] = "",
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="With --positions: name of the reader.")] = "",
    purpose: Annotated[
        Purpose, typer.Option(help="With --positions: purpose of the disclosure.", case_sensitive=False)
    ] = Purpose.AUDIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Refold the log up to an alert, and show its evidence and the missing reports. Of an incident, list the alerts."""
    arguments.required_id("ALERT", id_)
    telemetry.configure("explain", sys.stderr)
    running = mesh.load(folder)
    if id_.startswith(INCIDENT):
        _print_alerts(uvloop.run(_list(running, id_)), as_json)
        return
    now_ms = running.clock.now_ms()
    to = (
        disclosures.reader(reviewer, legal_basis, purpose, now_ms=now_ms, needed_by="--positions")
        if positions
        else None
    )
    console = SafeConsole(stderr=as_json, highlight=False, soft_wrap=True)
    with console.status("looking for the alert") as status:
        explained = uvloop.run(_explain(running, id_, to, status=status))
    if as_json:
        print(json.dumps(explained.to_json(positions)))
    else:
        console.print(*tables.tables(explained, positions), sep="\n")
    if explained.differences:
        raise typer.Exit(FAILED)


def _print_alerts(alerts: list[alert_pb2.Alert], as_json: bool) -> None:
    rows = [
        {
            "at": times.to_rfc3339(times.from_timestamp(alert.at)),
            "kind": alert_pb2.AlertKind.Name(alert.kind),
            "phase": phase_of(alert).value,
            "ring_m": alert.ring_m or None,
            "target_id": alert.target_id,
            "demand": geometry_pb2.Demand.Name(alert.demand),
            "alert_id": alert.alert_id,
        }
        for alert in alerts
    ]
    if as_json:
        print(json.dumps({"alerts": rows}))
        return
    console = for_results()
    table = Table("holds for", "what", "demand", "alert")
    for alert, row in zip(alerts, rows, strict=True):
        ring = f" {alert.ring_m:g} m" if alert.ring_m else ""
        what = f"{tables.alert_in_words(alert)}{ring}"
        table.add_row(str(row["at"])[11:], what, str(row["demand"]), alert.alert_id)
    console.print(fitted(console, table))
    console.print(tables.IN_UTC)
    gravest = max(alerts, key=lambda alert: alert.demand)
    console.print(f"why one was given: tandem explain {gravest.alert_id}")


async def _list(running: MeshConnection, incident_id: str) -> list[alert_pb2.Alert]:
    try:
        async with asyncio.timeout(PATIENCE_S) as patience, running.nats.bus_as("explain") as connection:
            bounds = await connection.bounds_of(flow.ALERTS.name)
            patience.reschedule(None)  # 30 days of alerts may take long
            return await refold.alerts_of(connection, incident_id, bounds)
    except TimeoutError:
        raise CommandFailed(f"no answer from {running.nats.url} for {PATIENCE_S:.0f} s") from None
    except RetryableError as error:
        raise CommandFailed(error.reason) from None


async def _explain(running: MeshConnection, alert_id: str, to: Reader | None, *, status: Status) -> Explanation:
    try:
        async with (
            asyncio.timeout(PATIENCE_S) as patience,
            running.nats.bus_as("explain") as connection,
        ):
            stored, log_meta = await refold.find(connection, alert_id)
            patience.reschedule(None)  # no timeout here: refolding a long log takes long
            refolded = await refold.refold(
                connection, stored, log_meta, progress=lambda at, last: status.update(f"entry {at} of {last}")
            )
            if to:
                patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
                await disclosures.record(connection, disclosures.disclosures(refolded, to, running.clock.now_ms()))
    except TimeoutError:
        raise CommandFailed(f"no answer from {running.nats.url} for {PATIENCE_S:.0f} s") from None
    except RetryableError as error:
        raise CommandFailed(error.reason) from None
    return explanation.explain(refolded)
