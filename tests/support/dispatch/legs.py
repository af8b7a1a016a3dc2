"""All three legs as processes, with nats-server and optionally PostgreSQL. Each process can be killed and restarted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc.aio
from sqlalchemy import Connection

from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.storage.db import awaited_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.events import Event
from services.dispatch.leg.store import Store
from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.common.ports import free_port
from tests.support.common.postgres import PostgresServer
from tests.support.common.processes import Service
from tests.support.dispatch.dispatch import Desk, client, settings, variables
from tests.support.dispatch.leg_chain import first_broken_event

RETRY_DELAY_S = 0.05
T = TypeVar("T")


class LegMesh:
    """Legs over a nats-server. With `postgres` each leg has its own schema and role there, else a file."""

    def __init__(self, folder: Path, nats: TestServer, postgres: PostgresServer | None, **more: float) -> None:
        self.nats, self.postgres = nats, postgres
        urls = postgres.new_schemas(*flow.LEGS) if postgres else {}
        self.settings: dict[str, DispatchSettings] = {}
        for leg in flow.LEGS:
            url = {f"{leg}_database_url": urls[leg]} if urls else {}
            self.settings[leg] = settings(leg, nats, folder, metrics_port=free_port(), **url, **more)
        self.legs = {
            leg: Service("services.dispatch", variables(setting), folder / f"{leg}.log", ("--leg", leg))
            for leg, setting in self.settings.items()
        }

    def victims(self) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
        """Returns the processes that can be killed, by name: a function that kills and one that restarts."""
        found = {leg: (service.kill, service.start) for leg, service in self.legs.items()}
        found["nats"] = (self.nats.kill, self.nats.start)
        if self.postgres:
            found["postgres"] = (self.postgres.kill, self.postgres.start)
        return found

    async def read(self, leg: str, what: Callable[[Connection, Store], T]) -> T:
        """Reads from the store of a leg."""
        async with self.store(leg) as store:
            return await store.transaction(lambda connection: what(connection, store))

    @asynccontextmanager
    async def store(self, leg: str) -> AsyncIterator[Store]:
        """Opens the store of a leg, which may be running. Waits for the database server, as that may just have been killed."""
        async with awaited_database(self.settings[leg].database, MIGRATIONS) as database:
            yield Store(database)

    async def events(self, leg: str, incident_ids: list[str]) -> dict[str, list[Event]]:
        """Returns the events of a leg by incident, after a check that its chain is unbroken."""
        async with self.store(leg) as store:
            assert await first_broken_event(store) is None, f"the {leg} leg's chain is broken"
            return await store.transaction(lambda connection: store.events(connection, incident_ids))


@contextmanager
def running_legs(folder: Path, nats: TestServer, postgres: PostgresServer | None, **more: float) -> Iterator[LegMesh]:
    """Starts all legs with `more` settings for each, and kills them at the end."""
    mesh = LegMesh(folder, nats, postgres, **more)
    try:
        for service in mesh.legs.values():
            service.start()
        yield mesh
    finally:
        for service in mesh.legs.values():
            service.kill()


async def kill_at_random(mesh: LegMesh, rng: random.Random, within_s: float, killed: dict[str, int]) -> None:
    """Kills and restarts the processes in random order until cancelled.

    None is killed twice before all others were, and none stays dead.
    """
    victims, left = mesh.victims(), list[str]()
    while True:
        await asyncio.sleep(rng.uniform(0, within_s))
        if not left:
            left = rng.sample(sorted(victims), len(victims))
        name = left.pop()
        kill, start = victims[name]
        kill()
        killed[name] = killed.get(name, 0) + 1
        try:
            await asyncio.sleep(rng.uniform(0.05, within_s / 2))
        finally:
            start()


@dataclass
class Answering:
    """A desk that acknowledges its offers, except those that `ignores` leaves to their deadline."""

    leg: str
    ignores: Callable[[str], bool]
    """Whether to ignore an offer, given as `incident/subject`."""
    seen: dict[str, float] = field(default_factory=dict)
    """Arrival of the first offer of each assignment, seconds on the clock of the event loop."""
    absent: set[str] = field(default_factory=set)
    """Names of the legs that this leg reported as absent."""

    async def run(self, configured: DispatchSettings) -> None:
        """Answers offers across all restarts of the leg, until cancelled."""
        last = 0
        while True:
            try:
                async with client(configured) as leg, leg.desk.subscription(last, timeout_s=None) as steps:
                    while True:
                        response = await steps.next_of_any()
                        last = max(last, response.sequence)
                        await self._answer(leg.desk, response.step.assignment)
            except (grpc.aio.AioRpcError, StopAsyncIteration, TimeoutError):
                await asyncio.sleep(RETRY_DELAY_S)

    async def _answer(self, desk: Desk, assignment: dispatch_pb2.Assignment) -> None:
        self.seen.setdefault(assignment.assignment_id, asyncio.get_running_loop().time())
        self.absent |= {flow.LEGS[absent_leg - 1] for absent_leg in assignment.absent_legs}
        waits = assignment.state in (dispatch_pb2.OFFERED, dispatch_pb2.ESCALATED)
        if waits and not self.ignores(f"{assignment.incident_id}/{assignment.subject_id}"):
            await desk.acknowledge(assignment.assignment_id)


async def published_steps(bus: Bus, leg: str) -> list[dispatch_pb2.Step]:
    """Returns all steps of a leg on INCIDENTS, in their order."""
    mine = flow.incident_subject(leg, ">")
    newest = (await bus.api(f"STREAM.MSG.GET.{flow.INCIDENTS.name}", {"last_by_subj": mine}))["message"]["seq"]
    steps: list[dispatch_pb2.Step] = []
    async for messages in pull.read(bus, flow.INCIDENTS.name, 1, subjects=(mine,)):
        steps += [dispatch_pb2.Step.FromString(message.data) for message in messages]
        if messages[-1].sequence >= newest:
            return steps
    raise AssertionError("the stream ended")
