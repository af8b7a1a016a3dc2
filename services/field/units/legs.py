"""Field as a client of the legs that send units."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from services.common.rpc import client
from services.common.rpc.identity import FIELD
from services.common.rpc.server import Metadata
from services.field.settings import FieldSettings
from tandem.dispatch.v1.unit_duty_pb2_grpc import UnitDutyServiceStub

OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
"""Option of a channel that shares no connection. A connection carries at most 512 calls at once, and further ones wait."""


class UnitLeg(NamedTuple):
    """The stubs of a leg, with the metadata of each call."""

    stub: UnitDutyServiceStub
    streams: UnitDutyServiceStub
    """For streams of targets, over a connection of their own: as many as there are must hold up no call for help."""
    metadata: Metadata


UnitLegs = Mapping[str, UnitLeg]
"""The legs that send units, by name."""


@asynccontextmanager
async def connect(settings: FieldSettings) -> AsyncIterator[UnitLegs]:
    """Opens the channels. They connect to unavailable legs as soon as these are up."""
    async with AsyncExitStack() as stack:
        legs = {}
        for name, target in (("probation", settings.dispatch_probation), ("police", settings.dispatch_police)):
            channel, metadata = await stack.enter_async_context(client.connection(settings, target, FIELD))
            own, _ = await stack.enter_async_context(client.connection(settings, target, FIELD, OWN_CONNECTION))
            legs[name] = UnitLeg(UnitDutyServiceStub(channel), UnitDutyServiceStub(own), metadata)
        yield legs
