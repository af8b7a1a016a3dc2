"""`tandem streams`: create the streams of the flow table, from a Job of a cluster, show what they hold, and enlarge one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import nats.errors
import nats.js.errors
import typer
import uvloop
from pydantic import ValidationError
from rich.table import Column, Table

from services.cli import usage
from services.cli.terminal import fitted, for_results
from services.client import mesh
from services.client.mesh import DEFAULT_FOLDER, MeshConnection
from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, Unavailable
from services.common.failure import FAILED, MISUSED, CommandFailed
from services.common.messaging import bus as buses
from services.common.messaging import streams as tables
from services.common.messaging.streams import MAX_PARTITIONS, LogMetadata
from services.common.settings import CommonSettings
from services.local import monitoring

WITHIN_S = 60.0
RETRY_S = 1.0
"""Delay between attempts, seconds."""


app = usage.group("Create the streams of the flow table, show what they hold and who reads them, or enlarge one.")


@app.command(cls=usage.Command)
def create(
    partitions: Annotated[int, typer.Option(help="Partitions of the log.", min=1, max=MAX_PARTITIONS)] = 1,
    replicas: Annotated[int, typer.Option(help="Copies of each stream on the servers: 1, 3 or 5.", min=1, max=5)] = 1,
    max_gib: Annotated[
        float, typer.Option(help="Maximum size of a stream, GiB; 0 for the sizes of the flow table.", min=0)
    ] = 0,
) -> None:
    """Create the streams of the flow table on the server at TANDEM_NATS_URL; existing streams stay unchanged."""
    try:
        settings = CommonSettings(port=0)
    except ValidationError as error:
        raise CommandFailed("; ".join(detail["msg"] for detail in error.errors()), MISUSED) from None
    log_meta = uvloop.run(make(settings, partitions, replicas, max_bytes=round(max_gib * (1 << 30)) or None))
    print(f"partitions: {log_meta.partitions}, log: {log_meta.log_id}")


async def make(settings: CommonSettings, partitions: int, replicas: int, *, max_bytes: int | None) -> LogMetadata:
    """Creates the missing streams. Retries until the server can create them.

    Raises CommandFailed if the log was created with another number of partitions or another clock rate.
    """
    async with buses.connect(settings.nats_url, "setup", settings.nats_tls) as bus:
        while True:
            try:
                async with asyncio.timeout(WITHIN_S):
                    return await tables.create(bus, partitions, MeshClock(), replicas=replicas, max_bytes=max_bytes)
            except FailedPrecondition as error:
                raise CommandFailed(error.reason, FAILED) from None
            except (nats.errors.Error, nats.js.errors.APIError, TimeoutError) as error:
                # Starting servers have no leader for a while. A retry keeps the streams that an earlier try created.
                print(f"not yet: {type(error).__name__}: {error}", file=sys.stderr)
                await asyncio.sleep(RETRY_S)


# ── show ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@app.command(cls=usage.Command)
def show(
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    as_json: usage.AsJson = False,
) -> None:
    """Show what each stream of a mesh holds, how full it is, and how far each of its readers is behind.

    A stream without a figure under "full" never refuses: it discards its oldest messages.
    """
    answer = asyncio.run(monitoring.read_monitor(mesh.load(folder), "jsz?accounts=1&streams=1&consumers=1&config=1"))
    shown = sorted(_streams_of(answer), key=lambda stream: str(stream["stream"]))
    if as_json:
        print(json.dumps({"streams": shown}))
        return
    console = for_results()
    contents = Table(
        "stream", *(Column(name, justify="right") for name in ("messages", "first", "last", "size", "full"))
    )
    readers = Table("stream", "reader", *(Column(name, justify="right") for name in ("waiting", "unacknowledged")))
    for stream in shown:
        full = f"{stream['bytes'] / stream['max_bytes']:.0%}" if stream["refuses_when_full"] else "-"
        numbers = (f"{stream[key]:,}" for key in ("messages", "first", "last"))
        contents.add_row(stream["stream"], *numbers, _size(stream["bytes"]), full)
        for reader in stream["readers"]:
            readers.add_row(
                stream["stream"], reader["reader"], f"{reader['waiting']:,}", f"{reader['unacknowledged']:,}"
            )
    console.print(fitted(console, contents))
    console.print(fitted(console, readers))


# ── enlarge ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@app.command(cls=usage.Command)
def enlarge(
    stream: Annotated[str, typer.Argument(help="Name of the stream, such as LOG_0.")],
    max_gib: Annotated[float, typer.Option(help="New maximum size, GiB; more than now.", min=0.001, max=100_000)],
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Raise the maximum size of a stream that is full or fills up. Its messages stay, and its publishers go on within seconds."""
    try:
        before, after = uvloop.run(_enlarge(mesh.load(folder), stream, round(max_gib * (1 << 30))))
    except (Unavailable, nats.errors.Error) as error:
        raise CommandFailed(f"{stream} wasn't changed: {error}", FAILED) from None
    print(f"{stream}: {_size(before)} at most before, {_size(after)} now")


async def _enlarge(running: MeshConnection, stream: str, max_bytes: int) -> tuple[int, int]:
    """Returns the size before and after, bytes. Raises CommandFailed, Unavailable or a nats error."""
    known = await monitoring.read_monitor(running, "jsz?accounts=1&streams=1&consumers=1&config=1")
    if stream not in {found["stream"] for found in _streams_of(known)}:
        raise CommandFailed(f"{stream}: the server has no such stream (see `tandem streams show`)", MISUSED)
    async with running.nats.bus_as("setup") as bus:
        config = (await bus.api(f"STREAM.INFO.{stream}", {}))["config"]
        before: int = config["max_bytes"]
        if before <= 0 or max_bytes <= before:
            most = "without a limit" if before <= 0 else f"{_size(before)} now"
            raise CommandFailed(f"--max-gib: must be more than the size at most, which is {most}", MISUSED)
        answer = await bus.api(f"STREAM.UPDATE.{stream}", config | {"max_bytes": max_bytes})
        return before, answer["config"]["max_bytes"]


def _streams_of(answer: Any) -> Iterator[dict[str, Any]]:
    """The streams in an answer of nats-server's `jsz`."""
    for account in answer["account_details"]:
        for stream in account.get("stream_detail") or ():
            state = stream["state"]
            yield {
                "stream": stream["name"],
                "messages": state["messages"],
                "first": state["first_seq"],
                "last": state["last_seq"],
                "bytes": state["bytes"],
                "max_bytes": stream["config"]["max_bytes"],
                "refuses_when_full": stream["config"]["discard"] == "new" and stream["config"]["max_bytes"] > 0,
                "readers": [
                    {
                        "reader": consumer["name"],
                        "waiting": consumer["num_pending"],
                        "unacknowledged": consumer["num_ack_pending"],
                    }
                    for consumer in stream.get("consumer_detail") or ()
                ],
            }


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
