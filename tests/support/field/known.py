"""A registry that knows one phone, over gRPC, and field's memory of its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from services.field.credentials import KnownPhones
from tandem.registry.v1 import enrolment_pb2, enrolment_pb2_grpc


class SinglePhoneRegistry(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """A registry that knows one phone, or gives an error."""

    def __init__(self) -> None:
        self.error: grpc.StatusCode | None = None
        self.asked = 0

    async def FindPhone(
        self, request: enrolment_pb2.FindPhoneRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> enrolment_pb2.FindPhoneResponse:
        """Finds the phone, whatever the token."""
        self.asked += 1
        if self.error is not None:
            await context.abort(self.error, "not now")
        return enrolment_pb2.FindPhoneResponse(device_id="phone-1", person_id="person-1")


@asynccontextmanager
async def known_phones() -> AsyncIterator[tuple[KnownPhones, SinglePhoneRegistry]]:
    """Field's memory of a registry, and that registry."""
    registry, server = SinglePhoneRegistry(), grpc.aio.server()  # type: ignore[abstract]  # nobody calls the other methods
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            mesh: Any = SimpleNamespace(enrolments=enrolment_pb2_grpc.EnrolmentServiceStub(channel), to_registry=())
            yield KnownPhones(mesh), registry
    finally:
        await server.stop(None)
