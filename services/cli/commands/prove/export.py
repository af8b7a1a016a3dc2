"""`tandem export`: print an incident in an exchange format, CAP or EIDO."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from services.cli import arguments
from services.cli.calls import PATIENCE_S
from services.cli.failure import MISUSED, CommandFailed
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.common.messaging import dead_letters, flow, pull, stored
from services.common.observability import telemetry
from services.common.rpc.errors import InvalidField, RetryableError
from services.dispatch.exchange import cap, eido
from tandem.dispatch.v1 import dispatch_pb2

FORMS = ("cap", "eido")


def export(
    incident_id: Annotated[str, typer.Argument(metavar="INCIDENT", help="Id of the incident.")],
    form: Annotated[str, typer.Option("--as", help="Format: cap (CAP 1.2, XML) or eido (JSON).")],
    leg: Annotated[str, typer.Option(help="Leg whose half of the incident is printed.")] = "police",
    *,
    recipient: Annotated[str, typer.Option(help="Addressee of a CAP message.")] = "export",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
) -> None:
    """Print the current state of one leg's half of an incident: ids and states, no name, address or position."""
    arguments.required_id("INCIDENT", incident_id)
    if form not in FORMS:
        raise CommandFailed(f"--as: must be one of {', '.join(FORMS)}", MISUSED)
    if leg not in flow.LEGS:
        raise CommandFailed(f"--leg: must be one of {', '.join(flow.LEGS)}", MISUSED)
    telemetry.configure("export", sys.stderr)
    steps = uvloop.run(_steps(mesh.load(folder), leg, incident_id))
    print((cap.message(leg, steps, recipient) if form == "cap" else eido.document(leg, steps)).decode())


async def _steps(running: MeshConnection, leg: str, incident_id: str) -> list[dispatch_pb2.Step]:
    """The leg's steps of an incident, in order. Raises CommandFailed if there are none."""
    stream, subject = flow.INCIDENTS.name, flow.incident_subject(leg, incident_id)
    try:
        async with asyncio.timeout(PATIENCE_S), running.nats.bus_as("export") as bus:
            if await bus.last_of(stream, subject) is None:
                raise CommandFailed(f"{stream} holds no step of the {leg} leg in {incident_id}", MISUSED)
            steps: list[dispatch_pb2.Step] = []
            async for messages in pull.read(bus, stream, 1, subjects=(subject,)):
                for message in messages:
                    try:
                        steps.append(stored.step(message.data, message.subject))
                    except InvalidField as error:
                        dead_letters.pass_over(bus, "export", stream, sequence=message.sequence, error=error)
                if messages[-1].pending == 0:
                    break
            return steps
    except TimeoutError:
        raise CommandFailed(f"no answer from {running.nats.url} for {PATIENCE_S:.0f} s") from None
    except RetryableError as error:
        raise CommandFailed(error.reason) from None
