"""Pages of the handover: what is open now, what the leaving shift writes, and its acknowledgement by the next shift."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import grpc.aio
from aiohttp import web

from services.common.observability.telemetry import logger
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console import translate as incidents
from services.console.devices.reading import DeviceReader
from services.console.domain import board, match_reviews
from services.console.domain.board import IncidentCard
from services.console.domain.match_reviews import ReviewCard
from services.console.domain.people import DESKS, VIEWERS
from services.console.guard import Ask, RouteGuard
from services.console.handover import domain, translate
from services.console.handover.domain import MAX_NAMED, MAX_NOTES, MAX_REMARK, HandoverCard
from services.console.match_reviews import translate as reviews
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.refusals import FormRefusal
from services.console.redirects import see_other
from services.console.services_away import unless_away
from tandem.dispatch.v1 import dispatch_pb2, handover_pb2
from tandem.dispatch.v1.handover_pb2_grpc import HandoverServiceStub
from tandem.registry.v1 import review_pb2

MAX_SHOWN = 20
MAX_SEARCHED_PAGES = 5
"""Pages of 100 incidents in which open ones are looked for: older ones are beside the live page's queue anyway."""


class HandoverPages:
    """The page of the handover, for desks; reviewers read it."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, devices: DeviceReader) -> None:
        self._guard, self._mesh, self._devices = guard, mesh, devices

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/handover", VIEWERS, self.show),
            self._guard.post("/handover", DESKS, self.write),
            self._guard.post("/handover/{id}/acknowledge", DESKS, self.acknowledge),
        ]

    async def show(self, ask: Ask) -> web.StreamResponse:
        """Shows what is open now, handovers that wait for an acknowledgement, and earlier ones."""
        return await self._show(ask)

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
            await self._leg(ask).WriteHandover(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
        except grpc.aio.AioRpcError as error:
            logger().info("handover_not_stored", code=error.code().name)
            return await self._show(ask, refusals.of_service(error, "handover", form))
        return see_other("/handover?done=written")

    async def acknowledge(self, ask: Ask) -> web.StreamResponse:
        """Stores that this user has acknowledged a handover."""
        request = handover_pb2.AcknowledgeHandoverRequest(
            handover_id=ask.request.match_info["id"], remark=ask.form.get("remark", "")
        )
        try:
            await self._leg(ask).AcknowledgeHandover(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
        except grpc.aio.AioRpcError as error:
            logger().info("handover_not_acknowledged", code=error.code().name)
            return await self._show(ask, refusals.of_service(error, "handover", ask.form))
        return see_other("/handover?done=acknowledged")

    async def _show(self, ask: Ask, refusal: FormRefusal | None = None) -> web.StreamResponse:
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
            waiting=domain.waiting(cards),
            earlier=[card for card in cards if not card.is_open],
            handover_id=(refusal.form.get("handover_id") if refusal else "") or f"handover-{secrets.token_hex(8)}",
            name_of=domain.name_of,
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
        answer = await self._leg(ask).ListHandovers(
            handover_pb2.ListHandoversRequest(page_size=MAX_SHOWN),
            metadata=self._mesh.identity(ask.user),
            timeout=UNARY_DEADLINE_S,
        )
        return [translate.card(handover) for handover in answer.handovers]

    async def _open_incidents(self, ask: Ask) -> list[IncidentCard]:
        """Returns the open incidents, the newest first."""
        cards: list[IncidentCard] = []
        token = ""
        for _ in range(MAX_SEARCHED_PAGES):
            answer = await self._mesh.leg_of(ask.user.role).dispatch.ListIncidents(
                dispatch_pb2.ListIncidentsRequest(page_size=100, page_token=token, only_open=True),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
            cards += map(incidents.incident, answer.incidents)
            token = answer.next_page_token
            if not token:
                break
        return cards

    async def _reviews(self, ask: Ask) -> list[ReviewCard]:
        """Returns the match reviews that wait, the longest waiting first; at most a page of the registry's."""
        answer = await self._mesh.registry.ListReviews(
            review_pb2.ListReviewsRequest(states=[review_pb2.REVIEW_STATE_OPEN]),
            metadata=self._mesh.identity(ask.user),
            timeout=UNARY_DEADLINE_S,
        )
        return match_reviews.by_age(list(map(reviews.card, answer.reviews)))
