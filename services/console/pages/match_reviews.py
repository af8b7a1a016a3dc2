"""Pages of match reviews: the queue, both records of a review side by side, and the answer of a person.

The records are read by a disclosure of the registry, under the article of the order: by a form, never by following a link.
"""

from __future__ import annotations

import grpc.aio
from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp

from services.client.calls import call_once
from services.common import fields, times
from services.common.errors import InvalidField
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import RecordKind, codes_for
from services.console.domain import match_reviews
from services.console.domain.match_reviews import (
    ACTS,
    MAX_REASON,
    AgreementCard,
    ConsequencesCard,
    FieldRow,
    HistoryRow,
    OpenedReview,
    Part,
    ReviewCard,
    RingRow,
    ValueCard,
    WaitingReviews,
)
from services.console.domain.people import DESKS
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.guard import Ask, RouteGuard, see_other
from services.console.pages.refusals import PageRefusal
from services.console.translate import moment
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import match_review_pb2, registry_pb2, review_pb2

MAX_LISTED = 1_000
MAX_DECIDED = 100
_OPEN = (review_pb2.REVIEW_STATE_OPEN,)
_DECIDED = (review_pb2.REVIEW_STATE_CONFIRMED, review_pb2.REVIEW_STATE_REJECTED)
_RULES = {
    "bar": match_reviews.bar,
    "is_alarm": match_reviews.is_alarm,
    "waiting_minutes": match_reviews.waiting_minutes,
}
"""What the templates compute."""
DECISIONS = {
    "confirm": review_pb2.DECISION_CONFIRM,
    "reject": review_pb2.DECISION_REJECT,
    "undo": review_pb2.DECISION_UNDO,
}


