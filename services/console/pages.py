"""The pages: each asks the mesh as the user who asks it, and shows what that user's role may see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import grpc
import grpc.aio
from aiohttp import web

from services.common import fields
from services.common.errors import InvalidField
from services.common.grounds import LEGAL_BASES, Kind
from services.common.rpc import UNARY_DEADLINE_S
from services.common.telemetry import logger
from services.console import assets, translate, translate_evidence
from services.console.domain import board, explaining, figures, waterfall
from services.console.domain.board import Incident
from services.console.domain.figures import Question
from services.console.domain.people import DESKS, EVERYBODY, LOOKERS, Role
from services.console.guard import LANGUAGE_COOKIE, Ask, Guard
from services.console.live import Feed
from services.console.mesh import Mesh
from services.console.settings import ConsoleSettings
from services.console.signing_in import SigningIn
from services.console.texts import LANGUAGES
from tandem.dispatch.v1 import dispatch_pb2, evidence_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import disclosure_pb2, review_pb2, trace_pb2

SEARCHED_MOST = 5_000
PAGE_SIZE = 1_000
_NO_TRACE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
PURPOSES = ("ENFORCEMENT", "AUDIT", "COURT")
DISTURBED = ("SILENT", "JAMMED", "DEVICE_OFF", "TAMPERED", "PROTECTED_DEVICE_LOST", "IMPLAUSIBLE", "LOW_BATTERY")


class Pages:
    """All of them."""

    def __init__(self, settings: ConsoleSettings, guard: Guard, mesh: Mesh, feeds: Mapping[Role, Feed]) -> None:
        self._settings, self._guard, self._mesh, self._feeds = settings, guard, mesh, feeds
        self._signing_in = SigningIn(settings, guard)

    def routes(self) -> list[web.RouteDef]:
        """The whole of what is served, and for whom."""
        guard = self._guard
        return [
            guard.open_get("/static/{name}", assets.static),
            *self._signing_in.routes(),
            guard.open_post("/language", self.language),
            guard.get("/", EVERYBODY, self.live),
            guard.get("/stream", LOOKERS, self.stream),
            guard.post("/acknowledge", DESKS, self.acknowledge),
            guard.get("/incidents/{id}", LOOKERS, self.incident),
            guard.post("/incidents/{id}", LOOKERS, self.evidence),
            guard.post("/incidents/{id}/download", LOOKERS, self.download),
            guard.get("/search", LOOKERS, self.search),
            guard.get("/reviews", DESKS, self.reviews),
            guard.post("/reviews", DESKS, self.decide),
            guard.get("/devices", EVERYBODY, self.devices),
        ]

    async def language(self, ask: Ask) -> web.StreamResponse:
        """The other language."""
        other = LANGUAGES[1 - LANGUAGES.index(ask.texts.language)]
        back = ask.form.get("back", "/")
        safe = back if back.startswith("/") and not back.startswith("//") and "\\" not in back else "/"
        response = web.Response(status=303, headers={"Location": safe})
        response.set_cookie(LANGUAGE_COOKIE, other, httponly=True, samesite="Strict", max_age=365 * 86_400)
        return response

    # ── live ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def live(self, ask: Ask) -> web.StreamResponse:
        """The live page; operators begin with devices."""
        if ask.user.role not in LOOKERS:
            raise web.HTTPSeeOther("/devices")
        page = {**self._island(ask), "leg": ask.user.leg if ask.user.role in DESKS else ""}
        return assets.page(ask, "live.html", page=page)

    async def stream(self, ask: Ask) -> web.StreamResponse:
        """Changes of the live page as server-sent events; a browser that comes back names the last one it has seen."""
        feed = self._feeds[ask.user.role]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self._guard.protect(response)
        await response.prepare(ask.request)
        with feed.viewed():
            async for id_, message in feed.changes(ask.request.headers.get("Last-Event-ID", "")):
                text = json.dumps(message, separators=(",", ":"))
                await response.write(f"id: {id_}\ndata: {text}\n\n".encode())
        return response

    async def acknowledge(self, ask: Ask) -> web.StreamResponse:
        """The user takes an assignment of their own leg, by their own name."""
        try:
            id_ = fields.required_id("assignment", ask.form.get("assignment", ""))
            offer = int(ask.form.get("offer", "0"))
        except (InvalidField, ValueError) as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        request = dispatch_pb2.AcknowledgeRequest(assignment_id=id_, offer_number=max(offer, 0))
        answer = await self._mesh.legs[ask.user.leg].dispatch.Acknowledge(
            request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
        )
        if back := ask.form.get("back"):
            raise web.HTTPSeeOther(f"/incidents/{_incident_id(back)}")
        return web.json_response({"state": translate.assignment(answer.assignment).state})

    # ── one incident ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def incident(self, ask: Ask) -> web.StreamResponse:
        """Header, both legs, trace, ledger; no positions."""
        return await self._incident_page(ask, None)

    async def evidence(self, ask: Ask) -> web.StreamResponse:
        """The same with the replay and the decision, on grounds, which the leg writes down before it answers."""
        incident_id = _incident_id(ask.request.match_info["id"])
        request = evidence_pb2.ReadEvidenceRequest(incident_id=incident_id, grounds=_grounds(ask, incident_id))
        answer = await self._mesh.legs[ask.user.leg].evidence.ReadEvidence(
            request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
        )
        return await self._incident_page(ask, answer)

    async def download(self, ask: Ask) -> web.StreamResponse:
        """The leg's copy of the evidence as a file."""
        incident_id = _incident_id(ask.request.match_info["id"])
        request = evidence_pb2.DownloadEvidenceRequest(incident_id=incident_id, grounds=_grounds(ask, incident_id))
        parts = self._mesh.legs[ask.user.leg].evidence.DownloadEvidence(request, metadata=self._mesh.identity(ask.user))
        data = [part.data async for part in parts]  # whole, so that what is refused is told as such
        name = f"{incident_id}-{ask.user.leg}.jsonl"
        return web.Response(
            body=b"".join(data),
            headers={
                "Content-Type": "application/x-ndjson",
                "Content-Disposition": f'attachment; filename="{name}"',
            },
        )

    async def _incident_page(self, ask: Ask, found: evidence_pb2.ReadEvidenceResponse | None) -> web.StreamResponse:
        incident_id = _incident_id(ask.request.match_info["id"])
        one = await self._read_incident(ask, incident_id)
        page: dict[str, Any] = self._island(ask)
        trace = await self._read_trace(ask, incident_id)
        spans = translate.spans(trace) if trace else []
        decisions: list[dict[str, Any]] = []
        if found is not None:
            page["replay"] = translate_evidence.replay(found)
            page["steps"] = [
                {"leg": to.leg, "subject": to.subject_id, "offered": to.offered_ms, "taken": to.acknowledged_ms}
                for to in one.assignments
            ]
            tracks = translate_evidence.tracks(found)
            for alert in translate_evidence.alerts(found):
                alert["sides"] = explaining.sides(tracks, alert["sequence"], alert["decided"])
                decisions.append(alert)
        return assets.page(
            ask,
            "incident.html",
            page=page,
            one=one,
            told=board.told(one),
            level=board.rank(one)[0],
            legs={leg: sorted(one.of(leg), key=lambda to: to.subject_id) for leg in board.LEGS},
            unanswered=board.UNANSWERED,
            own_leg=ask.user.leg if ask.user.role in DESKS else "",
            steps={leg: waterfall.steps(spans, leg) for leg in board.LEGS},
            rows=waterfall.rows(spans, trace.trace_id) if trace else [],
            premises=waterfall.premises(spans, trace.trace_id) if trace else [],
            subjects={to.assignment_id: to.subject_id for to in one.assignments},
            is_cut=trace.is_cut if trace else False,
            uses=waterfall.uses(spans),
            evidence=found,
            rules=translate_evidence.rules(found) if found is not None else {},
            decisions=decisions,
            bases=_bases(ask.user.role),
            purposes=PURPOSES,
            chosen=ask.form,
        )

    async def _read_trace(self, ask: Ask, incident_id: str) -> trace_pb2.GetTraceResponse | None:
        """The trace as far as the user may see it; None while there is none. The page shows the rest without the registry."""
        try:
            return await self._mesh.traces.GetTrace(
                trace_pb2.GetTraceRequest(incident_id=incident_id),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() not in _NO_TRACE:
                raise
            logger().info("no_trace", incident_id=incident_id, code=error.code().name)
            return None

    async def _read_incident(self, ask: Ask, incident_id: str) -> Incident:
        request = dispatch_pb2.ListIncidentsRequest(incident_id=incident_id)
        answer = await self._mesh.legs[ask.user.leg].dispatch.ListIncidents(
            request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
        )
        if not answer.incidents:
            raise web.HTTPNotFound(text="404: this leg knows no such incident")
        return translate.incident(answer.incidents[0])

    # ── search ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def search(self, ask: Ask) -> web.StreamResponse:
        """Incidents by time, office, cause and outcome, and what they amount to."""
        query = ask.request.query
        question = Question(
            _local_ms(query.get("from", "")),
            _local_ms(query.get("until", "")),
            query.get("text", "").strip(),
            query.get("cause", ""),
            query.get("outcome", ""),
            query.get("office", ""),
        )
        known, is_cut = await self._all_incidents(ask)
        found = figures.matching(known, question)
        counted = figures.in_earnest(found)
        closings = figures.closings(counted)
        return assets.page(
            ask,
            "search.html",
            query=query,
            found=[(one, board.told(one)) for one in found[:200]],
            count=len(found),
            is_cut=is_cut,
            legs=figures.legs(counted),
            percentiles=figures.PERCENTILES,
            causes=figures.causes(counted),
            closings=closings,
            false_share=figures.false_share(closings),
            known_causes=sorted({to.kind for one in known for to in one.assignments if to.kind}),
            known_outcomes=sorted({to.close_cause for one in known for to in one.assignments if to.close_cause}),
            offices=sorted({to.office_id for one in known for to in one.assignments if to.office_id}),
            leg_names=board.LEGS,
            leg_state=board.leg_state,
        )

    async def _all_incidents(self, ask: Ask) -> tuple[list[Incident], bool]:
        found: list[Incident] = []
        token = ""
        while len(found) < SEARCHED_MOST:
            request = dispatch_pb2.ListIncidentsRequest(page_size=PAGE_SIZE, page_token=token)
            answer = await self._mesh.legs[ask.user.leg].dispatch.ListIncidents(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
            found += [translate.incident(one) for one in answer.incidents]
            token = answer.next_page_token
            if not token:
                return found, False
            await asyncio.sleep(0)
        return found, True

    # ── reviews, devices ─────────────────────────────────────────────────────────────────────────────────────────────

    async def reviews(self, ask: Ask) -> web.StreamResponse:
        """Matches that a person must look at."""
        answer = await self._mesh.registry.ListReviews(
            review_pb2.ListReviewsRequest(), metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
        )
        found = [(one, one.evidence.hex(), translate.moment(one, "since")) for one in answer.reviews]
        return assets.page(ask, "reviews.html", found=found)

    async def decide(self, ask: Ask) -> web.StreamResponse:
        """A person's word on a match, on the evidence that they saw."""
        decisions = {"confirm": review_pb2.DECISION_CONFIRM, "reject": review_pb2.DECISION_REJECT}
        try:
            request = review_pb2.DecideReviewRequest(
                case_id=ask.form.get("case", ""),
                decision=decisions[ask.form.get("decision", "")],
                reason=ask.form.get("reason", ""),
                evidence=bytes.fromhex(ask.form.get("evidence", "")),
            )
        except (KeyError, ValueError):
            raise web.HTTPBadRequest(text="400: decision must be confirm or reject, evidence hex digits") from None
        await self._mesh.registry.DecideReview(
            request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
        )
        raise web.HTTPSeeOther("/reviews")

    async def devices(self, ask: Ask) -> web.StreamResponse:
        """Refused reports for operators; notices of silent and disturbed devices for the others."""
        refused: list[dict[str, Any]] | None = None
        if ask.user.role is Role.OPERATOR:
            answer = await self._mesh.ingest.ListQuarantine(
                ingest_pb2.ListQuarantineRequest(),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
            refused = [
                {
                    "device": one.device_id,
                    "sender": one.sender,
                    "code": ingest_pb2.RefusalCode.Name(one.code),
                    "count": one.count,
                    "last": translate.moment(one, "last"),
                }
                for one in answer.quarantined
            ]
        feed = self._feeds.get(ask.user.role)
        notices = [one for one in feed.alerts() if one["kind"] in DISTURBED] if feed else None
        return assets.page(ask, "devices.html", refused=refused, notices=notices)

    def _island(self, ask: Ask) -> dict[str, Any]:
        return {
            "csrf": ask.csrf,
            "role": ask.user.role.value,
            "texts": ask.texts.island(),
            "tiles": self._settings.tiles or "/static/korea.pmtiles",
            "language": ask.texts.language,
        }


def _incident_id(text: str) -> str:
    try:
        return fields.required_id("incident", text)
    except InvalidField as error:
        raise web.HTTPBadRequest(text=f"400: {error}") from None


def _grounds(ask: Ask, incident_id: str) -> disclosure_pb2.Grounds:
    """What the user gave; whether it opens anything, the leg says."""
    name = f"PURPOSE_{ask.form.get('purpose', '')}"
    purposes = disclosure_pb2.Purpose
    purpose = purposes.Value(name) if name in purposes.keys() else purposes.PURPOSE_UNSPECIFIED  # noqa: SIM118
    return disclosure_pb2.Grounds(legal_basis=ask.form.get("legal_basis", ""), purpose=purpose, reference=incident_id)


def _bases(role: Role) -> list[tuple[str, str]]:
    """Articles that open what the role's leg has copied."""
    needed = {Kind.WEARER} if role is Role.PROBATION else {Kind.WEARER, Kind.PROTECTED_PERSON}
    return [(one.code, one.article) for one in LEGAL_BASES if needed <= one.kinds]


def _local_ms(text: str) -> int | None:
    """A form's local time, such as 2026-03-02T10:00, Korea's; None where it is empty. Raises HTTPBadRequest."""
    if not text:
        return None
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=assets.KOREA).timestamp() * 1000)
    except ValueError:
        raise web.HTTPBadRequest(text="400: a time must be such as 2026-03-02T10:00") from None
