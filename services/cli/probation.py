"""Helpers of the tracking centre's commands: calls as probation's desk, the grounds of a disclosure, and times of options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import grpc.aio
import typer
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from services.cli import arguments
from services.cli.calls import Request, Response, call
from services.cli.simulate.actors import DESKS
from services.cli.stack import mesh
from services.cli.stack.mesh import Clients
from services.cli.terminal import fitted, for_results
from services.common import times
from tandem.registry.v1 import disclosure_pb2

IDENTITY = DESKS["probation"]

Folder = Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")]
Basis = Annotated[str, typer.Option("--legal-basis", help="Code of the article that allows the disclosure.")]


def ask(
    folder: Path, method: Callable[[Clients], grpc.aio.UnaryUnaryMultiCallable[Request, Response]], request: Request
) -> Response:
    """Calls a service of a running mesh as probation's desk. Raises AioRpcError if the service refuses."""

    async def ask_mesh() -> Response:
        async with mesh.connect(mesh.load(folder)) as clients:
            return await call(method(clients), request, clients.identity(IDENTITY))

    return uvloop.run(ask_mesh())


def grounds(basis: str) -> disclosure_pb2.Grounds:
    """Grounds of a disclosure to an officer of probation, for enforcement."""
    return disclosure_pb2.Grounds(legal_basis=basis, purpose=disclosure_pb2.PURPOSE_ENFORCEMENT)


def moment(option: str, value: str) -> Timestamp:
    """Parses the time of an option, whose name is given without dashes. Raises CommandFailed if it isn't an RFC 3339 time."""
    return times.to_timestamp(arguments.moment_ms(f"--{option}", value))


def rfc3339(value: Timestamp) -> str:
    """Formats a time as RFC 3339 in UTC."""
    return times.to_rfc3339(times.from_timestamp(value))


def show(table: Table, empty: str) -> None:
    """Prints the rows of a table, or a text if it has none."""
    console = for_results()
    console.print(fitted(console, table) if table.row_count else empty)
