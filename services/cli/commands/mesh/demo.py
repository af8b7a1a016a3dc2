"""`tandem demo`: run the demo of services/cli/simulate/demo.py on a running mesh."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, assert_never

import typer
import uvloop

from services.cli.failure import FAILED
from services.cli.simulate import demo as demo_run
from services.cli.simulate import outcome
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import SafeConsole, styled


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
) -> None:
    """Run the Namyangju demo on a running mesh, step by step."""
    raise typer.Exit(uvloop.run(play(mesh.load(folder), as_json=as_json)))


async def play(running: MeshConnection, *, as_json: bool) -> int:
    """Runs and prints the demo. Returns the exit code: 0 if both legs of every incident are acknowledged."""
    async with played(running, as_json=as_json) as exit_code:
        return exit_code


@asynccontextmanager
async def played(running: MeshConnection, *, as_json: bool) -> AsyncIterator[int]:
    """Runs and prints the demo, and yields its exit code. All actors of the demo stay connected during the block.

    The protected person gets 20 s to read each notice. So the last notice is sent after the demo's last step. To acknowledge that
    notice, her phone must stay connected after the demo.
    """
    console = SafeConsole(stderr=as_json, highlight=False, soft_wrap=True)
    began = time.monotonic()
    async with mesh.connect(running) as clients, demo_run.stage(clients, demo_run.new_plan()) as stage:
        with console.status("") as status:
            async for event in demo_run.play(stage):
                match event:
                    case demo_run.Begun():
                        status.update(event.title)
                    case demo_run.Done():
                        after, took = f"{time.monotonic() - began:5.1f} s", f"({event.took_ms:.0f} ms)"
                        title = (event.title, "bold")
                        console.print(styled((after, "dim"), "  ", title, f": {event.detail} ", (took, "dim")))
                    case _:
                        assert_never(event)
        incidents = await demo_run.settled(stage)
        if as_json:
            print(json.dumps(outcome.to_json(stage.match_ms, incidents)))
        else:
            console.print(*outcome.tables(incidents), sep="\n")
        if not (answered := outcome.all_answered(incidents)):
            console.print("not every incident has both legs acknowledged", style="red")
        yield 0 if answered else FAILED
