"""The files of the unit's page, and what it asks and sends. Parsing a report or an answer of the page is its validation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import grpc.aio
from aiohttp import web
from google.protobuf.message import Message

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.field import credentials
from services.field.credentials import UnitSession
from services.field.domain import text_of
from services.field.guard import Refused, UnitCall, UnitGuard, refusal_of_code
from services.field.mesh import WITHIN_S, UnitLegs
from services.field.news import UnitNews, digest_of
from services.field.push import PushAddresses, PushPages
from services.field.settings import FieldSettings
from tandem.common.v1 import alert_pb2, exercise_pb2, notice_pb2, subject_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2, roster_pb2, unit_duty_pb2

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
        self._guard = guard
        self._legs = legs
        self._news = news
        self._addresses = addresses
        self._push = push
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
        credentials.public_key(key)
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
        read = partial(self._read_duty, ask.session, parse_shown(ask.request.query.get("shown", "")))
        content = await self._news.content(ask.session.device_id, read, ask.request.query)
        return web.json_response(content | {"now_ms": self._clock.now_ms()})

    async def _read_duty(self, session: UnitSession, shown: list[str]) -> dict[str, Any]:
        leg = self._legs[session.leg]
        request = unit_duty_pb2.GetDutyRequest(token=session.token, shown_assignment_ids=shown)
        content = duty_content(await leg.stub.GetDuty(request, metadata=leg.metadata, timeout=WITHIN_S))
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
        request = parse_report(ask.session.token, ask.content, self._clock.now_ms())
        await leg.stub.ReportDuty(request, metadata=leg.metadata, timeout=WITHIN_S)
        return web.json_response({})

    async def _answer(self, ask: UnitCall) -> web.Response:
        leg = self._legs[ask.session.leg]
        request = parse_answer(ask.session.token, ask.content)
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
            lines = [json.dumps(target_content(event)) + "\n" for event in message.events]
            await response.write("".join(lines).encode())
            message = await anext(events, None)
    except (grpc.aio.AioRpcError, ConnectionError):
        return


_ENDS = {
    unit_duty_pb2.TASK_NOBODY_HAS_IT: "nobody_has_it",
    unit_duty_pb2.TASK_ANOTHER_UNIT_HAS_IT: "another_unit_has_it",
    unit_duty_pb2.TASK_DESK_HAS_IT: "desk_has_it",
    unit_duty_pb2.TASK_OVER: "over",
    unit_duty_pb2.TASK_UNKNOWN: "unknown",
}
_DESTINATIONS = {
    subject_pb2.WEARER: "wearer",
    subject_pb2.PROTECTED_PERSON: "person",
    subject_pb2.PROTECTED_PLACE: "place",
}
ASKED = "offered"
"""State of a task that the unit may still accept, whatever the assignment's state is: others may be asked, or the desk may have it."""
OTHER = "other"
"""Name of a value that this version doesn't know. The page has a text for such a kind, destination, state and leg."""


def duty_content(message: unit_duty_pb2.GetDutyResponse) -> dict[str, Any]:
    """The unit with its offers and assignments."""
    unit = message.unit
    return {
        "unit": unit.unit.unit_id,
        "class": unit.unit.unit_class,
        "status": _name(roster_pb2.UnitStatus, unit.status),
        "shift_until_ms": times.from_timestamp(unit.unit.shift_until),
        "distress_ms": _ms(unit, "distress_at"),
        "tasks": [_task(task) for task in message.tasks],
        "ends": [{"assignment": end.assignment_id, "reason": _ENDS.get(end.reason, "unknown")} for end in message.ends],
    }


def _task(task: unit_duty_pb2.UnitTask) -> dict[str, Any]:
    assignment, offer = task.assignment, task.offer
    is_asked = offer.state == dispatch_pb2.UNIT_ASKED
    choice = offer.choice if is_asked else assignment.choice
    return {
        "assignment": assignment.assignment_id,
        "incident": assignment.incident_id,
        "state": ASKED if is_asked else _name(dispatch_pb2.AssignmentState, assignment.state),
        "offer": offer.offer_number if is_asked else assignment.offer_number,
        "open_until_ms": _ms(offer, "open_until") if is_asked else None,
        "with_desk": is_asked and assignment.state == dispatch_pb2.ACKNOWLEDGED,
        "kind": _name(alert_pb2.AlertKind, assignment.kind),
        "to": _DESTINATIONS.get(assignment.subject_kind, OTHER),
        "subject": assignment.subject_id,
        "is_exercise": assignment.exercise != exercise_pb2.EXERCISE_UNSPECIFIED,
        "is_check": assignment.task == notice_pb2.CHECK,
        "asked_ms": _ms(offer, "asked_at") if is_asked else _ms(assignment, "offered_at"),
        # While it is asked, the deadline is that of those who are asked as well, or the desk's.
        "due_ms": None if is_asked else _ms(assignment, "due_at"),
        "arrival_due_ms": None if is_asked else _ms(assignment, "arrival_due_at"),
        "reminded_ms": _ms(assignment, "reminded_at"),
        "distress_ms": _ms(assignment, "distress_at"),
        "one_scene_ms": _ms(assignment, "one_scene_at"),
        "spoofing_ms": _ms(assignment, "spoofing_suspected_at"),
        "panic_ms": _ms(assignment, "panic_at"),
        "panic_withdrawn_ms": _ms(assignment, "panic_withdrawn_at"),
        "travel_s": choice.travel_s if choice.HasField("travel_s") else None,
        "losing": assignment.race.losing,
        "flag": _name(dispatch_pb2.WarningFlag, assignment.person_flag.flag) if assignment.person_flag.flag else "",
        "others": [
            {
                "leg": _name(alert_pb2.Leg, other.leg),
                "state": _name(dispatch_pb2.AssignmentState, other.state),
                "class": other.unit_class,
                "distress_ms": _ms(other, "distress_at"),
            }
            for other in task.others
        ],
    }


