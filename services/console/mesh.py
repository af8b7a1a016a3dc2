"""The console as a client of the mesh: channels to the services, the identity of a call for a user, and services that are away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio

from services.client.mesh import LegStubs, Stubs
from services.common.certificates import spiffe_id
from services.common.errors import FailedPrecondition
from services.common.rpc import client, server
from services.common.rpc.identity import CONSOLES
from services.common.rpc.server import Metadata
from services.console.domain.people import SELF, ConsoleUser, Role
from services.console.settings import ConsoleSettings


class MeshClient(Stubs):
    """Stubs of the services. Each call is made as its user, and the services decide which data a role may see."""

    def __init__(
        self,
        settings: ConsoleSettings,
        registry: grpc.aio.Channel,
        ingest: grpc.aio.Channel,
        *,
        geofence: grpc.aio.Channel,
        legs: Mapping[str, grpc.aio.Channel],
    ) -> None:
        super().__init__(registry, ingest, geofence, legs=legs)
        self._settings = settings
        self.clock = settings.clock

    def identity(self, user: ConsoleUser) -> Metadata:
        """Returns the metadata of a call for a user. With certificates, it names only the user: the console's own proves the role."""
        if self._settings.tls:
            return () if user.name == SELF else server.on_behalf_of(user.name)
        return server.bearer(user.spiffe_id, self._settings.dev_secret)

    def leg_of(self, role: Role) -> LegStubs:
        """Returns the leg whose incidents a role sees."""
        return self.legs[role.leg]

    def own_identity(self, role: Role) -> Metadata:
        """Returns the metadata of the console's own subscriptions for all users of a role."""
        return self.identity(ConsoleUser(role, SELF))


@asynccontextmanager
async def connect(settings: ConsoleSettings) -> AsyncIterator[MeshClient]:
    """Opens the channels. They connect to unavailable services as soon as these are up.

    Raises FailedPrecondition if the certificate isn't that of the role's console: services accept user names only with that one.
    """
    if settings.tls and settings.console_role:
        own, wanted = spiffe_id(settings.tls_files().cert), CONSOLES[settings.console_role]
        if own != wanted:
            raise FailedPrecondition(
                f"TANDEM_TLS_CERT is of {own}, but TANDEM_CONSOLE_ROLE={settings.console_role} needs a certificate of {wanted}"
            )
    async with AsyncExitStack() as stack:

        async def channel(target: str) -> grpc.aio.Channel:
            made = client.connection(settings, target, ConsoleUser(Role.OPERATOR, SELF).spiffe_id)
            return (await stack.enter_async_context(made))[0]

        legs = {"probation": settings.dispatch_probation, "police": settings.dispatch_police}
        yield MeshClient(
            settings,
            await channel(settings.registry),
            await channel(settings.ingest),
            geofence=await channel(settings.geofence),
            legs={leg: await channel(target) for leg, target in legs.items()},
        )


T = TypeVar("T")
_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # the budget of the history is spent
    grpc.StatusCode.UNIMPLEMENTED,  # the service is older than the console, during an upgrade
)


async def unless_away(service: str, call: Coroutine[Any, Any, T], away: list[str]) -> T | None:
    """Returns the result of a call; None, and the service's name in `away`, if the service doesn't answer."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() not in _AWAY:
            raise
        away.append(service)
        return None
