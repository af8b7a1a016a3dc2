"""The app's files, and what her phone asks and sends: notices, reports, the phone's state, and summaries of incidents.

The files in `static` hold the texts of one page each. A word that other pages and documents have too is in `services/common/words.py`,
and is put into a file of texts as it is served. The app says of the phone's state whether it gets positions and is on the screen, and
nothing about where the phone is. It makes two sentences of each summary of an incident that is over, in her language.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
from aiohttp import web

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.common.words import (
    ALERT_WORDS,
    ANSWER_WORDS,
    ANSWERED,
    CLOSE_CAUSE_WORDS,
    ESCALATION_REASON_WORDS,
    INSTRUCTED_ACT_WORDS,
    LEG_WORDS,
    SPOOFING_WARNING,
    STATE_WORDS,
    TASK_WORDS,
    UNIT_STATE_WORDS,
    WARNING_FLAG_WORDS,
    Word,
    in_small_letters,
    keyed,
)
from services.field import credentials, domain
from services.field.credentials import KnownPhones, PhoneSession
from services.field.domain import PhoneReport, ReportAnswer, ReportOutcome, text_of
from services.field.guard import PhoneCall, PhoneGuard, refusal_of_code
from services.field.mesh import NO_ANSWER, WITHIN_S, FieldMesh
from services.field.metrics import FieldMetrics
from services.field.news import NoticeNews, digest_of
from services.field.push import PushAddresses, PushPages
from tandem.dispatch.v1 import afterwards_pb2, phone_notice_pb2, phone_state_pb2
from tandem.registry.v1 import enrolment_pb2

STATIC = Path(__file__).with_name("static")
DEFAULT_INTERVAL_S = 15
"""Interval between the reports of an app that nobody asked for another one, seconds."""
_CODES = {"CODE_USED": "code_used", "CODE_EXPIRED": "code_expired", "DEVICE_ENDED": "device_ended"}
"""The app's codes of refusals, by the registry's reason."""
MAX_CODE_LENGTH = 64
"""Number of characters of a typed code that are passed on: more than any code with spaces has."""
REPORT_CONCURRENCY = 8
"""Concurrent requests to ingest for one phone's batch."""
KINDS = {
    "delivered": phone_notice_pb2.PHONE_DELIVERED,
    "displayed": phone_notice_pb2.PHONE_DISPLAYED,
    "answered": phone_notice_pb2.PHONE_ANSWERED,
}
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}
_TOP = ("index.html", "today.html", "service-worker.js", "manifest.webmanifest")
"""Files at the top of the site. A service worker rules the folder in which it is."""


