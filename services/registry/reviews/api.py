"""gRPC servicer of the MatchReviewService: both records of a review, and the queue of reviews."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields
from services.common.rpc.server import caller
from services.common.running import completed
from services.registry.reviews import read_messages
from services.registry.reviews.reading import ReviewReading
from services.registry.reviews.service import ReviewService
from tandem.registry.v1 import match_review_pb2, match_review_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]


class MatchReviewServicer(match_review_pb2_grpc.MatchReviewServiceServicer):
    """Parses requests of the MatchReviewService and builds the responses."""

    def __init__(self, reading: ReviewReading, reviews: ReviewService) -> None:
        self._reading = reading
        self._reviews = reviews

    async def ReadReview(
        self, request: match_review_pb2.ReadReviewRequest, context: _Context
    ) -> match_review_pb2.ReadReviewResponse:
        case_id = fields.required_id("case_id", request.case_id)
        read, disclosure_ids = await completed(self._reading.read(caller(), request.legal_basis, case_id))
        return read_messages.read_review_to_proto(read, disclosure_ids)

    async def GetReviewQueue(
        self, request: match_review_pb2.GetReviewQueueRequest, context: _Context
    ) -> match_review_pb2.GetReviewQueueResponse:
        return read_messages.queue_to_proto(await self._reviews.queue())