def target_content(event: following_pb2.TargetEvent) -> dict[str, Any]:
    """An event of a target."""
    if not event.HasField("target"):
        return {"incident": event.incident_id, "followed": False}
    position = event.target
    found: dict[str, Any] = {
        "incident": event.incident_id,
        "followed": True,
        "subject": position.subject_id,
        "is_wearer": position.kind == subject_pb2.WEARER,
        "unknown": position.unknown,
        "interrupted": position.interrupted,
    }
    if position.HasField("lat_deg"):
        found |= {"lat": position.lat_deg, "lon": position.lon_deg, "accuracy": position.accuracy_m}
        found |= {"age_s": position.age_s if position.HasField("age_s") else None}
    return found


def _name(enum: Any, number: int) -> str:
    """The name of a generated enumeration's value for the page; OTHER if a leg that is newer than field sends one that field doesn't
    know: a unit must see its tasks all the same."""
    name: str = enum.Name(number) if number in enum.values() else OTHER
    return name.lower()


def _ms(message: Message, name: str) -> int | None:
    """A time of a message, milliseconds of mesh time; None if it is absent."""
    return times.from_timestamp(getattr(message, name)) if message.HasField(name) else None


STATUSES = {"available": roster_pb2.AVAILABLE, "busy": roster_pb2.BUSY, "off": roster_pb2.OFF}
PROGRESS = {
    "en_route": dispatch_pb2.EN_ROUTE,
    "on_scene": dispatch_pb2.ON_SCENE,
    "apprehended": dispatch_pb2.APPREHENDED,
}
CAUSES = {
    name.lower(): number
    for name, number in dispatch_pb2.CloseCause.items()
    if number and number != dispatch_pb2.EXERCISE
}
MAX_SHOWN = 20
"""Maximum number of assignments that a page names."""


def parse_report(token: str, content: Any, now_ms: int) -> unit_duty_pb2.ReportDutyRequest:
    """The report of a unit about itself. A position may lack. Raises InvalidField."""
    status = STATUSES.get(text_of(content, "status"))
    if status is None:
        raise InvalidField("status", f"must be {', '.join(STATUSES)} (example: available)")
    request = unit_duty_pb2.ReportDutyRequest(token=token, status=status, at=times.to_timestamp(now_ms))
    if "lat" in content or "lon" in content:
        request.position.lat_deg = _degrees(content.get("lat"), "lat", 90)
        request.position.lon_deg = _degrees(content.get("lon"), "lon", 180)
    return request


def _degrees(value: Any, name: str, bound: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidField(name, "must be a number of degrees (example: 37.5665)")
    return float(fields.number(name, value, -bound, greatest=bound))


def parse_answer(token: str, content: Any) -> unit_duty_pb2.AnswerTaskRequest:
    """The answer of a unit to an offer or assignment. Raises InvalidField."""
    offer = content.get("offer") if isinstance(content, dict) else None
    if not isinstance(offer, int) or isinstance(offer, bool) or not 0 < offer < 1 << 31:
        raise InvalidField("offer", "must be the number of the offer (example: 1)")
    request = unit_duty_pb2.AnswerTaskRequest(
        token=token,
        assignment_id=fields.required_id("assignment", text_of(content, "assignment")),
        offer_number=offer,
    )
    kind = text_of(content, "answer")
    match kind:
        case "received":
            request.received.SetInParent()
        case "accepted":
            request.accepted.SetInParent()
        case "assured":
            request.assured.SetInParent()
        case "rejected":
            request.rejected.reason = _text(content, "reason")
        case "closed":
            request.closed.cause = _cause(content)
            request.closed.note = _text(content, "note")
        case _ if kind in PROGRESS:
            request.progress = PROGRESS[kind]
        case _:
            known = ("received", "accepted", "rejected", *PROGRESS, "assured", "closed")
            raise InvalidField("answer", f"must be {', '.join(known)} (example: accepted)")
    return request


def _cause(content: Any) -> dispatch_pb2.CloseCause.ValueType:
    cause = CAUSES.get(text_of(content, "cause"))
    if cause is None:
        raise InvalidField("cause", f"must be {', '.join(CAUSES)} (example: nobody_found)")
    return cause


def _text(content: Any, name: str) -> str:
    """A text of the content. Raises InvalidField if it can't be sent, as half a surrogate pair can't."""
    text = text_of(content, name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidField(name, "must be text (example: no car)") from None
    return text


def parse_shown(text: str) -> list[str]:
    """The ids of assignments in a query, separated by commas. Raises InvalidField."""
    ids = [id_ for id_ in text.split(",") if id_]
    fields.at_most("shown", ids, MAX_SHOWN)
    return [fields.required_id("shown", id_) for id_ in ids]