class AppPages:
    """All routes of the app."""

    def __init__(
        self,
        guard: PhoneGuard,
        mesh: FieldMesh,
        *,
        known: KnownPhones,
        news: NoticeNews,
        addresses: PushAddresses,
        push: PushPages,
        metrics: FieldMetrics,
        clock: MeshClock,
    ) -> None:
        self._guard = guard
        self._mesh = mesh
        self._known = known
        self._news = news
        self._addresses = addresses
        self._push = push
        self._metrics = metrics
        self._clock = clock
        # Small, and the same for everybody, so that even the app's name on a shared network says nothing of her. They are read once:
        # all threads of the process may be waiting for the names of push services.
        self._files = {path.name: page_file(path) for path in STATIC.iterdir() if path.suffix in _TYPES}

    def routes(self) -> Iterable[web.RouteDef]:
        """The routes of the app. Any other path is 404."""
        guard = self._guard
        return (
            guard.open_get("/", self._file),
            *(guard.open_get(f"/{name}", self._file) for name in _TOP),
            guard.open_get("/static/{name}", self._file),
            guard.enrolling("/api/enrol", self._enrol),
            # ingest checks the token of each report, and a long read checks it at each reading. Anybody may leave.
            guard.post("/api/reports", self._reports, checks_token=False, is_urgent=domain.has_panic),
            guard.get("/api/notices", self._notices, checks_token=False),
            guard.post("/api/receipts", self._receipt),
            guard.get("/api/push", self._push_key),
            guard.post("/api/push", self._put_push),
            guard.post("/api/leave", self._leave, checks_token=False),
        )

    async def _file(self, request: web.Request, _content: Any) -> web.StreamResponse:
        return await self.file(request.match_info.get("name") or request.path.strip("/") or "index.html")

    async def file(self, name: str) -> web.StreamResponse:
        """The answer with a file of the apps. Raises HTTPNotFound."""
        body = self._files.get(name)
        if body is None:
            raise web.HTTPNotFound
        return web.Response(body=body, headers={"Content-Type": _TYPES[Path(name).suffix], "Cache-Control": "no-cache"})

    async def _enrol(self, _request: web.Request, content: Any) -> web.Response:
        key, code = text_of(content, "key"), text_of(content, "code")
        credentials.public_key(key)
        try:
            enrolled = await self._mesh.enrolments.Enrol(
                enrolment_pb2.EnrolRequest(code=code[:MAX_CODE_LENGTH] if code.isascii() else ""),
                metadata=self._mesh.to_registry,
                timeout=WITHIN_S,
            )
        except grpc.aio.AioRpcError as error:
            raise refusal_of_code(error, _CODES, unknown="code_unknown", other="device_ended") from None
        session = PhoneSession(
            device_id=enrolled.device_id, person_id=enrolled.person_id, token=enrolled.token, key=key
        )
        # The phone that had this device before must not be woken by its notices.
        await self._addresses.delete_earlier(enrolled.device_id)
        self._known.forget_device(enrolled.device_id)
        self._news.wake(enrolled.device_id)
        response = web.json_response({"enrolled": True, "interval_s": DEFAULT_INTERVAL_S})
        self._guard.enrolled(session, response)
        return response

    async def _reports(self, ask: PhoneCall) -> web.Response:
        sent = domain.parse_reports(ask.content)
        if any(report.silent for report in sent):
            self._news.hush(ask.session.device_id)
        lane, panic_lane = asyncio.Semaphore(REPORT_CONCURRENCY), asyncio.Semaphore(1)
        session, no_answer = ask.session, asyncio.Event()
        too_often = ReportAnswer(ReportOutcome.LATER, reason="too often", retry_after_s=math.ceil(ask.wait_s))

        async def send(report: PhoneReport) -> ReportAnswer:
            if ask.wait_s and not report.is_panic:
                return too_often
            async with panic_lane if report.is_panic else lane:
                if no_answer.is_set():  # else the phone would give the request up, and not hear what was stored
                    return NO_ANSWER
                answer = await self._mesh.ingest.report(session.token, session.device_id, report)
                if answer is NO_ANSWER:
                    no_answer.set()
                return answer

        answers = await asyncio.gather(*map(send, sent))
        for answer in answers:
            self._metrics.reports.labels(answer.outcome.value).inc()
        if any(answer.outcome is ReportOutcome.UNKNOWN_PHONE for answer in answers):
            # A token that ingest doesn't know has ended, or is too new: then ingest knows it soon.
            await self._known.check(session, is_doubted=True)
        commands = [command for answer in answers for command in answer.commands]
        return web.json_response(
            {
                "results": [_result(report, answer) for report, answer in zip(sent, answers, strict=True)],
                "interval_s": domain.interval_s(commands),
                "position_now": domain.wants_position_now(commands),
                "notices_away": bool(self._news.away),
            }
        )

    async def _notices(self, ask: PhoneCall) -> web.Response:
        """The notices, at once if they aren't those that the phone knows, else with the next news."""
        read = partial(self._read_notices, ask.session)
        return web.json_response(await self._news.content(ask.session.device_id, read, ask.request.query))

    async def _read_notices(self, session: PhoneSession) -> dict[str, Any]:
        await self._known.check(session)
        listed = await self._mesh.notices.ListPhoneNotices(
            phone_notice_pb2.ListPhoneNoticesRequest(device_id=session.device_id),
            metadata=self._mesh.to_warning,
            timeout=WITHIN_S,
        )
        present = _present(listed.present) if listed.HasField("present") else None
        content = {"present": present, "earlier": [_earlier(notice) for notice in listed.earlier]}
        # The time changes at each reading, and is no news.
        return content | {
            "digest": digest_of(content),
            "away": bool(self._news.away),
            "now_ms": self._clock.now_ms(),
        }

    async def _receipt(self, ask: PhoneCall) -> web.Response:
        kind = KINDS.get(ask.text("kind"))
        if kind is None:
            raise InvalidField("kind", f"must be one of {', '.join(KINDS)}")
        choice = ask.content.get("choice", 0)
        if not isinstance(choice, int) or isinstance(choice, bool) or not 0 <= choice <= 3:
            raise InvalidField("choice", "must be 1, 2 or 3 with answered, else 0")
        await self._mesh.notices.RecordPhoneReceipt(
            phone_notice_pb2.RecordPhoneReceiptRequest(
                device_id=ask.session.device_id,
                notice_id=fields.required_id("notice", ask.text("notice")),
                kind=kind,
                choice=choice,
            ),
            metadata=self._mesh.to_warning,
            timeout=WITHIN_S,
        )
        return web.json_response({})  # the same for each kind, choice and repetition

    async def _push_key(self, _call: PhoneCall) -> web.Response:
        return self._push.key()

    async def _put_push(self, ask: PhoneCall) -> web.Response:
        return await self._push.put(ask.session, ask.content)

    async def _leave(self, ask: PhoneCall) -> web.Response:
        """Forgets the phone. Its token stays good until the police end it or enrol another phone: the cookie alone has it."""
        await self._addresses.delete_of_phone(ask.session.device_id, ask.session.key)
        response = web.json_response({})
        self._guard.left(response)
        return response


