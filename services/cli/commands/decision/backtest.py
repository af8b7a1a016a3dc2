"""`tandem backtest`: folds a scenario and its reports in process, without any service."""

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
    reports: Annotated[Path, typer.Option(help="Reports in the order of their arrival, NDJSON.")],
    rules: Annotated[
        Path | None, typer.Option(help="Settings of the decision, TOML; they take the place of those in the reports.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Other settings: print what they would change, instead of the alerts.")
    ] = None,
) -> None:
    """Print the alerts that a scenario and its reports lead to, as NDJSON."""
    if against is not None and rules is None:
        raise CommandFailed("--against needs --rules to compare with", MISUSED)
    try:
        chosen = rule_files.load(rules) if rules else None
        found = backtests.run(scenario, reports, chosen)
        if against is None:
            for alert in found:
                print(json.dumps(alert))
        else:
            _compare(list(found), list(backtests.run(scenario, reports, rule_files.load(against))))
    except FileError as error:
        raise CommandFailed(str(error), MISUSED) from None


def _compare(a: list[comparison.Told], b: list[comparison.Told]) -> None:
    changes = comparison.compare(a, b)
    for change in changes:
        print(json.dumps(change.to_json()))
    said = comparison.summary(a, b, changes)
    print(f"only in a: {said['only_a']}, only in b: {said['only_b']}, changed: {said['changed']}", file=sys.stderr)
    for side in ("a", "b"):
        numbers = ", ".join(f"{name} {number}" for name, number in said[side].items())
        print(f"{side}: {numbers}", file=sys.stderr)
