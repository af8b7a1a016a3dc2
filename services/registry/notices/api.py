"""gRPC servicer of the NoticeService: the grounds of an order for the Ministry's notices."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields
from services.common.privacy.grounds import LEGAL_BASES
from services.registry.notices.domain import OrderGround, type_name
from services.registry.notices.service import NoticeGrounds
from tandem.common.v1 import notice_pb2 as common_notice_pb2
from tandem.registry.v1 import notice_pb2, notice_pb2_grpc, registry_pb2

_Context = grpc.aio.ServicerContext[Any, Any]


class NoticeServicer(notice_pb2_grpc.NoticeServiceServicer):
    """Parses requests of the NoticeService, and builds the responses."""

    def __init__(self, grounds: NoticeGrounds) -> None:
        self._grounds = grounds

    async def ListNoticeGrounds(
        self, request: notice_pb2.ListNoticeGroundsRequest, context: _Context
    ) -> notice_pb2.ListNoticeGroundsResponse:
        order_id = fields.required_id("order_id", request.order_id)
        grounds = await self._grounds.of_order(order_id)
        return notice_pb2.ListNoticeGroundsResponse(grounds=map(_to_proto, grounds))


def _to_proto(found: OrderGround) -> notice_pb2.OrderGround:
    message = notice_pb2.OrderGround(
        case_id=found.case_id,
        wearer_id=found.wearer_id,
        order_type=registry_pb2.OrderType.Value(f"ORDER_TYPE_{type_name(found.order_type) or 'UNSPECIFIED'}"),
        tag_bases=[registry_pb2.TagBasis.Value(f"TAG_BASIS_{basis or 'UNSPECIFIED'}") for basis in found.tag_bases],
        why_none=found.why_none,
        order_over=found.order_over,
        police_must_check=found.police_must_check,
    )
    ground = found.ground
    for basis in LEGAL_BASES:
        if ground is not None and basis.notice is not None and basis.notice.ground is ground:
            message.giver, message.recipient = basis.notice.giver.value, basis.notice.recipient.value
            message.articles.append(basis.code)
    if ground is not None:
        message.ground = common_notice_pb2.NoticeGround.Value(ground.value)
    return message
