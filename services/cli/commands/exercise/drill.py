"""`tandem drill`: send a synthetic breach through a running mesh as an exercise, and measure each step."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.status import Status
from rich.table import Column, Table

from services.cli.failure import CommandFailed
from services.cli.monitor import drill as drills
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import SafeConsole, fitted, for_results
from services.common.messaging import flow
from services.common.percentiles import percentile

PEOPLE_WITHIN_S = 600.0
"""Maximum time per step if people answer at the desks, seconds."""
PERCENTS = (50, 90, 100)


def drill(
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    times: Annotated[int, typer.Option(help="Number of drills, one after the other.", min=1, max=1000)] = 1,
    by_desks: Annotated[
        bool, typer.Option("--by-desks", help="People at the desks answer, up to 10 min per step.")
    ] = False,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Drill the response: simulate a breach, marked as an exercise, and measure each step."""
    runs = asyncio.run(_until_signalled(mesh.load(folder), times, by_desks))
    if as_json:
        print(json.dumps(to_json(runs)))
    else:
        console = for_results()
        console.print(fitted(console, table(runs)))


async def _until_signalled(running: MeshConnection, times: int, by_desks: bool) -> list[drills.Times]:
    work = asyncio.create_task(_run(running, times, by_desks))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        return await work
    except asyncio.CancelledError:
        raise CommandFailed("stopped; the records of the drill were ended") from None


async def _run(running: MeshConnection, times: int, by_desks: bool) -> list[drills.Times]:
    patience_s = PEOPLE_WITHIN_S if by_desks else drills.STEP_WITHIN_S
    console = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
    runs: list[drills.Times] = []
    async with mesh.connect(running) as clients:
        with console.status("") as status:
            for number in range(1, times + 1):
                progress = _Progress(console, status, title=f"drill {number} of {times}", by_desks=by_desks)
                drill = drills.Drill(clients, not by_desks, patience_s, on_step=progress.step)
                runs.append(await drill.run())
    return runs


class _Progress:
    """Says on standard error how far a drill is: each step with its time while people answer, else only the newest."""

    def __init__(self, console: SafeConsole, status: Status, *, title: str, by_desks: bool) -> None:
        self._console, self._status, self._title, self._by_desks = console, status, title, by_desks
        self._missing = list(drills.STEPS)
        if by_desks:
            console.print(f"{title}: people at the desks answer; each step may take {PEOPLE_WITHIN_S / 60:.0f} min")
        status.update(f"{title}: the wearer approaches")

    def step(self, step: str, ms: float) -> None:
        """Notes a step and its time."""
        self._missing.remove(step)
        if not self._by_desks:
            self._status.update(f"{self._title}: {step}")
            return
        self._console.print(f"{step}, {ms / 1000:.1f} s after {drills.counted_from(step)}")
        if awaited := [missing for missing in self._missing if missing.split()[0] in flow.LEGS]:
            self._status.update(f"{self._title}: waiting for {', '.join(_next_steps(awaited))}")


def _next_steps(missing: list[str]) -> list[str]:
    """The first missing step of each leg."""
    return list({step.split()[0]: step for step in reversed(missing)}.values())[::-1]


def to_json(runs: list[drills.Times]) -> dict[str, Any]:
    """The printed JSON object: the steps of each drill in milliseconds, and percentiles over all drills."""
    return {
        "drills": [{step: round(run.ms[step], 3) for step in drills.STEPS if step in run.ms} for run in runs],
        "percentiles_ms": {
            step: {f"p{percent}": round(percentile(values, percent), 3) for percent in PERCENTS}
            for step in drills.STEPS
            if (values := [run.ms[step] for run in runs if step in run.ms])
        },
    }


def table(runs: list[drills.Times]) -> Table:
    """The table of the steps: milliseconds of one drill, or percentiles over several."""
    right = [Column(f"p{percent}, ms", justify="right") for percent in PERCENTS]
    columns = right if len(runs) > 1 else [Column("ms", justify="right")]
    view = Table("step", "counted from", *columns, title_justify="left")
    view.title = f"EXERCISE, {len(runs)} times" if len(runs) > 1 else "EXERCISE"
    for step in drills.STEPS:
        values = [run.ms[step] for run in runs if step in run.ms]
        if values:
            shown = PERCENTS if len(runs) > 1 else (100,)
            cells = (f"{percentile(values, percent):,.1f}" for percent in shown)
            view.add_row(step, drills.counted_from(step), *cells)
    return view
