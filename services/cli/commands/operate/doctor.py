"""`tandem doctor`: check this machine for a mesh: versions, ports, disk, clock and certificates."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from services.cli.failure import FAILED, CommandFailed
from services.cli.stack import checkup, mesh, monitoring
from services.cli.stack.checkup import CheckFinding, CheckVerdict
from services.cli.stack.mesh import DEFAULT_FOLDER
from services.cli.terminal import for_results, styled

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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
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
