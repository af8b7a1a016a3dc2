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
from services.cli.monitor.pager import Pager, pagers
from services.cli.monitor.watch import CanaryWatch
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import SafeConsole
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
) -> None:
    """Send a canary through the whole chain every 20 s, and page when a canary is missing."""
    heartbeat.start()
    running = mesh.load(folder)
    if running.clock.rate > MAX_CLOCK_RATE:
        raise CommandFailed(
            f"the mesh's clock rate is {running.clock.rate}; the watch works up to a rate of {MAX_CLOCK_RATE}", MISUSED
        )
    channels = pagers(shlex.split(command), webhooks)
    telemetry.configure("watch")
    # Not uvloop: it starts processes by fork, which gRPC's threads forbid.
    asyncio.run(_run(running, folder, channels))


async def _run(running: MeshConnection, folder: Path, channels: Sequence[Pager]) -> None:
    console = SafeConsole(highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')}  {line}")

    names = ", ".join(channel.name for channel in channels)
    say(f"Watching {folder}; pages go to {names}." if names else f"Watching {folder}; pages are printed only here.")
    async with mesh.connect(running) as clients:
        work = asyncio.create_task(CanaryWatch(clients=clients, folder=folder, pagers=channels, say=say).run())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()
