"""The app's files, and what her phone asks and sends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
from aiohttp import web

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.field.domain import reports
from services.field.domain.reports import PhoneReport, ReportAnswer, ReportOutcome
from services.field.guard import PhoneCall, PhoneGuard, text_of
from services.field.mesh import NO_ANSWER, WITHIN_S, FieldMesh
from services.field.metrics import FieldMetrics
from services.field.notices import NoticeNews
from services.field.phones import proof
from services.field.phones.known import KnownPhones
from services.field.phones.sessions import PhoneSession
from services.field.push.pages import PushPages
from services.field.push.store import PushAddresses
from services.field.push.waking import digest_of
from services.field.refusals import refusal_of_code
from tandem.dispatch.v1 import phone_notice_pb2
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
_TOP = ("index.html", "service-worker.js", "manifest.webmanifest")
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
    ) -> None:
        self._guard, self._mesh, self._known, self._news = guard, mesh, known, news
        self._addresses, self._push, self._metrics = addresses, push, metrics
        # Small, and the same for everybody, so that even the app's name on a shared network says nothing of her. They are read once:
        # all threads of the process may be waiting for the names of push services.
        self._files = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in _TYPES}

    def routes(self) -> Iterable[web.RouteDef]:
        """The routes of the app. Any other path is 404."""
        guard = self._guard
        return (
            guard.open_get("/", self._file),
            *(guard.open_get(f"/{name}", self._file) for name in _TOP),
            guard.open_get("/static/{name}", self._file),
            guard.enrolling("/api/enrol", self._enrol),
            # ingest checks the token of each report, and a long read checks it at each reading. Anybody may leave.
            guard.post("/api/reports", self._reports, checks_token=False),
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
        proof.public_key(key)
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
        sent = reports.parse(ask.content)
        lane, session, no_answer = asyncio.Semaphore(REPORT_CONCURRENCY), ask.session, asyncio.Event()

        async def send(report: PhoneReport) -> ReportAnswer:
            async with lane:
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
                "interval_s": reports.interval_s(commands),
                "position_now": reports.wants_position_now(commands),
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
        notices = [
            {
                "id": notice.notice_id,
                "text": notice.text,
                "language": notice.language,
                "sent_ms": times.from_timestamp(notice.sent_at),
                "expires_ms": times.from_timestamp(notice.expires_at),
                "is_over": notice.is_over,
            }
            for notice in listed.notices
        ]
        return {"notices": notices, "digest": digest_of(notices), "away": bool(self._news.away)}

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


def _result(report: PhoneReport, answer: ReportAnswer) -> dict[str, Any]:
    outcome = ReportOutcome.LATER if answer.outcome is ReportOutcome.UNKNOWN_PHONE else answer.outcome
    return {
        "id": report.report_id,
        "outcome": outcome.value,
        "field": answer.field,
        "reason": answer.reason,
        "retry_after_s": answer.retry_after_s,
    }
