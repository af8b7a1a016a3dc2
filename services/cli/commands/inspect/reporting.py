"""`tandem reporting`: list the intervals that are asked of devices, and what the devices do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.table import Table

from services.cli.calls import call
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, OPERATOR, MeshConnection
from services.cli.terminal import fitted, for_results
from services.common import times
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2


def reporting(
    device: Annotated[str, typer.Option(help="Show this device only, also if nothing is asked of it.")] = "",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the devices of which an interval between reports is asked: who asks, whether it was delivered, and what they do."""
    rows = [_row(listed) for listed in uvloop.run(_ask(mesh.load(folder), device))]
    if as_json:
        print(json.dumps({"devices": rows}))
        return
    console = for_results()
    if not rows:
        console.print("no interval is asked of any device")
        return
    table = Table("device", "asked s", "by", "until", "delivery", "observed s", "obeys", "slow", "located")
    for row in rows:
        ask = row["asks"][0] if row["asks"] else {}
        located = f"{row['locates_answered']} of {row['locates_sent']}" if row["locates_sent"] else ""
        shown = (
            row["device_id"],
            ask.get("interval_s"),
            ask.get("by"),
            ask.get("until"),
            row["refused_because"] or row["delivery"],
            row["observed_interval_s"],
            row["obeys"],
            "slow" if row["slow"] else "",
            located,
        )
        table.add_row(*(str(value or "-") for value in shown))
    console.print(fitted(console, table))


def _row(listed: ingest_pb2.DeviceReporting) -> dict[str, Any]:
    delivery = command_pb2.CommandState.Name(listed.delivery).removeprefix("COMMAND_STATE_") if listed.delivery else ""
    return {
        "device_id": listed.device_id,
        "asks": [
            {
                "interval_s": ask.interval_s,
                "by": ask.asked_by,
                "asked_at": times.to_rfc3339(times.from_timestamp(ask.asked_at)),
                "until": times.to_rfc3339(times.from_timestamp(ask.until)),
                "refused": ask.refused,
            }
            for ask in listed.asks
        ],
        "delivery": delivery,
        "delivery_since": _moment(listed, "delivery_since"),
        "refused_because": listed.refused_because,
        "observed_interval_s": listed.observed_interval_s,
        "obeys": ingest_pb2.Obedience.Name(listed.obeys).removeprefix("OBEDIENCE_"),
        "slow": listed.slow,
        "last_fix": _moment(listed, "last_fix"),
        "locates_sent": listed.locates_sent,
        "locates_answered": listed.locates_answered,
    }


def _moment(listed: ingest_pb2.DeviceReporting, field: str) -> str:
    return times.to_rfc3339(times.from_timestamp(getattr(listed, field))) if listed.HasField(field) else ""  # type: ignore[arg-type]


async def _ask(running: MeshConnection, device_id: str) -> list[ingest_pb2.DeviceReporting]:
    listed: list[ingest_pb2.DeviceReporting] = []
    async with mesh.connect(running) as clients:
        request = ingest_pb2.ListReportingRequest(device_id=device_id)
        while True:
            answer = await call(clients.commands.ListReporting, request, clients.identity(OPERATOR))
            listed += answer.devices
            if not answer.next_page_token:
                return listed
            request.page_token = answer.next_page_token
