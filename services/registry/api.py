"""The gRPC edge of the registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from services.common.errors import InvalidField
from services.registry import translate
from services.registry.domain import Outcome
from services.registry.handlers import Registry
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc

SERVICE_NAME = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name
MATCHES_AT_ONCE = 100
_SEQUENCE_MAX = (1 << 63) - 1

_M = TypeVar("_M", bound=Message)
_R = TypeVar("_R")
_Context = grpc.aio.ServicerContext[Any, Any]


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Parses, hands over, answers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def PutWearer(
        self, request: registry_pb2.PutWearerRequest, context: _Context
    ) -> registry_pb2.PutWearerResponse:
        wearer = _parse(request, "wearer", translate.parse_wearer)
        return registry_pb2.PutWearerResponse(outcome=await _finish(self._registry.put_wearer(wearer)))

    async def PutTag(self, request: registry_pb2.PutTagRequest, context: _Context) -> registry_pb2.PutTagResponse:
        tag = _parse(request, "tag", translate.parse_tag)
        return registry_pb2.PutTagResponse(outcome=await _finish(self._registry.put_tag(tag)))

    async def PutProtectedPerson(
        self, request: registry_pb2.PutProtectedPersonRequest, context: _Context
    ) -> registry_pb2.PutProtectedPersonResponse:
        person = _parse(request, "protected_person", translate.parse_protected_person)
        return registry_pb2.PutProtectedPersonResponse(
            outcome=await _finish(self._registry.put_protected_person(person))
        )

    async def PutDevice(
        self, request: registry_pb2.PutDeviceRequest, context: _Context
    ) -> registry_pb2.PutDeviceResponse:
        device = _parse(request, "device", translate.parse_device)
        return registry_pb2.PutDeviceResponse(outcome=await _finish(self._registry.put_device(device)))

    async def PutOrder(self, request: registry_pb2.PutOrderRequest, context: _Context) -> registry_pb2.PutOrderResponse:
        order = _parse(request, "order", translate.parse_order)
        return registry_pb2.PutOrderResponse(outcome=await _finish(self._registry.put_order(order)))

    async def WatchMatches(
        self, request: registry_pb2.WatchMatchesRequest, context: _Context
    ) -> AsyncIterator[registry_pb2.WatchMatchesResponse]:
        after = request.after_sequence
        if after > _SEQUENCE_MAX:
            raise InvalidField("after_sequence", "is greater than any sequence")
        while True:
            change = self._registry.next_change()
            async with self._registry.transaction() as records:
                cases = await records.matches_after(after, MATCHES_AT_ONCE)
            for case in cases:
                yield translate.match_to_proto(
                    case.sequence, case.case_id, case.wearer_id, case.order_id, case.matched_at_ms
                )
                after = case.sequence
            if not cases:
                await change.wait()


def _parse(request: Message, name: str, parse: Callable[[Any], _R]) -> _R:
    """The record in the field `name` of a request."""
    if not request.HasField(name):
        raise InvalidField(name, "is missing")
    try:
        return parse(getattr(request, name))
    except InvalidField as error:
        raise error.under(name) from None


async def _finish(put: Coroutine[Any, Any, Outcome]) -> registry_pb2.PutOutcome.ValueType:
    """Lets a put run to its end although the caller goes away: a transaction is never cut in the middle."""
    return translate.outcome_to_proto(await asyncio.shield(put))
