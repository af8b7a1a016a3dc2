"""`tandem watch`: sends canaries through the whole chain and pages when one is missing."""

from __future__ import annotations

import asyncio
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from services.cli.failure import MISUSED, CommandFailed
from services.cli.monitor.pager import PageFailed, Pager, pagers, trial_message
from services.cli.monitor.watch import CanaryWatch
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import SafeConsole
from services.common.clock import wall_us
from services.common.observability import heartbeat, telemetry

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
    heartbeat.start()
    running = mesh.load(folder)
    if running.clock.rate > MAX_CLOCK_RATE:
        raise CommandFailed(
            f"the mesh's clock rate is {running.clock.rate}; the watch works up to a rate of {MAX_CLOCK_RATE}", MISUSED
        )
    telemetry.configure("watch")
    # Not uvloop: it starts processes by fork, which gRPC's threads forbid.
    asyncio.run(_run(running, folder, channels))


async def _run(running: MeshConnection, folder: Path, channels: Sequence[Pager]) -> None:
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
