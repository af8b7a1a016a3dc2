"""`tandem quarantine`: list refused reports by device, sender and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.table import Table

from services.cli.calls import call
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, OPERATOR, MeshConnection
from services.cli.terminal import fitted, for_results
from services.common import times
from tandem.ingest.v1 import ingest_pb2

INCOMPLETE = (
    "Incomplete: more reports were refused than are kept. A row without a device may combine several devices; the oldest counts are "
    "dropped."
)


def quarantine(
    device: Annotated[str, typer.Option(help="Show this device only.")] = "",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the reports that were refused in the last 7 days: counts, never their contents."""
    answer = uvloop.run(_ask(mesh.load(folder), device))
    rows = [
        {
            "device_id": counted.device_id,
            "sender": counted.sender,
            "reason": ingest_pb2.RefusalCode.Name(counted.code).removeprefix("REFUSAL_CODE_"),
            "count": counted.count,
            "first": times.to_rfc3339(times.from_timestamp(counted.first)),
            "last": times.to_rfc3339(times.from_timestamp(counted.last)),
        }
        for counted in answer.quarantined
    ]
    if as_json:
        print(json.dumps({"quarantined": rows, "incomplete": answer.incomplete}))
        return
    console = for_results()
    if not rows:
        console.print("no reports were refused")
        return
    table = Table("device", "sender", "reason", "count", "first", "last")
    for row in rows:
        table.add_row(*(str(value) or "-" for value in row.values()))
    console.print(fitted(console, table))
    if answer.incomplete:
        console.print(INCOMPLETE)


async def _ask(running: MeshConnection, device_id: str) -> ingest_pb2.ListQuarantineResponse:
    async with mesh.connect(running) as clients:
        request = ingest_pb2.ListQuarantineRequest(device_id=device_id)
        return await call(clients.ingest.ListQuarantine, request, clients.identity(OPERATOR))
