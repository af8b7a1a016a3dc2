"""The registry: `python -m services.registry`. Settings come from the environment, see settings.py."""

from __future__ import annotations

import uvloop

from services.common import bus as buses
from services.common import db, flow, rpc, streams, telemetry
from services.registry.api import SERVICE_NAME, RegistryServicer
from services.registry.handlers import Registry
from services.registry.relay import Relay
from services.registry.settings import RegistrySettings
from services.registry.store import MIGRATIONS
from services.registry.vault import Vault, read_or_make_key
from tandem.registry.v1 import registry_pb2_grpc


async def main(settings: RegistrySettings) -> None:
    """Runs the service until it is told to stop."""
    given = settings.registry_key.get_secret_value()
    vault = Vault(bytes.fromhex(given) if given else read_or_make_key(settings.key_file))
    async with (
        buses.connect(settings.nats_url, "registry") as bus,
        db.open_database(settings.database, MIGRATIONS) as database,
    ):
        premises = await streams.pass_gate(bus, settings)
        registry = Registry(database, vault, premises.clock, premises.partitions)
        log = await bus.js.stream_info(flow.log_stream(0))
        await registry.prepare(log_identity=str(log.created))
        servicer = RegistryServicer(registry)
        async with rpc.serve(
            settings,
            lambda server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server),
            SERVICE_NAME,
        ) as server:
            await server.ready()
            await rpc.run_until_stopped(Relay(registry, bus, premises.clock).run())


if __name__ == "__main__":
    telemetry.configure("registry")
    uvloop.run(main(RegistrySettings()))
