"""`tandem drill` and `tandem watch`: exercises of the whole chain, one on demand, and canaries one after another."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.status import Status
from rich.table import Column, Table

from services.cli import usage
from services.cli.terminal import SafeConsole, fitted, for_results
from services.client import drill as drills
from services.client import mesh
from services.client.mesh import DEFAULT_FOLDER, MeshConnection
from services.common.clock import wall_us
from services.common.failure import MISUSED, CommandFailed
from services.common.messaging import flow
from services.common.observability import health, telemetry
from services.common.percentiles import percentile
from services.local.watch import CanaryWatch, PageFailed, Pager, pagers, trial_message

PEOPLE_WITHIN_S = 600.0
"""Maximum time per step if people answer at the desks, seconds."""
PERCENTS = (50, 90, 100)


def drill(
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    times: Annotated[int, typer.Option(help="Number of drills, one after the other.", min=1, max=1000)] = 1,
    by_desks: Annotated[
        bool, typer.Option("--by-desks", help="People at the desks answer, up to 10 min per step.")
    ] = False,
    *,
    as_json: usage.AsJson = False,
) -> None:
    """Drill the response: simulate a breach, marked as an exercise, and measure each step."""
    runs = asyncio.run(_until_signalled(mesh.load(folder), times, by_desks))
    if as_json:
        print(json.dumps(to_json(runs)))
    else:
        console = for_results()
        console.print(fitted(console, table(runs)))


async def _until_signalled(running: MeshConnection, times: int, by_desks: bool) -> list[drills.Times]:
    work = asyncio.create_task(_run_drill(running, times, by_desks))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        return await work
    except asyncio.CancelledError:
        raise CommandFailed("stopped; the records of the drill were ended") from None


async def _run_drill(running: MeshConnection, times: int, by_desks: bool) -> list[drills.Times]:
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
        self._console = console
        self._status = status
        self._title = title
        self._by_desks = by_desks
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


COMMAND, WEBHOOKS = "TANDEM_PAGER_COMMAND", "TANDEM_PAGER_WEBHOOKS"
MAX_CLOCK_RATE = 10
"""Maximum clock rate: on a faster mesh, the chain's normal latency would look like an outage."""


def watch(
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh; watch.json is kept there, too.")] = (
        DEFAULT_FOLDER
    ),
    command: Annotated[
        str, typer.Option("--page-by", envvar=COMMAND, help="Program that pages somebody; gets JSON on its input.")
    ] = "",
    webhooks: Annotated[
        Path | None,
        typer.Option("--page-to", envvar=WEBHOOKS, help="File of webhooks, see docs/reference/partners.md."),
    ] = None,
    *,
    test_page: Annotated[
        bool,
        typer.Option("--test-page", help="Send one page of the kind TEST by each pager, and end. No mesh is needed."),
    ] = False,
) -> None:
    """Send a canary through the whole chain every 20 s, and page when a canary is missing."""
    channels = pagers(shlex.split(command), webhooks)
    if test_page:
        asyncio.run(_try(channels))
        return
    health.start()
    running = mesh.load(folder)
    if running.clock.rate > MAX_CLOCK_RATE:
        raise CommandFailed(
            f"the mesh's clock rate is {running.clock.rate}; the watch works up to a rate of {MAX_CLOCK_RATE}", MISUSED
        )
    telemetry.configure("watch")
    # Not uvloop: it starts processes by fork, which gRPC's threads forbid.
    asyncio.run(_run_watch(running, folder, channels))


async def _run_watch(running: MeshConnection, folder: Path, channels: Sequence[Pager]) -> None:
    console = SafeConsole(highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S %Z')}  {line}")

    names = ", ".join(channel.name for channel in channels)
    say(f"Watching {folder}; pages go to {names}." if names else f"Watching {folder}; pages are printed only here.")
    async with mesh.connect(running) as clients:
        work = asyncio.create_task(CanaryWatch(clients=clients, folder=folder, pagers=channels, say=say).run())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()


async def _try(channels: Sequence[Pager]) -> None:
    """Sends a page of the kind TEST by each pager, and says which accepted it. Raises CommandFailed unless all did."""
    if not channels:
        raise CommandFailed(f"no pager is configured: set {COMMAND} or {WEBHOOKS}", MISUSED)
    message, refused = trial_message(wall_us() // 1000), 0
    for channel in channels:
        try:
            await channel.page(message)
        except PageFailed as failed:
            refused += 1
            print(f"{channel.name} refused the page: {failed}")
        else:
            print(f"{channel.name} accepted the page")
    if refused:
        raise CommandFailed(f"{refused} of {len(channels)} pagers refused the page")
