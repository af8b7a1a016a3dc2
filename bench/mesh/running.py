"""A separate mesh for a benchmark, as `tandem up` starts it, with joint cases whose protected persons have reported once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc.aio
import typer
from rich.console import Console

from bench.mesh import population
from bench.mesh.population import Party
from services.client import mesh
from services.client.actors import HeadEnd
from services.client.mesh import Clients, MeshConnection
from services.common import times
from services.common.failure import FAILED, CommandFailed, of_rpc
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from tandem.ingest.v1 import ingest_pb2

say = Console(stderr=True, highlight=False).print
UP_WITHIN_S = 180.0
_ANNOUNCED_BATCH = 500


@contextmanager
def said_failures() -> Iterator[None]:
    """Ends the program with a message if the mesh refuses something or doesn't answer."""
    try:
        yield
    except CommandFailed as failed:
        say(failed.message)
        raise typer.Exit(failed.exit_code) from None
    except grpc.aio.AioRpcError as error:
        say(of_rpc(error).message)
        raise typer.Exit(FAILED) from None


@contextmanager
def running_mesh(folder: Path, partitions: int = 1) -> Iterator[tuple[MeshConnection, int]]:
    """A separate, healthy mesh, and the process id of its `tandem up`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    command = (
        sys.executable,
        "-m",
        "services.cli",
        "up",
        "--dir",
        str(folder),
        "--base-port",
        "0",
        "--partitions",
        str(partitions),
    )
    with (folder.parent / "up.out").open("w+") as output:
        up = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            deadline = time.monotonic() + UP_WITHIN_S
            while True:
                with suppress(CommandFailed):
                    running = mesh.load(folder)
                    break
                if up.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise CommandFailed(f"the mesh didn't start:\n{output.read()}")
                time.sleep(0.1)
            yield running, up.pid
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()


async def populate(clients: Clients, bus: Bus, cases: list[Party]) -> float:
    """Registers the cases and reports each protected person's position once; returns the time of registering, seconds.

    It waits until the log has all cases.
    """
    took_s = await population.register(clients, cases)
    fix_time = times.to_timestamp(clients.clock.now_ms())
    async with HeadEnd(clients) as head_end:
        for first in range(0, len(cases), _ANNOUNCED_BATCH):
            # The head-end resends reports of devices that ingest doesn't know yet.
            refused = await head_end.carry(
                [
                    ingest_pb2.Position(
                        device_id=case.device_id,
                        report_id="first",
                        fix_time=fix_time,
                        lat_deg=case.home[0],
                        lon_deg=case.home[1],
                        accuracy_m=10.0,
                    )
                    for case in cases[first : first + _ANNOUNCED_BATCH]
                ]
            )
            if refused:
                raise CommandFailed(f"{len(refused)} reports refused: {refused[0].field} {refused[0].reason}")
    async with asyncio.timeout(UP_WITHIN_S):
        while await _cases_in_log(bus, clients.mesh.partitions) < len(cases):  # noqa: ASYNC110  # another process's log
            await asyncio.sleep(0.2)
    return took_s


async def _cases_in_log(bus: Bus, partitions: int) -> int:
    """Number of case entries in all partitions of the log."""
    count = 0
    for partition in range(partitions):
        subject = flow.log_subject(partition, "case")
        state = (await bus.api(f"STREAM.INFO.{flow.log_stream(partition)}", {"subjects_filter": subject}))["state"]
        count += state.get("subjects", {}).get(subject, 0)
    return count
