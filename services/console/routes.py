"""All pages of the console, with the roles that may see each. Each page calls the mesh as its user."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from services.console.domain.people import ALL_ROLES, DESKS, Role
from services.console.live.feed import Feed
from services.console.live.views import IncidentCards, LivePages
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.pages.devices import DevicePages, DeviceReader, ReportingPages
from services.console.pages.guard import Ask, RouteGuard
from services.console.pages.handover import HandoverPages
from services.console.pages.match_reviews import MatchReviewPages
from services.console.pages.people import BurdenPages, PeoplePages
from services.console.pages.records import RecordPages
from services.console.pages.roster import PhonePages, RosterPages
from services.console.pages.sign_in import SigningIn
from services.console.pages.statistics import StatisticsPages
from services.console.review.answers import Answers, FindingPages
from services.console.review.documents import CourtCalls, DocumentPages, EarlierPages
from services.console.review.views import IncidentPages, IncidentSearch
from services.console.settings import ConsoleSettings


def console_routes(
    settings: ConsoleSettings, guard: RouteGuard, mesh: MeshClient, *, feeds: Mapping[Role, Feed]
) -> list[web.RouteDef]:
    """Makes all routes that are served, and gives the guard what every page shows: errors, the badge and the bar."""
    guard.show_errors(assets.error_page)
    guard.show_badges(lambda role: feeds[role].badge() if role in feeds else None)
    guard.show_bars(lambda role: feeds[role].bar() if role in DESKS and role in feeds else None)
    incidents = IncidentPages(settings, guard, mesh)
    devices, court = DeviceReader(mesh), CourtCalls(settings)
    return [
        guard.open_get("/static/{name}", assets.static),
        guard.open_post("/language", assets.choose_language),
        guard.open_post("/theme", assets.choose_theme),
        *SigningIn(settings, guard).routes(),
        *LivePages(settings, guard, mesh, feeds=feeds).routes(),
        *IncidentCards(guard, mesh, feeds, incidents=incidents).routes(),
        *incidents.routes(),
        *IncidentSearch(guard, mesh).routes(),
        *Answers(guard, mesh, incidents).routes(),
        *FindingPages(guard, mesh, incidents).routes(),
        *DocumentPages(guard, mesh, incidents, court=court).routes(),
        *EarlierPages(guard, court).routes(),
        *MatchReviewPages(guard, mesh).routes(),
        *StatisticsPages(guard, mesh).routes(),
        *ReportingPages(guard, mesh).routes(),
        *HandoverPages(guard, mesh, devices).routes(),
        *DevicePages(guard, mesh, devices).routes(),
        *PeoplePages(guard, mesh).routes(),
        *BurdenPages(guard, mesh, makes_documents=court.is_available).routes(),
        *RosterPages(guard, mesh, lambda role: feeds[role].unit_tasks()).routes(),
        *RecordPages(guard, mesh).routes(),
        *PhonePages(settings, guard, mesh).routes(),
        guard.get("/{unknown:.*}", ALL_ROLES, _unknown),  # the last: it matches every path
    ]


async def _unknown(_: Ask) -> web.StreamResponse:
    """Answers an address that is no page. Raises HTTPNotFound."""
    raise web.HTTPNotFound
