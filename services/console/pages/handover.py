"""Pages of the handover between shifts: what waits, what the leaving desk writes, and who acknowledged it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc.aio
from aiohttp import web

from services.client.calls import call_once
from services.common import times
from services.common.observability.telemetry import logger
from services.console import translate
from services.console.domain import board, match_reviews
from services.console.domain.board import IncidentCard
from services.console.domain.match_reviews import ReviewCard
from services.console.domain.people import DESKS, VIEWERS
from services.console.mesh import MeshClient, unless_away
from services.console.pages import assets, refusals
from services.console.pages import match_reviews as reviews
from services.console.pages.devices import DeviceReader
from services.console.pages.guard import Ask, RouteGuard, see_other
from services.console.pages.refusals import PageRefusal
from services.console.translate import moment
from tandem.dispatch.v1 import dispatch_pb2, handover_pb2
from tandem.dispatch.v1.handover_pb2_grpc import HandoverServiceStub
from tandem.registry.v1 import review_pb2

MAX_SHOWN = 20
MAX_SEARCHED_PAGES = 5
"""Pages of 100 incidents in which open ones are looked for: older ones are beside the live page's queue anyway."""


class HandoverPages:
    """The page of the handover, for desks; reviewers read it."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, devices: DeviceReader) -> None:
        self._guard = guard
        self._mesh = mesh
        self._devices = devices

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/handover", VIEWERS, self.show),
            self._guard.post("/handover", DESKS, self.write),
            self._guard.post("/handover/{id}/acknowledge", DESKS, self.acknowledge),
        ]

    async def write(self, ask: Ask) -> web.StreamResponse:
        """Stores a handover. A form that is sent twice is one handover."""
        form = ask.form
        request = handover_pb2.WriteHandoverRequest(
            handover_id=form.get("handover_id", ""),
            notes=form.get("notes", ""),
            review_case_ids=form.get("case_ids", "").split(),
            device_ids=form.get("device_ids", "").split(),
            reviews_incomplete="reviews" in form.get("incomplete", "").split(),
            devices_incomplete="devices" in form.get("incomplete", "").split(),
        )
        try:
            await call_once(self._leg(ask).WriteHandover, request, self._mesh.identity(ask.user))
        except grpc.aio.AioRpcError as error:
            logger().info("handover_not_stored", code=error.code().name)
            return await self.show(ask, refusals.of_service(error, "handover", form))
        return see_other("/handover?done=written")

    async def acknowledge(self, ask: Ask) -> web.StreamResponse:
        """Stores that this user has acknowledged a handover."""
        request = handover_pb2.AcknowledgeHandoverRequest(
            handover_id=ask.request.match_info["id"], remark=ask.form.get("remark", "")
        )
        try:
            await call_once(self._leg(ask).AcknowledgeHandover, request, self._mesh.identity(ask.user))
        except grpc.aio.AioRpcError as error:
            logger().info("handover_not_acknowledged", code=error.code().name)
            return await self.show(ask, refusals.of_service(error, "handover", ask.form))
        return see_other("/handover?done=acknowledged")

    async def show(self, ask: Ask, refusal: PageRefusal | None = None) -> web.StreamResponse:
        """Shows what is open now, handovers that wait for an acknowledgement, and earlier ones."""
        away: list[str] = []
        away_for_devices: list[str] = []
        is_desk = ask.user.role in DESKS
        listed = await unless_away("dispatch", self._handovers(ask), away)
        cards = listed or []
        values: dict[str, Any] = {"open_incidents": None, "reviews": None, "devices": None, "incomplete": []}
        if is_desk:
            open_incidents, waiting, devices = await asyncio.gather(
                unless_away("dispatch", self._open_incidents(ask), away),
                unless_away("registry", self._reviews(ask), away),
                self._devices.in_trouble(ask.user, away_for_devices),
            )
            are_incomplete = {
                "reviews": waiting is None or len(waiting) > MAX_NAMED,
                "devices": bool(away_for_devices) or len(devices or ()) > MAX_NAMED,
            }
            values = {
                "open_incidents": open_incidents,
                "reviews": waiting,
                "devices": devices,
                "incomplete": [name for name, is_incomplete in are_incomplete.items() if is_incomplete],
            }
        done = ask.request.query.get("done", "")
        return assets.page(
            ask,
            "handover.html",
            status=refusal.status if refusal else 200,
            path="/handover",
            is_desk=is_desk,
            waiting=_waiting(cards),
            earlier=[card for card in cards if not card.is_open],
            handover_id=(refusal.form.get("handover_id") if refusal else "") or f"handover-{secrets.token_hex(8)}",
            name_of=_name_of,
            shown=board.shown,
            leg_names=board.LEGS,
            leg_state=board.leg_state,
            waiting_minutes=match_reviews.waiting_minutes,
            now_ms=self._mesh.clock.now_ms(),
            away=sorted({*away, *away_for_devices}),
            refusal=refusal,
            done=done if done in ("written", "acknowledged") and not refusal else "",
            max_notes=MAX_NOTES,
            max_remark=MAX_REMARK,
            max_named=MAX_NAMED,
            **values,
        )

    def _leg(self, ask: Ask) -> HandoverServiceStub:
        return self._mesh.leg_of(ask.user.role).handover

    async def _handovers(self, ask: Ask) -> list[HandoverCard]:
        answer = await call_once(
            self._leg(ask).ListHandovers,
            handover_pb2.ListHandoversRequest(page_size=MAX_SHOWN),
            self._mesh.identity(ask.user),
        )
        return [_card(handover) for handover in answer.handovers]

    async def _open_incidents(self, ask: Ask) -> list[IncidentCard]:
        """Returns the open incidents, the newest first."""
        cards: list[IncidentCard] = []
        token = ""
        for _ in range(MAX_SEARCHED_PAGES):
            answer = await call_once(
                self._mesh.leg_of(ask.user.role).dispatch.ListIncidents,
                dispatch_pb2.ListIncidentsRequest(page_size=100, page_token=token, only_open=True),
                self._mesh.identity(ask.user),
            )
            cards += map(translate.incident, answer.incidents)
            token = answer.next_page_token
            if not token:
                break
        return cards

    async def _reviews(self, ask: Ask) -> list[ReviewCard]:
        """Returns the match reviews that wait, the longest waiting first; at most a page of the registry's."""
        answer = await call_once(
            self._mesh.registry.ListReviews,
            review_pb2.ListReviewsRequest(states=[review_pb2.REVIEW_STATE_OPEN]),
            self._mesh.identity(ask.user),
        )
        return match_reviews.by_age(list(map(reviews.review_card, answer.reviews)))


