"""`tandem certs`: a development certificate authority, and certificates for all services and clients."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from services.cli.failure import MISUSED, CommandFailed
from services.cli.monitor import drill, exercise
from services.cli.monitor.series import WATCH
from services.cli.simulate.actors import DESKS, MOJ_RECORDS, NPA_RECORDS, REVIEWER, VENDOR
from services.cli.stack import authority, nats_server
from services.cli.stack.authority import Authority
from services.cli.stack.mesh import OPERATOR
from services.common.messaging import flow
from services.common.messaging.permissions import SERVICE
from services.common.rpc.certificates import AUTHORITY, folder_of
from services.common.rpc.errors import Unauthenticated
from services.common.rpc.identity import CONSOLES, FIELD, caller_of

_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9.-]+(/[a-z0-9-]+)+")
CLIENTS = (
    MOJ_RECORDS,
    NPA_RECORDS,
    *DESKS.values(),
    VENDOR,
    REVIEWER,
    OPERATOR,
    exercise.VENDOR,
    drill.OPERATOR,
    WATCH,
    *CONSOLES.values(),
)
"""Identities of callers: the demo's simulated callers, drills, the watch, and the consoles."""
CONSOLE_SERVER = SERVICE + "console"
"""Identity with which a console serves its pages; as a client it uses its agency's identity."""
SERVERS = (nats_server.IDENTITY, CONSOLE_SERVER, FIELD, *(SERVICE + user for user in flow.USERS))
LOOPBACK = ("localhost", "127.0.0.1")


def certs(
    ids: Annotated[
        list[str] | None, typer.Argument(help="SPIFFE ids; default: all ids that a mesh and its demo need.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the authority and the certificates.")] = Path(
        "certs"
    ),
    hosts: Annotated[
        list[str] | None, typer.Option("--host", help="DNS name or address of the servers, in addition to loopback.")
    ] = None,
    *,
    days: Annotated[float, typer.Option(help="Lifetime of the certificates, days.", min=0.001, max=398)] = 30,
) -> None:
    """Issue development certificates by a local authority; existing ones are replaced."""
    os.umask(0o077)
    for spiffe_id in ids or ():
        if not _SPIFFE_ID.fullmatch(spiffe_id):
            raise CommandFailed(f"{spiffe_id}: isn't a SPIFFE id (example: spiffe://moj/desk/seoul)", MISUSED)
        try:
            caller_of(spiffe_id)
        except Unauthenticated:
            examples = "spiffe://vendor/acme, spiffe://moj/desk/seoul"
            raise CommandFailed(f"{spiffe_id}: no role has this id (examples: {examples})", MISUSED) from None
    wanted = tuple(ids) if ids else (*SERVERS, *CLIENTS)
    issue(folder, wanted, (*LOOPBACK, *(hosts or ())), lifetime=timedelta(days=days))
    for spiffe_id in wanted:
        print(f"{spiffe_id}  {folder_of(folder, spiffe_id)}")


def issue(folder: Path, ids: Iterable[str], hosts: Iterable[str], *, lifetime: timedelta) -> None:
    """Issues certificates for these ids. Creates the authority in the folder the first time."""
    issuer, hosts = Authority.opened(folder), tuple(hosts)
    trusted = (folder / AUTHORITY).read_bytes()
    for spiffe_id in ids:
        # Only Tandem's own services accept connections. Other certificates get no host names, so that no server can use them.
        host_names = hosts if spiffe_id.startswith(SERVICE) else ()
        authority.write(folder, spiffe_id, issuer.issue([spiffe_id], host_names, lifetime), trusted=trusted)
