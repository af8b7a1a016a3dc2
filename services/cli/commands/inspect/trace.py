"""`tandem trace`: show the steps of an incident in order, with their durations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import uvloop
from google.protobuf import json_format

from services.cli import arguments, waterfall
from services.cli.calls import call
from services.cli.failure import FAILED, CommandFailed
from services.cli.simulate import outcome
from services.cli.simulate.actors import REVIEWER
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import for_results
from tandem.registry.v1 import trace_pb2


def trace(
    incident_id: Annotated[
        str, typer.Argument(metavar="[INCIDENT]", help="Id of the incident; default: the newest.")
    ] = "",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show an incident's trace, from the deciding report to the answers of both legs."""
    if incident_id:
        arguments.required_id("INCIDENT", incident_id)
    response = uvloop.run(_read(mesh.load(folder), incident_id))
    if as_json:
        print(json_format.MessageToJson(response, preserving_proto_field_name=True, indent=None))
    else:
        console = for_results()
        console.print(*waterfall.views(response, console), sep="\n")


async def _read(running: MeshConnection, incident_id: str) -> trace_pb2.GetTraceResponse:
    async with mesh.connect(running) as clients:
        if not incident_id:
            known = await outcome.read(clients)
            if not known:
                raise CommandFailed("no incidents", FAILED)
            incident_id = known[-1].incident_id
        request = trace_pb2.GetTraceRequest(incident_id=incident_id)
        return await call(clients.traces.GetTrace, request, clients.identity(REVIEWER))
