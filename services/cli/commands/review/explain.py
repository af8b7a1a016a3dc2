"""`tandem explain`: explain an alert by refolding the raw log."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.status import Status

from services.cli.calls import PATIENCE_S
from services.cli.explain import disclosures, explanation, refold, tables
from services.cli.explain.disclosures import Reader
from services.cli.explain.explanation import Explanation
from services.cli.failure import FAILED, MISUSED, CommandFailed
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import SafeConsole
from services.common import fields
from services.common.observability import telemetry
from services.common.privacy.grounds import Purpose
from services.common.rpc.errors import InvalidField, RetryableError


def explain(
    alert_id: Annotated[str, typer.Argument(metavar="ALERT", help="Id of the alert.")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    positions: Annotated[
        bool, typer.Option("--positions", help="Show coordinates; the ledger records this for each person.")
    ] = False,
    *,
    legal_basis: Annotated[
        str,
        typer.Option(metavar="CODE", help="With --positions: code of the legal basis, such as TAG_DECREE_23_10."),
    ] = "",
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="With --positions: name of the reader.")] = "",
    purpose: Annotated[
        Purpose, typer.Option(help="With --positions: purpose of the disclosure.", case_sensitive=False)
    ] = Purpose.AUDIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Refold the log up to an alert, and show its evidence and the missing reports."""
    try:
        fields.required_id("ALERT", alert_id)
    except InvalidField as error:
        raise CommandFailed(str(error), MISUSED) from None
    telemetry.configure("explain", sys.stderr)
    running = mesh.load(folder)
    now_ms = running.clock.now_ms()
    to = (
        disclosures.reader(reviewer, legal_basis, purpose, now_ms=now_ms, needed_by="--positions")
        if positions
        else None
    )
    console = SafeConsole(stderr=as_json, highlight=False, soft_wrap=True)
    with console.status("looking for the alert") as status:
        explained = uvloop.run(_explain(running, alert_id, to, status=status))
    if as_json:
        print(json.dumps(explained.to_json(positions)))
    else:
        console.print(*tables.tables(explained, positions), sep="\n")
    if explained.differences:
        raise typer.Exit(FAILED)


async def _explain(running: MeshConnection, alert_id: str, to: Reader | None, *, status: Status) -> Explanation:
    try:
        async with (
            asyncio.timeout(PATIENCE_S) as patience,
            running.nats.bus_as("explain") as connection,
        ):
            stored, log_meta = await refold.find(connection, alert_id)
            patience.reschedule(None)  # no timeout here: refolding a long log takes long
            refolded = await refold.refold(
                connection, stored, log_meta, progress=lambda at, last: status.update(f"entry {at} of {last}")
            )
            if to:
                patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
                await disclosures.record(connection, disclosures.disclosures(refolded, to, running.clock.now_ms()))
    except TimeoutError:
        raise CommandFailed(f"no answer from {running.nats.url} for {PATIENCE_S:.0f} s") from None
    except RetryableError as error:
        raise CommandFailed(error.reason) from None
    return explanation.explain(refolded)
