"""`python -m services.ingest`: the door for positions and equipment events."""

from __future__ import annotations

from functools import partial

import uvloop

from services.common import bus as buses
from services.common import rpc, streams, telemetry
from services.ingest.again import LastReports
from services.ingest.api import IngestApi
from services.ingest.routes import Routes
from services.ingest.settings import Settings
from services.ingest.writer import LogWriter
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

SERVICE_NAME = ingest_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name


async def main() -> None:
    """Runs until SIGTERM."""
    settings = Settings()
    telemetry.configure("ingest")
    async with buses.connect(settings.nats_url, "ingest") as bus:
        premises = await streams.pass_gate(bus, settings)
        routes = Routes(bus)
        writers = {p: LogWriter(bus, p) for p in range(premises.partitions)}
        last_reports = LastReports(routes, writers)
        await last_reports.read_tail(bus)
        api = IngestApi(routes, writers, last_reports, premises.clock)
        add = partial(ingest_pb2_grpc.add_IngestServiceServicer_to_server, api)
        async with rpc.serve(settings, add, SERVICE_NAME) as server:
            await rpc.run_until_stopped(
                rpc.keep_health(server, bus),
                routes.follow(last_reports.route_changed),
                last_reports.run(),
                *(one.run() for one in writers.values()),
            )


if __name__ == "__main__":
    uvloop.run(main())
