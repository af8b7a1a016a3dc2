"""How far a command is, as a bar on standard error, so that standard output has results only."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.terminal import SafeConsole


def bar() -> Progress:
    """What is done, of how many, and how long the rest will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=SafeConsole(stderr=True))