def _present(notice: phone_notice_pb2.PhoneNotice) -> dict[str, Any]:
    """The present instruction as the app gets it. Times are mesh time."""
    return _earlier(notice) | {
        "who": notice.who,
        "where": notice.where,
        "act": notice.act,
        "since_ms": times.from_timestamp(notice.since),
        "repeated_ms": times.from_timestamp(notice.repeated_at),
        "asks_answer": notice.asks_answer,
        "allows_way_out": notice.allows_way_out,
    }


def _earlier(notice: phone_notice_pb2.PhoneNotice) -> dict[str, Any]:
    """An earlier notice as the app gets it."""
    return {
        "id": notice.notice_id,
        "text": notice.text,
        "language": notice.language,
        "sent_ms": times.from_timestamp(notice.sent_at),
        "is_over": notice.is_over,
    }


def _result(report: PhoneReport, answer: ReportAnswer) -> dict[str, Any]:
    outcome = ReportOutcome.LATER if answer.outcome is ReportOutcome.UNKNOWN_PHONE else answer.outcome
    return {
        "id": report.report_id,
        "outcome": outcome.value,
        "field": answer.field,
        "reason": answer.reason,
        "retry_after_s": answer.retry_after_s,
    }


_UNIT_WORDS: Mapping[str, Word] = in_small_letters(
    {
        **keyed("kind_", ALERT_WORDS),
        "check": TASK_WORDS["CHECK"],
        **keyed("state_", STATE_WORDS),
        **keyed("state_", {name: UNIT_STATE_WORDS[name] for name in ("UNIT_ASKED", "UNIT_ACCEPTED")}),
        **keyed("leg_", LEG_WORDS),
        **keyed("cause_", CLOSE_CAUSE_WORDS),
        **keyed("flag_", {name: WARNING_FLAG_WORDS[name] for name in ("DURESS", "NO_RECEIPT", "NO_CONTACT")}),
        "spoofing": SPOOFING_WARNING,
        "losing": ESCALATION_REASON_WORDS["RACE_LOST"],
    }
)
_HER_WORDS: Mapping[str, Word] = {
    **keyed("answer_", ANSWER_WORDS),
    "answered": ANSWERED,
    "advice": INSTRUCTED_ACT_WORDS["LOCK_IN"],
}
_WORDS = {
    "ko.json": (_HER_WORDS, 0),
    "en.json": (_HER_WORDS, 1),
    "unit-ko.json": (_UNIT_WORDS, 0),
    "unit-en.json": (_UNIT_WORDS, 1),
}
"""Words of each file of texts, with the place of its language in a word."""


def page_file(path: Path) -> bytes:
    """Content of a file of the pages. A file of texts has the words of the common table beside its own texts."""
    content = path.read_bytes()
    if path.name not in _WORDS:
        return content
    words, column = _WORDS[path.name]
    return json.dumps(
        json.loads(content) | {key: word[column] for key, word in words.items()}, ensure_ascii=False, indent=1
    ).encode()


