"""`tandem status`: whether each process of a mesh runs and does its work."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from services.cli.failure import FAILED
from services.cli.stack import mesh, monitoring
from services.cli.stack.mesh import DEFAULT_FOLDER
from services.cli.terminal import fitted, for_results


def status(
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show whether each process of a mesh runs and does its work, and where its console is.

    Exit code 0 if all do, 1 if one doesn't, 2 if no mesh runs on the folder.
    """
    running = mesh.load(folder)
    states = asyncio.run(monitoring.states_of(running))
    all_ready = all(state.is_ready for state in states)
    if as_json:
        processes = [
            {"name": state.name, "pid": state.pid, "is_ready": state.is_ready, "answer": state.answer}
            for state in states
        ]
        print(json.dumps({"is_ready": all_ready, "processes": processes, "console_url": running.console_url}))
    else:
        console = for_results()
        table = Table("process", Column("pid", justify="right"), Column("state", overflow="fold"))
        for state in states:
            style = "green" if state.is_ready else "bold red"
            table.add_row(state.name, str(state.pid or "-"), state.answer, style=style)
        console.print(fitted(console, table))
        ready = sum(state.is_ready for state in states)
        console.print(f"{ready} of {len(states)} processes are ready; the clock's rate is {running.clock.rate}")
        console.print(f"console: {running.console_url or 'there is none'}")
    raise typer.Exit(0 if all_ready else FAILED)
