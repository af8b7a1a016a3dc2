"""Tools of bench.ingest: a relay that changes only the speed, and a count of reports that the log lacks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from bench.ingestion import reports, slow_store
from bench.ingestion.slow_store import STORE_BYTES_PER_S
from services.common.messaging import bus as buses
from services.common.messaging import flow
from services.ingest import translate
from services.ingest.domain import Position, Positions
from tests.support.common.nats import running_server
from tests.support.ingest.ingest import create_streams

SIZE = 4


async def test_the_relay_carries_everything_in_both_directions() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    sent = bytes(n % 251 for n in range(STORE_BYTES_PER_S // 5))
    async with server, slow_store.relayed(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}") as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        writer.close()
        await writer.wait_closed()


async def test_acknowledged_reports_that_the_log_lacks_are_counted(tmp_path: Path) -> None:
    def entry(number: int, devices: range) -> bytes:
        stored = [Position(reports.device_id(device), reports.report_id(number), 1, 1, 1, 1) for device in devices]
        return translate.positions_entry(Positions.of(stored), 1).SerializeToString()

    with running_server(tmp_path / "nats") as nats:
        await create_streams(nats.url, 1)
        async with slow_store.relayed(nats.url) as url, buses.connect(url, "test") as bus:
            assert await slow_store.lost(bus, {1}, SIZE) == SIZE
            # Batch 1 is stored twice. In batch 2 one device is stored twice and one is missing. Batch 3 is missing.
            for stored in (entry(1, range(4)), entry(1, range(4)), entry(2, range(4, 7)), entry(2, range(4, 5))):
                await bus.publish(flow.log_subject(0, "report"), stored)
            assert await slow_store.lost(bus, {1}, SIZE) == 0
            assert await slow_store.lost(bus, {1, 2}, SIZE) == 1
            assert await slow_store.lost(bus, {1, 2, 3}, SIZE) == 1 + SIZE
