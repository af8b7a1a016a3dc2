"""Pages of the console. Each calls the mesh as its user, and shows the data that the user's role may see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from services.common.rpc.server import UNARY_DEADLINE_S
from services.console import translate
from services.console.burden.views import BurdenPages
from services.console.devices.reading import DeviceReader
from services.console.devices.views import DevicePages
from services.console.domain import board, desk, notes, searching
from services.console.domain.board import IncidentCard
from services.console.domain.people import ALL_ROLES, DESKS, RECORD_CLERKS, VIEWERS, Role
from services.console.domain.searching import IncidentQuery
from services.console.guard import LANGUAGE_COOKIE, Ask, RouteGuard
from services.console.handover.views import HandoverPages
from services.console.live.cards import IncidentCards, order_bases
from services.console.live.feed import Feed
from services.console.match_reviews.views import MatchReviewPages
from services.console.mesh import MeshClient
from services.console.operators.views import ReportingPages
from services.console.pages import assets, theme
from services.console.pages.live_texts import LIVE_SHORTCUTS
from services.console.pages.texts import LANGUAGES
from services.console.people.views import PeoplePages
from services.console.phones.views import PhonePages
from services.console.records.views import RecordPages
from services.console.redirects import HOME, see_other
from services.console.review.answers import Answers
from services.console.review.documents import DocumentPages
from services.console.review.earlier import EarlierPages
from services.console.review.findings import FindingPages
from services.console.review.mesh_commands import MeshCommands
from services.console.review.views import IncidentPages
from services.console.roster.views import RosterPages
from services.console.settings import ConsoleSettings
from services.console.sign_in.views import SigningIn
from services.console.statistics.views import StatisticsPages
from tandem.dispatch.v1 import dispatch_pb2
from tandem.ingest.v1 import ingest_pb2

MAX_SEARCHED = 5_000
PAGE_SIZE = 1_000
DISTURBED = (
    "SILENT",
    "JAMMED",
    "DEVICE_OFF",
    "TAMPERED",
    "PROTECTED_DEVICE_LOST",
    "IMPLAUSIBLE",
    "LOW_BATTERY",
    "PHONE_LOCATION_OFF",
    "SPOOFING_SUSPECTED",
    "TAG_REMOVED",
)


class Pages:
    """All pages of the console."""

    def __init__(
        self, settings: ConsoleSettings, guard: RouteGuard, mesh: MeshClient, *, feeds: Mapping[Role, Feed]
    ) -> None:
        self._settings, self._guard, self._mesh, self._feeds = settings, guard, mesh, feeds
        self._signing_in = SigningIn(settings, guard)
        self._incidents = IncidentPages(settings, guard, mesh)
        self._answers = Answers(guard, mesh, self._incidents)
        self._findings = FindingPages(guard, mesh, self._incidents)
        self._cards = IncidentCards(guard, mesh, feeds)
        self._match_reviews = MatchReviewPages(guard, mesh)
        self._reporting = ReportingPages(guard, mesh)
        self._statistics = StatisticsPages(guard, mesh)
        guard.show_errors(assets.error_page)
        devices, commands = DeviceReader(mesh), MeshCommands(settings.mesh_folder, tls=bool(settings.tls))
        self._duty_routes = [
            *HandoverPages(guard, mesh, devices).routes(),
            *DevicePages(guard, mesh, devices).routes(),
            *PeoplePages(guard, mesh).routes(),
            *BurdenPages(guard, mesh, makes_documents=commands.is_available).routes(),
            *DocumentPages(guard, mesh, self._incidents, commands=commands).routes(),
            *EarlierPages(guard, commands).routes(),
            *RosterPages(guard, mesh).routes(),
            *RecordPages(guard, mesh).routes(),
            *PhonePages(settings, guard, mesh).routes(),
        ]
        guard.show_badges(lambda role: feeds[role].badge() if role in feeds else None)

    def routes(self) -> list[web.RouteDef]:
        """Makes all routes that are served, with their roles."""
        guard = self._guard
        return [
            guard.open_get("/static/{name}", assets.static),
            *self._signing_in.routes(),
            guard.open_post("/language", self.language),
            guard.open_post("/theme", theme.choose_theme),
            guard.get("/", ALL_ROLES, self.live),
            guard.get("/stream", VIEWERS, self.stream),
            *self._incidents.routes(),
            *self._answers.routes(),
            *self._findings.routes(),
            *self._cards.routes(),
            guard.get("/search", VIEWERS, self.search),
            *self._statistics.routes(),
            *self._match_reviews.routes(),
            guard.get("/devices", ALL_ROLES - RECORD_CLERKS, self.devices),
            *self._reporting.routes(),
            *self._duty_routes,
            guard.get("/{unknown:.*}", ALL_ROLES, self.unknown),  # the last: it matches every path
        ]

    async def unknown(self, _: Ask) -> web.StreamResponse:
        """Answers an address that is no page. Raises HTTPNotFound."""
        raise web.HTTPNotFound

    async def language(self, ask: Ask) -> web.StreamResponse:
        """Switches to the other language."""
        other = LANGUAGES[1 - LANGUAGES.index(ask.texts.language)]
        response = see_other(ask.form.get("back", HOME))
        response.set_cookie(LANGUAGE_COOKIE, other, httponly=True, samesite="Strict", max_age=365 * 86_400)
        return response

    # ── live ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def live(self, ask: Ask) -> web.StreamResponse:
        """Shows the live page; operators are sent to the devices."""
        if ask.user.role not in VIEWERS:
            return see_other("/records" if ask.user.role in RECORD_CLERKS else "/devices")
        page = {
            **assets.island(ask, self._settings.tiles),
            "leg": ask.user.role.leg if ask.user.role in DESKS else "",
            "name": ask.user.name,
            "streets": self._settings.streets,
            "streetsAttribution": self._settings.streets_attribution,
        }
        return assets.page(
            ask,
            "live.html",
            page=page,
            bases=order_bases(),
            causes=desk.CAUSES,
            max_reason=desk.MAX_REASON,
            max_note=desk.MAX_NOTE,
            note_kinds=notes.NOTE_KINDS,
            noted_results=notes.NOTED_RESULTS,
            shortcuts=LIVE_SHORTCUTS,
        )

    async def stream(self, ask: Ask) -> web.StreamResponse:
        """Sends the live page's changes as server-sent events. A browser that reconnects names the last event that it saw."""
        feed = self._feeds[ask.user.role]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self._guard.protect(response)
        await response.prepare(ask.request)
        with feed.viewed():
            async for id_, message in feed.changes(ask.request.headers.get("Last-Event-ID", "")):
                if self._guard.is_over(ask.session):
                    await response.write(b"event: ended\ndata:\n\n")
                    break
                text = json.dumps(message, separators=(",", ":"))
                await response.write(f"id: {id_}\ndata: {text}\n\n".encode())
        return response

    # ── search ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def search(self, ask: Ask) -> web.StreamResponse:
        """Shows incidents by time, office, cause and outcome."""
        query = ask.request.query
        question = IncidentQuery(
            from_ms=_local_ms(query.get("from", "")),
            until_ms=_local_ms(query.get("until", "")),
            text=query.get("text", "").strip(),
            cause=query.get("cause", ""),
            outcome=query.get("outcome", ""),
            office=query.get("office", ""),
        )
        known, is_cut = await self._all_incidents(ask)
        matched = searching.matching(known, question)
        destinations = [to for incident in known for to in incident.assignments]
        return assets.page(
            ask,
            "search.html",
            query=query,
            matched=[(incident, board.shown(incident)) for incident in matched[:200]],
            count=len(matched),
            is_cut=is_cut,
            known_causes=sorted({to.kind for to in destinations if to.kind}),
            known_outcomes=sorted({to.close_cause for to in destinations if to.close_cause}),
            offices=sorted({to.office_id for to in destinations if to.office_id}),
            leg_names=board.LEGS,
            leg_state=board.leg_state,
        )

    async def _all_incidents(self, ask: Ask) -> tuple[list[IncidentCard], bool]:
        incidents: list[IncidentCard] = []
        token = ""
        while len(incidents) < MAX_SEARCHED:
            request = dispatch_pb2.ListIncidentsRequest(page_size=PAGE_SIZE, page_token=token)
            answer = await self._mesh.leg_of(ask.user.role).dispatch.ListIncidents(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
            incidents += [translate.incident(incident) for incident in answer.incidents]
            token = answer.next_page_token
            if not token:
                return incidents, False
            await asyncio.sleep(0)
        return incidents, True

    # ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def devices(self, ask: Ask) -> web.StreamResponse:
        """Shows refused reports to operators, and alerts of silent and disturbed devices to the other roles."""
        refused: list[dict[str, Any]] | None = None
        if ask.user.role is Role.OPERATOR:
            answer = await self._mesh.ingest.ListQuarantine(
                ingest_pb2.ListQuarantineRequest(),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
            refused = [
                {
                    "device": entry.device_id,
                    "sender": entry.sender,
                    "code": ingest_pb2.RefusalCode.Name(entry.code),
                    "count": entry.count,
                    "last": translate.moment(entry, "last"),
                }
                for entry in answer.quarantined
            ]
        feed = self._feeds.get(ask.user.role)
        notices = [alert for alert in feed.alerts() if alert["kind"] in DISTURBED] if feed else None
        return assets.page(ask, "devices.html", refused=refused, notices=notices)


def _local_ms(text: str) -> int | None:
    """Parses a form's time in Korea's time zone, such as 2026-03-02T10:00; None for an empty text. Raises HTTPBadRequest."""
    if not text:
        return None
    try:
        return assets.ms_of_local(text)
    except ValueError:
        raise web.HTTPBadRequest(text=f'400: "{text}" is not a time (example: 2026-03-02T10:00)') from None
