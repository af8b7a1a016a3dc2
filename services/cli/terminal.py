"""Safe terminal output: text from servers and files is shown as text and can't act on the terminal.

Escape sequences can move the cursor and overwrite lines. Direction marks can reverse text, and rich's markup can style or hide it.
So control characters are shown as escapes, and strings aren't parsed as markup. `styled` builds styled text.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from services.common.failure import LINE_BREAKS, printable

WIDE = 240
"""Output width where there is neither a terminal nor COLUMNS, characters: ids are for copying, so a pipe must not cut them."""


def styled(*parts: str | tuple[str, str]) -> Text:
    """One printable line of several parts. A part is a text, or a text with its style."""
    return Text.assemble(
        *(printable(part) if isinstance(part, str) else (printable(part[0]), part[1]) for part in parts), end=""
    )


class SafeConsole(Console):
    """A rich console that shows strings literally, without markup, emoji codes or control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as the console shows it, in tables too."""
        return super().render_str(printable(text, LINE_BREAKS), **options)


def for_results(**options: Any) -> SafeConsole:
    """A console for the results of a command, as wide as the terminal, or WIDE without one."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return SafeConsole(highlight=False, soft_wrap=True, width=None if has_width else WIDE, **options)


def fitted(console: Console, table: Table) -> RenderableType:
    """The table if it fits the console, else its rows as blocks of one line for each value, so that no id is broken."""
    if fits(console, table):
        return table
    return Group(*([table.title, *_blocks(table)] if table.title else _blocks(table)))


def fits(console: Console, table: Table) -> bool:
    """Whether a console is wide enough for a table without breaking a cell."""
    unbound = console.options.update(max_width=WIDE * 10)
    return Measurement.get(console, unbound, table).maximum <= console.width


def _blocks(table: Table) -> list[RenderableType]:
    blocks: list[RenderableType] = []
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        block = Table(Column(no_wrap=True, style="dim"), Column(overflow="fold"), box=None, show_header=False)
        for column, cell in zip(table.columns, cells, strict=True):
            if cell:
                block.add_row(column.header, cell)
        blocks += [block, ""]
    return blocks


def progress_bar() -> Progress:
    """A progress bar with count, total and remaining time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=SafeConsole(stderr=True))
