"""A reviewer who opens records from time to time: each answer is a disclosure, which has a row of the ledger."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from services.client.actors import DESK_BASIS, REVIEWER
from services.client.calls import call
from services.common.failure import CommandFailed
from services.common.rpc import server
from tandem.registry.v1 import disclosure_pb2
from tandem.registry.v1.disclosure_pb2_grpc import DisclosureServiceStub
from tests.simulation.actors.town import Town
from tests.simulation.kernel.world import World
from tests.simulation.mesh.processes import SECRET, address_of

PAUSE_S = (20.0, 120.0)
"""Least and greatest time between two reads, seconds."""
GROUNDS = disclosure_pb2.Grounds(legal_basis=DESK_BASIS, purpose=disclosure_pb2.PURPOSE_AUDIT)


class Reviewer:
    """A reviewer. What was answered survives a crash of the reviewer's machine."""

    def __init__(self, world: World, town: Town) -> None:
        self.disclosure_ids: list[str] = []
        """Ids of the rows of the ledger that the answers named, in their order."""
        self.refusals: list[str] = []
        """Reads that the registry refused for a reason other than that it doesn't have the record yet."""
        self._world, self._town = world, town

    async def run(self) -> None:
        """Reads wearers and protected persons in turn."""
        stub = DisclosureServiceStub(server.channel(address_of("registry")))
        while True:
            await asyncio.sleep(self._world.between(*PAUSE_S))
            household = self._world.random.choice(self._town.households)
            wearer = disclosure_pb2.ReadWearerRequest(wearer_id=f"wearer-{household.number}", grounds=GROUNDS)
            await self._read(stub.ReadWearer, wearer)
            person_id = household.residents[0].person_id
            person = disclosure_pb2.ReadProtectedPersonRequest(person_id=person_id, grounds=GROUNDS)
            await self._read(stub.ReadProtectedPerson, person)

    async def _read(self, method: Any, request: Any) -> None:
        try:
            answer = await call(method, request, server.bearer(REVIEWER, SECRET))
        except CommandFailed:
            return  # the registry was away for a minute
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                self.refusals.append(f"{type(request).__name__}: {error.code().name}: {error.details()}")
            return
        self.disclosure_ids.append(answer.disclosure_id)
