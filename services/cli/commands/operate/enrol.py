"""`tandem enrol`: issue the code with which a protected person's phone is enrolled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import uvloop

from services.cli.calls import call
from services.cli.simulate.actors import NPA_RECORDS
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.common import times
from services.registry.enrolment.domain import DEFAULT_VALID_S, MAX_VALID_S, MIN_VALID_S
from tandem.registry.v1 import enrolment_pb2
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub


def enrol(
    device: Annotated[str, typer.Argument(help="Id of the protective device.")],
    valid_for_s: Annotated[
        int, typer.Option(min=MIN_VALID_S, max=MAX_VALID_S, help="How long the code is valid, seconds.")
    ] = DEFAULT_VALID_S,
    *,
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
) -> None:
    """Issue and print a code by which a protected person's phone is enrolled, once. Earlier codes of the device end."""
    running = mesh.load(folder)
    issued = uvloop.run(_ask(running, device, valid_for_s))
    until = times.to_rfc3339(times.from_timestamp(issued.expires_at))
    print(f"{issued.code}\nvalid until {until}" + (f", at {running.field_url}" if running.field_url else ""))


async def _ask(running: MeshConnection, device_id: str, valid_for_s: int) -> enrolment_pb2.IssueEnrolmentCodeResponse:
    async with mesh.channel(running, "registry") as channel:
        request = enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device_id, valid_for_s=valid_for_s)
        method = EnrolmentServiceStub(channel).IssueEnrolmentCode
        return await call(method, request, mesh.identity(running, NPA_RECORDS))
