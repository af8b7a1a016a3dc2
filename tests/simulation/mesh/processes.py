"""The processes of a simulated mesh: the real entry points of the services with settings of this world."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import services.dispatch.__main__ as dispatch
import services.geofence.__main__ as geofence
import services.ingest.__main__ as ingest
import services.registry.__main__ as registry
from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from services.common.observability.metrics import process_registry
from services.dispatch.settings import DispatchSettings
from services.geofence.consumer import Evaluator
from services.geofence.settings import GeofenceSettings
from services.ingest.settings import IngestSettings
from services.registry.settings import RegistrySettings
from tests.simulation.jetstream.server import MemoryServer
from tests.simulation.kernel.disk import executor_of
from tests.simulation.kernel.journal import Journal
from tests.simulation.kernel.network import Network
from tests.simulation.kernel.process import Main, Process, current
from tests.simulation.kernel.world import World
from tests.simulation.mesh import tempo

SECRET = "secret-of-the-simulation"
PORTS = {"registry": 7401, "ingest": 7402, "geofence-0": 7403, "geofence-1": 7413}
LEG_PORTS = {"probation": 7404, "police": 7405, "warning": 7406}
EVALUATORS = ("geofence-0", "geofence-1")
LEGS = tuple(f"dispatch-{leg}" for leg in flow.LEGS)
SERVICES = ("registry", "ingest", *EVALUATORS, *LEGS)
STREAM_BYTES = 64 << 20
CHECKPOINT_EVERY = (10, 10, 40, 200)
"""Entries between two checkpoints: often, so that torn tails and crashes meet them, or seldom, so that much is folded after a crash."""
BACKFILL_PER_S = 25.0
"""Kept reports that enter the log each second. So few that a device which delivers a thousand of them would delay live reports if
these waited behind them."""


def address_of(process: str) -> str:
    """Address of a service's gRPC server."""
    port = PORTS.get(process) or LEG_PORTS[process.removeprefix("dispatch-")]
    return f"127.0.0.1:{port}"


class Mesh:
    """All services, the server that they share, and the network between them."""

    def __init__(self, world: World, folder: Path, journal: Journal) -> None:
        self.world = world
        self.journal = journal
        self._folder = folder
        self.network = Network(world)
        self.server = MemoryServer(world, self.network)
        self.processes: dict[str, Process] = {}
        self._checkpoint_every = world.random.choice(CHECKPOINT_EVERY)
        self._add("setup", self._setup)
        self._add("registry", self._registry)
        self._add("ingest", self._ingest)
        for replica in range(len(EVALUATORS)):
            self._add(EVALUATORS[replica], partial(self._geofence, replica))
        for leg in flow.LEGS:
            self._add(f"dispatch-{leg}", partial(self._dispatch, leg))
        self.services = [self.processes[name] for name in SERVICES]
        """Processes of the services."""

    def add_actor(self, name: str, main: Main) -> Process:
        """Adds the process of an actor and starts it."""
        process = self._add(name, main)
        process.start()
        return process

    def _add(self, name: str, main: Main) -> Process:
        process = self.processes[name] = Process(self.world, self.network, name, partial(self._run, main))
        return process

    async def _run(self, main: Main) -> None:
        process = current()
        process.loop.executor = executor_of(process.loop)
        process.loop.on_unhandled = lambda context: self.journal.add(
            process.name, "error", "unhandled", {"reason": repr(context.get("exception") or context.get("message"))}
        )
        await main()

    def start(self) -> None:
        """Starts the server and all services."""
        self.server.start()
        for process in self.processes.values():
            process.start()

    def _given(self, name: str) -> dict[str, Any]:
        return {
            "port": int(address_of(name).rpartition(":")[2]),
            "metrics_port": 0,
            "nats_url": f"nats://{name.partition('-')[0] if name in EVALUATORS else name}@127.0.0.1:4222",
            "allow_async_store": True,
            "dev_secret": SECRET,
            "data_dir": self._folder / name,
        }

    async def _setup(self) -> None:
        async with buses.connect("nats://setup@127.0.0.1:4222", "setup") as bus:
            await streams.create(bus, 1, MeshClock(), max_bytes=STREAM_BYTES)
        current().is_wanted = False

    def _registry(self) -> Coroutine[Any, Any, None]:
        return registry.main(RegistrySettings(**self._given("registry")))

    async def _ingest(self) -> None:
        given = {**self._given("ingest"), "http_port": 0, "field_port": 0, "backfill_reports_per_s": BACKFILL_PER_S}
        await ingest.main(IngestSettings(**given))

    async def _geofence(self, replica: int) -> None:
        given = self._given(EVALUATORS[replica]) | {
            "replica": replica,
            "replicas": len(EVALUATORS),
            "checkpoint_every": self._checkpoint_every,
            "tick_after_s": tempo.TICK_AFTER_S,
        }
        _replace(geofence, "Evaluator", _noted_evaluator)
        await geofence.main(GeofenceSettings(**given))

    def _dispatch(self, leg: str) -> Coroutine[Any, Any, None]:
        targets = {
            "geofence": f"ipv4:{address_of(EVALUATORS[0])},{address_of(EVALUATORS[1])}",
            "ingest": f"ipv4:{address_of('ingest')}",
        }
        settings = DispatchSettings.model_validate({"leg": leg, **self._given(f"dispatch-{leg}"), **targets})
        return dispatch.run(settings, process_registry())


def _replace(module: object, name: str, value: object) -> None:
    """Replaces a name of an entry point, which reads its settings from the environment."""
    setattr(module, name, value)


def _noted_evaluator(*arguments: Any, **options: Any) -> Evaluator:
    """Makes an evaluator and lets judges read its state."""
    evaluator = Evaluator(*arguments, **options)
    current().facts["evaluator"] = evaluator
    return evaluator