class MatchReviewPages:
    """Pages of match reviews, for the desks that decide them."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        guard = self._guard
        return [
            guard.get("/reviews", DESKS, self.queue),
            guard.get("/reviews/{id}", DESKS, self.closed),
            guard.post("/reviews/{id}", DESKS, self.show),
            guard.post("/reviews/{id}/decide", DESKS, self.decide),
        ]

    async def queue(self, ask: Ask) -> web.StreamResponse:
        """Shows the reviews that wait for a person, or those that people have decided."""
        shows_decided = ask.request.query.get("state") == "decided"
        cards, is_cut = await self._list(ask, _DECIDED if shows_decided else _OPEN)
        done = ask.request.query.get("done", "")
        return assets.page(
            ask,
            "reviews.html",
            cards=match_reviews.newest_first(cards, MAX_DECIDED) if shows_decided else match_reviews.by_age(cards),
            shows_decided=shows_decided,
            is_cut=is_cut,
            done=done if done in ACTS else "",
            now_ms=self._mesh.clock.now_ms(),
            rules=_RULES,
        )

    async def closed(self, ask: Ask) -> web.StreamResponse:
        """Shows a review without the records, and asks for the article under which they are read."""
        return await self._show_closed(ask, _id_of(ask))

    async def show(self, ask: Ask) -> web.StreamResponse:
        """Shows both records of a review. The registry checks the article, and writes the ledger before it answers."""
        case_id = _id_of(ask)
        try:
            return await self._show_open(ask, case_id)
        except grpc.aio.AioRpcError as error:
            logger().info("review_not_read", case_id=case_id, code=error.code().name)
            return await self._show_closed(ask, case_id, refusals.of_registry(error, "", ask.form))

    async def decide(self, ask: Ask) -> web.StreamResponse:
        """Sends the answer of a person with what the page showed. A refusal is shown beside the present state."""
        case_id, act = _id_of(ask), ask.form.get("act", "")
        if act not in ACTS:
            raise web.HTTPBadRequest(text=f"400: act must be one of {', '.join(ACTS)}")
        try:
            request = review_pb2.DecideReviewRequest(
                case_id=case_id,
                decision=DECISIONS[act],
                reason=ask.form.get("reason", "").strip(),
                evidence=bytes.fromhex(ask.form.get("evidence", "")),
                seen_since=_since(ask.form.get("since", "")),
            )
        except ValueError:
            raise web.HTTPBadRequest(text="400: evidence must be hex digits, since milliseconds since 1970") from None
        try:
            await call_once(self._mesh.registry.DecideReview, request, self._mesh.identity(ask.user))
        except grpc.aio.AioRpcError as error:
            logger().info("review_not_decided", case_id=case_id, act=act, code=error.code().name)
            refusal = refusals.of_registry(error, act, ask.form)
            try:
                return await self._show_open(ask, case_id, refusal)
            except grpc.aio.AioRpcError:
                return await self._show_closed(ask, case_id, refusal)
        return see_other(f"/reviews?done={act}")

    async def _show_open(self, ask: Ask, case_id: str, refusal: PageRefusal | None = None) -> web.StreamResponse:
        legal_basis = ask.form.get("legal_basis", "")
        request = match_review_pb2.ReadReviewRequest(case_id=case_id, legal_basis=legal_basis)
        answer = await call_once(self._mesh.match_reviews.ReadReview, request, self._mesh.identity(ask.user))
        review = read_review(answer)
        return assets.page(
            ask,
            "review.html",
            status=refusal.status if refusal else 200,
            path=f"/reviews/{case_id}",  # an answer's own address can't be read by GET
            review=review,
            acts=review.acts,
            legal_basis=legal_basis,
            disclosures=len(answer.disclosure_ids),
            refusal=refusal,
            max_reason=MAX_REASON,
            now_ms=self._mesh.clock.now_ms(),
            rules=_RULES,
        )

    async def _show_closed(self, ask: Ask, case_id: str, refusal: PageRefusal | None = None) -> web.StreamResponse:
        try:
            cards, _ = await self._list(ask, _OPEN + _DECIDED)
        except grpc.aio.AioRpcError:
            if refusal is None:
                raise
            cards = []
        card = next((card for card in cards if card.case_id == case_id), None)
        return assets.page(
            ask,
            "review_closed.html",
            status=refusal.status if refusal else 200,
            path=f"/reviews/{case_id}",
            case_id=case_id,
            card=card,
            refusal=refusal,
            bases=codes_for(RecordKind.WEARER, RecordKind.ORDER),
            now_ms=self._mesh.clock.now_ms(),
            rules=_RULES,
        )

    async def _list(
        self, ask: Ask, states: tuple[review_pb2.ReviewState.ValueType, ...]
    ) -> tuple[list[ReviewCard], bool]:
        """Returns the reviews in some states, and whether there are more than MAX_LISTED."""
        cards: list[ReviewCard] = []
        while True:
            after = cards[-1].case_id if cards else ""
            answer = await call_once(
                self._mesh.registry.ListReviews,
                review_pb2.ListReviewsRequest(states=states, after_case_id=after),
                self._mesh.identity(ask.user),
            )
            if not answer.reviews or len(cards) >= MAX_LISTED:
                return cards, bool(answer.reviews)
            cards += map(review_card, answer.reviews)


def _id_of(ask: Ask) -> str:
    """Returns the case id of the address. Raises HTTPBadRequest."""
    try:
        return fields.required_id("review", ask.request.match_info["id"])
    except InvalidField as error:
        raise web.HTTPBadRequest(text=f"400: {error}") from None


def _since(text: str) -> Timestamp:
    """Parses the moment at which the shown state began. Raises ValueError."""
    ms = int(text)
    if not times.MIN_MS <= ms <= times.MAX_MS:
        raise ValueError("since is out of range")
    return times.to_timestamp(ms)


def waiting_reviews(message: match_review_pb2.GetReviewQueueResponse) -> WaitingReviews:
    """Translates the queue of reviews."""
    return WaitingReviews(open=message.open, since_ms=moment(message, "oldest_since"), alarmed=message.alarmed)


def review_card(message: review_pb2.Review) -> ReviewCard:
    """Translates a review."""
    return ReviewCard(
        case_id=message.case_id,
        order_id=message.order_id,
        wearer_id=message.wearer_id,
        state=review_pb2.ReviewState.Name(message.state).removeprefix("REVIEW_STATE_"),
        enforced=message.enforced,
        weight_bits=message.weight_bits,
        agreements=tuple(map(_agreement, message.agreements)),
        since_ms=times.from_timestamp(message.since),
        alarmed_ms=moment(message, "alarmed_at"),
        decided_by=message.decided_by,
        legal_basis=message.legal_basis,
        evidence=message.evidence.hex(),
    )


def read_review(message: match_review_pb2.ReadReviewResponse) -> OpenedReview:
    """Translates a review with both records."""
    return OpenedReview(
        card=review_card(message.review),
        fields=tuple(map(_field, message.fields)),
        history=tuple(map(_entry, message.history)),
        consequences=_consequences(message.consequences),
    )


def _agreement(message: review_pb2.FieldAgreement) -> AgreementCard:
    return AgreementCard(
        field=review_pb2.ComparedField.Name(message.field).removeprefix("COMPARED_FIELD_"),
        level=review_pb2.AgreementLevel.Name(message.level).removeprefix("AGREEMENT_LEVEL_"),
        weight_bits=message.weight_bits,
    )


def _field(message: match_review_pb2.ReviewedField) -> FieldRow:
    return FieldRow(
        agreement=_agreement(message.agreement),
        respondent=_value(message.agreement.field, message.respondent, message.wearer),
        wearer=_value(message.agreement.field, message.wearer, message.respondent),
    )


def _value(
    field: review_pb2.ComparedField.ValueType,
    mine: match_review_pb2.ReviewedValue,
    other: match_review_pb2.ReviewedValue,
) -> ValueCard:
    if field == review_pb2.COMPARED_FIELD_SEX:  # a code, which the page names in its language
        both = bool(mine.value and other.value)
        parts: tuple[Part, ...] = (Part(mine.value, both and mine.value != other.value),) if mine.value else ()
    else:
        parts = match_reviews.marked(mine.value, other.value)
    return ValueCard(parts=parts, stated=mine.stated, withheld=mine.withheld)


def _entry(message: match_review_pb2.ReviewHistoryEntry) -> HistoryRow:
    name = ""
    if message.kind == match_review_pb2.REVIEW_HISTORY_KIND_EVENT:
        name = registry_pb2.MatchEvent.Name(message.event).removeprefix("MATCH_EVENT_")
    elif message.kind == match_review_pb2.REVIEW_HISTORY_KIND_DECISION:
        name = review_pb2.Decision.Name(message.decision).removeprefix("DECISION_")
    return HistoryRow(
        at_ms=times.from_timestamp(message.at),
        what=match_review_pb2.ReviewHistoryKind.Name(message.kind).removeprefix("REVIEW_HISTORY_KIND_"),
        name=name,
        by=message.decided_by,
        reason=message.reason,
        order_version=message.order_version,
        wearer_version=message.wearer_version,
        weight_bits=message.weight_bits,
        changed=tuple(map(_agreement, message.changed)),
    )


def _consequences(message: match_review_pb2.ReviewConsequences) -> ConsequencesCard:
    order_type = registry_pb2.OrderType.Name(message.order_type).removeprefix("ORDER_TYPE_")
    return ConsequencesCard(
        enforced=message.enforced,
        rings=tuple(RingRow(ring.radius_m, geometry_pb2.Demand.Name(ring.action)) for ring in message.rings),
        from_ms=times.from_timestamp(message.valid_from),
        until_ms=moment(message, "valid_until"),
        order_type=order_type if message.order_type else "",
        tags=message.tags,
        persons=message.protected_persons,
        persons_without_device=message.persons_without_device,
        places=message.places,
        other_orders=message.other_orders_of_wearer,
        other_wearers=message.other_wearers_of_order,
        other_reviews=message.other_open_reviews,
    )