MAX_NOTES = 4_000
MAX_REMARK = 500
MAX_NAMED = 200
"""Maximum number of reviews, and of devices, that a handover names."""


@dataclass(frozen=True, slots=True)
class HandoverCard:
    """A handover of the desk."""

    handover_id: str
    notes: str
    incident_ids: tuple[str, ...]
    """Incidents that were open when it was written."""
    case_ids: tuple[str, ...]
    """Match reviews that waited."""
    device_ids: tuple[str, ...]
    """Devices that were in trouble."""
    reviews_incomplete: bool
    """The writer's page couldn't show all match reviews."""
    devices_incomplete: bool
    """The writer's page couldn't show all devices in trouble."""
    written_by: str
    """SPIFFE id of the writer."""
    written_ms: int
    acknowledged_by: str = ""
    """SPIFFE id of the person who acknowledged it; empty until then."""
    acknowledged_ms: int | None = None
    remark: str = ""

    @property
    def is_open(self) -> bool:
        """Whether nobody has acknowledged it yet."""
        return not self.acknowledged_by


def _name_of(spiffe_id: str) -> str:
    """Name of a person in a SPIFFE id, such as `kim` of spiffe://npa/desk/kim and of spiffe://npa/desk/console/kim."""
    return spiffe_id.rpartition("/")[2]


def _waiting(cards: Iterable[HandoverCard]) -> list[HandoverCard]:
    """Handovers that nobody has acknowledged, the oldest first."""
    return sorted((card for card in cards if card.is_open), key=lambda card: card.written_ms)


def _card(message: handover_pb2.Handover) -> HandoverCard:
    """Translates a handover."""
    return HandoverCard(
        handover_id=message.handover_id,
        notes=message.notes,
        incident_ids=tuple(message.open_incident_ids),
        case_ids=tuple(message.review_case_ids),
        device_ids=tuple(message.device_ids),
        reviews_incomplete=message.reviews_incomplete,
        devices_incomplete=message.devices_incomplete,
        written_by=message.written_by,
        written_ms=times.from_timestamp(message.written_at),
        acknowledged_by=message.acknowledged_by,
        acknowledged_ms=moment(message, "acknowledged_at"),
        remark=message.remark,
    )
