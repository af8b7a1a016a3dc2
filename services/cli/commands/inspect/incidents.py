"""`tandem incidents`: list incidents as the legs know them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from services.cli.failure import CommandFailed
from services.cli.simulate import outcome
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import fitted, for_results


def incidents(
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    only_open: Annotated[bool, typer.Option("--open", help="Only those that haven't ended in each leg.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List incidents with both legs side by side. A leg that doesn't answer within 5 s is left out and named: exit code 1."""
    listed, silent = uvloop.run(_read(mesh.load(folder)))
    if only_open:
        listed = [incident for incident in listed if incident.is_open]
    if as_json:
        rows = [incident.to_json() for incident in listed]
        print(json.dumps({"incidents": rows, "legs_without_answer": silent}))
    elif listed:
        console = for_results()
        for table in outcome.tables(listed):
            console.print(fitted(console, table))
    else:
        print("no open incidents" if only_open else "no incidents")
    if silent:
        raise CommandFailed(f"no answer from {', '.join(silent)}: its part is missing above; telephone its desk")


async def _read(running: MeshConnection) -> tuple[list[outcome.IncidentOutcome], list[str]]:
    async with mesh.connect(running) as clients:
        return await outcome.read_answering(clients)
