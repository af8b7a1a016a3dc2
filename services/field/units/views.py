"""The files of the unit's page, and what it asks and sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import grpc.aio
from aiohttp import web

from services.common import times
from services.common.clock import MeshClock
from services.field.guard import Refused, text_of
from services.field.mesh import WITHIN_S
from services.field.phones import proof
from services.field.push.pages import PushPages
from services.field.push.store import PushAddresses
from services.field.push.waking import digest_of
from services.field.refusals import refusal_of_code
from services.field.settings import FieldSettings
from services.field.units import answers, requests
from services.field.units.guard import UnitCall, UnitGuard
from services.field.units.legs import UnitLegs
from services.field.units.news import UnitNews
from services.field.units.sessions import UnitSession
from tandem.dispatch.v1 import unit_duty_pb2

FOLLOW_S = 240.0
"""Time after which a stream of positions ends, seconds. The page opens the next one; the leg's own limit is five minutes."""
_LINKS = {
    "LINK_USED": "link_used",
    "LINK_EXPIRED": "link_expired",
    "SHIFT_OVER": "shift_over",
    "UNIT_REMOVED": "unit_removed",
}
FILES = {
    "/unit/": "unit.html",
    "/unit/service-worker.js": "unit-service-worker.js",
    "/unit/manifest.webmanifest": "unit.webmanifest",
}
"""Files of the page by path. A service worker rules the folder in which it is, so the page has one of its own."""
FileAnswer = Callable[[str], Awaitable[web.StreamResponse]]


