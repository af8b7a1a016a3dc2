"""Access control of the routes of units' pages: the page's cookie and proof, and the rate limit of each unit. Denies by default."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from aiohttp import web

from services.common.web.rate_limit import RequestLimit
from services.field.guard import Refused, RequestGuard, parsed, text_of
from services.field.metrics import FieldMetrics
from services.field.push.store import PushAddresses
from services.field.refusals import reason_of
from services.field.settings import FieldSettings
from services.field.units.sessions import COOKIE, LASTS_S, UnitCookies, UnitSession

PAGE_PER_S, PAGE_BURST = 2.0, 120
"""Requests of one unit's page: in the long run a second, and at once. A page that was replaced has a limit of its own."""
LINK_PER_S, LINK_BURST = 5.0, 200
"""Links that one address may try: in the long run a second, and at once. A link has 256 bits, so nobody guesses one; but a station
begins its shift behind one address."""
ENDED = {"SIGN_IN_ENDED": "ended", "SHIFT_OVER": "shift_over", "UNIT_REMOVED": "unit_removed"}
"""Answers to a page whose sign-in has ended, by the leg's reason."""


@dataclass(frozen=True, slots=True)
class UnitCall:
    """A request of a unit's page that passed access control."""

    request: web.Request
    content: Any
    """Parsed JSON of the body; None without a body."""
    session: UnitSession

    def text(self, name: str) -> str:
        """A text of the content, empty if it is missing or no text."""
        return text_of(self.content, name)


UnitAnswer = Callable[[UnitCall], Awaitable[web.StreamResponse]]


class UnitGuard(RequestGuard):
    """Makes all routes of units' pages, each behind access control."""

    def __init__(
        self, settings: FieldSettings, cookies: UnitCookies, *, addresses: PushAddresses, metrics: FieldMetrics
    ) -> None:
        super().__init__(settings, metrics, RequestLimit(LINK_PER_S, LINK_BURST))
        self._cookies, self._addresses = cookies, addresses
        self._by_page = RequestLimit(PAGE_PER_S, PAGE_BURST)

    def get(self, path: str, answer: UnitAnswer) -> web.RouteDef:
        """Makes a route for a signed-in unit."""
        return web.get(path, self._handler(self._for_unit(answer)), allow_head=False)

    def post(self, path: str, answer: UnitAnswer) -> web.RouteDef:
        """Makes a route for a signed-in unit, by which something changes."""
        return web.post(path, self._handler(self._for_unit(answer)))

    def signed_in(self, session: UnitSession, response: web.Response) -> None:
        """Gives a page its cookie."""
        response.set_cookie(
            COOKIE,
            self._cookies.seal(session),
            path="/api/unit",
            httponly=True,
            secure=self._settings.http_tls is not None,
            samesite="Strict",
            max_age=LASTS_S,
        )

    def left(self, response: web.Response) -> None:
        """Takes a page's cookie away."""
        response.del_cookie(COOKIE, path="/api/unit")

    def _for_unit(self, answer: UnitAnswer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            session = self._cookies.open(request.cookies.get(COOKIE, ""))
            if session is None:
                self._refuse_unproven(request, "not_signed_in")
            body = await self._proven_body(request, session.key, whose=session.device_id)
            if wait_s := self._by_page.wait_s(session.key, time.monotonic()):
                raise Refused(429, "too_often", wait_s=wait_s)
            try:
                return await answer(UnitCall(request, parsed(request, body), session))
            except grpc.aio.AioRpcError as error:
                refusal = refusal_of(error)
                if isinstance(refusal, Refused) and refusal.status == 401:
                    await self._addresses.delete_of_phone(session.device_id, session.key)  # it is woken no more
                raise refusal from None

        return handle


def refusal_of(error: grpc.aio.AioRpcError) -> Exception:
    """The answer to a call that a leg refuses; the error itself if it is no refusal of what the unit asks."""
    reason = reason_of(error)
    if reason in ENDED:
        return Refused(401, ENDED[reason])
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        return Refused(409, reason.lower() or "not_now")
    return error
