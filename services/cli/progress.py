"""Progress bars of commands, on standard error so that standard output holds results only."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.terminal import SafeConsole


def bar() -> Progress:
    """A progress bar with count, total and remaining time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=SafeConsole(stderr=True))
