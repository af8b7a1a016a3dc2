"""Reference of the `tandem` command: each command with its arguments and options, and the columns of the CSV tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import typer
from typer.core import TyperCommand, TyperGroup

from services.cli import __main__ as command_line
from services.cli import csv_records
from tools.reference.markdown import code, page, table


def _commands() -> Iterator[tuple[str, str, TyperCommand]]:
    """Heading, whole name and command of each command that does something, in the order of the help."""
    root = cast(TyperGroup, typer.main.get_command(cast(typer.Typer, command_line.app)))
    for heading, name, _ in command_line.COMMANDS:
        command = root.commands[name]
        inner = command.commands if isinstance(command, TyperGroup) else {"": command}
        for sub, found in inner.items():
            yield heading, f"{name} {sub}".strip(), cast(TyperCommand, found)


def _rows(command: TyperCommand) -> list[tuple[str, str, str]]:
    context = typer.Context(command)
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is None or parameter.name == "help":
            continue
        names, text = record
        needed = "required" if parameter.required else ""
        rows.append((code(" ".join(names.split())), needed, " ".join(text.replace("[required]", "").split())))
    return rows


def render() -> str:
    """The page of the commands."""
    parts, heading = [], ""
    for above, name, command in _commands():
        if above != heading:
            heading = above
            parts.append(f"## {heading}\n")
        lines = [line.strip() for line in (command.help or "").splitlines() if line.strip()]
        parts.append(f"### tandem {name}\n\n" + "\n".join(lines) + "\n")
        if rows := _rows(command):
            parts.append(table(("argument or option", "", "what"), rows))
    introduction = (
        "The command is `.venv/bin/tandem`. `tandem COMMAND --help` says the same; [commands by example](commands-by-example.md) shows "
        "what they print.\nExit codes: 0 done, 1 something failed, 2 an input or option is wrong. [Tables](csv-tables.md) are the "
        "columns of `tandem import`."
    )
    return page("Command line", introduction, *parts)


def render_tables() -> str:
    """The page of the CSV tables."""
    parts = []
    for name, columns in csv_records.TABLES.items():
        rows = [
            (code(column.name), "required" if column.required else "", column.meaning, code(column.example))
            for column in columns
        ]
        parts.append(f"## {name}\n\n" + table(("column", "", "what", "example"), rows))
    introduction = (
        "Tables for `tandem import`, in UTF-8 or CP949, as Excel writes them in Korea. A cell with several values separates them with\n"
        "semicolons. A wrong line is named with its column and an example, and the others are imported. Examples are in `examples/`."
    )
    return page("CSV tables", introduction, *parts)
