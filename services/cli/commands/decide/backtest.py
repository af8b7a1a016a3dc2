"""`tandem backtest`: fold a scenario and its reports in process, without any service."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli.failure import MISUSED, CommandFailed
from services.cli.simulate import backtest as backtests
from services.cli.simulate import comparison
from services.cli.simulate import rules as rule_files
from services.cli.simulate.files import FileError


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
        chosen = rule_files.load(rules) if rules else None
        alerts = backtests.run(scenario, reports, chosen, requests=requests, device_id=device)
        if against is None:
            for alert in alerts:
                print(json.dumps(alert))
        else:
            other = backtests.run(scenario, reports, rule_files.load(against), device_id=device)
            _compare(list(alerts), list(other))
    except FileError as error:
        raise CommandFailed(str(error), MISUSED) from None


def _compare(a: list[comparison.AlertLine], b: list[comparison.AlertLine]) -> None:
    changes = comparison.compare(a, b)
    for change in changes:
        print(json.dumps(change.to_json()))
    counts = comparison.summary(a, b, changes)
    print(
        f"only in a: {counts['only_a']}, only in b: {counts['only_b']}, changed: {counts['changed']}", file=sys.stderr
    )
    for side in ("a", "b"):
        numbers = ", ".join(f"{name} {number}" for name, number in counts[side].items())
        print(f"{side}: {numbers}", file=sys.stderr)
