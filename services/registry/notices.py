"""The grounds of an order for the Ministry's notices."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields
from services.common.clock import MeshClock
from services.common.errors import NotFound
from services.common.privacy.grounds import LEGAL_BASES
from services.registry.domain.cases import OrderGround, order_ground, order_type_name
from services.registry.records.kinds import ORDERS, TAGS
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet
from tandem.common.v1 import notice_pb2 as common_notice_pb2
from tandem.registry.v1 import notice_pb2, notice_pb2_grpc, registry_pb2


class NoticeGrounds:
    """Answers on which grounds the Ministry may notify the persons whom an order protects."""

    def __init__(self, transactions: Transactions, clock: MeshClock) -> None:
        self._transactions = transactions
        self._clock = clock

    async def of_order(self, order_id: str) -> list[OrderGround]:
        """The grounds of an order, one for each wearer against whom it is enforced, in the order of matching. Raises NotFound."""
        now_ms = self._clock.now_ms()

        def work(working: WorkingSet) -> list[OrderGround]:
            order = working.records.opened(ORDERS, [order_id]).get(order_id)
            if order is None:
                raise NotFound("order_id: no such order")
            cases = [case for case in working.cases.of_orders([order_id]) if case.withdrawn_at_ms is None]
            tags = working.records.owned(TAGS, {case.wearer_id for case in cases})
            return [order_ground(case.case_id, order, case.wearer_id, tags=tags, now_ms=now_ms) for case in cases]

        vault = self._transactions.vault
        async with self._transactions.database.reading() as connection:
            return await connection.run_sync(lambda reading: work(WorkingSet(reading, vault)))


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
        order_type=registry_pb2.OrderType.Value(f"ORDER_TYPE_{order_type_name(found.order_type) or 'UNSPECIFIED'}"),
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
