"""gRPC servicer of the RegistryService: records, reconciliation, reviews and matches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from services.common import times
from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.common.rpc.identity import Role
from services.common.rpc.server import caller
from services.common.running import completed
from services.registry.agencies.bulk import BulkService, ParsedRecord, parse_batch, results_to_proto, warnings_of
from services.registry.agencies.ministry import MinistryService
from services.registry.agencies.police import PoliceService
from services.registry.domain import lifecycle
from services.registry.domain.reconciliation import Agency
from services.registry.domain.records import Order
from services.registry.reconciliation import (
    IncomingLists,
    ReconciliationService,
    difference_to_proto,
    parse_listed,
    status_to_proto,
)
from services.registry.records import places, translate
from services.registry.records.places import ServiceArea
from services.registry.reviews.api import event_to_proto, parse_decision, parse_states, review_to_proto
from services.registry.reviews.service import ReviewService
from services.registry.transactions import CommitSignal
from tandem.registry.v1 import reconciliation_pb2, registry_pb2, registry_pb2_grpc, review_pb2

MATCHES_BATCH = 100
DIFFERENCES_BATCH = 1000

_M = TypeVar("_M", bound=Message)
_R = TypeVar("_R")
_Context = grpc.aio.ServicerContext[Any, Any]


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Parses requests of the RegistryService, runs the commands and builds the responses."""

    def __init__(
        self,
        ministry: MinistryService,
        police: PoliceService,
        reviews: ReviewService,
        *,
        bulk: BulkService,
        reconciliation: ReconciliationService,
        signal: CommitSignal,
        area: ServiceArea,
        clock: MeshClock,
    ) -> None:
        self._ministry = ministry
        self._police = police
        self._reviews = reviews
        self._bulk = bulk
        self._reconciliation = reconciliation
        self._signal = signal
        self._area = area
        self._clock = clock
        self._lists = IncomingLists()

    async def PutWearer(
        self, request: registry_pb2.PutWearerRequest, context: _Context
    ) -> registry_pb2.PutWearerResponse:
        wearer = _parse(request, "wearer", translate.parse_wearer)
        outcome = translate.outcome_to_proto(await completed(self._ministry.put_wearer(wearer)))
        warnings = translate.warnings_to_proto("wearer", warnings_of(wearer))
        return registry_pb2.PutWearerResponse(outcome=outcome, warnings=warnings)

    async def EndWearer(
        self, request: registry_pb2.EndWearerRequest, context: _Context
    ) -> registry_pb2.EndWearerResponse:
        wearer_id, end, version = translate.parse_wearer_end(request)
        warnings = self._check_happened("ended_at", end.at_ms)
        outcome = await completed(self._ministry.end_wearer(wearer_id, end, version))
        return registry_pb2.EndWearerResponse(outcome=translate.outcome_to_proto(outcome), warnings=warnings)

    async def PutTag(self, request: registry_pb2.PutTagRequest, context: _Context) -> registry_pb2.PutTagResponse:
        tag = _parse(request, "tag", translate.parse_tag)
        outcome = await completed(self._ministry.put_tag(tag))
        return registry_pb2.PutTagResponse(outcome=translate.outcome_to_proto(outcome))

    async def EndTag(self, request: registry_pb2.EndTagRequest, context: _Context) -> registry_pb2.EndTagResponse:
        device_id, removed_at_ms, version = translate.parse_device_end(request)
        warnings = self._check_happened("removed_at", removed_at_ms)
        outcome = await completed(self._ministry.end_tag(device_id, removed_at_ms, version))
        return registry_pb2.EndTagResponse(outcome=translate.outcome_to_proto(outcome), warnings=warnings)

    async def PutProtectedPerson(
        self, request: registry_pb2.PutProtectedPersonRequest, context: _Context
    ) -> registry_pb2.PutProtectedPersonResponse:
        person = _parse(request, "protected_person", translate.parse_protected_person)
        outcome = await completed(self._police.put_protected_person(person))
        return registry_pb2.PutProtectedPersonResponse(outcome=translate.outcome_to_proto(outcome))

    async def EndProtectedPerson(
        self, request: registry_pb2.EndProtectedPersonRequest, context: _Context
    ) -> registry_pb2.EndProtectedPersonResponse:
        person_id, ended_at_ms, version = translate.parse_person_end(request)
        warnings = self._check_happened("ended_at", ended_at_ms)
        outcome = await completed(self._police.end_protected_person(person_id, ended_at_ms, version))
        return registry_pb2.EndProtectedPersonResponse(outcome=translate.outcome_to_proto(outcome), warnings=warnings)

    async def PutDevice(
        self, request: registry_pb2.PutDeviceRequest, context: _Context
    ) -> registry_pb2.PutDeviceResponse:
        device = _parse(request, "device", translate.parse_device)
        outcome = await completed(self._police.put_device(device))
        return registry_pb2.PutDeviceResponse(outcome=translate.outcome_to_proto(outcome))

    async def EndDevice(
        self, request: registry_pb2.EndDeviceRequest, context: _Context
    ) -> registry_pb2.EndDeviceResponse:
        device_id, removed_at_ms, version = translate.parse_device_end(request)
        warnings = self._check_happened("removed_at", removed_at_ms)
        outcome = await completed(self._police.end_device(device_id, removed_at_ms, version))
        return registry_pb2.EndDeviceResponse(outcome=translate.outcome_to_proto(outcome), warnings=warnings)

    def _check_happened(self, field: str, end_ms: int) -> list[registry_pb2.Warning]:
        """Warnings about a removal or end. Raises InvalidField if it lies in the future."""
        now_ms = self._clock.now_ms()
        lifecycle.check_happened(field, end_ms, now_ms)
        return translate.warnings_to_proto("", lifecycle.end_warnings(field, end_ms, now_ms))

    async def PutOrder(self, request: registry_pb2.PutOrderRequest, context: _Context) -> registry_pb2.PutOrderResponse:
        order = _parse(request, "order", self._parse_order)
        replaced = _parse(request, "replaces", translate.parse_replaced) if request.HasField("replaces") else None
        outcome, stage = await completed(self._police.put_order(order, replaced))
        return registry_pb2.PutOrderResponse(
            outcome=translate.outcome_to_proto(outcome),
            warnings=translate.warnings_to_proto("order", warnings_of(order)),
            stage=translate.stage_to_proto(stage),
        )

    def _parse_order(self, msg: registry_pb2.Order) -> Order:
        order = translate.parse_order(msg)
        places.check_area(order, self._area)
        return order

    async def PutRecords(
        self, request_iterator: AsyncIterator[registry_pb2.PutRecordsRequest], context: _Context
    ) -> AsyncIterator[registry_pb2.PutRecordsResponse]:
        parse = partial(parse_batch, role=caller().role, area=self._area, vault=self._bulk.vault)
        # A request is read only after the answer to the previous one, so that flow control slows a fast sender down.
        async for request in request_iterator:
            # In a thread, because parsing and hashing of hundreds of records would block other calls.
            parsed = await asyncio.to_thread(parse, request)
            batch = [record.prepared for record in parsed if isinstance(record, ParsedRecord)]
            yield results_to_proto(parsed, await completed(self._bulk.put(batch)))

    async def EndOrder(self, request: registry_pb2.EndOrderRequest, context: _Context) -> registry_pb2.EndOrderResponse:
        order_id, end, version = translate.parse_order_end(request)
        outcome, stage = await completed(self._police.end_order(order_id, end, version))
        warnings = lifecycle.end_warnings("ended_at", end.at_ms, self._clock.now_ms())
        return registry_pb2.EndOrderResponse(
            outcome=translate.outcome_to_proto(outcome),
            stage=translate.stage_to_proto(stage),
            warnings=translate.warnings_to_proto("", warnings),
        )

    # ── reconciliation ───────────────────────────────────────────────────────────────────────────────────────────────

    async def Reconcile(
        self, request_iterator: AsyncIterator[reconciliation_pb2.ReconcileRequest], context: _Context
    ) -> AsyncIterator[reconciliation_pb2.ReconcileResponse]:
        agency = Agency.MOJ if caller().role == Role.ROLE_MOJ_RECORDS else Agency.NPA
        with self._lists.begin(caller().spiffe_id, agency) as incoming:
            async for request in request_iterator:
                incoming.add(parse_listed(request, agency))
            comparing = asyncio.ensure_future(self._reconciliation.compare(agency, incoming.records))
            try:
                compared = await completed(comparing)
            finally:
                await asyncio.wait([comparing])  # the list counts until it is compared, even if the caller has gone
            for start in range(0, len(compared.differences), DIFFERENCES_BATCH):
                batch = compared.differences[start : start + DIFFERENCES_BATCH]
                yield reconciliation_pb2.ReconcileResponse(differences=map(difference_to_proto, batch))
            summary = reconciliation_pb2.ReconcileSummary(
                listed_root=compared.listed_root,
                stored_root=compared.stored_root,
                listed=compared.listed,
                stored=compared.stored,
                differences=len(compared.differences),
                compared_at=times.to_timestamp(compared.compared_at_ms),
            )
            yield reconciliation_pb2.ReconcileResponse(summary=summary)

    async def GetReconciliation(
        self, request: reconciliation_pb2.GetReconciliationRequest, context: _Context
    ) -> reconciliation_pb2.GetReconciliationResponse:
        statuses = await self._reconciliation.statuses()
        agencies = [status_to_proto(status, overdue) for status, overdue in statuses]
        return reconciliation_pb2.GetReconciliationResponse(agencies=agencies)

    # ── matches ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def ListReviews(
        self, request: review_pb2.ListReviewsRequest, context: _Context
    ) -> review_pb2.ListReviewsResponse:
        reviews = await self._reviews.list_reviews(*parse_states(request))
        return review_pb2.ListReviewsResponse(reviews=map(review_to_proto, reviews))

    async def DecideReview(
        self, request: review_pb2.DecideReviewRequest, context: _Context
    ) -> review_pb2.DecideReviewResponse:
        case_id, decision, reason, seen = parse_decision(request)
        decided = await completed(self._reviews.decide(case_id, decision, reason, seen=seen, by=caller().spiffe_id))
        return review_pb2.DecideReviewResponse(review=review_to_proto(decided))

    async def WatchMatches(
        self, request: registry_pb2.WatchMatchesRequest, context: _Context
    ) -> AsyncIterator[registry_pb2.WatchMatchesResponse]:
        after = request.after_sequence
        # Only the client's token can be expired: a watcher that is connected already never gets this error.
        events = await self._reviews.resume(after, MATCHES_BATCH, only_matches=not request.with_reviews)
        while True:
            for event in events:
                yield event_to_proto(event)
                after = event.sequence
            change = self._signal.next_change()
            events = await self._reviews.events_after(after, MATCHES_BATCH, only_matches=not request.with_reviews)
            if not events:
                await self._signal.wait_for(change)


def _parse(request: Message, name: str, parse: Callable[[Any], _R]) -> _R:
    """The parsed record from the field `name` of a request."""
    if not request.HasField(name):
        raise InvalidField(name, "is missing")
    try:
        return parse(getattr(request, name))
    except InvalidField as error:
        raise error.under(name) from None
