"""python -m services.dispatch --leg probation|police|warning: one leg of the response, on its own port and database."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path

import grpc.aio
import uvloop

from services.common import bus as buses
from services.common import flow, rpc, streams, telemetry
from services.common.clock import MeshClock
from services.common.db import open_database
from services.common.tracing import IncidentTracer
from services.dispatch import evidence
from services.dispatch.api import DispatchApi
from services.dispatch.consumer import consume_alerts, consume_peers
from services.dispatch.evidence_keeper import EvidenceFiles, EvidenceKeeper
from services.dispatch.exchange.links import LinkDoor, Links, open_key
from services.dispatch.exchange.receivers import read as read_receivers
from services.dispatch.exchange.store import ExchangeStore
from services.dispatch.exchange.webhook import Webhooks
from services.dispatch.leg import Leg, open_leg, retried
from services.dispatch.roster_api import RosterApi
from services.dispatch.settings import DispatchSettings, for_leg
from services.dispatch.store import Store
from services.dispatch.travel import open_travel_times
from tandem.dispatch.v1 import dispatch_pb2, dispatch_pb2_grpc, roster_pb2, roster_pb2_grpc

MIGRATIONS = Path(__file__).parent / "migrations"
EXCHANGE_MIGRATIONS = Path(__file__).parent / "exchange" / "migrations"
SERVICES = tuple(
    one.full_name for file in (dispatch_pb2, roster_pb2) for one in file.DESCRIPTOR.services_by_name.values()
)


async def run(settings: DispatchSettings) -> None:
    """Runs the leg until it is told to stop. It serves its desk and keeps its deadlines with or without NATS."""
    async with (
        open_database(settings.database, MIGRATIONS) as database,
        open_travel_times(settings.osrm_url) as travel_times,
        open_leg(settings.leg, Store(database), settings.clock, settings.deadlines, travel_times) as leg,
        rpc.serve(settings, partial(_add_servicers, leg, settings.clock), *SERVICES) as server,
    ):
        await server.ready()
        with closing(leg.hub), closing(IncidentTracer(f"dispatch-{settings.leg}")) as tracer:
            await rpc.run_until_stopped(leg.watch_deadlines(), mesh(settings, leg, tracer), exchange(settings, leg))


async def exchange(settings: DispatchSettings, leg: Leg) -> None:
    """The leg's webhooks and links, where any are configured. They need no NATS."""
    if settings.webhooks is None and settings.link_port is None:
        await asyncio.Event().wait()
    receivers = read_receivers(settings.webhooks) if settings.webhooks else ()
    async with open_database(settings.exchange_database, EXCHANGE_MIGRATIONS) as database, AsyncExitStack() as stack:
        store, links = ExchangeStore(database), None
        if settings.link_port is not None:
            links = Links(leg.name, open_key(settings.link_key), settings.link_url)
            door = LinkDoor(leg, store, links)
            tls = settings.tls_files()[:2] if settings.tls else None
            await stack.enter_async_context(door.served(settings.host, settings.link_port, tls))
        await Webhooks(leg.name, leg.store, store, receivers, links).run()
        await asyncio.Event().wait()  # the links are still served where nobody has webhooks


def _add_servicers(leg: Leg, clock: MeshClock, server: grpc.aio.Server) -> None:
    dispatch_pb2_grpc.add_DispatchServiceServicer_to_server(DispatchApi(leg), server)
    roster_pb2_grpc.add_RosterServiceServicer_to_server(RosterApi(leg, clock), server)


async def mesh(settings: DispatchSettings, leg: Leg, tracer: IncidentTracer) -> None:
    """The leg's part in the mesh: alerts in, steps out, the other legs' steps in."""
    async with buses.connect(settings.nats_url, f"dispatch-{leg.name}", settings.nats_tls) as bus:
        premises = await retried(partial(streams.pass_gate, bus, settings))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(consume_alerts(bus, leg, premises.log_id))
            tasks.create_task(consume_peers(bus, leg, premises.log_id))
            tasks.create_task(leg.outbox.run(bus, leg.name, tracer))
            tasks.create_task(leg.outbox.note(leg.mark_published))
            if leg.name in evidence.LEGS:
                files = EvidenceFiles(settings.evidence)
                tasks.create_task(EvidenceKeeper(leg.name, leg.store, bus, premises, files).run())


def main() -> None:
    """Reads the command line and the environment."""
    parser = argparse.ArgumentParser(prog="python -m services.dispatch", description=__doc__)
    parser.add_argument("--leg", required=True, choices=flow.LEGS, help="which half of the response this process is")
    leg = parser.parse_args().leg
    telemetry.configure(f"dispatch-{leg}")
    uvloop.run(run(for_leg(leg)))


if __name__ == "__main__":
    main()
