"""`tandem demo`: plays the story of story.py on a running mesh."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from services.cli import mesh, outcome, story
from services.cli.failure import FAILED
from services.cli.mesh import DEFAULT_FOLDER, Mesh


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
) -> None:
    """Play the Namyangju story on a running mesh, step by step."""
    raise typer.Exit(uvloop.run(play(mesh.load(folder), as_json=as_json)))


async def play(running: Mesh, *, as_json: bool) -> int:
    """Plays the story, prints it, and returns the exit code: 0 where both legs of every incident are acknowledged."""
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    began = time.monotonic()
    async with mesh.connect(running) as clients, story.stage(clients, story.new_plan()) as stage:
        with console.status("") as status:
            async for event in story.play(stage):
                if isinstance(event, story.Begun):
                    status.update(event.title)
                else:
                    console.print(
                        f"[dim]{time.monotonic() - began:5.1f} s[/]  [bold]{event.title}[/]: {event.detail}"
                        f" [dim]({event.took_ms:.0f} ms)[/]"
                    )
        incidents = await story.settled(stage)
        match_ms = stage.match_ms
    if as_json:
        print(json.dumps(outcome.to_json(match_ms, incidents)))
    else:
        console.print(*outcome.tables(incidents), sep="\n")
    if outcome.all_answered(incidents):
        return 0
    console.print("[red]not every incident has both legs acknowledged[/]")
    return FAILED
