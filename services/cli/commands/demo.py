"""`tandem demo`: run the demo of services/client/demo.py on a running mesh."""

from __future__ import annotations

import json
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, assert_never

import typer
import uvloop

from services.cli import usage
from services.cli.commands import incidents as outcome_tables
from services.cli.commands.mesh import page_of
from services.cli.terminal import SafeConsole, fitted, styled
from services.cli.usage import typed_name
from services.client import demo as demo_run
from services.client import mesh, outcome
from services.client.mesh import DEFAULT_FOLDER, MeshConnection
from services.common.failure import FAILED


def demo(
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
    by_phones: Annotated[
        bool,
        typer.Option("--phones", help="You answer by the phones' pages, which open in a browser; nobody is at a desk."),
    ] = False,
) -> None:
    """Run the Namyangju demo on a running mesh, step by step."""
    running = mesh.load(folder)
    raise typer.Exit(uvloop.run(play(running, as_json=as_json, folder=folder, by_phones=by_phones)))


async def play(
    running: MeshConnection,
    *,
    as_json: bool,
    folder: Path = DEFAULT_FOLDER,
    mesh_stops: bool = False,
    by_phones: bool = False,
) -> int:
    """Runs and prints the demo. Returns the exit code: 0 if both legs of every incident are acknowledged.

    `mesh_stops` says that the mesh stops afterwards, so that the reader is told how to look at what it has kept.
    """
    async with mesh.connect(running) as clients, demo_run.stage(clients, demo_run.new_plan()) as stage:
        console = SafeConsole(stderr=as_json, highlight=False, soft_wrap=True)
        if by_phones:
            await _by_phones(running, stage, console)
        else:
            await _steps(stage, console)
        incidents = await demo_run.settled(stage)
    if as_json:
        print(json.dumps(outcome.to_json(stage.match_ms, incidents)))
    else:
        for table in outcome_tables.outcome_tables(incidents, names=stage.names):
            console.print(fitted(console, table))
        page = page_of(running, incidents[-1].incident_id)
        console.print(*what_next(incidents[-1].incident_id, folder, page, mesh_stops=mesh_stops), sep="\n")
    if not (answered := outcome.all_answered(incidents)):
        console.print("not every incident has both legs acknowledged", style="red")
    return 0 if answered else FAILED


async def _steps(stage: demo_run.DemoStage, console: SafeConsole) -> None:
    """Runs the steps of the demo, and prints each with the time that it took."""
    lasts_s = stage.plan.lasts_s(stage.clients.clock)
    console.print(f"The demo takes about {lasts_s:.0f} s. All its people are made up.")
    began = time.monotonic()
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


async def _by_phones(running: MeshConnection, stage: demo_run.DemoStage, console: SafeConsole) -> None:
    """Runs the demo with the phones' pages in a browser, and prints each step. The person at them answers."""

    def show(line: str) -> None:
        console.print(f"  {line}")

    async with demo_run.phones(running, stage) as phones:
        for act in (stage.set_rules, stage.put_tag, stage.put_order, stage.see_match):
            show(await act())
        console.print("Open these pages, each in a window of its own. Links work once.", style="bold")
        for page in await phones.addresses():
            show(f"{page.whose}: {page.url}" + (f"  (code {page.code})" if page.code else ""))
            webbrowser.open(page.url)
        console.print("Waiting until both units have started their shift ...")
        await phones.until_opened()
        for act in (stage.warn, stage.notify, stage.respond):
            show(await act())
        console.print("The wearer is at her door: accept, drive, arrive and close on both pages.", style="bold")
        show(await phones.until_answered(show))
        for act in (stage.stand_down, stage.wait_for_her_phone, stage.end_order):
            show(await act())


def what_next(incident_id: str, folder: Path, page: str, *, mesh_stops: bool) -> Iterator[str]:
    """Lines for a reader after the demo: the incident's page, and three things to try. An empty `page` means no console."""
    there, tandem = mesh.dir_option(folder), typed_name()
    yield ""
    if mesh_stops:
        yield f"The mesh stops now. What it stored is kept in {folder}; to look at it, start the mesh:"
        yield f"  {tandem} up{there}"
    if page:
        yield "The incident with its map and replay, for police, probation and reviewers:"
        if not mesh_stops:
            yield f"  {page}"
        yield f"  {tandem} open {incident_id}{there}"
    yield "Three things to try next, in another terminal:" if not mesh_stops else "Three things to try next:"
    for command, meaning in (
        (f"trace {incident_id}", "what happened, to the millisecond"),
        (f"explain {incident_id}", "why each alert was given"),
        ("drill", "an exercise, step by step"),
    ):
        yield f"  {tandem} {command + there:40} {meaning}"
