"""`tandem backtest`: folds a scenario and its reports in process, without any service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from services.cli import backtest as backtests
from services.cli.failure import MISUSED, CommandFailed
from services.cli.files import FileError


def backtest(
    scenario: Annotated[Path, typer.Option(help="Scenario: records and orders, JSON.")],
    reports: Annotated[Path, typer.Option(help="Reports in the order of their arrival, NDJSON.")],
) -> None:
    """Print the alerts that a scenario and its reports lead to, as NDJSON."""
    try:
        for alert in backtests.run(scenario, reports):
            print(json.dumps(alert))
    except FileError as error:
        raise CommandFailed(str(error), MISUSED) from None
