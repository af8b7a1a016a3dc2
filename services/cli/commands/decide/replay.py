"""`tandem replay`: replay a scenario and its reports through a running mesh."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.table import Table

from services.cli.calls import PATIENCE_S
from services.cli.failure import FAILED, MISUSED, CommandFailed
from services.cli.simulate import files, outcome, player, requests
from services.cli.simulate.player import Replayed
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import SafeConsole, fitted, for_results, styled
from services.common.rpc.errors import RetryableError
from tandem.registry.v1 import registry_pb2


def replay(
    scenario: Annotated[Path, typer.Option(help="Scenario: records and orders, JSON.")],
    reports: Annotated[Path, typer.Option(help="Reports in order of arrival, NDJSON.")],
    clock_rate: Annotated[int, typer.Option(help="Clock rate of the mesh, as given to `tandem up`.", min=1)] = 1,
    *,
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
) -> None:
    """Replay a scenario and its reports through a running mesh, as if they happened now."""
    try:
        records = files.load_scenario(scenario)
        lines = files.load_reports(reports, records)
    except files.FileError as error:
        raise CommandFailed(str(error), MISUSED) from None
    running = mesh.load(folder)
    if running.clock.rate != clock_rate:
        raise CommandFailed(
            f"--clock-rate {clock_rate}: the mesh on {folder} runs at clock rate {running.clock.rate}", MISUSED
        )
    raise typer.Exit(uvloop.run(_play(running, records, lines, as_json=as_json)))


async def _play(
    running: MeshConnection, scenario: files.Scenario, lines: Sequence[files.ReportLine], *, as_json: bool
) -> int:
    console = for_results(stderr=as_json)
    async with mesh.connect(running) as clients:
        with console.status("putting the records") as status:
            replayed = await player.play(
                clients, scenario, lines, progress=lambda sent: status.update(f"sent {sent} of {len(lines)} lines")
            )
    asked = await _requests(running, replayed, scenario=scenario, lines=lines)
    for refusal in replayed.refused:
        console.print(styled(("refused", "yellow"), f" {refusal}"))
    alerts = [player.alert_json(alert, replayed.shift_ms) for alert in replayed.alerts]
    if as_json:
        result = outcome.to_json(replayed.match_ms, replayed.incidents, replayed.shift_ms)
        print(json.dumps(result | {"episodes": alerts, "requests": asked}))
    else:
        _print(console, replayed, alerts)
        if asked:
            tags = len({request["device_id"] for request in asked})
            console.print(
                f"{len(asked)} requests of the decision for reports of {tags} tags; no device of a replay obeys"
            )
    return 0 if all(incident.answered for incident in replayed.incidents if incident.responds) else FAILED


async def _requests(
    running: MeshConnection, replayed: Replayed, *, scenario: files.Scenario, lines: Sequence[files.ReportLine]
) -> list[dict[str, Any]]:
    """The requests of the decision to the tags of the replay."""
    tag_ids = {tag.device_id for tag in scenario.tags}
    tag_ids |= {line.what.device_id for line in lines if isinstance(line.what, registry_pb2.Tag)}
    try:
        async with asyncio.timeout(PATIENCE_S), running.nats.bus_as("explain") as bus:
            found = await requests.read(bus, tag_ids, from_ms=replayed.from_ms, until_ms=replayed.until_ms)
    except TimeoutError:
        raise CommandFailed(f"no answer from {running.nats.url} for {PATIENCE_S:.0f} s") from None
    except RetryableError as error:
        raise CommandFailed(error.reason) from None
    return [requests.to_json(request, replayed.shift_ms) for request in found]


def _print(console: SafeConsole, replayed: Replayed, alerts: list[dict[str, object]]) -> None:
    table = Table("at", "order", "target", "what", "ring, m", "demand")
    for alert in alerts:
        columns = ("at", "order_id", "target_id", "kind", "ring_m", "demand")
        table.add_row(*(str(alert[column] or "") for column in columns))
    console.print(fitted(console, table))
    for incident in outcome.tables(replayed.incidents, replayed.shift_ms):
        console.print(fitted(console, incident))
