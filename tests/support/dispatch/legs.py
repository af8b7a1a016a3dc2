"""All three legs as processes on one engine, with nats-server and PostgreSQL beside them: each can be killed and comes back."""

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

RETRY_DELAY_S = 0.05
T = TypeVar("T")


class LegMesh:
    """Legs over a nats-server; with `postgres` each has a schema and a role of its own there, else a file."""

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
        """What can be killed: how that is done, and how it is started again."""
        found = {leg: (service.kill, service.start) for leg, service in self.legs.items()}
        found["nats"] = (self.nats.kill, self.nats.start)
        if self.postgres:
            found["postgres"] = (self.postgres.kill, self.postgres.start)
        return found

    async def read(self, leg: str, what: Callable[[Connection, Store], T]) -> T:
        """Something of a leg's store."""
        async with self.store(leg) as store:
            return await store.transaction(lambda connection: what(connection, store))

    @asynccontextmanager
    async def store(self, leg: str) -> AsyncIterator[Store]:
        """The store of a leg, which may run, once its server is there: that may have been killed a moment ago."""
        async with awaited_database(self.settings[leg].database, MIGRATIONS) as database:
            yield Store(database)

    async def events(self, leg: str, incident_ids: list[str]) -> dict[str, list[Event]]:
        """What a leg has written, by incident; looks whether its chain is whole."""
        async with self.store(leg) as store:
            assert await store.first_broken_event() is None, f"the {leg} leg's chain is broken"
            return await store.transaction(lambda connection: store.events(connection, incident_ids))


@contextmanager
def running_legs(folder: Path, nats: TestServer, postgres: PostgresServer | None, **more: float) -> Iterator[LegMesh]:
    """All legs, started, with more settings for each; killed at the end."""
    mesh = LegMesh(folder, nats, postgres, **more)
    try:
        for service in mesh.legs.values():
            service.start()
        yield mesh
    finally:
        for service in mesh.legs.values():
            service.kill()


async def kill_at_random(mesh: LegMesh, rng: random.Random, within_s: float, killed: dict[str, int]) -> None:
    """Kills one after the other and starts it again, until it is cancelled; none twice before all the others, and nobody stays dead."""
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
    """A desk that takes what it is offered, but for those whom it leaves to their deadline."""

    leg: str
    ignores: Callable[[str], bool]
    """By subject and incident, `incident/subject`."""
    seen: dict[str, float] = field(default_factory=dict)
    """By assignment, when its first offer arrived, by the loop's clock."""
    absent: set[str] = field(default_factory=set)
    """Names of legs that this one said to be absent."""

    async def run(self, configured: DispatchSettings) -> None:
        """Follows the leg through all its lives, for ever."""
        last = 0
        while True:
            try:
                async with client(configured) as leg, leg.desk.subscription(last, timeout_s=None) as steps:
                    while True:
                        told = await steps.next_of_any()
                        last = max(last, told.sequence)
                        await self._answer(leg.desk, told.step.assignment)
            except (grpc.aio.AioRpcError, StopAsyncIteration, TimeoutError):
                await asyncio.sleep(RETRY_DELAY_S)

    async def _answer(self, desk: Desk, told: dispatch_pb2.Assignment) -> None:
        self.seen.setdefault(told.assignment_id, asyncio.get_running_loop().time())
        self.absent |= {flow.LEGS[absent_leg - 1] for absent_leg in told.absent_legs}
        waits = told.state in (dispatch_pb2.OFFERED, dispatch_pb2.ESCALATED)
        if waits and not self.ignores(f"{told.incident_id}/{told.subject_id}"):
            await desk.acknowledge(told.assignment_id)


async def published_steps(bus: Bus, leg: str) -> list[dispatch_pb2.Step]:
    """All steps of a leg on INCIDENTS, in their order."""
    mine = flow.incident_subject(leg, ">")
    newest = (await bus.api(f"STREAM.MSG.GET.{flow.INCIDENTS.name}", {"last_by_subj": mine}))["message"]["seq"]
    steps: list[dispatch_pb2.Step] = []
    async for messages in pull.read(bus, flow.INCIDENTS.name, 1, (mine,)):
        steps += [dispatch_pb2.Step.FromString(message.data) for message in messages]
        if messages[-1].sequence >= newest:
            return steps
    raise AssertionError("the stream ended")
