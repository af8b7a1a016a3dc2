"""`tandem incidents`: list incidents as both legs know them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from services.cli.simulate import outcome
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import fitted, for_results


def incidents(
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List incidents with both legs side by side."""
    listed = uvloop.run(_read(mesh.load(folder)))
    if as_json:
        print(json.dumps({"incidents": [incident.to_json() for incident in listed]}))
    elif listed:
        console = for_results()
        for table in outcome.tables(listed):
            console.print(fitted(console, table))
    else:
        print("no incidents")


async def _read(running: MeshConnection) -> list[outcome.IncidentOutcome]:
    async with mesh.connect(running) as clients:
        return await outcome.read(clients)
