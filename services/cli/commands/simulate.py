"""`tandem backtest` and `tandem replay`: a scenario and its reports, folded in process or replayed through a running mesh."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.table import Table

from services.cli import usage
from services.cli.commands import incidents
from services.cli.simulate import backtest as backtests
from services.cli.simulate import files
from services.cli.simulate.files import FileError
from services.cli.terminal import SafeConsole, fitted, for_results, styled
from services.client import mesh, outcome
from services.client.mesh import DEFAULT_FOLDER, MeshConnection
from services.client.scenario import (
    Replayed,
    ReportLine,
    Scenario,
    alert_json,
    read_sensing_requests,
    replay_scenario,
    sensing_request_json,
)
from services.common.failure import FAILED, MISUSED, CommandFailed
from tandem.registry.v1 import registry_pb2


def backtest(
    scenario: Annotated[Path, typer.Option(help="Scenario: records and orders, JSON.")],
    reports: Annotated[Path, typer.Option(help="Reports in order of arrival, NDJSON; or a tag's track, .gpx or .csv.")],
    rules: Annotated[
        Path | None, typer.Option(help="Decision rules, TOML; they replace the rules in the reports.")
    ] = None,
    *,
    against: Annotated[
        Path | None, typer.Option(help="Other decision rules: print the changed alerts instead of all alerts.")
    ] = None,
    requests: Annotated[
        bool,
        typer.Option("--requests", help="Also print the reports that the fold would ask of the tags; no tag obeys."),
    ] = False,
    device: Annotated[
        str, typer.Option(help="Tag of a .gpx or .csv track; the scenario's first tag if left out.")
    ] = "",
) -> None:
    """Print the alerts of a scenario and its reports, as NDJSON."""
    if against is not None and rules is None:
        raise CommandFailed("--against needs --rules to compare with", MISUSED)
    if against is not None and requests:
        raise CommandFailed("--requests doesn't go with --against, which compares alerts", MISUSED)
    try:
        chosen = files.load_rules(rules) if rules else None
        alerts = backtests.run_files(scenario, reports, chosen, requests=requests, device_id=device)
        if against is None:
            for alert in alerts:
                print(json.dumps(alert))
        else:
            other = backtests.run_files(scenario, reports, files.load_rules(against), device_id=device)
            _compare(list(alerts), list(other))
    except FileError as error:
        raise CommandFailed(str(error), MISUSED) from None


def _compare(a: list[backtests.AlertLine], b: list[backtests.AlertLine]) -> None:
    changes = backtests.compare_alerts(a, b)
    for change in changes:
        print(json.dumps(change.to_json()))
    counts = backtests.summary_of_changes(a, b, changes)
    print(
        f"only in a: {counts['only_a']}, only in b: {counts['only_b']}, changed: {counts['changed']}", file=sys.stderr
    )
    for side in ("a", "b"):
        numbers = ", ".join(f"{name} {number}" for name, number in counts[side].items())
        print(f"{side}: {numbers}", file=sys.stderr)


def replay(
    scenario: Annotated[Path, typer.Option(help="Scenario: records and orders, JSON.")],
    reports: Annotated[Path, typer.Option(help="Reports in order of arrival, NDJSON.")],
    clock_rate: Annotated[int, typer.Option(help="Clock rate of the mesh, as given to `tandem up`.", min=1)] = 1,
    *,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
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


async def _play(running: MeshConnection, scenario: Scenario, lines: Sequence[ReportLine], *, as_json: bool) -> int:
    console = for_results(stderr=as_json)
    async with mesh.connect(running) as clients:
        with console.status("putting the records") as status:
            replayed = await replay_scenario(
                clients, scenario, lines, progress=lambda sent: status.update(f"sent {sent} of {len(lines)} lines")
            )
    asked = await _requests(running, replayed, scenario=scenario, lines=lines)
    for refusal in replayed.refused:
        console.print(styled(("refused", "yellow"), f" {refusal}"))
    alerts = [alert_json(alert, replayed.shift_ms) for alert in replayed.alerts]
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
    running: MeshConnection, replayed: Replayed, *, scenario: Scenario, lines: Sequence[ReportLine]
) -> list[dict[str, Any]]:
    """The requests of the decision to the tags of the replay."""
    tag_ids = {tag.device_id for tag in scenario.tags}
    tag_ids |= {line.what.device_id for line in lines if isinstance(line.what, registry_pb2.Tag)}
    async with running.nats.bus_for_command("explain") as (bus, _):
        found = await read_sensing_requests(bus, tag_ids, from_ms=replayed.from_ms, until_ms=replayed.until_ms)
    return [sensing_request_json(request, replayed.shift_ms) for request in found]


def _print(console: SafeConsole, replayed: Replayed, alerts: list[dict[str, object]]) -> None:
    table = Table("at", "order", "target", "what", "ring, m", "demand")
    for alert in alerts:
        columns = ("at", "order_id", "target_id", "kind", "ring_m", "demand")
        table.add_row(*(str(alert[column] or "") for column in columns))
    console.print(fitted(console, table))
    for incident in incidents.outcome_tables(replayed.incidents, replayed.shift_ms):
        console.print(fitted(console, incident))