class UnitPages:
    """All routes of the unit's page."""

    def __init__(
        self,
        guard: UnitGuard,
        legs: UnitLegs,
        *,
        news: UnitNews,
        addresses: PushAddresses,
        push: PushPages,
        settings: FieldSettings,
        file: FileAnswer,
    ) -> None:
        self._guard, self._legs, self._news, self._addresses, self._push = guard, legs, news, addresses, push
        self._settings, self._file = settings, file
        self._clock: MeshClock = settings.clock
        self._streaming: dict[str, asyncio.Task[Any] | None] = {}
        """The request that streams targets to each phone, by the phone's key."""

    def routes(self) -> Iterable[web.RouteDef]:
        """The routes of the page."""
        guard = self._guard
        return (
            guard.open_get("/unit", self._redirect),
            *(guard.open_get(path, self._page_file) for path in FILES),
            guard.enrolling("/api/unit/sign-in", self._sign_in),
            guard.get("/api/unit/duty", self._duty),
            guard.post("/api/unit/report", self._report),
            guard.post("/api/unit/answer", self._answer),
            guard.get("/api/unit/targets", self._targets),
            guard.post("/api/unit/distress", self._distress),
            guard.get("/api/unit/push", self._push_key),
            guard.post("/api/unit/push", self._put_push),
            guard.post("/api/unit/leave", self._leave),
        )

    async def _redirect(self, _request: web.Request, _content: Any) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/unit/"})

    async def _page_file(self, request: web.Request, _content: Any) -> web.StreamResponse:
        return await self._file(FILES[request.path])

    async def _sign_in(self, _request: web.Request, content: Any) -> web.Response:
        key, code = text_of(content, "key"), text_of(content, "code")
        proof.public_key(key)
        name = code.partition(".")[0]
        leg = self._legs.get(name)
        if leg is None or not code.isascii():
            raise Refused(404, "link_unknown")
        request = unit_duty_pb2.SignInUnitRequest(code=code)
        try:
            made = await leg.stub.SignInUnit(request, metadata=leg.metadata, timeout=WITHIN_S)
        except grpc.aio.AioRpcError as error:
            raise refusal_of_code(error, _LINKS, unknown="link_unknown", other="link_unknown") from None
        session = UnitSession(leg=name, unit_id=made.unit_id, token=made.token, key=key)
        # The phone that had this page before must not be woken by its offers.
        await self._addresses.delete_earlier(session.device_id)
        self._news.wake(session.device_id)
        until_ms = times.from_timestamp(made.shift_until)
        response = web.json_response({"unit": made.unit_id, "leg": name, "shift_until_ms": until_ms})
        self._guard.signed_in(session, response)
        return response

    async def _duty(self, ask: UnitCall) -> web.Response:
        """The duty, at once if it isn't the one that the page knows, else with the next news."""
        read = partial(self._read_duty, ask.session, requests.shown(ask.request.query.get("shown", "")))
        content = await self._news.content(ask.session.device_id, read, ask.request.query)
        return web.json_response(content | {"now_ms": self._clock.now_ms()})

    async def _read_duty(self, session: UnitSession, shown: list[str]) -> dict[str, Any]:
        leg = self._legs[session.leg]
        request = unit_duty_pb2.GetDutyRequest(token=session.token, shown_assignment_ids=shown)
        content = answers.duty(await leg.stub.GetDuty(request, metadata=leg.metadata, timeout=WITHIN_S))
        content |= {
            "leg": session.leg,
            "away": bool(self._news.followed[session.leg].away),
            "calls": self._calls(session.leg),
        }
        return content | {"digest": digest_of(content)}

    def _calls(self, leg: str) -> dict[str, str]:
        phones = {"probation": self._settings.probation_desk_phone, "police": self._settings.police_desk_phone}
        other = "police" if leg == "probation" else "probation"
        return {whose: phone for whose, phone in (("own", phones[leg]), ("other", phones[other])) if phone}

    async def _report(self, ask: UnitCall) -> web.Response:
        leg = self._legs[ask.session.leg]
        request = requests.report(ask.session.token, ask.content, self._clock.now_ms())
        await leg.stub.ReportDuty(request, metadata=leg.metadata, timeout=WITHIN_S)
        return web.json_response({})

    async def _answer(self, ask: UnitCall) -> web.Response:
        leg = self._legs[ask.session.leg]
        request = requests.answer(ask.session.token, ask.content)
        await leg.stub.AnswerTask(request, metadata=leg.metadata, timeout=WITHIN_S)
        return web.json_response({})

    async def _targets(self, ask: UnitCall) -> web.StreamResponse:
        """Streams the positions of an incident's targets, a JSON object a line. A first line comes once the leg admits the unit."""
        with self._only_stream(ask.session.key):
            return await self._stream_targets(ask)

    @contextmanager
    def _only_stream(self, phone_key: str) -> Iterator[None]:
        """Ends the earlier stream to a phone. A phone that lost its network asks again, and its earlier connection may seem open."""
        task, earlier = asyncio.current_task(), self._streaming.get(phone_key)
        if earlier is not None:
            earlier.cancel()
        self._streaming[phone_key] = task
        try:
            yield
        finally:
            if self._streaming.get(phone_key) is task:
                del self._streaming[phone_key]

    async def _stream_targets(self, ask: UnitCall) -> web.StreamResponse:
        leg, incident_id = self._legs[ask.session.leg], ask.request.query.get("incident", "")
        request = unit_duty_pb2.FollowTaskRequest(token=ask.session.token, incident_id=incident_id)
        call = leg.streams.FollowTask(request, metadata=leg.metadata, timeout=FOLLOW_S)
        events = aiter(call)
        try:
            first = await anext(events, None)  # a refusal is answered as such, before the stream begins
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            self._guard.protect(response)
            await response.prepare(ask.request)
            await _stream(response, first, events)
        finally:
            call.cancel()
        with suppress(ConnectionError):
            await response.write_eof()
        return response

    async def _distress(self, ask: UnitCall) -> web.Response:
        leg = self._legs[ask.session.leg]
        request = unit_duty_pb2.RaiseDistressRequest(token=ask.session.token)
        raised = await leg.stub.RaiseDistress(request, metadata=leg.metadata, timeout=WITHIN_S)
        return web.json_response({"other_desk": raised.other_desk})

    async def _push_key(self, ask: UnitCall) -> web.Response:
        await self._check_sign_in(ask.session)
        return self._push.key()

    async def _put_push(self, ask: UnitCall) -> web.Response:
        await self._check_sign_in(ask.session)
        return await self._push.put(ask.session, ask.content)

    async def _check_sign_in(self, session: UnitSession) -> None:
        """Raises AioRpcError if the sign-in has ended."""
        leg = self._legs[session.leg]
        request = unit_duty_pb2.CheckSignInRequest(token=session.token)
        await leg.stub.CheckSignIn(request, metadata=leg.metadata, timeout=WITHIN_S)

    async def _leave(self, ask: UnitCall) -> web.Response:
        """Ends the sign-in. The end of the shift is the unit's own report before."""
        leg = self._legs[ask.session.leg]
        request = unit_duty_pb2.SignOutUnitRequest(token=ask.session.token)
        await leg.stub.SignOutUnit(request, metadata=leg.metadata, timeout=WITHIN_S)
        await self._addresses.delete_of_phone(ask.session.device_id, ask.session.key)
        response = web.json_response({})
        self._guard.left(response)
        return response


async def _stream(
    response: web.StreamResponse,
    first: unit_duty_pb2.FollowTaskResponse | None,
    events: AsyncIterator[unit_duty_pb2.FollowTaskResponse],
) -> None:
    """Writes events until the leg ends them. A call that fails ends them too: the page asks again, and is refused in words."""
    try:
        message = first
        while message is not None:
            lines = [json.dumps(answers.target(event)) + "\n" for event in message.events]
            await response.write("".join(lines).encode())
            message = await anext(events, None)
    except (grpc.aio.AioRpcError, ConnectionError):
        return
