"""Peers of bench.ingest: starts the installed ones, which stay idle until their turn."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from bench.ingestion import postgis, saturated, stock_server, valkey
from bench.ingestion.endpoint import IngestEndpoint
from bench.ingestion.reports import BATCH, Reports
from bench.ingestion.saturated import Saturated, Tally
from services.common.rpc import server as rpc
from tandem.ingest.v1 import ingest_pb2

Turn: TypeAlias = Callable[[float], Awaitable[Saturated]]
"""Saturates one system for a number of seconds and returns the result."""

TITLES = {
    "stock": "stock server: a unary call and a js.publish a report, 32 at once",
    "postgis": "PostGIS: insert of 100 a transaction into a bare table, 2 connections",
    "asking-postgis": "PostGIS: the same into a table that checks what ingest checks",
    "valkey": "Valkey: XADD, AOF each second, 100 pipelined, 3 clients",
}


@asynccontextmanager
async def running(
    names: Collection[str], ingest: IngestEndpoint, folder: Path, *, numbers: Iterator[int]
) -> AsyncIterator[tuple[Mapping[str, Turn], Mapping[str, str]]]:
    """Turns of these peers by name, as far as they are installed, and the versions of their servers."""
    turns: dict[str, Turn] = {}
    versions: dict[str, str] = {}
    batches = Reports(BATCH, numbers)
    async with AsyncExitStack() as stack:
        if "stock" in names:
            turns["stock"] = await _stock(stack, ingest, folder, numbers=numbers)
        if selected := [name for name in ("postgis", "asking-postgis") if name in names]:
            if programs := postgis.programs():
                server = stack.enter_context(postgis.running(programs))
                for name in selected:
                    turns[name], server_versions = await _postgis(server.new_database(), batches, name != "postgis")
                    versions |= server_versions
            else:
                _say_missing("PostGIS", postgis.PACKAGE)
        if "valkey" in names:
            if program := valkey.program():
                port = stack.enter_context(valkey.running(program, folder / "valkey"))
                turns["valkey"] = _valkey(port, batches)
                versions["valkey"] = valkey.version(program)
            else:
                _say_missing("Valkey", valkey.PACKAGE)
        yield turns, versions


def _say_missing(title: str, package: str) -> None:
    print(f"{title} isn't installed, so its figures are left out: apt-get install {package}", file=sys.stderr)


async def _stock(stack: AsyncExitStack, ingest: IngestEndpoint, folder: Path, *, numbers: Iterator[int]) -> Turn:
    await ingest.bus.js.add_stream(name=stock_server.STREAM, subjects=[stock_server.SUBJECT])
    service, address = stack.enter_context(stock_server.running(ingest.nats.url, folder / "stock.log"))
    singles = Reports(1, numbers, ingest_pb2.ReportBatchRequest)

    async def turn(seconds: float) -> Saturated:
        tally = Tally()
        pids = {"nats-server": ingest.nats.pid, "stock server": service.pid}
        async with rpc.channel(address) as channel:
            calls = [stock_server.call(channel, singles, tally) for _ in range(stock_server.CALL_CONCURRENCY)]
            return await saturated.measure(tally, calls, seconds, pids=pids)

    return turn


async def _postgis(url: str, batches: Reports, checked: bool) -> tuple[Turn, dict[str, str]]:
    async def turn(seconds: float) -> Saturated:
        tally = Tally()
        inserts = [postgis.insert(url, batches, tally) for _ in range(postgis.CONNECTIONS)]
        return await saturated.measure(tally, inserts, seconds, pids={})

    return turn, await postgis.create(url, checked)


def _valkey(port: int, batches: Reports) -> Turn:
    async def turn(seconds: float) -> Saturated:
        tally = Tally()
        clients = [valkey.add(port, batches, tally) for _ in range(valkey.CLIENTS)]
        return await saturated.measure(tally, clients, seconds, pids={})

    return turn