MAX_AGE_S = 86_400
LOCATIONS = {
    "unknown": phone_state_pb2.PHONE_LOCATION_UNSPECIFIED,
    "good": phone_state_pb2.PHONE_LOCATION_GOOD,
    "vague": phone_state_pb2.PHONE_LOCATION_VAGUE,
    "denied": phone_state_pb2.PHONE_LOCATION_DENIED,
    "unavailable": phone_state_pb2.PHONE_LOCATION_UNAVAILABLE,
}
SCREENS = {"open": phone_state_pb2.PHONE_SCREEN_OPEN, "hidden": phone_state_pb2.PHONE_SCREEN_HIDDEN}


class PhoneHealth(NamedTuple):
    """An app's statement about its phone."""

    location: phone_state_pb2.PhoneLocation.ValueType
    screen: phone_state_pb2.PhoneScreen.ValueType
    age_s: int
    """How long ago this state began, seconds. The phone's clock may be wrong, so it sends no time."""


def parse_health(content: Any) -> PhoneHealth:
    """Parses an app's statement. Raises InvalidField."""
    location, screen = LOCATIONS.get(text_of(content, "location")), SCREENS.get(text_of(content, "screen"))
    if location is None:
        raise InvalidField("location", f"must be one of {', '.join(LOCATIONS)}")
    if screen is None:
        raise InvalidField("screen", f"must be one of {', '.join(SCREENS)}")
    age_s = content.get("age_s")
    if not isinstance(age_s, int) or isinstance(age_s, bool) or not 0 <= age_s <= MAX_AGE_S:
        raise InvalidField("age_s", f"must be whole seconds from 0 to {MAX_AGE_S}")
    return PhoneHealth(location, screen, age_s)


class HealthPages:
    """The route of a phone's own state: of the phone's own device, and of nobody else's."""

    def __init__(self, guard: PhoneGuard, mesh: FieldMesh) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> Iterable[web.RouteDef]:
        """The route of the state."""
        return (self._guard.post("/api/health", self._health),)

    async def _health(self, ask: PhoneCall) -> web.Response:
        health = parse_health(ask.content)
        await self._mesh.phone_states.ReportPhoneState(
            phone_state_pb2.ReportPhoneStateRequest(
                device_id=ask.session.device_id,
                location=health.location,
                screen=health.screen,
                age_s=health.age_s,
            ),
            metadata=self._mesh.to_police,
            timeout=WITHIN_S,
        )
        return web.json_response({})


class AfterwardsPages:
    """The route of the summaries: of the incidents of which the phone's own device was notified."""

    def __init__(self, guard: PhoneGuard, mesh: FieldMesh) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> Iterable[web.RouteDef]:
        """The route of the summaries."""
        return (self._guard.get("/api/afterwards", self._afterwards),)

    async def _afterwards(self, ask: PhoneCall) -> web.Response:
        listed = await self._mesh.afterwards.at_warning.ListNotifiedIncidents(
            afterwards_pb2.ListNotifiedIncidentsRequest(device_id=ask.session.device_id),
            metadata=self._mesh.to_warning,
            timeout=WITHIN_S,
        )
        found = [await self._summary(notified, ask.session) for notified in listed.incidents]
        return web.json_response({"summaries": [summary for summary in found if summary is not None]})

    async def _summary(self, notified: afterwards_pb2.NotifiedIncident, session: PhoneSession) -> dict[str, Any] | None:
        """The summary of an incident; None if there is none, or if the device was another person's at that time."""
        if notified.person_id != session.person_id:
            return None
        try:
            summary = await self._mesh.afterwards.at_police.ReadSummary(
                afterwards_pb2.ReadSummaryRequest(
                    incident_id=notified.incident_id, order_id=notified.order_id, person_id=notified.person_id
                ),
                metadata=self._mesh.to_police,
                timeout=WITHIN_S,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return {
            "began_ms": times.from_timestamp(summary.began_at),
            "sent_ms": times.from_timestamp(summary.sent_at) if summary.HasField("sent_at") else None,
            "arrived_ms": times.from_timestamp(summary.arrived_at) if summary.HasField("arrived_at") else None,
            "ended_ms": times.from_timestamp(summary.ended_at),
        }
