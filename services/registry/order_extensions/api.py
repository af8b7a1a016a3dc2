"""gRPC servicer of the OrderExtensionService: parses extensions of orders and answers with warnings about their duration."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields
from services.common.rpc.errors import InvalidField
from services.common.running import completed
from services.registry.order_extensions.domain import OrderExtension
from services.registry.order_extensions.service import OrderExtensions
from services.registry.records import lifecycle, translate
from tandem.registry.v1 import order_extension_pb2, order_extension_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]


class OrderExtensionServicer(order_extension_pb2_grpc.OrderExtensionServiceServicer):
    """Extends orders for the police's records."""

    def __init__(self, extensions: OrderExtensions) -> None:
        self._extensions = extensions

    async def ExtendOrder(
        self, request: order_extension_pb2.ExtendOrderRequest, context: _Context
    ) -> order_extension_pb2.ExtendOrderResponse:
        extension = parse_extension(request)
        outcome, order = await completed(self._extensions.extend(extension))
        return order_extension_pb2.ExtendOrderResponse(
            outcome=translate.outcome_to_proto(outcome),
            warnings=translate.warnings_to_proto("order", lifecycle.duration_warnings(order)),
        )


def parse_extension(msg: order_extension_pb2.ExtendOrderRequest) -> OrderExtension:
    """Parse an extension. Raises InvalidField."""
    if msg.source_version < 0:
        raise InvalidField("source_version", "must be 0 or more")
    return OrderExtension(
        order_id=fields.required_id("order_id", msg.order_id),
        source_version=msg.source_version,
        valid_until_ms=fields.moment("valid_until", msg.valid_until, msg.HasField("valid_until")),
        duration_reason=translate.parse_reason("duration_reason", msg.duration_reason),
    )
