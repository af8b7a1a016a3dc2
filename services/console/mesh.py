"""The console as a client of the mesh: a channel to each service, and as whom it calls for a user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from services.common.rpc import client, server
from services.common.rpc.certificates import spiffe_id
from services.common.rpc.errors import FailedPrecondition
from services.common.rpc.identity import CONSOLES
from services.common.rpc.server import Metadata
from services.console.domain.people import SELF, ConsoleUser, Role
from services.console.settings import ConsoleSettings
from tandem.dispatch.v1.dispatch_pb2_grpc import DispatchServiceStub
from tandem.dispatch.v1.evidence_pb2_grpc import EvidenceServiceStub
from tandem.dispatch.v1.following_pb2_grpc import FollowingServiceStub
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tandem.geofence.v1.geofence_pb2_grpc import GeofenceServiceStub
from tandem.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from tandem.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tandem.registry.v1.trace_pb2_grpc import TraceServiceStub


@dataclass(frozen=True, slots=True)
class LegClient:
    """One leg of the response."""

    dispatch: DispatchServiceStub
    evidence: EvidenceServiceStub
    following: FollowingServiceStub
    roster: RosterServiceStub


class MeshClient:
    """Stubs of what the console asks. What a role may see is the services' to say: each call is made as the user who asks."""

    def __init__(
        self,
        settings: ConsoleSettings,
        registry: RegistryServiceStub,
        traces: TraceServiceStub,
        ingest: IngestServiceStub,
        geofence: GeofenceServiceStub,
        legs: dict[str, LegClient],
    ) -> None:
        self._settings = settings
        self.clock = settings.clock
        self.registry = registry
        self.traces = traces
        self.ingest = ingest
        self.geofence = geofence
        self.legs = legs
        """By name: probation, police."""

    def identity(self, user: ConsoleUser) -> Metadata:
        """Metadata of a call for this user: by certificate the console's own says whose it is, and beside it stands who asks."""
        if self._settings.tls:
            return () if user.name == SELF else server.on_behalf_of(user.name)
        return server.bearer(user.spiffe_id, self._settings.dev_secret)

    def own(self, role: Role) -> Metadata:
        """Metadata of what the console watches for all users of a role."""
        return self.identity(ConsoleUser(role, SELF))


@asynccontextmanager
async def connect(settings: ConsoleSettings) -> AsyncIterator[MeshClient]:
    """Open channels; services that are away are connected to once they are there.

    Raises FailedPrecondition where its certificate isn't that of its role's console, which alone is believed whom it asks for.
    """
    if settings.tls and settings.console_role:
        own, wanted = spiffe_id(settings.tls_files().cert), CONSOLES[settings.console_role]
        if own != wanted:
            raise FailedPrecondition(f"TANDEM_TLS_CERT is of {own}; a console for {settings.console_role} is {wanted}")
    async with AsyncExitStack() as stack:

        async def channel(target: str) -> grpc.aio.Channel:
            made = client.connection(settings, target, ConsoleUser(Role.OPERATOR, SELF).spiffe_id)
            return (await stack.enter_async_context(made))[0]

        registry = await channel(settings.registry)
        legs = {}
        for name, target in (("probation", settings.dispatch_probation), ("police", settings.dispatch_police)):
            one = await channel(target)
            legs[name] = LegClient(
                DispatchServiceStub(one), EvidenceServiceStub(one), FollowingServiceStub(one), RosterServiceStub(one)
            )
        yield MeshClient(
            settings,
            RegistryServiceStub(registry),
            TraceServiceStub(registry),
            IngestServiceStub(await channel(settings.ingest)),
            GeofenceServiceStub(await channel(settings.geofence)),
            legs,
        )
