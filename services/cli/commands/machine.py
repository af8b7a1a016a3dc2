"""`tandem doctor`, `certs` and `migrate`: whether this machine can run a mesh, its certificates, and the schemas of its databases."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.table import Column, Table

from services.cli import usage
from services.cli.terminal import for_results, styled
from services.client import mesh
from services.client.mesh import DEFAULT_FOLDER
from services.common.certificates import folder_of
from services.common.errors import Unauthenticated, Unavailable
from services.common.failure import FAILED, MISUSED, CommandFailed
from services.common.retrying import Backoff
from services.common.rpc.identity import caller_of
from services.common.storage import db
from services.common.storage.db import MIGRATE_WITHIN_S
from services.local import checkup, monitoring
from services.local.authority import CLIENTS, LOOPBACK, SERVERS, issue
from services.local.checkup import CheckFinding, CheckVerdict
from services.registry.settings import RegistrySettings
from services.registry.tables import MIGRATIONS

_STYLES = {CheckVerdict.GOOD: "green", CheckVerdict.WARNING: "yellow", CheckVerdict.BAD: "bold red"}


def doctor(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder of the mesh; none needs to run there.")
    ] = DEFAULT_FOLDER,
    base_port: Annotated[
        int, typer.Option(help="First port that a mesh would use, if none runs.", min=1, max=65_000)
    ] = 7400,
    certs: Annotated[
        Path | None, typer.Option(help="Folder of the certificates; default: DIR/certs.", show_default=False)
    ] = None,
    *,
    as_json: usage.AsJson = False,
) -> None:
    """Check this machine: versions, ports, disk, clock, and the days that are left of the certificates.

    Without a mesh on the folder it checks whether one could start. Exit code 1 if something is bad.
    """
    findings = list(_findings(folder, base_port, certs or folder / "certs"))
    if as_json:
        rows = [
            {"subject": finding.subject, "verdict": finding.verdict.value.lower(), "text": finding.text}
            for finding in findings
        ]
        print(json.dumps({"findings": rows}))
    else:
        table = Table("check", "", Column("finding", overflow="fold"), box=None)
        for finding in findings:
            table.add_row(finding.subject, styled((finding.verdict, _STYLES[finding.verdict])), finding.text)
        for_results().print(table)
    raise typer.Exit(FAILED if any(finding.verdict is CheckVerdict.BAD for finding in findings) else 0)


def _findings(folder: Path, base_port: int, certificates: Path) -> Iterator[CheckFinding]:
    yield from checkup.versions()
    server = None
    if mesh.owner(folder) is None:
        yield checkup.free_ports(base_port)
    else:
        try:
            running = mesh.load(folder)
            server = asyncio.run(monitoring.read_monitor(running, "varz"))
            yield from checkup.answering_ports(running.addresses)
        except CommandFailed as failed:  # starting, or nats-server is down
            yield CheckFinding("ports", CheckVerdict.BAD, failed.message)
    yield checkup.disk(folder)
    yield from checkup.clock(server)
    yield from checkup.certificates(certificates)


_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9.-]+(/[a-z0-9-]+)+")


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


RETRY = Backoff(1.0, 15.0)
"""Delays between attempts."""


def migrate(
    within_s: Annotated[
        float, typer.Option("--within", help="Seconds to wait for a database that doesn't answer.", min=0)
    ] = MIGRATE_WITHIN_S,
) -> None:
    """Migrate the schema of the registry's database at TANDEM_REGISTRY_DATABASE_URL, once it answers."""
    settings = RegistrySettings()
    if not settings.registry_database_url.get_secret_value():
        raise CommandFailed(
            "TANDEM_REGISTRY_DATABASE_URL isn't set (example: postgresql://registry@db.example/registry)", MISUSED
        )
    uvloop.run(_migrate(settings.database, within_s))


async def _migrate(where: Path | str, within_s: float) -> None:
    """Migrates with retries. Otherwise the Job would use up its own retries while the database server's image is being pulled."""
    until_s, retries = time.monotonic() + within_s, 0
    while True:
        try:
            async with db.open_database(where, MIGRATIONS):
                return
        except Unavailable as error:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise CommandFailed(
                    f"the database didn't answer for {within_s:.0f} s: {error.reason}", FAILED
                ) from None
            wait_s = min(RETRY.delay_s(retries), left_s)
            print(
                f"not yet: {error.reason}; asked again in {wait_s:.0f} s, given up in {left_s:.0f} s", file=sys.stderr
            )
            await asyncio.sleep(wait_s)
            retries += 1
